"""Between ``.dcz`` files and torch; and two verbs for a training loop of your own, ``hold`` and ``bake``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression import io
from deepcompression.dtypes import DTYPES
from deepcompression.errors import WeightsError
from deepcompression.structure import bake, hold

__all__ = ["bake", "encode", "hold", "load", "load_into", "load_state", "save"]

_NUMPY_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def load(path: str | Path) -> dict[str, Tensor]:
    """The state_dict in a ``.dcz`` file: names, dtypes, shapes and bits as they were saved, on the CPU.

    Raises:
        FormatError: the file is damaged, alien, or larger than half of the available memory.
    """
    return {name: from_raw(raw) for name, raw in io.load(path, raw=True).items()}


def load_into(model: nn.Module, path: str | Path) -> nn.Module:
    """Loads a ``.dcz`` file into ``model`` (every tensor must fit) and returns it.

    Raises:
        FormatError: as ``load``.
        WeightsError: names what does not fit.
    """
    load_state(model, load(path), where=str(path))
    return model


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Loads ``state`` into ``model``; every tensor must be there, with its shape.

    A tied parameter may be missing under all of its names but one.

    Raises:
        WeightsError: names what is missing, unexpected or of another shape, and what to do.
    """
    own = model.state_dict(keep_vars=True)
    whole = {name: _tied(own, name, state) for name in own}
    missing = [name for name, tensor in whole.items() if tensor is None]
    unexpected = [name for name in state if name not in own]
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if missing or unexpected or wrong:
        parts = [
            f"{title} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for title, names in (("missing:", missing), ("unexpected:", unexpected), ("shape:", wrong))
            if names
        ]
        raise WeightsError(f"{where}: does not fit the model; {'; '.join(parts)}{_hint(own, unexpected)}")
    model.load_state_dict(whole)


def save(state: Mapping[str, Tensor], path: str | Path, coder: str = "huffman") -> int:
    """Writes a state_dict to a ``.dcz`` file, losslessly; returns its bytes on disk.

    Raises:
        WeightsError: something in it is no dense tensor, or of a dtype that the format does not know.
        StorageError: the file cannot be written.
    """
    return io.save(to_raw_state(state), path, coder=coder)


def encode(state: Mapping[str, Tensor], coder: str = "huffman") -> bytes:
    """What ``save`` writes, in memory."""
    return io.encode(to_raw_state(state), coder)


def to_raw_state(state: Mapping[str, Tensor]) -> dict[str, io.RawTensor]:
    """A state_dict as bits and dtype names, tensors that are one object staying one object."""
    made: dict[int, io.RawTensor] = {}
    raws = {}
    for name, tensor in state.items():
        dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_quantized
        if not dense or str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            raise WeightsError(f"{name}: only dense tensors of {', '.join(DTYPES)} can be saved, got {_kind(tensor)}")
        raws[name] = made.setdefault(id(tensor), to_raw(tensor))
    return raws


def to_raw(tensor: Tensor) -> io.RawTensor:
    """A tensor's bits (unsigned integers of its shape) and dtype name; without a copy where memory allows."""
    plain = tensor.detach().cpu().contiguous()
    flat = plain.reshape(-1).view(_NUMPY_OF_SIZE[plain.element_size()]).numpy()
    bits = flat.view(f"u{plain.element_size()}").reshape(tuple(plain.shape))
    return io.RawTensor(bits, str(plain.dtype).removeprefix("torch."))


def from_raw(raw: io.RawTensor) -> Tensor:
    """The inverse of ``to_raw``."""
    dtype = getattr(torch, raw.dtype)
    signed = np.ascontiguousarray(raw.bits).reshape(-1)
    signed = signed if signed.dtype == np.uint8 else signed.view(f"i{signed.itemsize}")
    return torch.from_numpy(signed).view(dtype).reshape(raw.bits.shape)


def _kind(value: object) -> str:
    return f"a {value.layout} tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _tied(own: Mapping[str, Tensor], name: str, state: Mapping[str, Tensor]) -> Tensor | None:
    if name in state:
        return state[name]
    return next((state[other] for other in own if other in state and own[other] is own[name]), None)


def _hint(own: Mapping[str, Tensor], unexpected: Sequence[str]) -> str:
    for name in unexpected[:1]:
        for target in own:
            if name.endswith(f".{target}") and name != target:
                return f"; set model.weights.strip: [{name.removesuffix(target)!r}]"
    return ""
