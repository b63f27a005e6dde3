"""Values that a model rounds, as marks in the graph that PyTorch's exporter makes of it.

While the model is traced its hooks do not round: each leaves one node where it was called. So a mark is at the right
value, also of a layer that is called twice and of an operation that is no module, and the graph is that of the float
model; what a mark becomes, and where, is decided there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import ExportError
from deepcompression.network.edits.integers import levels
from deepcompression.network.edits.quantize_values import After, Before, OnGrid, Quantizer, quantizers

DOMAIN = "deepcompression"
MARK = "Grid"


@dataclass(frozen=True)
class Grid:
    """What a mark says: integers ``low`` to ``high`` with one scale and zero point; or a range by the values of each
    call (``dynamic``, ``dynamic_row``, ``dynamic_token``), where integers below 0 mean a symmetric one.
    """

    range: str
    low: int
    high: int
    scale: float = 1.0
    zero: int = 0

    @property
    def static(self) -> bool:
        """Whether scale and zero point are known."""
        return self.range == "static"

    @property
    def bits(self) -> int:
        """Of an integer."""
        return (self.high - self.low).bit_length()


class _Marking(Quantizer):
    grid: Grid
    target: str

    def changed(self, module: nn.Module, value: Tensor) -> Tensor:
        """The value, marked."""
        if value.dtype != torch.float32:
            raise ExportError(f"export {self.target}: {self.site} is rounded as {value.dtype}, expected torch.float32")
        told = {"site": str(self.site), **vars(self.grid)}
        marked: Tensor = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{MARK}", (value,), told, dtype=value.dtype, shape=value.shape
        )
        return marked


@dataclass(frozen=True)
class _MarkedInput(_Marking, Before):
    grid: Grid
    target: str
    kind = "quantize_values"


@dataclass(frozen=True)
class _MarkedOutput(_Marking, After):
    grid: Grid
    target: str
    kind = "quantize_values"


@contextlib.contextmanager
def marked(model: nn.Module, target: str) -> Iterator[None]:
    """The model's hooks mark values instead of rounding them, while the block runs.

    Args:
        model: with its hooks.
        target: its word, for errors.
    """
    held: list[tuple[Any, int, OnGrid]] = []
    for module in model.modules():
        hooks: list[Any] = [module._forward_pre_hooks, module._forward_hooks]
        for some in hooks:
            held.extend((some, key, hook) for key, hook in some.items() if isinstance(hook, OnGrid))
            some.update({key: _mark(module, hook, target) for key, hook in some.items() if isinstance(hook, OnGrid)})
    try:
        yield
    finally:
        for some, key, hook in held:
            some[key] = hook


def rounds(model: nn.Module) -> bool:
    """Whether it rounds values at all."""
    return any(quantizers(module) for module in model.modules())


def _mark(module: nn.Module, hook: OnGrid, target: str) -> Quantizer:
    low, high = levels(hook.bits, hook.scheme)
    grid = Grid(hook.range, low, high)
    if hook.range == "static":
        scale, zero = (getattr(module, hook.site.tensor(what), 0) for what in ("scale", "zero_point"))
        grid = Grid("static", low, high, float(scale), int(zero))
    return (_MarkedInput if isinstance(hook, Before) else _MarkedOutput)(hook.site, grid, target)


def grid_of(node: Any) -> Grid:
    """What a mark in the graph says."""
    found = {name: node.attributes[name].value for name in ("range", "low", "high", "scale", "zero")}
    return Grid(**found)
