"""Precision of codebooks and the rest; ``finetune`` with sharing held trains the centroids before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.problem import Compute, Problem, evaluate
from deepcompression.structure import normalised, plain_state, replaced

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INT8 = "int8"
BY_EFFECT = (INT8, "bfloat16", "float16")  # from the fewest bytes on
AUTO = "auto"
IN_RANGE = ("float16", "bfloat16")  # what auto tries: the first is more exact, the second has the range of float32
TOLERANCE = 1e-3
RELATIVE = 0.05  # the largest relative error of a grid that is not told or avoided


@dataclass(frozen=True)
class Rounded:
    """A rounded state_dict.

    ``kept``: why tensors stayed; ``merged``: how many centroids became equal; ``instead``: which tensors got another
    precision than the one asked for, and why; ``coarse``: which ones rounding changed much, and how much.
    """

    state: dict[str, Tensor]
    kept: dict[str, str]
    merged: dict[str, int]
    instead: dict[str, str] = field(default_factory=dict)
    coarse: dict[str, str] = field(default_factory=dict)


def round_precision(
    state: Mapping[str, Tensor],
    *,
    shared: Iterable[str] = (),
    codebook: str = "float32",
    rest: str = "float32",
) -> Rounded:
    """``state`` with values that a narrower type holds exactly; tensors keep their own dtype.

    The file then stores them at that precision. Rounding to a floating-point type never makes a value non-finite, zero
    or subnormal: such a tensor stays as it is. int8 is an evenly spaced grid, whose error is a part of the *largest*
    value. A tensor without values of both signs (variances, scales, an epsilon) is used by ratio: where the grid would
    change one of its values by more than a twentieth, small ones to zero, it is rounded to float16 instead (bfloat16
    where that has not the range). Zeros and infinities are no matter of ratio. Other tensors (weights, biases) are used
    by sum, where what becomes zero was small beside the rest; if all in all one changes by more than a twentieth (root
    mean square error to root mean square), ``coarse`` says so.

    Args:
        state: tensors by name; not changed. Integers and float64 stay.
        shared: tensors whose values are centroids.
        codebook: float32, float16 or bfloat16, for the shared tensors; or auto: float16, bfloat16 where that has not
            the range.
        rest: float32, float16 or bfloat16, for every other float32 (or narrower) tensor; or int8: multiples of a
            127th of the largest magnitude, which the file stores as integers and a scale; for float32 alone.

    Raises:
        StructureError: an unknown precision, a shared tensor that is missing or not finite.
    """
    for precision, known in ((codebook, [*PRECISIONS, AUTO]), (rest, [*PRECISIONS, INT8])):
        if precision not in known:
            raise StructureError(f"quantize: precision {precision!r}; expected one of {', '.join(known)}")
    shared = list(shared)
    clean, kept, merged = normalised(state, shared), {}, {}
    instead: dict[str, str] = {}
    coarse: dict[str, str] = {}
    books = {id(clean[name]) for name in shared}  # by object: tied names are one codebook
    changed = {}
    for name, tensor in clean.items():
        wanted = codebook if id(tensor) in books else rest
        if wanted != "float32" and tensor.dtype == torch.float64:
            kept[name] = "float64 is not rounded"
        elif wanted == INT8 and tensor.is_floating_point():
            if tensor.dtype != torch.float32:
                kept[name] = f"int8 is for float32, it is {str(tensor.dtype).removeprefix('torch.')}"
            elif not bool(torch.isfinite(tensor).all()):
                kept[name] = "a value is NaN or infinite"
            elif error := _ratio_error(tensor):
                changed[name], instead[name] = _by_ratio(tensor, error)
            else:
                changed[name] = on_grid(tensor)
                coarse[name] = _coarse(tensor, changed[name])
        if wanted == INT8:
            continue
        targets = [PRECISIONS[one] for one in (IN_RANGE if wanted == AUTO else (wanted,))]
        if not _narrows(tensor, targets[0]):
            continue
        rounded, reason = _rounded(tensor, targets)
        if reason:
            kept[name] = reason
        else:
            changed[name] = rounded
        if name in shared and not reason:
            merged[name] = len(torch.unique(tensor)) - len(torch.unique(rounded))
    return Rounded(
        replaced(clean, changed), kept, merged, instead, {name: told for name, told in coarse.items() if told}
    )


def _by_ratio(tensor: Tensor, error: float) -> tuple[Tensor, str]:
    """A tensor that its grid would change by too large a ratio, in the first type that keeps ratios; what to say."""
    tries = {one: _rounded(tensor, [PRECISIONS[one]]) for one in IN_RANGE}
    kind = next((one for one, (_, harm) in tries.items() if not harm), "float32")
    magnitudes = tensor[tensor != 0].abs()
    return (
        tries[kind][0] if kind in tries else tensor,
        f"is {kind}: its values have one sign and go from {float(magnitudes.min()):.2g} to "
        f"{float(magnitudes.max()):.2g}, of which int8 would change one by {error:.0%}",
    )


def _ratio_error(tensor: Tensor) -> float:
    """What the grid does to some value of a tensor of one sign, relative to it; 0.0 if little, or of no matter."""
    if bool((tensor > 0).any()) == bool((tensor < 0).any()):
        return 0.0
    alive = tensor[tensor != 0].double()
    error = float((on_grid(tensor)[tensor != 0].double() / alive - 1).abs().max())
    return error if error > RELATIVE else 0.0


def _coarse(before: Tensor, after: Tensor) -> str:
    """Root mean square error over root mean square, said where it is large."""
    norm = float(before.double().norm())
    error = float((after.double() - before.double()).norm()) / norm if norm else 0.0
    return f"is changed by {error:.0%} by int8 (root mean square)" if error > RELATIVE else ""


def on_grid(tensor: Tensor) -> Tensor:
    """The nearest multiples of a 127th of the largest magnitude; zeros stay, and +0.0 is what rounds to zero."""
    scale = tensor.abs().max() / 127 if tensor.numel() else tensor.new_ones(())
    integers = torch.round(tensor / scale) if bool(scale > 0) else torch.zeros_like(tensor)
    return torch.where(integers == 0, torch.zeros_like(tensor), integers * scale)


def round_by_effect(
    model: nn.Module,
    problem: Problem,
    *,
    shared: Iterable[str] = (),
    codebook: str = "float32",
    tolerance: float = TOLERANCE,
    compute: Compute | None = None,
) -> tuple[Rounded, dict[str, str]]:
    """As ``round_precision``, each of the other tensors at the precision of fewest bytes that the model does not feel.

    Tensor by tensor, int8, bfloat16 and float16 are tried, in this order, on all that was rounded before; the first at
    which the loss on validation is at most ``tolerance`` (a fraction) above that before any rounding stays. int8 is
    passed over for a tensor whose ratios it would not keep (``round_precision``), whatever the loss.

    Args:
        model: left with the rounded weights.
        problem: its validation split and step.
        shared: tensors whose values are centroids; they get ``codebook`` first.
        codebook: as of ``round_precision``.
        tolerance: 0 or more.
        compute: where the model is evaluated.

    Returns:
        The rounded state, and each other tensor's precision by name.

    Raises:
        StructureError: as ``round_precision``.
    """
    shared, chosen = set(shared), {}

    def loss() -> float:
        return evaluate(model, problem.validation, problem.step, problem.metric, compute).loss

    most = loss() * (1 + tolerance)
    rounded = round_precision(plain_state(model), shared=shared, codebook=codebook)
    model.load_state_dict(rounded.state)
    state, kept = rounded.state, dict(rounded.kept)
    books = {id(state[name]) for name in shared}
    for name, tensor in list(state.items()):
        if id(tensor) in books or not tensor.is_floating_point() or tensor.dtype == torch.float64:
            continue
        for precision in BY_EFFECT:
            tried = round_precision({name: tensor}, rest=precision)
            trial = replaced(state, {name: tried.state[name]})
            model.load_state_dict(trial)
            if not tried.kept and name not in tried.instead and loss() <= most:
                state, chosen[name] = trial, precision
                break
        else:
            model.load_state_dict(state)
            kept[name] = "its rounding is felt"
    return Rounded(state, kept, rounded.merged), chosen


def _rounded(tensor: Tensor, targets: Sequence[torch.dtype]) -> tuple[Tensor, str]:
    """The tensor in the first of the types that does not harm it; in the last, with the harm, where each does."""
    for target in targets:
        rounded = tensor.to(target).to(tensor.dtype)
        reason = _harm(tensor, rounded, target)
        if not reason:
            break
    return rounded, reason


def _narrows(tensor: Tensor, target: torch.dtype) -> bool:
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return False
    return torch.finfo(target).bits < torch.finfo(tensor.dtype).bits


def _harm(before: Tensor, after: Tensor, target: torch.dtype) -> str:
    """What rounding would do to a value that it must not do; empty if nothing."""
    finite = torch.isfinite(before)
    if bool((finite & ~torch.isfinite(after)).any()):
        return f"a value would overflow in {str(target).removeprefix('torch.')}"
    tiny = torch.finfo(target).smallest_normal
    if bool((finite & (before != 0) & (after.abs() < tiny)).any()):
        return f"a value would become zero or subnormal in {str(target).removeprefix('torch.')}"
    return ""
