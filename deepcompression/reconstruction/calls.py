"""What weights multiply: linear maps, convolutions and tables of vectors seen where a forward calls them, whatever
module they are in."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

CONVOLUTIONS: dict[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
ORDER = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Call:
    """A weight's call: what goes in, and of a convolution how it is laid out (``spatial`` 0: a linear map);
    ``axis``, of the weight's outputs. ``table``: rows (rows, size) are looked up by their numbers."""

    name: str
    value: Tensor
    shape: tuple[int, ...]
    spatial: int = 0
    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    axis: int = 0
    table: bool = False

    def columns(self, value: Tensor) -> Tensor:
        """What each output is a product of: (groups, inputs of an output, places) of some samples of the input."""
        if not self.spatial:
            return value.reshape(-1, value.shape[-1]).T[None]
        kernel = self.shape[2:]
        value = functional.pad(value, [end for ends in reversed(self.padding) for end in ends])
        for axis, (size, step, gap) in enumerate(zip(kernel, self.stride, self.dilation, strict=True), 2):
            value = value.unfold(axis, (size - 1) * gap + 1, step)[..., ::gap]
        axes = range(2, 2 + self.spatial)
        kernels = range(2 + self.spatial, 2 + 2 * self.spatial)
        moved = value.permute(1, *kernels, 0, *axes)  # (in, kernel ..., samples, places ...)
        return moved.reshape(self.groups, self.shape[1] * math.prod(kernel), -1)

    @property
    def batch(self) -> Tensor:
        """The input with an axis of samples."""
        return self.value if not self.spatial or self.value.ndim == self.spatial + 2 else self.value[None]


After = Callable[[Call, Tensor], object]


class Calls(TorchFunctionMode):
    """While it lasts, ``see`` is told of every call of the weights, before it is made.

    Args:
        weights: the tensors themselves, by name.
        see: takes a call.
        after: takes a call and what it gave.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], see: Callable[[Call], object], after: After | None = None
    ) -> None:
        super().__init__()
        self.after = after
        self.names = {id(weight): name for name, weight in weights.items()}
        self.see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The function's result."""
        named = kwargs or {}
        call = self._call(func, args, named)
        if call is not None:
            self.see(call)
        result = func(*args, **named)
        if call is not None and self.after is not None:
            self.after(call, result)
        return result

    def _call(self, func: Any, args: Sequence[Any], named: Mapping[str, Any]) -> Call | None:
        if func is functional.linear:
            weight = args[1] if len(args) > 1 else named["weight"]
            name = self.names.get(id(weight))
            value = args[0] if args else named["input"]
            return None if name is None else Call(name, value, tuple(weight.shape))
        if func is torch.addmm and len(args) > 2 and id(args[2]) in self.names:  # the Conv1D of transformers
            return Call(self.names[id(args[2])], args[1], tuple(args[2].T.shape), axis=1)
        if func is functional.embedding:
            weight = args[1] if len(args) > 1 else named["weight"]
            name = self.names.get(id(weight))
            value = args[0] if args else named["input"]
            return None if name is None else Call(name, value, tuple(weight.shape), table=True)
        if func in CONVOLUTIONS:
            given = {**dict(zip(ORDER, args, strict=False)), **named}
            name = self.names.get(id(given["weight"]))
            return None if name is None else _convolution(name, given, CONVOLUTIONS[func])
        return None


def _convolution(name: str, given: Mapping[str, Any], spatial: int) -> Call:
    shape = tuple(given["weight"].shape)
    stride, dilation = (_each(given.get(key, 1), spatial) for key in ("stride", "dilation"))
    padding = given.get("padding", 0)
    if padding == "same":
        ends = [gap * (size - 1) for size, gap in zip(shape[2:], dilation, strict=True)]
        pairs = tuple((end // 2, end - end // 2) for end in ends)
    else:
        pairs = tuple((end, end) for end in _each(0 if padding == "valid" else padding, spatial))
    return Call(name, given["input"], shape, spatial, stride, pairs, dilation, given.get("groups", 1))


def _each(value: Any, spatial: int) -> tuple[int, ...]:
    return (int(value),) * spatial if isinstance(value, int) else tuple(value) * (spatial if len(value) == 1 else 1)
