"""Read and write .safetensors files as bits, so that types which numpy lacks (bfloat16, float8) survive."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deepcompression._atomic import written
from deepcompression.codec.dtypes import DTYPES, RawTensor, unsigned
from deepcompression.codec.index import MOST_BYTES
from deepcompression.codec.reader import opened
from deepcompression.errors import InputError

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
_METADATA = "__metadata__"


class TensorFile(Mapping[str, RawTensor]):
    """A .safetensors file whose tensors are read one at a time, in the order of its header; `metadata` has its texts.

    safetensors itself reads all at once, or leaves out the types that numpy lacks.
    """

    def __init__(self, path: Path) -> None:
        """Read and check the header of `path`.

        Raises:
            InputError: the file cannot be opened, is not valid, or has a type that .dcz cannot hold.
        """
        self.path = path
        try:
            with opened(path) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                length = int.from_bytes(file.read(8), "little")
                if size < 8 or length > min(size - 8, _MOST_HEADER):
                    raise self._invalid("its header is longer than the file")
                header = json.loads(file.read(length), object_pairs_hook=self._once)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise self._invalid("its header is no JSON") from error
        if not isinstance(header, dict):
            raise self._invalid("its header is no mapping")
        self.metadata = self._texts(header.pop(_METADATA, {}))
        self._start, self._room = 8 + length, size - 8 - length
        self.about = {name: self._checked(name, one) for name, one in header.items()}
        self._check_places()
        self.nbytes = self._room

    def _invalid(self, what: str) -> InputError:
        return InputError(f"{self.path}: not a valid .safetensors file: {what}")

    def _once(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        """A mapping of the header, no key of which stands there twice."""
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            raise self._invalid(f"the key {counts.most_common(1)[0][0][:80]!r} stands there twice")
        return found

    def _texts(self, metadata: Any) -> dict[str, str]:
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise self._invalid(f"its {_METADATA} is no mapping of text to text")
        return metadata

    def _checked(self, name: str, about: Any) -> tuple[str, tuple[int, ...], int]:
        """A tensor's dtype, shape and offset, which fit the file."""
        try:
            code, shape, (begin, end) = about["dtype"], tuple(about["shape"]), about["data_offsets"]
        except (KeyError, TypeError, ValueError) as error:
            raise self._invalid(f"{name}: {error!r}") from None
        if not all(type(n) is int and 0 <= n <= MOST_BYTES for n in (*shape, begin, end)) or len(shape) > 64:
            raise self._invalid(f"{name}: its shape or its offsets are no sizes")
        dtype = _NAMES.get(code) if isinstance(code, str) else None
        if dtype is None:
            raise InputError(f"{self.path}: {name}: dtype {code} cannot be stored in a .dcz file")
        if not begin <= end <= self._room or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise self._invalid(f"{name}: no {dtype} {shape} at {begin} to {end}")
        return dtype, shape, begin

    def _check_places(self) -> None:
        """Raise unless the tensors follow each other and fill the file, as safetensors itself has it."""
        at = 0
        ends = {
            name: begin + math.prod(shape) * DTYPES[dtype].itemsize
            for name, (dtype, shape, begin) in self.about.items()
        }
        for name in sorted(ends, key=lambda name: (self.about[name][2], ends[name])):
            if self.about[name][2] != at:
                raise self._invalid(f"{name}: begins at {self.about[name][2]}, where the tensor before it ends at {at}")
            at = ends[name]
        if at != self._room:
            raise self._invalid(f"its tensors end at {at}, its bytes at {self._room}")

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


def write(tensors: Mapping[str, RawTensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a .safetensors file whole or not at all; wide types first, so that each tensor is aligned.

    Args:
        tensors: by name.
        path: of the file.
        metadata: texts by key.

    Raises:
        InputError: a tensor is called `__metadata__`, which safetensors reserves, or the header is larger than its
            readers allow.
        StorageError: the disk is full, or `path` cannot be written.
    """
    about = ((name, raw.dtype, raw.bits.shape) for name, raw in tensors.items())
    write_each(about, tensors.__getitem__, path, metadata)


def write_each(
    about: Iterable[tuple[str, str, tuple[int, ...]]],
    tensor: Callable[[str], RawTensor],
    path: Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """As `write`, with one tensor at a time in memory: names, dtypes and shapes first, `tensor` when its turn comes.

    Args:
        about: name, dtype and shape of each.
        tensor: gives one, by its name.
        path: of the file.
        metadata: texts by key.

    Raises:
        InputError, StorageError: as `write`.
    """
    ordered = sorted(about, key=lambda one: -DTYPES[one[1]].itemsize)
    header: dict[str, Mapping[str, object]] = {_METADATA: metadata} if metadata else {}
    at = 0
    for name, dtype, shape in ordered:
        if name == _METADATA:
            raise InputError(f"a tensor called '{_METADATA}' cannot be written as .safetensors")
        end = at + math.prod(shape) * DTYPES[dtype].itemsize
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > _MOST_HEADER:
        raise InputError(f"{path}: the header takes {len(text):,} bytes; .safetensors has at most {_MOST_HEADER:,}")
    with written(path) as file:
        file.writelines([len(text).to_bytes(8, "little"), text])
        for name, _, _ in ordered:
            bits = np.ascontiguousarray(tensor(name).bits)
            file.write(bits.astype(bits.dtype.newbyteorder("<"), copy=False).data.cast("B") if bits.size else b"")
            del bits  # before the next tensor is made
