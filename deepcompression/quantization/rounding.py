"""Rounding to fewer bits: an evenly spaced grid, narrower floating-point types, and what either does to a tensor."""

from __future__ import annotations

import torch
from torch import Tensor

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INT8 = "int8"
RELATIVE = 0.05  # the largest relative error that is neither avoided nor told
VANISHED = 0.125  # the largest part of a vector's values that may become zero
EPSILON = 1e-5  # BatchNorm's, beside which a smaller variance does not count


def rounded(tensor: Tensor, precision: str) -> tuple[Tensor, str]:
    """The tensor, in its own dtype, at ``int8`` or a floating-point precision; and why it must not be, or nothing."""
    if precision != INT8:
        target = PRECISIONS[precision]
        after = tensor.to(target).to(tensor.dtype)
        return after, _harm(tensor, after, target)
    if tensor.dtype != torch.float32:
        return tensor, f"int8 is for float32, it is {str(tensor.dtype).removeprefix('torch.')}"
    if not bool(torch.isfinite(tensor).all()):
        return tensor, "a value is NaN or infinite"
    return on_grid(tensor), ""


def on_grid(tensor: Tensor) -> Tensor:
    """The nearest multiples of a 127th of the largest magnitude; zeros stay, and +0.0 is what rounds to zero."""
    scale = tensor.abs().max() / 127 if tensor.numel() else tensor.new_ones(())
    integers = torch.round(tensor / scale) if bool(scale > 0) else torch.zeros_like(tensor)
    return torch.where(integers == 0, torch.zeros_like(tensor), integers * scale)


def narrows(tensor: Tensor, precision: str) -> bool:
    """Whether a floating-point precision has fewer bits than the tensor; float64 is never narrowed."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return False
    return torch.finfo(PRECISIONS[precision]).bits < torch.finfo(tensor.dtype).bits


def lost_ratio(before: Tensor, after: Tensor, variance: Tensor | None = None) -> str:
    """What rounding did to a tensor that is used by ratio, where a value is more than a twentieth off; else nothing.

    A mean is used in parts of its standard deviation. Values of one sign (variances, scales, an epsilon) divide or
    multiply others: each is used in parts of itself, however small beside the largest. Zeros of before do not count.

    Args:
        before: finite values, any shape.
        after: the same, rounded.
        variance: that belongs to ``before``, where this is a mean.
    """
    gap = (after.double() - before.double()).abs()
    if variance is not None and variance.shape == before.shape:
        error = _largest(gap / (variance.double().clamp(min=0) + EPSILON).sqrt())
        return f"a mean would be off by {error:.2g} standard deviations" if error > RELATIVE else ""
    if bool((before > 0).any()) == bool((before < 0).any()):
        return ""
    alive = before != 0
    magnitudes = before[alive].double().abs()
    error = _largest(gap[alive] / magnitudes)
    spread = f"which have one sign and go from {float(magnitudes.min()):.3g} to {float(magnitudes.max()):.3g}"
    return f"one of its values, {spread}, would change by {error:.0%}" if error > RELATIVE else ""


def lost_values(before: Tensor, after: Tensor) -> str:
    """What rounding did to the small ones among values, where more than an eighth of them became zero; else nothing."""
    alive = int((before != 0).sum())
    gone = int(((before != 0) & (after == 0)).sum())
    return f"{gone:,} of its {alive:,} values would become zero" if gone > VANISHED * alive else ""


def lost_sum(before: Tensor, after: Tensor) -> str:
    """Root mean square error over root mean square, where it is more than a twentieth; else nothing."""
    norm = float(before.double().norm())
    error = float((after.double() - before.double()).norm()) / norm if norm else 0.0
    return f"it is changed by {error:.0%} (root mean square)" if error > RELATIVE else ""


def _largest(errors: Tensor) -> float:
    return float(errors.max()) if errors.numel() else 0.0


def _harm(before: Tensor, after: Tensor, target: torch.dtype) -> str:
    """What rounding would do to a value that it must not do; empty if nothing."""
    finite = torch.isfinite(before)
    if bool((finite & ~torch.isfinite(after)).any()):
        return f"a value would overflow in {str(target).removeprefix('torch.')}"
    tiny = torch.finfo(target).smallest_normal
    if bool((finite & (before != 0) & (after.abs() < tiny)).any()):
        return f"a value would become zero or subnormal in {str(target).removeprefix('torch.')}"
    return ""
