"""Blobs of tensors in files of their own, until all are there and become one .dcz file: work that can be resumed."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from deepcompression._atomic import written
from deepcompression.codec import head
from deepcompression.codec import index as format
from deepcompression.codec.index import Entry
from deepcompression.errors import StorageError

_PIECE = 1 << 20
_MOST_LINE = 1 << 20


class Part(NamedTuple):
    """A finished tensor: a file whose first line tells what follows it, and `about`, what its maker had to say."""

    path: Path
    begin: int
    dtype: str
    shape: tuple[int, ...]
    size: int
    crc: int
    version: int
    digest: str
    about: dict[str, Any]


def write_part(blob: bytes, dtype: str, shape: tuple[int, ...], path: Path, about: Mapping[str, Any]) -> Part:
    """Keeps the blob of a tensor in a file, whole or not at all.

    Args:
        blob: as `encoder.encode_tensor` makes it.
        dtype: of the tensor.
        shape: of the tensor.
        path: of the file.
        about: whatever else is to be known of it, ready for JSON.

    Raises:
        StorageError: it cannot be written.
    """
    told = {
        "dtype": dtype,
        "shape": list(shape),
        "size": len(blob),
        "crc": zlib.crc32(blob),
        "version": head.version_of(blob),
        "digest": hashlib.sha256(blob).hexdigest(),
        "about": dict(about),
    }
    line = json.dumps(told).encode() + b"\n"
    with written(path) as file:
        file.writelines([line, blob])
    return _part(path, line, told)


def read_part(path: Path) -> Part | None:
    """The part in a file; None where there is none, or no whole one."""
    try:
        with path.open("rb") as file:
            line = file.readline(_MOST_LINE)
            part = _part(path, line, json.loads(line))
            return part if file.seek(0, 2) == part.begin + part.size else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _part(path: Path, line: bytes, told: Mapping[str, Any]) -> Part:
    stored = (told[key] for key in ("size", "crc", "version", "digest", "about"))
    return Part(path, len(line), told["dtype"], tuple(told["shape"]), *stored)


def join_parts(parts: Mapping[str, Part], path: Path, coder: str, records: Mapping[int, bytes]) -> int:
    """Writes the .dcz file of these tensors, whole or not at all; equal ones are stored once. Returns its bytes.

    Args:
        parts: by name, in the file's order.
        path: of the file.
        coder: which the file names.
        records: extension records by tag.

    Raises:
        StorageError: it cannot be written, or a part was damaged since (which is then deleted).
    """
    entries: list[Entry] = []
    seen: dict[tuple[str, tuple[int, ...], str], int] = {}
    for place, (name, part) in enumerate(parts.items()):
        known = seen.setdefault((part.dtype, part.shape, part.digest), place)
        stored = (None, 0, part.size, part.crc, part.version) if known == place else (known, 0, 0, 0)
        entries.append(Entry(name, part.dtype, part.shape, *stored))
    with written(path) as file:
        file.write(format.write_header(entries, coder, records))
        for entry, part in zip(entries, parts.values(), strict=True):
            if entry.same_as is None:
                _copy(part, file)
        return file.tell()


def joined_size(parts: Mapping[str, Part], coder: str, records: Mapping[int, bytes]) -> int:
    """Bytes of the file that `join_parts` would write.

    Args:
        parts: as all others, of `join_parts`.
    """
    entries = [Entry(name, p.dtype, p.shape, None, 0, p.size, p.crc, p.version) for name, p in parts.items()]
    distinct = {(part.dtype, part.shape, part.digest): part.size for part in parts.values()}
    return len(format.write_header(entries, coder, records)) + sum(distinct.values())


def _copy(part: Part, out: BinaryIO) -> None:
    crc, left = 0, part.size
    with part.path.open("rb") as file:
        file.seek(part.begin)
        while left and (piece := file.read(min(left, _PIECE))):
            out.write(piece)
            crc, left = zlib.crc32(piece, crc), left - len(piece)
    if left or crc != part.crc:
        part.path.unlink()
        raise StorageError(f"{part.path}: was damaged since it was written; the same command makes it again")
