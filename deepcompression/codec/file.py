"""Read and write .dcz files: named numpy arrays in, the same bits out. numpy alone is needed to read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from deepcompression._atomic import written
from deepcompression._parallel import cores
from deepcompression.codec import edits as edits_
from deepcompression.codec import encoder, head
from deepcompression.codec import index as format
from deepcompression.codec import metadata as metadata_
from deepcompression.codec.describe import describe_equal, describe_tensor, summary
from deepcompression.codec.dtypes import RawTensor, raw_of, to_array
from deepcompression.codec.index import Entry
from deepcompression.codec.reader import (
    Mapped,
    Readable,
    Source,
    check_memory,
    check_one_by_one,
    index_of,
    named,
    open_stream,
    opened,
    read_small,
    read_tensor,
    selected,
    stored_entry,
)
from deepcompression.errors import FormatError, InputError

__all__ = ["CODERS", "File", "RawTensor", "decode", "encode", "inspect", "load", "save", "verify"]

CODERS = format.CODERS
_IN_MEMORY = 64 << 20
Tensor = NDArray[Any] | RawTensor
Progress = Callable[[str, int], None]


def encode(
    tensors: Mapping[str, Tensor],
    coder: str = "huffman",
    *,
    metadata: Mapping[str, str] | None = None,
    edits: Sequence[Mapping[str, Any]] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> bytes:
    """The bytes of a .dcz file that holds `tensors`, in their order; equal tensors give equal bytes.

    Args:
        tensors: arrays of any layout, or RawTensor for types numpy lacks. Equal ones are stored once. Each is asked
            for once, in turn: a mapping may make them as it goes.
        coder: "huffman" (decodes fastest), "adaptive" (smallest), "auto" (adaptive where that is soon enough), or
            "packed" for codes and gaps of fixed width.
        metadata: texts by key that the file keeps, at most 1 MiB in all.
        edits: records that turn the user's model into the one of these tensors (FORMAT.md), at most 1 MiB in all.
        threads: at most so many; None is one a core. The bytes do not depend on it.
        progress: called after each tensor with its name and its bytes before.

    Raises:
        InputError: a name, a type, the metadata, an edit or the coder is not storable.
    """
    extensions = records(metadata, edits)
    blob = io.BytesIO()
    entries = encode_blobs(tensors, coder, threads, progress, blob)
    return format.write_header(entries, coder, extensions) + blob.getvalue()


def save(
    tensors: Mapping[str, Tensor],
    path: Source,
    *,
    coder: str = "huffman",
    metadata: Mapping[str, str] | None = None,
    edits: Sequence[Mapping[str, Any]] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write `encode(tensors, coder, metadata=metadata, edits=edits)` to `path` and return its size in bytes.

    The file appears whole or not at all: it is written beside `path`, synced, and renamed. One tensor at a time is in
    memory, if the mapping makes them as it goes.

    Args:
        tensors: as all others but `path`, of `encode`.
        path: of the file, in a folder that there is.

    Raises:
        InputError: as `encode`.
        StorageError: the disk is full, or `path` cannot be written.
    """
    extensions = records(metadata, edits)
    folder = Path(path).parent
    with written(path) as file, tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder)) as blobs_:
        entries = encode_blobs(tensors, coder, threads, progress, blobs_)
        file.write(format.write_header(entries, coder, extensions))
        blobs_.seek(0)
        shutil.copyfileobj(blobs_, file)
        return file.tell()


def records(metadata: Mapping[str, str] | None, edits: Sequence[Mapping[str, Any]] | None) -> dict[int, bytes]:
    """The extension records of a file, by tag; raises InputError where one cannot be kept."""
    return metadata_.pack(metadata) | edits_.pack(edits)


