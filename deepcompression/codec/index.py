"""The header of a .dcz file, as FORMAT.md specifies it: a prefix and the index of the blobs that follow."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from deepcompression.codec import edits, metadata
from deepcompression.codec.bitstream import Cursor, varint
from deepcompression.codec.dtypes import DTYPES, NAMES
from deepcompression.codec.edits import Edit
from deepcompression.codec.foreign import told
from deepcompression.codec.head import VERSION
from deepcompression.errors import (
    ChecksumMismatch,
    InputError,
    MalformedFile,
    NotADczFile,
    TooLarge,
    TruncatedFile,
    UnsupportedVersion,
)

MAGIC = b"\x89DCZ"
CODERS = ("packed", "huffman", "adaptive", "auto")
PREFIX_BYTES = 14
MOST_DIMENSIONS = 64
MOST_BYTES = 1 << 62
MOST_NAME_BYTES = 100_000_000
MOST_TENSORS = 1 << 20
MOST_INDEX_BYTES = 1 << 28


class Entry(NamedTuple):
    """What the index says of one tensor; `same_as` is the place of the earlier one that it equals, if any.

    `version` is of the file; of one that is to be written, the least that the blob needs.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    same_as: int | None
    offset: int
    size: int
    crc: int
    version: int = 1

    @property
    def elements(self) -> int:
        """How many elements the tensor has; 1 where it has no dimensions."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the decoded tensor."""
        return self.elements * DTYPES[self.dtype].itemsize


class Index(NamedTuple):
    """A file's header: the coder, where the blobs begin, the tensors in order, the metadata, the edits, the version."""

    coder: str
    header_bytes: int
    entries: tuple[Entry, ...]
    metadata: dict[str, str]
    edits: list[Edit]
    version: int = 1


def write_header(entries: Sequence[Entry], coder: str, records: Mapping[int, bytes] | None = None) -> bytes:
    """Prefix and index of a file with these tensors (offsets are not stored: blobs follow each other).

    Args:
        records: extension records by tag.

    Raises:
        InputError: more tensors, or longer names, than a file may have.
    """
    check_count(len(entries))
    if sum(len(entry.name.encode()) for entry in entries) > MOST_NAME_BYTES:
        raise InputError(f"the tensors' names have more than {MOST_NAME_BYTES:,} bytes, which no .dcz file holds")
    index = bytearray(varint(len(entries)))
    previous = b""
    for entry in entries:
        name = entry.name.encode()
        shared = _common_prefix(previous, name)
        index += varint(shared) + varint(len(name) - shared) + name[shared:]
        previous = name
        if entry.same_as is not None:
            index += b"\0" + varint(entry.same_as)
            continue
        index += bytes([DTYPES[entry.dtype].number]) + varint(len(entry.shape))
        index += b"".join(map(varint, entry.shape)) + varint(entry.size) + entry.crc.to_bytes(4, "little")
    for tag, record in sorted((records or {}).items()):
        index += varint(tag) + varint(len(record)) + record
    if len(index) > MOST_INDEX_BYTES:
        raise InputError(f"the index takes {len(index):,} bytes; a .dcz file has at most {MOST_INDEX_BYTES:,}")
    version = max((entry.version for entry in entries), default=1)
    prefix = MAGIC + bytes([version, CODERS.index(coder)]) + len(index).to_bytes(4, "little")
    return prefix + zlib.crc32(prefix + index).to_bytes(4, "little") + bytes(index)


def check_count(tensors: int) -> None:
    """Raise InputError where a file may not have so many tensors."""
    if tensors > MOST_TENSORS:
        raise InputError(f"{tensors:,} tensors are too many: a .dcz file has at most {MOST_TENSORS:,}")


def read_prefix(prefix: bytes, file_bytes: int) -> int:
    """The length of the index that follows `prefix`, the first PREFIX_BYTES of a file of `file_bytes`.

    Raises:
        NotADczFile, UnsupportedVersion, TruncatedFile, TooLarge
    """
    if prefix[: len(MAGIC)] != MAGIC[: len(prefix)] or not prefix:
        what = told(prefix) if prefix else None
        why = f"it is {what}" if what else f"it begins with {prefix[:4]!r}, not {MAGIC!r}"
        raise NotADczFile(f"not a .dcz file: {why}")
    if len(prefix) > 4 and not 1 <= prefix[4] <= VERSION:
        raise UnsupportedVersion(
            f"format version {prefix[4]} is not known here (only 1 to {VERSION}); update deep-compression"
        )
    length = int.from_bytes(prefix[6:10], "little")
    if len(prefix) < PREFIX_BYTES or PREFIX_BYTES + length > file_bytes:
        raise TruncatedFile(f"the file ends within its header, after {file_bytes} bytes")
    if length > MOST_INDEX_BYTES:
        raise TooLarge(f"the index has {length} bytes, at most {MOST_INDEX_BYTES} are read")
    return length


