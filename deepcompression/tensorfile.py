"""Read and write .safetensors files as bits, so that types which numpy lacks (bfloat16, float8) survive."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepcompression.atomic import written
from deepcompression.dtypes import DTYPES, unsigned
from deepcompression.errors import InputError
from deepcompression.io import RawTensor

_NAMES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_CODES = {name: code for code, name in _NAMES.items()}
_MOST_HEADER = 100_000_000


class TensorFile(Mapping[str, RawTensor]):
    """A .safetensors file whose tensors are read one at a time, in the order of its header; metadata is not kept.

    safetensors itself reads all at once, or leaves out the types that numpy lacks.
    """

    def __init__(self, path: Path) -> None:
        """Read and check the header of `path`.

        Raises:
            InputError: the file cannot be opened, is not valid, or has a type that .dcz cannot hold.
        """
        self.path = path
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > min(size - 8, _MOST_HEADER):
                    raise InputError(f"{path}: not a valid .safetensors file: its header is longer than the file")
                header = json.loads(file.read(length))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: not a valid .safetensors file: its header is no JSON") from error
        if not isinstance(header, dict):
            raise InputError(f"{path}: not a valid .safetensors file: its header is no mapping")
        self._start, self._room = 8 + length, size - 8 - length
        self.about = {name: self._checked(name, one) for name, one in header.items() if name != "__metadata__"}
        self.nbytes = self._room

    def _checked(self, name: str, about: Any) -> tuple[str, tuple[int, ...], int]:
        """A tensor's dtype, shape and offset, which fit the file."""
        try:
            code, shape, (begin, end) = about["dtype"], tuple(map(int, about["shape"])), about["data_offsets"]
            sound = 0 <= begin <= end <= self._room and all(n >= 0 for n in shape)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.path}: not a valid .safetensors file: {name}: {error!r}") from None
        dtype = _NAMES.get(code)
        if dtype is None:
            raise InputError(f"{self.path}: {name}: dtype {code} cannot be stored in a .dcz file")
        if not sound or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise InputError(
                f"{self.path}: not a valid .safetensors file: {name}: no {dtype} {shape} at {begin} to {end}"
            )
        return dtype, shape, begin

    def __getitem__(self, name: str) -> RawTensor:
        dtype, shape, begin = self.about[name]
        kind = unsigned(dtype)
        count = math.prod(shape)
        flat = np.fromfile(self.path, kind.newbyteorder("<"), count, offset=self._start + begin)
        if len(flat) < count:
            raise InputError(f"{self.path}: {name}: the file became shorter while it was read")
        return RawTensor(flat.astype(kind, copy=False).reshape(shape), dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.about)

    def __len__(self) -> int:
        return len(self.about)


def read(path: Path) -> dict[str, RawTensor]:
    """The tensors of a .safetensors file, in the order of its header; raises as `TensorFile`."""
    return dict(TensorFile(path))


def write(tensors: Mapping[str, RawTensor], path: Path) -> None:
    """Write a .safetensors file whole or not at all; wide types first, so that each tensor is aligned.

    Raises:
        InputError: a tensor is called `__metadata__`, which safetensors reserves.
        StorageError: the disk is full, or `path` cannot be written.
    """
    write_each(((name, raw.dtype, raw.bits.shape) for name, raw in tensors.items()), tensors.__getitem__, path)


def write_each(
    about: Iterable[tuple[str, str, tuple[int, ...]]], tensor: Callable[[str], RawTensor], path: Path
) -> None:
    """As `write`, with one tensor at a time in memory: names, dtypes and shapes first, `tensor` when its turn comes."""
    ordered = sorted(about, key=lambda one: -DTYPES[one[1]].itemsize)
    header: dict[str, dict[str, object]] = {}
    at = 0
    for name, dtype, shape in ordered:
        if name == "__metadata__":
            raise InputError("a tensor called '__metadata__' cannot be written as .safetensors")
        end = at + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with written(path) as file:
        file.writelines([len(text).to_bytes(8, "little"), text])
        for name, _, _ in ordered:
            bits = np.ascontiguousarray(tensor(name).bits)
            file.write(bits.astype(bits.dtype.newbyteorder("<"), copy=False).data.cast("B") if bits.size else b"")
            del bits  # before the next tensor is made
