"""Importance of weights by what reaches them: magnitude times the size of a weight's input."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from deepcompression.network.names import first_names, is_conv1d, is_layer, join
from deepcompression.training.method import Context

SAMPLES = 512


class Wanda:
    """``score(name, weight)``: each weight's magnitude times the root mean square of its input on some samples.

    A weight whose input is mostly zero matters less than its magnitude says; adaptive optimizers make such weights as
    large as others. Inputs are measured by ``refresh``, in eval mode, on the first samples of the training split; a
    tensor whose inputs are not known (embeddings, biases) is scored by magnitude alone.

    Sun, Liu, Bair, Kolter (2023), arXiv 2306.11695, without its comparison by output.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.norms: dict[str, Tensor] = {}

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        """Scores in the weight's shape."""
        norms = self.norms.get(name)
        magnitude = weight.detach().abs()
        return magnitude if norms is None else magnitude * norms.to(weight.device)

    def refresh(self, model: nn.Module) -> None:
        """Measures the inputs anew, with the model's present weights."""
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        mode, self.norms = model.training, {}
        self.context.compute.place(model).eval()
        with _watched(model, sums, counts), torch.no_grad():
            for batch in self.context.batches("criterion wanda", SAMPLES):
                self.context.forward(model, batch)
        model.train(mode)
        self.norms = {name: (total / counts[name]).sqrt() for name, total in sums.items()}


@contextlib.contextmanager
def _watched(model: nn.Module, sums: dict[str, Tensor], counts: dict[str, int]) -> Iterator[None]:
    """While it lasts, adds up squared inputs of every Linear, Conv1D and convolution by its weight's first name."""
    first, handles = first_names(model), []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                squares, count = _squares(module, inputs[0].detach().float())
                sums[name] = sums[name] + squares if name in sums else squares
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


def _squares(module: nn.Module, inputs: Tensor) -> tuple[Tensor, int]:
    """Sums of squared inputs, in a shape that broadcasts against the weight, and how many of each were added."""
    if not isinstance(module, _ConvNd):
        flat = inputs.reshape(inputs.shape[:-1].numel(), inputs.shape[-1])
        squares = flat.square().sum(0)  # (in,)
        return squares[:, None] if is_conv1d(module) else squares, len(flat)
    spatial = module.weight.ndim - 2
    batched = inputs if inputs.ndim == spatial + 2 else inputs[None]
    each = batched.square().sum([0, *range(2, batched.ndim)])  # (in,)
    count = len(batched) * batched.shape[2:].numel()
    if isinstance(module, _ConvTransposeNd):
        return each.reshape(-1, *[1] * (spatial + 1)), count
    by_group = each.reshape(module.groups, -1).repeat_interleave(module.out_channels // module.groups, 0)
    return by_group.reshape(*by_group.shape, *[1] * spatial), count  # (out, in / groups, 1 ...)