def encode_blobs(
    tensors: Mapping[str, Tensor], coder: str, threads: int | None, progress: Progress | None, out: Any
) -> list[Entry]:
    """Write the blobs of `tensors` to `out`, one after the other, and say what the index has to say of them.

    Args:
        tensors: as all others but `out`, of `encode`.
        out: a binary file.

    Raises:
        InputError: a name, a type or the coder is not storable.
    """
    if coder not in format.CODERS:
        raise InputError(f"coder is one of {', '.join(format.CODERS)}, not {coder!r}")
    format.check_count(len(tensors))
    entries: list[Entry] = []
    seen: dict[tuple[str, tuple[int, ...], bytes], int] = {}
    for place, name in enumerate(tensors):
        raw = raw_of(name, tensors[name])
        flat = np.ascontiguousarray(raw.bits).reshape(-1)
        blob = encoder.encode_tensor(flat, raw.dtype, raw.bits.shape, coder, threads or cores())
        # Equal tensors have equal blobs, and the other way round.
        known = seen.setdefault((raw.dtype, raw.bits.shape, hashlib.sha256(blob).digest()), place)
        if known == place:
            if len(blob) > _IN_MEMORY and isinstance(out, tempfile.SpooledTemporaryFile):
                out.rollover()  # first: it would copy the blob, and look at the size then
            out.write(blob)
            stored = len(blob), zlib.crc32(blob), head.version_of(blob)
            entries.append(Entry(name, raw.dtype, raw.bits.shape, None, 0, *stored))
        else:
            entries.append(Entry(name, raw.dtype, raw.bits.shape, known, 0, 0, 0))
        if progress is not None:
            progress(name, flat.nbytes)
        del raw, flat, blob  # before the next tensor is made
    return entries


@overload
def load(
    path: Source,
    *,
    names: Iterable[str] | None = None,
    raw: Literal[False] = False,
    max_bytes: int | None = None,
) -> dict[str, NDArray[Any]]: ...


@overload
def load(
    path: Source, *, names: Iterable[str] | None = None, raw: Literal[True], max_bytes: int | None = None
) -> dict[str, RawTensor]: ...


def load(
    path: Source, *, names: Iterable[str] | None = None, raw: bool = False, max_bytes: int | None = None
) -> dict[str, NDArray[Any]] | dict[str, RawTensor]:
    """The tensors of a .dcz file, by name, in the file's order.

    Args:
        names: only these tensors; the bytes of the others are not read.
        raw: bits and dtype names (RawTensor) instead of arrays. Without it, types that numpy lacks (bfloat16,
            float8) come back as float32, exactly widened; all others as they were saved.
        max_bytes: refuse tensors of more bytes together, equal ones counted each time, before memory is taken; None
            means half of what is available.

    Raises:
        FormatError: the file is not one, or damaged, or larger than `max_bytes`; see its subclasses.
        InputError: the file cannot be opened, or has no tensor of such a name.
    """
    with open_stream(path) as source:
        found = _decode(source, names, max_bytes, widened=not raw)
    return found if raw else {name: to_array(one.bits, one.dtype) for name, one in found.items()}


def decode(
    buffer: bytes | memoryview, *, names: Iterable[str] | None = None, max_bytes: int | None = None
) -> dict[str, RawTensor]:
    """The tensors of a .dcz file in memory, as `load(..., raw=True)` gives them; raises the same errors.

    Args:
        buffer: the bytes of the file.
        names: only these tensors.
        max_bytes: as of `load`.
    """
    return _decode(Mapped(memoryview(buffer)), names, max_bytes, widened=False)


