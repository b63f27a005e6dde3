"""Grids of what goes into layers, whose ranges are found while the model trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from deepcompression.network.edits.quantize_values import InputQuantizer, Site
from deepcompression.quantization.ranges import range_named
from deepcompression.quantization.ranges.range import First, Integers, Range
from deepcompression.quantization.sites import Seen


@dataclass(frozen=True)
class QuantizedSites:
    """Inputs of layers that are one value, on one grid; unsigned where none of the samples was below 0."""

    sites: tuple[str, ...]
    bits: int
    signed: bool
    step: float
    range: str


class Once(nn.Module):
    """A range before several layers that get one value: it is put on the grid once in a forward of the model."""

    _changes: int
    _value: Callable[[], Tensor | None]
    _made: Callable[[], Tensor | None]

    def __init__(self, found: Range) -> None:
        super().__init__()
        self.range = found
        self.forget()

    def forward(self, value: Tensor) -> Tensor:
        """The value on the grid; what was made before, where it is the same tensor unchanged."""
        made = self._made() if self._value() is value and self._changes == value._version else None
        if made is not None and made.requires_grad == torch.is_grad_enabled():
            return made
        found: Tensor = self.range(value)
        self._value, self._changes, self._made = ref(value), value._version, ref(found)
        return found

    def forget(self, *_: object) -> None:
        """A forward of the model begins: what was made before belongs to another graph, perhaps to other sizes."""
        self._value, self._changes, self._made = _nothing, 0, _nothing


def _nothing() -> Tensor | None:
    return None


@dataclass(frozen=True)
class TrainedInput(InputQuantizer):
    """Before a forward, while the range is looked for."""

    def changed(self, module: nn.Module, value: Tensor) -> Tensor:
        """The value, by the module's range."""
        found: Tensor = getattr(module, self.site.tensor("range"))(value)
        return found


class TrainedInputs:
    """Sites that carry one value, and its range."""

    def __init__(self, sites: Sequence[Site], bits: int, seen: Seen, word: str, scheme: str) -> None:
        self.sites, self.bits, self.features = tuple(sites), bits, seen.features
        self.signed = seen.least < 0
        kind = range_named(word)
        self.word = kind.signed if self.signed and kind.signed else word
        self.integers = Integers.of_inputs(bits, scheme, self.signed)
        self.range = range_named(self.word)(_first(seen), self.integers)
        self._before = Once(self.range)
        self._handles: list[Any] = []

    @property
    def scheme(self) -> str:
        """The scheme of its edit: the signed grid whose 0 stands still is the symmetric one."""
        return "symmetric" if self.integers.low < 0 else "asymmetric"

    def install(self, model: nn.Module) -> None:
        """Puts the range before the layers."""
        self._handles.append(model.register_forward_pre_hook(self._before.forget))
        for site in self.sites:
            module = model.get_submodule(site.module)
            module.add_module(site.tensor("range"), self._before)
            hook = TrainedInput(site, "static", self.bits, self.scheme)
            self._handles.append(module.register_forward_pre_hook(hook))

    def remove(self, model: nn.Module) -> None:
        """Takes it out again."""
        while self._handles:
            self._handles.pop().remove()
        for site in self.sites:
            model.get_submodule(site.module)._modules.pop(site.tensor("range"), None)

    def record(self) -> dict[str, Any]:
        """The edit that does the same for good."""
        sites = [str(site) for site in self.sites]
        return {
            "kind": "quantize_values",
            "sites": sites,
            "range": "static",
            "bits": self.bits,
            "scheme": self.scheme,
        }

    def fill(self, model: nn.Module) -> None:
        """Gives the tensors that the edit brought what was found."""
        scale, zero = self.range.scale(), self.range.zero_point()
        for site in self.sites:
            module = model.get_submodule(site.module)
            getattr(module, site.tensor("scale")).copy_(scale)
            if self.scheme == "asymmetric":
                getattr(module, site.tensor("zero_point")).copy_(torch.as_tensor(zero))

    def told(self) -> QuantizedSites:
        """What to report."""
        sites = tuple(str(site) for site in self.sites)
        return QuantizedSites(sites, self.bits, self.signed, float(self.range.scale()), self.word)


def _first(seen: Seen) -> First:
    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64).to(seen.device)

    count = max(seen.count, 1)
    mean, deviation = number(seen.total / count), number((seen.squares / count) ** 0.5)
    return First(number(seen.least), number(seen.most), mean, deviation, seen.features, whole=False)
