"""Which layers can run from codes, and why others cannot."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deepcompression.models.binary import DroppedLinear
from deepcompression.network.names import is_layer, join, memory
from deepcompression.runtime.geometry import Convolution

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d)
# Forwards that in eval mode are the multiplication by the weight, and nothing else.
OWN = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, DroppedLinear.forward)


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The Linear and Conv layers of a model, by their first names."""
    return {name: module for name, module in model.named_modules() if is_layer(module)}


def why_dense(model: nn.Module, tied: Counter[object], name: str, layer: nn.Module) -> str:
    """Why a layer cannot run from codes, whatever its weight; empty: it can.

    Args:
        model: in which it is, not yet filled.
        tied: how many names each tensor has, of ``ties``.
        name: of the layer.
        layer: it.
    """
    kind = type(layer).__name__
    if not isinstance(layer, PLAIN):
        return f"there is no form of codes for a {kind}"
    weight = layer._parameters.get("weight")
    if parametrize.is_parametrized(layer) or weight is None:
        return "its weight is computed from others"
    if type(layer).forward not in OWN or "forward" in vars(layer):
        return f"its forward is {kind}'s own"
    if type(layer).__name__ == "NonDynamicallyQuantizableLinear" or _read_by_parent(model, name):
        return f"{_parent(model, name)} reads its weight itself"
    if tied[memory(weight)] > 1:
        return "its weight is tied with another"
    if weight.dtype != torch.float32 or not weight.numel():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}" if weight.numel() else "it is empty"
    return _unlike_others(layer)


def _unlike_others(layer: nn.Module) -> str:
    mode = getattr(layer, "padding_mode", "zeros")
    return "" if mode == "zeros" else f"it pads by {mode}"


def ties(model: nn.Module) -> Counter[object]:
    """How many names each parameter has."""
    return Counter(memory(one) for one in _named(model).values())


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {
        join(prefix, name): parameter
        for prefix, module in model.named_modules(remove_duplicate=False)
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def _read_by_parent(model: nn.Module, name: str) -> bool:
    """Whether the module above is one of PyTorch's that are no mere containers, such as an encoder's layer."""
    parent = model.get_submodule(name.rpartition(".")[0]) if name else model
    built_in = type(parent).__module__.startswith("torch.nn.modules")
    return built_in and bool(name) and not isinstance(parent, CONTAINERS)


def _parent(model: nn.Module, name: str) -> str:
    return type(model.get_submodule(name.rpartition(".")[0])).__name__


def convolution_of(layer: nn.Module) -> Convolution | None:
    """What a Conv layer does, one of one dimension as of two; None for a Linear."""
    if not isinstance(layer, nn.Conv1d | nn.Conv2d):
        return None
    wide = len(layer.kernel_size) == 2
    kernel, stride, dilation = (_two(sizes, 1, wide) for sizes in (layer.kernel_size, layer.stride, layer.dilation))
    before, after = _padding(layer, kernel, dilation, wide)
    shape = (layer.out_channels, layer.in_channels // layer.groups, *kernel)
    return Convolution(shape, stride, before, after, dilation, layer.groups)


def _two(sizes: tuple[int, ...], other: int, wide: bool) -> tuple[int, int]:
    return (sizes[0], sizes[1]) if wide else (other, sizes[0])


def _padding(
    layer: nn.Conv1d | nn.Conv2d, kernel: tuple[int, int], dilation: tuple[int, int], wide: bool
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Zeros before and after; of "same", the odd one comes after."""
    if layer.padding == "same":
        spans = [step * (size - 1) for step, size in zip(dilation, kernel, strict=True)]
        return (spans[0] // 2, spans[1] // 2), (spans[0] - spans[0] // 2, spans[1] - spans[1] // 2)
    if isinstance(layer.padding, str):
        return (0, 0), (0, 0)
    both = _two(layer.padding, 0, wide)
    return both, both
