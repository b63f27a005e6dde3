"""``{"kind": "binary", "sites": [...], "values": ..., "shape": [...]}``: values that become one of two.

``values`` is ``signs`` (-1 below 0, else 1) or ``scaled`` (a scale above a threshold, else 0). The scale, one number,
and the threshold, of ``shape``, are tensors of the state_dict below the module's own name, such as
``conv1.input_0_scale`` and ``conv1.input_0_threshold``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from deepcompression.network.edits.quantize_values import After, Before, Quantizer, install, sites_of
from deepcompression.network.edits.record import Record, check_keys, misfit, text, whole
from deepcompression.network.names import join

SIGNS, SCALED = "signs", "scaled"
MOST_DIMENSIONS, MOST_CHANNELS = 8, 1 << 24


def signs(value: Tensor) -> Tensor:
    """-1 where ``value`` is below 0, else 1 (so for 0 of either sign), NaN where it is NaN; in its shape and dtype.

    Gradients pass where its magnitude is at most 1 (Rastegari et al. 2016, arXiv 1603.05279, section 3.1).
    """
    slope = value.clamp(-1, 1)
    return torch.where(value.detach() < 0, -1.0, 1.0).to(value.dtype) + (slope - slope.detach())


def scaled(value: Tensor, scale: Tensor, threshold: Tensor, part: Tensor | None = None) -> Tensor:
    """``scale`` where ``value`` is above ``threshold``, else 0; in the value's shape and dtype.

    The gradients are those of NNCF 2.5's binarization: the value's passes from 0 to the scale, the scale's is
    (output - value) / scale up to there and 1 above, that of ``part`` is -1 between 0 and the scale.

    Args:
        value: floats, any shape.
        scale: 0-dim, above 0.
        threshold: broadcasts against the value; gets no gradient.
        part: of the scale that the threshold is, in the threshold's shape; gets its gradient.
    """
    call = cast(Any, _Scaled).apply  # autograd functions have no types
    made: Tensor = call(value, scale, threshold.detach(), threshold if part is None else part)
    return made


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, scale: Tensor, threshold: Tensor, part: Tensor) -> Tensor:
        output = torch.where(value > threshold, scale, torch.zeros_like(scale)).to(value.dtype)
        ctx.save_for_backward(value, scale, output)
        ctx.shape = part.shape
        return torch.where(value.isnan(), value, output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, Tensor | None]:
        value, scale, output = ctx.saved_tensors
        below = value <= scale
        inner = gradient * (below & (value >= 0))
        of_scale = of_part = None
        if ctx.needs_input_grad[1]:
            of_scale = (gradient * torch.where(below, (output - value) / scale, 1.0)).sum().to(scale.dtype)
        if ctx.needs_input_grad[3]:
            of_part = (-gradient * ((value > 0) & (value < scale))).sum_to_size(ctx.shape).to(scale.dtype)
        return inner, of_scale, None, of_part


@dataclass(frozen=True)
class Binarizer(Quantizer):
    """By two values."""

    kind = "binary"
    values: str

    def changed(self, module: nn.Module, value: Tensor) -> Tensor:
        """One of two for each."""
        return signs(value) if self.values == SIGNS else scaled(value, *self._tensors(module))

    def beyond(self, module: nn.Module, value: Tensor) -> tuple[int, int]:
        """How many are larger in magnitude than what they become."""
        most = torch.ones(()) if self.values == SIGNS else self._tensors(module)[0]
        return int((value.detach().abs() > most.to(value.device)).sum()), value.numel()

    def _tensors(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        return getattr(module, self.site.tensor("scale")), getattr(module, self.site.tensor("threshold"))


@dataclass(frozen=True)
class InputBinarizer(Before, Binarizer):
    """Before a forward."""


@dataclass(frozen=True)
class OutputBinarizer(After, Binarizer):
    """After a forward."""


def apply(model: nn.Module, record: Record) -> None:
    """Register hooks, and the tensors that they read, at each site.

    Raises:
        EditError: no such module, a module that is never called as one, no known values, or an impossible shape.
    """
    tensors = _tensors(record)
    hooks, sites = {"input": InputBinarizer, "output": OutputBinarizer}, sites_of(record)
    for site in sites:
        if site.side not in hooks:
            raise misfit(record, f"a site is module:input[i] or module:output[i], not {site}"[:200])
    install(model, record, [hooks[site.side](site, record["values"]) for site in sites], tensors)


def check_values(model: nn.Module, record: Record, state: Mapping[str, Tensor]) -> None:
    """Raise EditError where a scale in ``state`` is not finite and above 0, or a threshold is not finite.

    Args:
        model: with the edit applied.
        record: of the edit.
        state: tensors that are to be loaded.

    Raises:
        EditError: the first such site.
    """
    for site in sites_of(record):
        scale, threshold = (state.get(join(site.module, site.tensor(what))) for what in ("scale", "threshold"))
        if scale is not None and not bool((scale.isfinite() & (scale > 0)).all()):
            raise misfit(record, f"the scale of {site} must be finite and above 0, not {scale.tolist()}"[:200])
        if threshold is not None and not bool(threshold.isfinite().all()):
            raise misfit(record, f"a threshold of {site} is not finite")


def state_names(record: Record) -> list[str]:
    """What the tensors are called that a record has in the state_dict.

    Args:
        record: of the edit.

    Raises:
        EditError: it is not of this kind.
    """
    return [join(site.module, site.tensor(what)) for site in sites_of(record) for what in _tensors(record)]


def _tensors(record: Record) -> dict[str, Tensor]:
    """What the state_dict has of a record, by what it is; values come from there."""
    check_keys(record, "sites", "values", "shape")
    shape, kind = _shape(record), text(record, "values")
    if kind == SIGNS and not shape:
        return {"edit": torch.zeros((), dtype=torch.uint8)}
    if kind == SIGNS:
        raise misfit(record, f"signs have no threshold: shape is [], not {shape}")
    if kind != SCALED:
        raise misfit(record, f"values is one of {SIGNS}, {SCALED}, not {kind!r}"[:200])
    return {"scale": torch.ones(()), "threshold": torch.zeros(shape)}


def _shape(record: Record) -> list[int]:
    given = record["shape"]
    if not isinstance(given, list | tuple) or len(given) > MOST_DIMENSIONS:
        raise misfit(record, f"shape is a list of at most {MOST_DIMENSIONS} sizes, not {given!r}"[:200])
    sizes = [whole(record, "a size of shape", size) for size in given]
    if sum(size > 1 for size in sizes) > 1 or max(sizes, default=1) > MOST_CHANNELS:
        raise misfit(record, f"shape is 1 but for channels, of which there are at most {MOST_CHANNELS}: {sizes}"[:200])
    return sizes