class File(Mapping[str, NDArray[Any]]):
    """A .dcz file, opened and mapped into memory: a mapping that decodes a tensor when it is asked for.

    `with File("model.dcz") as file: file["fc1.weight"]`. Only the pages of the tensors that are asked for are read, and
    nothing is kept. It may be shared by threads. `metadata` is what the file was given of it: texts by key; `edits` are
    the records that turn the user's model into the one that the tensors belong to, in their order.
    """

    def __init__(self, path: Source, *, max_bytes: int | None = None) -> None:
        """Open `path` and check its header; each tensor is checked when it is decoded.

        Args:
            max_bytes: refuse to decode a tensor of more bytes; None means half of the memory that is available. It is
                of one tensor, since none is kept: who keeps or writes several bounds their sum.

        Raises:
            FormatError, InputError: as `load`.
        """
        self.path = os.fspath(path)
        self._most = max_bytes
        with named(path), opened(path) as file:
            size = file.seek(0, os.SEEK_END)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
            self._source = Mapped(memoryview(self._map or b""))
            try:
                self.index = index_of(self._source)
            except FormatError:
                self.close()
                raise
        self.entries = {entry.name: entry for entry in self.index.entries}
        self.metadata, self.edits = self.index.metadata, self.index.edits

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The tensor as an array; types that numpy lacks come back as float32, exactly widened."""
        tensor = self._decoded(name, widened=True)
        return to_array(tensor.bits, tensor.dtype)

    def raw(self, name: str) -> RawTensor:
        """The tensor as bits and dtype name."""
        return self._decoded(name, widened=False)

    def _decoded(self, name: str, widened: bool) -> RawTensor:
        entry = self.entries[name]
        with named(self.path):
            check_memory([entry], self._most, widened)
            first = stored_entry(self.index, entry)
            return RawTensor(read_tensor(self._source, first)[0].reshape(first.shape), entry.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def close(self) -> None:
        """Unmap the file; arrays that were decoded stay."""
        self._source.view.release()
        if self._map is not None:
            # A thread that still decodes, or the traceback of an error, holds pages: they go with it.
            with contextlib.suppress(BufferError):
                self._map.close()

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def verify(path: Source, *, max_bytes: int | None = None, progress: Progress | None = None) -> None:
    """Decode every tensor of a .dcz file, one at a time, and return if all is well, else raise as `load` does.

    Args:
        max_bytes: refuse a file whose tensors, equal ones counted each time, have more bytes together; None means
            none of which one alone takes half of the memory that is available.
        progress: called after each tensor with its name and its bytes decoded.
    """
    with open_stream(path) as source:
        index = index_of(source)
        check_one_by_one(index.entries, max_bytes)
        for entry in index.entries:
            if entry.same_as is None:
                read_tensor(source, entry)
            if progress is not None:
                progress(entry.name, entry.nbytes)


def inspect(path: Source, *, max_bytes: int | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """What is in a .dcz file and where its bytes went, ready for JSON; raises as `load` does.

    One tensor at a time is in memory.

    Args:
        max_bytes: as of `verify`.
        progress: called after each tensor with its name and its bytes decoded.

    Returns:
        format_version; file_bytes; header_bytes; dense_bytes (of the tensors, equal ones once, floats at
        most 4 bytes an element); ratio (dense_bytes / file_bytes); coder; metadata (texts by key); edits
        (a list of records); and tensors, a list of: name; dtype; shape; density (share of elements that are
        not +0.0); distinct (values among those); bytes, and their split in values, positions, codebook and table (of an
        arithmetic code, positions is what its flags alone would take); method; coder; same_as (the tensor
        whose bytes serve this one, if any); entropy_bytes (order-0 entropy of the non-zero values plus
        n x H(density) for their positions).
    """
    with open_stream(path) as source:
        index = index_of(source)
        check_one_by_one(index.entries, max_bytes)
        file_bytes = source.size()
        tensors: list[dict[str, Any]] = []
        for entry in index.entries:
            tensors.append(
                describe_tensor(source, entry)
                if entry.same_as is None
                else describe_equal(entry, tensors[entry.same_as])
            )
            if progress is not None:
                progress(entry.name, entry.nbytes)
    return summary(index, file_bytes, tensors)


def _decode(
    source: Readable, names: Iterable[str] | None, max_bytes: int | None, widened: bool
) -> dict[str, RawTensor]:
    index = index_of(source)
    wanted = selected(index, names)
    check_memory(wanted, max_bytes, widened)
    stored = list({first.name: first for first in (stored_entry(index, entry) for entry in wanted)}.values())
    bits = read_small(source, [entry for entry in stored if 0 < entry.elements <= head.CHUNK])
    for entry in stored:
        if entry.name not in bits:
            bits[entry.name] = read_tensor(source, entry)[0]
    decoded: dict[str, RawTensor] = {}
    given: set[str] = set()
    for entry in wanted:
        first = stored_entry(index, entry)
        flat = bits[first.name].copy() if first.name in given else bits[first.name]
        given.add(first.name)
        decoded[entry.name] = RawTensor(flat.reshape(first.shape), entry.dtype)
    return decoded
