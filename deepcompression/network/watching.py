"""What comes by sites while a model runs, and which sites carry one value."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from deepcompression.network.edits.quantize_values import INSIDE, Site
from deepcompression.network.trace import resting

T = TypeVar("T")
See = Callable[[Site, Tensor], None]


@contextmanager
def watched(model: nn.Module, sites: Iterable[Site], see: See, missed: dict[Site, str] | None = None) -> Iterator[None]:
    """While it lasts, ``see`` is told of each floating-point tensor that comes by a site: inputs, by position.

    Args:
        model: in which the sites are.
        sites: inputs.
        see: takes site and value.
        missed: gets, by site, what came by instead.
    """

    def watch(site: Site) -> Any:
        def hook(_: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> None:
            place = 0 if site.side in INSIDE else site.number  # what is inside comes by with the input
            value = inputs[place] if len(inputs) > place else None
            value = value.data if isinstance(value, PackedSequence) else value
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim:
                with torch._C.DisableTorchFunction():  # what looks at values is no part of the forward
                    see(site, value)
            elif missed is not None:
                missed.setdefault(site, _instead(value, named))

        return hook

    handles = [
        model.get_submodule(site.module).register_forward_pre_hook(watch(site), with_kwargs=True) for site in sites
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def unseen(model: nn.Module, sites: Iterable[Site], runs: Iterable[object]) -> dict[Site, str]:
    """Sites by which no floating-point tensor comes, and why, as far as some runs tell.

    Args:
        model: in which the sites are.
        sites: inputs.
        runs: each step of it runs the model once; as many are made as it takes to see a value at every site.
    """
    waiting, missed = dict.fromkeys(sites), dict[Site, str]()
    with (
        resting(model),
        torch.no_grad(),
        watched(model, [*waiting], lambda site, _: waiting.pop(site, None), missed),
    ):
        for _ in runs:
            if not waiting:
                break
    return {site: missed.get(site) or f"the forward never calls {site.module}" for site in waiting}


class Carried:
    """Which sites carry one value: the same tensors, unchanged, came by all of them in one forward."""

    def __init__(self) -> None:
        self._came: dict[Site, list[tuple[int, int]]] = defaultdict(list)
        self._alive: list[Tensor] = []  # else another tensor might get the same id

    def add(self, site: Site, value: Tensor) -> None:
        """One value that came by."""
        self._alive.append(value)
        self._came[site].append((id(value), value._version))

    def together(self, sites: Mapping[Site, T]) -> list[tuple[tuple[Site, ...], T]]:
        """Sites that carry one value and are to have the same; one by which nothing came is alone.

        Args:
            sites: with what each is to have.
        """
        groups: dict[object, list[Site]] = defaultdict(list)
        for site, wanted in sites.items():
            groups[tuple(self._came[site]) or site, wanted].append(site)
        return [(tuple(some), sites[some[0]]) for some in groups.values()]


def _instead(value: object, named: Mapping[str, Any]) -> str:
    """What came by a site that is no value."""
    if value is None and named:
        return f"its input comes by keyword ({next(iter(named))}=), and only what comes by position is quantized"
    if value is None:
        return "nothing comes by it"
    what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
    return f"{what} comes by it, which is no floating-point tensor"
