"""How much the outputs of layers change when what goes into them is put on grids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree

from deepcompression.network.edits.quantize_values import Site

Rounding = Callable[[Tensor], Tensor]


def output_errors(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], object], tried: Mapping[Site, Sequence[Rounding]]
) -> dict[Site, list[float]]:
    """The sum of squared changes of a layer's outputs, as a part of the sum of their squares, for each rounding.

    Each layer gets what it gets in the model, where nothing else is rounded. No gradients, in the model's own mode.

    Args:
        model: in which the sites are.
        batches: of samples.
        forward: runs the model on one.
        tried: what is done to the value at a site.
    """
    noise = {site: [0.0] * len(roundings) for site, roundings in tried.items()}
    energy = dict.fromkeys(tried, 0.0)

    def watch(site: Site) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any], output: object) -> None:
            if len(given) <= site.number or not isinstance(value := given[site.number], Tensor):
                return
            wanted = _floats(output)
            energy[site] += sum(float(one.float().square().sum()) for one in wanted)
            for place, rounding in enumerate(tried[site]):
                inputs = [*given[: site.number], rounding(value), *given[site.number + 1 :]]
                noise[site][place] += _apart(wanted, _floats(module.forward(*inputs, **named)))

        return hook

    with ExitStack() as stack:
        for site, roundings in tried.items():
            if roundings:
                module = model.get_submodule(site.module)
                stack.callback(module.register_forward_hook(watch(site), with_kwargs=True).remove)
        for batch in batches:
            forward(batch)
    return {site: [one / energy[site] if energy[site] else 0.0 for one in some] for site, some in noise.items()}


def _floats(output: object) -> list[Tensor]:
    return [one for one in _pytree.tree_leaves(output) if isinstance(one, Tensor) and one.is_floating_point()]


def _apart(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    return sum(float((a.float() - b.float()).square().sum()) for a, b in zip(wanted, got, strict=True))