def read_index(prefix: bytes, index: bytes, file_bytes: int) -> Index:
    """The header of a file of `file_bytes`, checked against its checksum and FORMAT.md.

    Args:
        prefix: the file's first bytes, of fixed length.
        index: the bytes of the index, behind them.
        file_bytes: of the whole file.

    Raises:
        ChecksumMismatch, MalformedFile, TruncatedFile, TooLarge
    """
    if zlib.crc32(prefix[:10] + index) != int.from_bytes(prefix[10:14], "little"):
        raise ChecksumMismatch("the header's checksum does not match: the file was damaged")
    cursor = Cursor(index, "header")
    if prefix[5] >= len(CODERS):
        raise cursor.fail(f"coder {prefix[5]} does not exist")
    entries: list[Entry] = []
    offset, previous, names = PREFIX_BYTES + len(index), b"", set[str]()
    name_bytes = 0
    count = cursor.varint("the number of tensors", most=len(index))
    if count > MOST_TENSORS:
        raise TooLarge(f"{count} tensors, at most {MOST_TENSORS} are read")
    for _ in range(count):
        name, previous = _read_name(cursor, previous, names)
        name_bytes += len(previous)
        if name_bytes > MOST_NAME_BYTES:
            raise cursor.fail(f"the names have more than {MOST_NAME_BYTES} bytes")
        entries.append(_read_entry(cursor, name, offset, entries)._replace(version=prefix[4]))
        offset += entries[-1].size
    texts, changes = _read_extensions(cursor)
    if offset > file_bytes:
        raise TruncatedFile(f"the file has {file_bytes} bytes, its header speaks of {offset}")
    if offset < file_bytes:
        raise MalformedFile(f"{file_bytes - offset} bytes follow the last tensor")
    return Index(CODERS[prefix[5]], PREFIX_BYTES + len(index), tuple(entries), texts, changes, prefix[4])


def _read_extensions(cursor: Cursor) -> tuple[dict[str, str], list[Edit]]:
    """The metadata and the edits among the records behind the last tensor.

    Records that must be understood are refused, others passed over.
    """
    texts: dict[str, str] = {}
    changes: list[Edit] = []
    last = -1
    while cursor.left:
        tag = cursor.varint("an extension's tag")
        if tag <= last:
            raise cursor.fail(f"extension {tag} follows {last}")
        if tag % 2:
            raise cursor.fail(f"the file needs extension {tag}, which is not known here; update deep-compression")
        record = cursor.take(cursor.varint("an extension's length"), "an extension")
        if tag == metadata.TAG:
            texts = metadata.unpack(record)
        if tag == edits.TAG:
            changes = edits.unpack(record)
        last = tag
    return texts, changes


def _read_name(cursor: Cursor, previous: bytes, names: set[str]) -> tuple[str, bytes]:
    shared = cursor.varint("a name's shared part", most=len(previous))
    raw = previous[:shared] + bytes(cursor.take(cursor.varint("a name's length"), "a name"))
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise cursor.fail(f"the name {raw[:80]!r} is not UTF-8") from None
    if name in names:
        raise cursor.fail(f"two tensors are called {name[:80]!r}")
    names.add(name)
    return name, raw


def _read_entry(cursor: Cursor, name: str, offset: int, earlier: list[Entry]) -> Entry:
    number = cursor.take(1, "a dtype")[0]
    if number == 0:
        place = cursor.varint("the place of an equal tensor")
        if place >= len(earlier) or earlier[place].same_as is not None:
            raise cursor.fail(f"{name[:80]!r} refers to tensor {place}, which is not an earlier stored one")
        first = earlier[place]
        return Entry(name, first.dtype, first.shape, place, offset, 0, 0)
    if number not in NAMES:
        raise cursor.fail(f"{name[:80]!r} has the unknown dtype {number}")
    dimensions = cursor.varint("the number of dimensions", most=MOST_DIMENSIONS)
    shape = tuple(cursor.varint("a dimension") for _ in range(dimensions))
    least = math.prod(shape) if 0 not in shape else math.prod(max(n, 1) for n in shape)
    if least * DTYPES[NAMES[number]].itemsize > MOST_BYTES:
        raise cursor.fail(f"{name[:80]!r} has the impossible shape {shape}")
    size = cursor.varint("a blob's size")
    crc = int.from_bytes(cursor.take(4, "a checksum"), "little")
    return Entry(name, NAMES[number], shape, None, offset, size, crc)


def _common_prefix(a: bytes, b: bytes) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
