"""A state_dict's tensors as bits, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcompression.codec import dtypes, file
from deepcompression.codec.dtypes import DTYPES
from deepcompression.errors import WeightsError

_NUMPY_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def load(path: str | Path) -> dict[str, Tensor]:
    """The state_dict in a ``.dcz`` file: names, dtypes, shapes and bits as they were saved, on the CPU.

    Raises:
        FormatError: the file is damaged, alien, or larger than half of the available memory.
    """
    return {name: from_raw(raw) for name, raw in file.load(path, raw=True).items()}


def save(
    state: Mapping[str, Tensor],
    path: str | Path,
    coder: str = "huffman",
    *,
    metadata: Mapping[str, str] | None = None,
    edits: Sequence[Mapping[str, Any]] | None = None,
) -> int:
    """Writes a state_dict to a ``.dcz`` file, losslessly; returns its bytes on disk.

    Args:
        metadata: texts by key, as ``.safetensors`` has them.
        edits: records that turn the user's model into the one that the state_dict belongs to; ``load_into`` makes them.

    Raises:
        WeightsError: something in it is no dense tensor, or of a dtype that the format does not know.
        InputError: an edit is no plain record, or of an unknown kind.
        StorageError: the file cannot be written.
    """
    return file.save(to_raw_state(state), path, coder=coder, metadata=metadata, edits=edits)


def encode(state: Mapping[str, Tensor], coder: str = "huffman") -> bytes:
    """What ``save`` writes, in memory."""
    return file.encode(to_raw_state(state), coder)


def to_raw_state(state: Mapping[str, Tensor]) -> dict[str, dtypes.RawTensor]:
    """A state_dict as bits and dtype names, tensors that are one object staying one object.

    Raises:
        WeightsError: a tensor is not dense, or of a type that no file holds.
    """
    made: dict[int, dtypes.RawTensor] = {}
    raws = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise WeightsError(f"{name}: is on the meta device and has no values to save")
        if not is_dense(tensor) or str(tensor.dtype).removeprefix("torch.") not in DTYPES:
            raise WeightsError(f"{name}: only dense tensors of {', '.join(DTYPES)} can be saved, got {kind_of(tensor)}")
        raws[name] = made.setdefault(id(tensor), to_raw(tensor))
    return raws


def to_raw(tensor: Tensor) -> dtypes.RawTensor:
    """A tensor's bits (unsigned integers of its shape) and dtype name; without a copy where memory allows."""
    plain = tensor.detach().cpu().contiguous()
    flat = plain.reshape(-1).view(_NUMPY_OF_SIZE[plain.element_size()]).numpy()
    bits = flat.view(f"u{plain.element_size()}").reshape(tuple(plain.shape))
    return dtypes.RawTensor(bits, str(plain.dtype).removeprefix("torch."))


def from_raw(raw: dtypes.RawTensor) -> Tensor:
    """The inverse of ``to_raw``."""
    dtype = getattr(torch, raw.dtype)
    signed = np.ascontiguousarray(raw.bits).reshape(-1)
    signed = signed if signed.dtype == np.uint8 else signed.view(f"i{signed.itemsize}")
    return torch.from_numpy(signed).view(dtype).reshape(raw.bits.shape)


def is_dense(value: object) -> bool:
    """Whether this is a tensor of ordinary layout that has values."""
    if not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta


def kind_of(value: object) -> str:
    """What a value is that cannot be stored, in words."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return "on the meta device" if value.is_meta else f"a {value.layout} tensor of {value.dtype}"


def is_extra(name: str) -> bool:
    """Whether this is what a module's own ``get_extra_state`` returned: its shape is that module's matter."""
    return name.rpartition(".")[2] == "_extra_state"
