"""Means of outputs as they were before quantization: what is off on average goes into the bias.

Nagel et al. (2019), "Data-free quantization through weight equalization and bias correction", arXiv 1906.04721,
section 4.2, with samples instead of statistics of BatchNorm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deepcompression.network import names
from deepcompression.network.biases import Followers, followed, place_of
from deepcompression.network.edits.quantize_values import quantizers
from deepcompression.network.names import join
from deepcompression.network.trace import resting


@dataclass(frozen=True)
class Corrected:
    """A layer whose outputs were off on average: ``tensor`` took it up; ``shift``: the largest of a channel, and
    ``before``: of all of them the mean magnitude. ``why``: why nothing was done, else empty.
    """

    layer: str
    tensor: str = ""
    shift: float = 0.0
    before: float = 0.0
    why: str = ""


@dataclass
class _Layer:
    """What is known of a layer: the sum of what it is off, by channel, and over how many places."""

    axis: int
    off: Tensor | None = None
    count: int = 0


@dataclass
class _Seen:
    """What has been seen of all layers, and of what takes their outputs."""

    layers: dict[str, _Layer]
    followers: Followers = field(default_factory=Followers)


def correct_bias(
    dense: nn.Module,
    quantized: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], object],
    keep: Mapping[str, str] | None = None,
) -> list[Corrected]:
    """Adds to the biases of ``quantized``, in place, what layers' outputs are lower than those of ``dense`` on average.

    A layer is fed with what it gets in the dense model, put on its grid: errors of layers before it do not count twice,
    and the noise of few samples does not pile up from layer to layer, which in deep nets costs more than it mends.
    Where it has no bias, but a BatchNorm takes its outputs, that one's running mean is lowered as much. One pass;
    memory is that of one forward.

    Args:
        dense: the model before quantization, in eval mode while it runs.
        quantized: the same with weights, or what goes into layers, on grids.
        batches: of samples.
        forward: (model, batch) -> outputs.
        keep: name of a tensor -> why it must not change.

    Returns:
        Each layer that is quantized, in the model's order.
    """
    seen = _Seen({name: _Layer(axis) for name, axis in _changed(dense, quantized).items()})
    with resting(dense), resting(quantized), torch.no_grad():
        for batch in batches:
            with followed(dense, seen.layers, seen.followers), _compared(dense, quantized, seen):
                forward(dense, batch)
        done = [_correct(quantized, name, seen, keep or {}) for name in seen.layers]
    return done + _recurrent(quantized)


def _changed(dense: nn.Module, quantized: nn.Module) -> dict[str, int]:
    """The layers whose weight or input is quantized, and which axis of their outputs, from the last, has channels."""
    found = {}
    for name, module in quantized.named_modules():
        if names.is_layer(module):
            other: Any = dense.get_submodule(name)
            if quantizers(module) or not torch.equal(other.weight, module.weight):
                found[name] = -_spatial(module) - 1
    return found


def _spatial(module: nn.Module) -> int:
    return len(module.kernel_size) if isinstance(module, _ConvNd) else 0


@contextmanager
def _compared(dense: nn.Module, quantized: nn.Module, seen: _Seen) -> Iterator[None]:
    """While it lasts, what each layer gives is compared with what the quantized one gives for the same."""

    def watch(name: str) -> Callable[..., None]:
        other, layer = quantized.get_submodule(name), seen.layers[name]

        def hook(_: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Tensor) -> None:
            off = output.float() - other(*inputs, **named).float()
            total = off.movedim(layer.axis, 0).flatten(1).sum(1).to("cpu", torch.float64)
            layer.off = total if layer.off is None else layer.off + total
            layer.count += off.numel() // len(total)

        return hook

    with ExitStack() as stack:
        for name in seen.layers:
            module = dense.get_submodule(name)
            stack.callback(module.register_forward_hook(watch(name), with_kwargs=True).remove)
        yield


def _correct(model: nn.Module, name: str, seen: _Seen, keep: Mapping[str, str]) -> Corrected:
    """Adds what a layer is off to its bias, or to what follows."""
    layer = seen.layers[name]
    if layer.off is None:
        return Corrected(name, why="the forward never calls it")
    off = layer.off / max(layer.count, 1)
    place, why = place_of(model, name, seen.followers.norm_of(name), len(off))
    why = why or keep.get(place, "") or ("" if bool(off.isfinite().all()) else "what it is off is not finite")
    if why:
        return Corrected(name, why=why)
    tensor = {**dict(model.named_parameters()), **dict(model.named_buffers())}[place]
    tensor += (off if place == join(name, "bias") else -off).to(tensor)
    return Corrected(name, place, float(off.abs().max()), float(off.abs().mean()))


def _recurrent(model: nn.Module) -> list[Corrected]:
    """Recurrent layers whose input is quantized."""
    found = [name for name, one in model.named_modules() if isinstance(one, nn.RNNBase | nn.RNNCellBase)]
    why = "a recurrent layer's outputs are not off by what its biases add"
    return [Corrected(name, why=why) for name in found if quantizers(model.get_submodule(name))]
