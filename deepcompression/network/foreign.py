"""Layers of other people that compute for themselves: whether they do with channels what the known ones do, tried.

A subclass that has a forward of its own cannot be believed by its name. What is to be true of it is tried on a copy, in
float64, with random values: that channels can be put in another order, that one does not see the others, that a channel
without weights gives its bias, that what no weight takes in does not matter. Padding of any kind passes; weights that
are standardised, normalised or mixed on the way do not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcompression.network.channel_proof import undrawn

TOLERANCE = 1e-9  # of the largest output: float64
SAMPLES = 2
SIZES = 8  # that are tried for what comes of constants
LEAST = 9  # places a side that a convolution is tried on at least; more where its kernel reaches further


def is_weighted(module: nn.Module, kind: type) -> bool:
    """Whether a module does with channels, weight and bias what a Linear or a convolution does."""
    own = dict(module.named_parameters())
    if not set(own) <= {"weight", "bias"} or not isinstance(own.get("weight"), Tensor):
        return False
    return _holds(lambda: _weighted(_Layer(module, kind)))


def is_normalising(module: nn.Module) -> bool:
    """Whether a BatchNorm with more in its forward keeps channels apart, and makes constants of constants."""
    return _holds(lambda: _normalising(module))


def is_elementwise(module: nn.Module) -> bool:
    """Whether a module without parameters goes element by element."""
    return _holds(lambda: _elementwise(module))


def is_by_channel(module: nn.Module) -> bool:
    """Whether a module without parameters, on maps of two sides, does the same to each channel by itself."""
    return _holds(lambda: _by_channel(module))


def keeps_constants(module: nn.Module, kind: type) -> bool:
    """Whether a proven layer makes of one value a channel one value a channel, at the borders too."""
    return _holds(lambda: _constant(_Layer(module, kind)))


def of_constants(module: nn.Module, value: Tensor) -> Tensor:
    """What a module makes of one value a channel, in float64, as it is called later.

    Args:
        module: not changed.
        value: (1, channels, ...).
    """
    return _double(module)(value)  # type: ignore[no-any-return]


def _holds(tried: Callable[[], bool]) -> bool:
    with undrawn(), torch.no_grad():
        torch.manual_seed(0)
        try:
            return tried()
        except Exception:  # a module's forward is anybody's code
            return False


def _double(module: nn.Module) -> Any:
    return copy.deepcopy(module).cpu().double().eval()


def _same(came: Any, expected: Tensor) -> bool:
    if not isinstance(came, Tensor) or came.shape != expected.shape:
        return False
    return bool((came - expected).abs().max() <= TOLERANCE * expected.abs().max().clamp(min=1e-30))


class _Layer:
    """A copy of a layer with random weights, and what it is tried on."""

    def __init__(self, module: nn.Module, kind: type) -> None:
        self.double = _double(module)
        self.axis = -1 if kind is nn.Linear else 1
        groups = getattr(module, "groups", 1)
        self.apart = groups > 1  # a channel at a time
        weight: Tensor = self.double.weight.data
        self.weight = torch.randn_like(weight)
        bias = getattr(self.double, "bias", None)
        self.bias = None if bias is None else torch.randn_like(bias.data)
        sides = [max(LEAST, 2 * size + 1) for size in weight.shape[2:]]
        self.input = torch.randn(SAMPLES, weight.shape[1] * groups, *sides, dtype=torch.float64)

    def __call__(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """What it makes of inputs, with other weights."""
        self.double.weight.data.copy_(self.weight if weight is None else weight)
        if self.bias is not None:
            self.double.bias.data.copy_(self.bias if bias is None else bias)
        return self.double(x)  # type: ignore[no-any-return]

    def outputs(self, made: Tensor, channels: Tensor) -> Tensor:
        """Some channels of an output."""
        return made.index_select(self.axis, channels)


def _weighted(layer: _Layer) -> bool:
    """Rows are output channels, columns input channels, and nothing else is."""
    base, rows, columns = layer(layer.input), len(layer.weight), layer.input.shape[1]
    if base.shape[layer.axis] != rows or layer.apart != (layer.weight.shape[1] == 1 and rows == columns > 1):
        return False
    return _rows_apart(layer, base) and (_taken_alone(layer, base) if layer.apart else _columns(layer, base))


def _rows_apart(layer: _Layer, base: Tensor) -> bool:
    """Rows in another order give channels in that order; half of them empty give the bias and leave the others."""
    rows = len(layer.weight)
    order, empty, other = torch.randperm(rows), torch.arange(0, rows, 2), torch.arange(1, rows, 2)
    x = layer.input[:, order] if layer.apart else layer.input
    turned = layer(x, layer.weight[order], None if layer.bias is None else layer.bias[order])
    half = layer(layer.input, layer.weight.index_fill(0, empty, 0.0))
    constant = torch.zeros(rows, dtype=torch.float64) if layer.bias is None else layer.bias
    expected = _spread(constant[empty], layer.outputs(half, empty), layer.axis)
    steady = bool((layer.outputs(half, empty) - expected).abs().max() <= TOLERANCE)
    alone = not len(other) or _same(layer.outputs(half, other), layer.outputs(base, other))
    return steady and alone and _same(turned, layer.outputs(base, order))


def _columns(layer: _Layer, base: Tensor) -> bool:
    """Input channels and columns in another order change nothing; nor does a channel that is zero, or that no weight
    takes in.
    """
    columns = layer.weight.shape[1]
    order, some = torch.randperm(columns), torch.arange(0, columns, 2)
    turned = layer(layer.input[:, order], layer.weight[:, order])
    unread = layer.weight.index_fill(1, some, 0.0)
    silent = layer.input.index_fill(1, some, 0.0)
    expected = layer(silent)
    return (
        _same(turned, base) and _same(layer(layer.input, unread), expected) and _same(layer(silent, unread), expected)
    )


def _taken_alone(layer: _Layer, base: Tensor) -> bool:
    """A channel at a time: others may be anything."""
    some = torch.arange(0, len(layer.weight), 2)
    x = torch.randn_like(layer.input)
    x[:, some] = layer.input[:, some]
    return _same(layer.outputs(layer(x), some), layer.outputs(base, some))


def _constant(layer: _Layer) -> bool:
    """Tried on several sizes: what is put around may be reached by a stride at some of them alone."""
    layer.bias = None if layer.bias is None else torch.zeros_like(layer.bias)
    given = torch.randn(layer.input.shape[1], dtype=torch.float64)
    sums = layer.weight.flatten(2).sum(2) if layer.weight.ndim > 2 else layer.weight  # (out, in of a group)
    expected = sums[:, 0] * given if layer.apart else sums @ given
    first, *sides = layer.input[:1].shape[1:]
    for more in range(SIZES if sides else 1):
        like = torch.empty(1, first, *(side + more for side in sides), dtype=torch.float64)
        made = layer(_spread(given, like, layer.axis))
        if not _same(made, _spread(expected, made, layer.axis)):
            return False
    return True


def _spread(values: Tensor, like: Tensor, axis: int) -> Tensor:
    """A value a channel (channels,), as a tensor of this shape."""
    return values.reshape([-1 if one == axis % like.ndim else 1 for one in range(like.ndim)]).expand_as(like)


def _tensors(double: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from double.named_parameters()
    yield from double.named_buffers()


def _normalising(module: nn.Module) -> bool:
    double = _double(module)
    channels = int(double.num_features)
    own = {name: one for name, one in _tensors(double) if one.is_floating_point()}
    if not set(own) <= {"weight", "bias", "running_mean", "running_var"}:
        return False
    values = {name: torch.rand_like(one.data) + 0.5 for name, one in own.items()}
    sides = [5, 4][: 1 if "1d" in _kind(module) else 2]
    order, some = torch.randperm(channels), torch.arange(0, channels, 2)

    def made(x: Tensor, turn: Tensor | None = None) -> Tensor:
        for name, one in own.items():
            one.data.copy_(values[name] if turn is None else values[name][turn])
        return double(x)  # type: ignore[no-any-return]

    x = torch.randn(SAMPLES, channels, *sides, dtype=torch.float64)
    other = torch.randn_like(x)
    other[:, some] = x[:, some]
    flat = torch.randn(1, channels, *[1] * len(sides), dtype=torch.float64)
    base = made(x)
    return (
        base.shape == x.shape
        and _same(made(x[:, order], order), base[:, order])
        and _same(made(other)[:, some], base[:, some])
        and _same(made(flat.expand_as(x).contiguous()), made(flat).expand_as(x))
    )


def _kind(module: nn.Module) -> str:
    """The BatchNorm of torch that a module derives from, by its name."""
    return next(one.__name__ for one in type(module).__mro__ if one.__module__ == _BatchNorm.__module__)


def _elementwise(module: nn.Module) -> bool:
    double, x = _double(module), 3 * torch.randn(2, 3, 4, 5, dtype=torch.float64)
    return all(_same(double(one), expected) for one, expected in _reordered(double, x, torch.randperm(x.numel())))


def _reordered(double: Any, x: Tensor, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs that an element-wise function gives known outputs for, from what it gives for one input."""
    base = double(x.clone())
    if base.shape != x.shape:
        yield x, x.new_full((1,), torch.nan)
        return
    yield x.flatten()[order].reshape(x.shape), base.flatten()[order].reshape(x.shape)
    yield x[:, :1], base[:, :1]
    yield x[..., :1, :1], base[..., :1, :1]


def _by_channel(module: nn.Module) -> bool:
    double, channels = _double(module), 6
    x = torch.randn(SAMPLES, channels, LEAST, LEAST, dtype=torch.float64)
    base, order = double(x), torch.randperm(channels)
    return (
        tuple(base.shape[:2]) == (SAMPLES, channels)
        and base.ndim == x.ndim
        and _same(double(x[:, order]), base[:, order])
        and _same(double(x[:, ::2].contiguous()), base[:, ::2])
    )


def derived(module: nn.Module, known: Sequence[type]) -> type | None:
    """The known layer that a module's class derives from, the nearest one."""
    return next((kind for kind in type(module).__mro__ if kind in known), None)
