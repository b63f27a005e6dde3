"""A file's tensors into a model: weights that are held otherwise one by one, and what is left as ever."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.codec.file import File
from deepcompression.errors import InputError
from deepcompression.formats.state_dict import from_raw
from deepcompression.network.load import check_tensors, fitting, load_state, own_tensors
from deepcompression.network.names import join
from deepcompression.runtime.layers import convolution_of, layers, ties, why_dense
from deepcompression.runtime.ways import Way, ways_of


class Tensors(Mapping[str, Tensor]):
    """The tensors of a file, each decoded when it is asked for, and not kept."""

    def __init__(self, file: File) -> None:
        self.file = file

    def __getitem__(self, name: str) -> Tensor:
        return from_raw(self.file.raw(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self.file)

    def __len__(self) -> int:
        return len(self.file)

    def shapes(self) -> dict[str, Tensor]:
        """Tensors without values."""
        return {name: torch.empty(entry.shape, device="meta") for name, entry in self.file.entries.items()}


@dataclass
class Loaded:
    """A layer: the ways in which its weight is held (none: as ever), what was asked for it, and why.

    ``shape`` and ``nbytes`` are of its dense weight.
    """

    layer: nn.Module
    ways: Sequence[Way]
    asked: str
    why: str
    shape: tuple[int, ...]
    nbytes: int


def load(model: nn.Module, state: Tensors, where: str, forms: Mapping[str, str]) -> dict[str, Loaded]:
    """Fill ``model``, but for the weights of layers that can be held otherwise: those it loses.

    Args:
        model: edited, on the CPU or the meta device.
        state: of its file.
        where: the file, for messages.
        forms: auto, codes or dense, by layer or pattern.

    Raises:
        WeightsError: as of ``load_state``.
        InputError: ``forms`` names no layer, or the model is on another device.
    """
    named = layers(model)
    asked = _asked(list(named), forms)
    own = own_tensors(model)
    _check_devices(own, where)
    fitting(own, state.shapes(), where)
    tied = ties(model)
    found: dict[str, Loaded] = {}
    for name, layer in named.items():
        why = "asked for" if asked[name] == "dense" else why_dense(model, tied, name, layer)
        ways = why or _ways(layer, state[join(name, "weight")], own, join(name, "weight"), where)
        found[name] = _loaded(layer, ways, asked[name])
    left = {name: state[name] for name in state if not _is_held(found, name)}
    load_state(model, left, where=where)
    return found


def _is_held(found: Mapping[str, Loaded], name: str) -> bool:
    layer, _, own = name.rpartition(".")
    return own == "weight" and layer in found and bool(found[layer].ways)


def _loaded(layer: nn.Module, ways: Sequence[Way] | str, asked: str) -> Loaded:
    """The layer, without its weight where that is held otherwise."""
    weight = getattr(layer, "weight", None)
    shape, size = (tuple(weight.shape), weight.nbytes) if isinstance(weight, Tensor) else ((), 0)
    if isinstance(ways, str):
        return Loaded(layer, [], asked, ways, shape, size)
    del layer._parameters["weight"]
    return Loaded(layer, ways, asked, "", shape, size)


def _ways(layer: nn.Module, weight: Tensor, own: Mapping[str, Tensor], name: str, where: str) -> Sequence[Way] | str:
    check_tensors({name: own[name]}, {name: weight}, where)
    matrix = np.ascontiguousarray(weight.to(torch.float32).numpy().reshape(len(weight), -1))
    return ways_of(matrix, convolution_of(layer))


def _check_devices(own: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in own.items():
        if tensor.device.type not in ("cpu", "meta"):
            raise InputError(f"{where}: runs on the CPU alone, and {name} is on {tensor.device}: build the model there")


def _asked(names: Sequence[str], forms: Mapping[str, str]) -> dict[str, str]:
    """What is asked for each layer: by its name first, by the first pattern then."""
    for pattern in forms:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, 3) or list(names[:3])
            raise InputError(
                f"form: {pattern!r} is no Linear or Conv layer; the nearest are {', '.join(near) or 'none'}"
            )
    return {name: forms.get(name) or _of_pattern(name, forms) for name in names}


def _of_pattern(name: str, forms: Mapping[str, str]) -> str:
    return next((word for pattern, word in forms.items() if fnmatchcase(name, pattern)), "auto")
