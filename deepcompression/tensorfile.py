"""Read and write .safetensors files as bits, so that types which numpy lacks (bfloat16, float8) survive."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

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
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_CODES = {name: code for code, name in _NAMES.items()}


def read(path: Path) -> dict[str, RawTensor]:
    """The tensors of a .safetensors file, in the order of its header; its metadata is not kept.

    Raises:
        InputError: the file cannot be opened, is not valid, or has a type that .dcz cannot hold.
    """
    from safetensors import SafetensorError, deserialize

    try:
        content = path.read_bytes()
        tensors = dict(deserialize(content))  # type: ignore[no-untyped-call]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise InputError(f"{path}: not a valid .safetensors file: {error}") from error
    # deserialize() gives another order in each process; the header's makes the .dcz reproducible.
    order = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    decoded = {}
    for name in (name for name in order if name in tensors):
        dtype = _NAMES.get(tensors[name]["dtype"])
        if dtype is None:
            raise InputError(f"{path}: {name}: dtype {tensors[name]['dtype']} cannot be stored in a .dcz file")
        kind = unsigned(dtype)
        flat = np.frombuffer(tensors[name]["data"], kind.newbyteorder("<")).astype(kind)
        decoded[name] = RawTensor(flat.reshape(tensors[name]["shape"]), dtype)
    return decoded


def write(tensors: Mapping[str, RawTensor], path: Path) -> None:
    """Write a .safetensors file whole or not at all; wide types first, so that each tensor is aligned.

    Raises:
        InputError: a tensor is called `__metadata__`, which safetensors reserves.
        StorageError: the disk is full, or `path` cannot be written.
    """
    if "__metadata__" in tensors:
        raise InputError("a tensor called '__metadata__' cannot be written as .safetensors")
    header: dict[str, dict[str, object]] = {}
    parts = []
    at = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: -DTYPES[item[1].dtype].itemsize):
        part = tensor.bits.astype(tensor.bits.dtype.newbyteorder("<"), copy=False).tobytes()
        offsets = [at, at + len(part)]
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.bits.shape),
            "data_offsets": offsets,
        }
        parts.append(part)
        at += len(part)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with written(path) as file:
        file.writelines([len(text).to_bytes(8, "little"), text, *parts])
