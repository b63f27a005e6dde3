"""What goes into layers, measured on some samples of the training split."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deepcompression.network.names import first_names, is_conv1d, is_layer, join
from deepcompression.training.method import Context

SAMPLES = 512
Of = Callable[[Tensor], Tensor]  # of inputs, one number for each


def mean_inputs(model: nn.Module, context: Context, wanting: str, of: Of) -> dict[str, Tensor]:
    """Means of something of each input of every Linear, Conv1D and convolution, by its weight's first name.

    They are in a shape that broadcasts against the weight: each of its elements has that of the input that it meets.
    The model runs in eval mode on the first samples, and is where it computes afterwards.

    Args:
        model: with any weights.
        context: samples, and where it runs.
        wanting: who asks, for the message.
        of: what is measured, such as ``torch.square``.

    Raises:
        StructureError: there are no samples.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    mode = model.training
    context.compute.place(model).eval()
    with _watched(model, sums, counts, of), torch.no_grad():
        for batch in context.batches(wanting, SAMPLES):
            context.forward(model, batch)
    model.train(mode)
    return {name: total / counts[name] for name, total in sums.items()}


@contextlib.contextmanager
def _watched(model: nn.Module, sums: dict[str, Tensor], counts: dict[str, int], of: Of) -> Iterator[None]:
    """While it lasts, adds up what is measured of inputs by the first name of the weight that meets them."""
    first, handles = first_names(model), []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                added, count = _summed(module, inputs[0].detach().float(), of)
                sums[name] = sums[name] + added if name in sums else added
                counts[name] = counts.get(name, 0) + count

        return hook

    for prefix, module in model.named_modules(remove_duplicate=False):
        if is_layer(module) and join(prefix, "weight") in first:
            handles.append(module.register_forward_pre_hook(watch(first[join(prefix, "weight")])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _summed(module: nn.Module, inputs: Tensor, of: Of) -> tuple[Tensor, int]:
    """Sums, in a shape that broadcasts against the weight, and how many of each were added."""
    if not isinstance(module, _ConvNd):
        flat = inputs.reshape(inputs.shape[:-1].numel(), inputs.shape[-1])
        sums = of(flat).sum(0)  # (in,)
        return sums[:, None] if is_conv1d(module) else sums, len(flat)
    spatial = module.weight.ndim - 2
    batched = inputs if inputs.ndim == spatial + 2 else inputs[None]
    each = of(batched).sum([0, *range(2, batched.ndim)])  # (in,)
    count = len(batched) * batched.shape[2:].numel()
    if isinstance(module, _ConvTransposeNd):
        return each.reshape(-1, *[1] * (spatial + 1)), count
    by_group = each.reshape(module.groups, -1).repeat_interleave(module.out_channels // module.groups, 0)
    return by_group.reshape(*by_group.shape, *[1] * spatial), count  # (out, in / groups, 1 ...)
