"""What single nodes of a traced graph do to the axes of a tensor: keep them, flatten them, or only ask for them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from deepcompression.network.chains import Step

RESTING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout)
ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign),
    *(nn.Sigmoid, nn.LogSigmoid, nn.Hardsigmoid, nn.Tanh, nn.Tanhshrink, nn.Hardtanh, nn.Hardswish),
)
POOLS = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
)
ELEMENTWISE_CALLS = {
    *("relu", "relu_", "tanh", "tanh_", "sigmoid", "sigmoid_", "contiguous", "clone"),
    *(torch.relu, torch.relu_, torch.tanh, torch.sigmoid, F.relu, F.relu_, F.relu6, F.leaky_relu, F.elu, F.celu),
    *(F.selu, F.gelu, F.silu, F.mish, F.softplus, F.softsign, F.logsigmoid, F.hardsigmoid, F.hardtanh, F.hardswish),
}
DROPOUT_CALLS = {F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout}
POOL_CALLS = {
    *(F.max_pool1d, F.max_pool2d, torch.max_pool1d, torch.max_pool2d, F.avg_pool1d, F.avg_pool2d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
}
FLATTEN_CALLS = {"flatten", torch.flatten}
RESHAPE_CALLS = {"view", "reshape", torch.reshape}
MEAN_CALLS = {"mean", torch.mean}
_SIZE_CALLS = {"size", "dim", "ndimension", "numel"}
_SIZE_ATTRIBUTES: tuple[object, ...] = ("shape", "ndim", "device", "dtype")


def flattens(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether all axes but the first become one."""
    arguments: tuple[Any, ...] = node.args[1:]
    if isinstance(module, nn.Flatten):
        return (module.start_dim, module.end_dim) == (1, -1)
    if node.target in FLATTEN_CALLS:
        given = {**dict(zip(("start_dim", "end_dim"), arguments, strict=False)), **node.kwargs}
        return (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1)
    if node.target in RESHAPE_CALLS and not node.kwargs:
        shape = arguments[0] if arguments and isinstance(arguments[0], list | tuple) else arguments
        return len(shape) == 2 and (is_batch(shape[0]) or shape[0] == -1) and isinstance(shape[1], int)
    return False


def guesses(node: fx.Node) -> bool:
    """Whether a view leaves the number of rows open."""
    shape = node.args[1] if isinstance(node.args[1], list | tuple) else node.args[1:]
    return isinstance(shape[0], int) and shape[0] == -1


def is_batch(node: object) -> bool:
    """Whether a node is the number of samples: ``x.size(0)`` or ``x.shape[0]``."""
    if not isinstance(node, fx.Node) or node.args[1:] != (0,):
        return False
    of = node.args[0]
    if node.target is operator.getitem:
        return isinstance(of, fx.Node) and reads_shape(of)
    return node.op == "call_method" and bool(node.target == "size")


def reads_shape(node: fx.Node) -> bool:
    """Whether a node asks for a tensor's shape, which never changes here, and not for its values."""
    if node.op == "call_method":
        return node.target in _SIZE_CALLS
    return node.target is getattr and bool(node.args[1] in _SIZE_ATTRIBUTES)


def pads(layer: nn.Module) -> bool:
    """Whether a consumer puts zeros around its input."""
    if isinstance(layer, nn.Linear):
        return False
    around: Any = layer._reversed_padding_repeated_twice
    return layer.padding_mode == "zeros" and any(around)


def depthwise(layer: Any) -> bool:
    """Whether a convolution makes each channel of one channel alone."""
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == layer.in_channels == layer.out_channels


def taken_alone(layer: Any, value: Tensor, padded: bool) -> Tensor:
    """What a depthwise convolution makes of one value a unit, in float64; NaN where it is another one at the borders.

    Args:
        layer: its weight is (units, 1, ...).
        value: (1, units, 1, ...).
        padded: whether zeros are put around.
    """
    sums = layer.weight.double().flatten(1).sum(1)
    made = value.reshape(-1) * sums
    if padded:
        made = made.masked_fill(value.reshape(-1) != 0, torch.nan)  # a NaN is no 0 either
    made = torch.where(layer.weight.flatten(1).any(1), made, 0.0)  # without weights, whatever comes
    return (made if layer.bias is None else made + layer.bias.double()).reshape(value.shape)


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


@dataclass
class UnitPath:
    """What is known on the way from a producer on: where units lie, and what happened to them."""

    units: int
    dimensions: int  # axes behind the units'; 0 where units are the last
    flat: bool  # whether a flattening has come
    rank: int | None  # axes in all where units are the last, if that is known
    rewrapped: bool = False  # whether a view may have put parts of one sample into several
    steps: list[Step] = field(default_factory=list)
    rows: list[str] = field(default_factory=list)  # tensors with a place a unit
    through: list[str] = field(default_factory=list)  # weights among them that take each unit by itself


def normalised(norm: _BatchNorm, value: Tensor) -> Tensor:
    """What a BatchNorm in eval mode does to one value a unit, in float64."""
    shape = value.shape
    assert norm.running_mean is not None and norm.running_var is not None
    value = (value.reshape(-1) - norm.running_mean.double()) / (norm.running_var.double() + norm.eps).sqrt()
    if norm.affine:
        value = value * norm.weight.double() + norm.bias.double()
    return value.reshape(shape)


def pool(call: Callable[[Tensor], Tensor], path: UnitPath) -> Step | None:
    """A pool as a step: constants stay, but for borders where padding is averaged."""
    if path.flat or not path.dimensions:
        return None
    try:
        whole = all(_same_everywhere(call, torch.ones(1, 1, *[side] * path.dimensions)) for side in (255, 256))
    except (RuntimeError, AttributeError):  # too large a window for this; a pool that returns places too
        whole = False
    return Step(lambda value: value, borders=not whole)


def _same_everywhere(call: Callable[[Tensor], Tensor], ones: Tensor) -> bool:
    """Whether one value everywhere stays it, be it more or less than zeros around."""
    return bool((call(ones) == 1).all() and (call(-ones) == -1).all())


def mean(node: fx.Node, path: UnitPath) -> Step | None:
    """A mean over all places of each unit."""
    axes = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    axes = [axes] if isinstance(axes, int) else axes
    rank = 2 + path.dimensions
    over = {axis % rank for axis in axes if isinstance(axis, int)} if isinstance(axes, list | tuple) else set()
    if path.flat or not path.dimensions or over != set(range(2, rank)):
        return None
    keeps = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    path.flat = not keeps
    return Step(lambda value: value)
