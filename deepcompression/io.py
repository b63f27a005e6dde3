"""Read and write .dcz files: named numpy arrays in, the same bits out. numpy alone is needed to read."""

from __future__ import annotations

import contextlib
import difflib
import errno
import hashlib
import io
import mmap
import os
import shutil
import stat
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from deepcompression import blobs, format, layouts
from deepcompression import metadata as metadata_
from deepcompression.atomic import written
from deepcompression.blobs import Sections
from deepcompression.dtypes import DTYPES, FOREIGN, Bits, to_array, unsigned
from deepcompression.errors import (
    ChecksumMismatch,
    FormatError,
    InputError,
    TooLarge,
    TruncatedFile,
)
from deepcompression.format import Entry, Index
from deepcompression.parallel import cores, mapped

__all__ = ["CODERS", "File", "RawTensor", "decode", "encode", "inspect", "load", "save", "verify"]

CODERS = format.CODERS
_IN_MEMORY = 64 << 20
_MOST_COMPARED = 10_000  # names, to find the one that was meant
_NEAR = 4 << 20  # bytes of a blob that is read at once


@dataclass(frozen=True, eq=False)
class RawTensor:
    """A tensor of any dtype as bits: unsigned integers of the tensor's shape, as wide as one element.

    For instance `RawTensor(np.array([0x3F80], np.uint16), "bfloat16")` is the bfloat16 tensor [1.0].
    """

    bits: Bits
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} cannot be stored; known are {', '.join(DTYPES)}")
        if not isinstance(self.bits, np.ndarray) or self.bits.dtype != unsigned(self.dtype):
            got = self.bits.dtype if isinstance(self.bits, np.ndarray) else type(self.bits).__name__
            raise InputError(f"bits of {self.dtype} are an array of {unsigned(self.dtype)}, not {got}")
        if self.dtype == "bool" and self.bits.size and self.bits.max() > 1:
            raise InputError(f"bits of bool are 0 or 1, not {self.bits.max()}")


Tensor = NDArray[Any] | RawTensor
Source = str | os.PathLike[str]
Progress = Callable[[str, int], None]


class _Bytes(Protocol):
    """Where bytes come from: an open file or a memory map."""

    def read_at(self, offset: int, size: int) -> bytes | memoryview:
        """Up to `size` bytes from `offset` on."""

    def size(self) -> int:
        """All bytes that there are."""


class _Stream:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.turn = threading.Lock()

    def read_at(self, offset: int, size: int) -> bytes:
        with self.turn:
            self.file.seek(offset)
            return self.file.read(size)

    def size(self) -> int:
        return self.file.seek(0, os.SEEK_END)


@dataclass(frozen=True)
class _Map:
    view: memoryview

    def read_at(self, offset: int, size: int) -> memoryview:
        return self.view[offset : offset + size]

    def size(self) -> int:
        return len(self.view)


@dataclass(frozen=True)
class _Far:
    """The bytes of a blob, read when they are sliced."""

    source: _Bytes
    entry: Entry

    def __len__(self) -> int:
        return self.entry.size

    def __getitem__(self, place: slice) -> bytes | memoryview:
        found = self.source.read_at(self.entry.offset + place.start, place.stop - place.start)
        if len(found) < place.stop - place.start:
            raise TruncatedFile(f"{self.entry.name}: the file became shorter while it was read")
        return found


# ---------------------------------------------------------------- writing


def encode(
    tensors: Mapping[str, Tensor],
    coder: str = "huffman",
    *,
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> bytes:
    """The bytes of a .dcz file that holds `tensors`, in their order; equal tensors give equal bytes.

    Args:
        tensors: arrays of any layout, or RawTensor for types numpy lacks. Equal ones are stored once. Each is asked
            for once, in turn: a mapping may make them as it goes.
        coder: "huffman" (decodes fastest), "adaptive" (smallest), "auto" (adaptive where that decodes soon enough), or
            "packed" for codes and gaps of fixed width.
        metadata: texts by key that the file keeps, at most 1 MiB in all.
        threads: at most so many; None is one a core. The bytes do not depend on it.
        progress: called after each tensor with its name and its bytes before.

    Raises:
        InputError: a name, a type, the metadata or the coder is not storable.
    """
    records = metadata_.pack(metadata)
    blob = io.BytesIO()
    entries = _encode_blobs(tensors, coder, threads, progress, blob)
    return format.write_header(entries, coder, records) + blob.getvalue()


def save(
    tensors: Mapping[str, Tensor],
    path: Source,
    *,
    coder: str = "huffman",
    metadata: Mapping[str, str] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Write `encode(tensors, coder, metadata=metadata)` to `path` and return its size in bytes.

    The file appears whole or not at all: it is written beside `path`, synced, and renamed. One tensor at a time is in
    memory, if the mapping makes them as it goes.

    Raises:
        InputError: as `encode`.
        StorageError: the disk is full, or `path` cannot be written.
    """
    records = metadata_.pack(metadata)
    folder = Path(path).parent
    with written(path) as file, tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder)) as blobs_:
        entries = _encode_blobs(tensors, coder, threads, progress, blobs_)
        file.write(format.write_header(entries, coder, records))
        blobs_.seek(0)
        shutil.copyfileobj(blobs_, file)
        return file.tell()


def _encode_blobs(
    tensors: Mapping[str, Tensor], coder: str, threads: int | None, progress: Progress | None, out: Any
) -> list[Entry]:
    """Write the blobs of `tensors` to `out`, one after the other, and say what the index has to say of them."""
    if coder not in format.CODERS:
        raise InputError(f"coder is one of {', '.join(format.CODERS)}, not {coder!r}")
    format.check_count(len(tensors))
    entries: list[Entry] = []
    seen: dict[tuple[str, tuple[int, ...], bytes], int] = {}
    for place, name in enumerate(tensors):
        raw = _raw(name, tensors[name])
        flat = np.ascontiguousarray(raw.bits).reshape(-1)
        blob = layouts.encode_tensor(flat, raw.dtype, raw.bits.shape, coder, threads or cores())
        # Equal tensors have equal blobs, and the other way round.
        known = seen.setdefault((raw.dtype, raw.bits.shape, hashlib.sha256(blob).digest()), place)
        if known == place:
            out.write(blob)
            entries.append(Entry(name, raw.dtype, raw.bits.shape, None, 0, len(blob), zlib.crc32(blob)))
        else:
            entries.append(Entry(name, raw.dtype, raw.bits.shape, known, 0, 0, 0))
        if progress is not None:
            progress(name, flat.nbytes)
        del raw, flat, blob  # before the next tensor is made
    return entries


def _raw(name: object, tensor: object) -> RawTensor:
    """`tensor` as bits, in native byte order."""
    if not isinstance(name, str):
        raise InputError(f"tensor names are text, not {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the tensor name {name!r} is not valid Unicode") from None
    if isinstance(tensor, RawTensor):
        return tensor
    if not isinstance(tensor, np.ndarray | np.generic):
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise InputError(
            f"{name}: expected a numpy array or RawTensor, got {kind}; deepcompression.torch saves torch's"
        )
    array = np.asarray(tensor)
    if array.dtype.name not in DTYPES:
        raise InputError(f"{name}: dtype {array.dtype} cannot be stored; known are {', '.join(DTYPES)}")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)
    return RawTensor(array.view(unsigned(array.dtype.name)), array.dtype.name)


# ---------------------------------------------------------------- reading


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
    with _open(path) as source:
        tensors = _decode(source, names, max_bytes, widened=not raw)
    return tensors if raw else {name: to_array(tensor.bits, tensor.dtype) for name, tensor in tensors.items()}


def decode(
    buffer: bytes | memoryview, *, names: Iterable[str] | None = None, max_bytes: int | None = None
) -> dict[str, RawTensor]:
    """The tensors of a .dcz file in memory, as `load(..., raw=True)` gives them; raises the same errors."""
    return _decode(_Map(memoryview(buffer)), names, max_bytes, widened=False)


class File(Mapping[str, NDArray[Any]]):
    """A .dcz file, opened and mapped into memory: a mapping that decodes a tensor when it is asked for.

    `with File("model.dcz") as file: file["fc1.weight"]`. Only the pages of the tensors that are asked for are read, and
    nothing is kept. It may be shared by threads. `metadata` is what the file was given of it: texts by key.
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
        with _named(path), opened(path) as file:
            size = file.seek(0, os.SEEK_END)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if size else None
            self._source = _Map(memoryview(self._map or b""))
            try:
                self.index = _read_index(self._source)
            except FormatError:
                self.close()
                raise
        self.entries = {entry.name: entry for entry in self.index.entries}
        self.metadata = self.index.metadata

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The tensor as an array; types that numpy lacks come back as float32, exactly widened."""
        tensor = self._decoded(name, widened=True)
        return to_array(tensor.bits, tensor.dtype)

    def raw(self, name: str) -> RawTensor:
        """The tensor as bits and dtype name."""
        return self._decoded(name, widened=False)

    def _decoded(self, name: str, widened: bool) -> RawTensor:
        entry = self.entries[name]
        with _named(self.path):
            _check_memory([entry], self._most, widened)
            first = _stored(self.index, entry)
            return RawTensor(_read_tensor(self._source, first)[0].reshape(first.shape), entry.dtype)

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
    with _open(path) as source:
        index = _read_index(source)
        _check_one_by_one(index.entries, max_bytes)
        for entry in index.entries:
            if entry.same_as is None:
                _read_tensor(source, entry)
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
        most 4 bytes an element); ratio (dense_bytes / file_bytes); coder; metadata (texts by key); and
        tensors, a list of: name; dtype; shape; density (share of elements that are not +0.0); distinct
        (values among those); bytes, and their split in values, positions, codebook and table (of an
        arithmetic code, positions is what its flags alone would take); method; coder; same_as (the tensor
        whose bytes serve this one, if any); entropy_bytes (order-0 entropy of the non-zero values plus
        n x H(density) for their positions).
    """
    with _open(path) as source:
        index = _read_index(source)
        _check_one_by_one(index.entries, max_bytes)
        file_bytes = source.size()
        tensors: list[dict[str, Any]] = []
        for entry in index.entries:
            tensors.append(
                _describe(source, entry) if entry.same_as is None else _describe_equal(entry, tensors[entry.same_as])
            )
            if progress is not None:
                progress(entry.name, entry.nbytes)
    dense = sum(
        entry.elements * min(DTYPES[entry.dtype].itemsize, 4 if DTYPES[entry.dtype].floating else 16)
        for entry in index.entries
        if entry.same_as is None
    )
    return {
        "format_version": format.VERSION,
        "file_bytes": file_bytes,
        "header_bytes": index.header_bytes,
        "dense_bytes": dense,
        "ratio": dense / file_bytes,
        "coder": index.coder,
        "metadata": index.metadata,
        "tensors": tensors,
    }


@contextlib.contextmanager
def _open(path: Source) -> Iterator[_Stream]:
    """The file, opened; errors of the file system and of the format name the path."""
    with _named(path), opened(path) as file:
        yield _Stream(file)


def opened(path: Source) -> BinaryIO:
    """`path`, opened for reading; what may wait or go on for ever (a pipe, a device) is not."""
    kind = Path(path).stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise OSError(errno.EINVAL, "it is no ordinary file")
    return Path(path).open("rb")


@contextlib.contextmanager
def _named(path: Source) -> Iterator[None]:
    """Errors of the file system and of the format name `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    except FormatError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error.__cause__


def _decode(source: _Bytes, names: Iterable[str] | None, max_bytes: int | None, widened: bool) -> dict[str, RawTensor]:
    index = _read_index(source)
    wanted = _select(index, names)
    _check_memory(wanted, max_bytes, widened)
    stored = list({first.name: first for first in (_stored(index, entry) for entry in wanted)}.values())
    # Small tensors are decoded side by side; large ones one after the other, each by all threads.
    small = [entry for entry in stored if 0 < entry.elements <= blobs.CHUNK]
    made = mapped(lambda entry: _decode_blob(_read_blob(source, entry), entry, 1)[0], small, cores())
    bits = {entry.name: flat for entry, flat in zip(small, made, strict=True)}
    for entry in stored:
        if entry.name not in bits:
            bits[entry.name] = _read_tensor(source, entry)[0]
    decoded: dict[str, RawTensor] = {}
    given: set[str] = set()
    for entry in wanted:
        first = _stored(index, entry)
        flat = bits[first.name].copy() if first.name in given else bits[first.name]
        given.add(first.name)
        decoded[entry.name] = RawTensor(flat.reshape(first.shape), entry.dtype)
    return decoded


def _stored(index: Index, entry: Entry) -> Entry:
    """The entry whose blob holds the bits of `entry`."""
    return entry if entry.same_as is None else index.entries[entry.same_as]


def _read_index(source: _Bytes) -> Index:
    file_bytes = source.size()
    prefix = bytes(source.read_at(0, format.PREFIX_BYTES))
    index = bytes(source.read_at(len(prefix), format.read_prefix(prefix, file_bytes)))
    return format.read_index(prefix, index, file_bytes)


def _select(index: Index, names: Iterable[str] | None) -> list[Entry]:
    if names is None:
        return list(index.entries)
    wanted = {names} if isinstance(names, str) else set(names)
    known = [entry.name for entry in index.entries]
    for name in sorted(wanted - set(known)):
        short = [one for one in known[:_MOST_COMPARED] if len(one) <= 200]  # comparing takes the square of a length
        near = difflib.get_close_matches(name[:200], short, 3) or [one[:200] for one in known[:3]]
        raise InputError(f"no tensor is called {name!r}; there are {', '.join(near) or 'none'}")
    return [entry for entry in index.entries if entry.name in wanted]


def _read_tensor(source: _Bytes, entry: Entry) -> tuple[Bits, Sections]:
    if entry.size == entry.crc == entry.elements == 0:  # of these a file may have a million
        return np.zeros(0, unsigned(entry.dtype)), Sections()
    return _decode_blob(_read_blob(source, entry), entry, cores())


def _decode_blob(blob: bytes | memoryview | _Far, entry: Entry, threads: int) -> tuple[Bits, Sections]:
    return blobs.decode_tensor(blob, entry.dtype, entry.elements, entry.name, threads)


def _read_blob(source: _Bytes, entry: Entry) -> bytes | memoryview | _Far:
    """The blob, its checksum checked; a large one stays where it is, to be read again chunk by chunk."""
    far = _Far(source, entry)
    blob: bytes | memoryview | _Far
    if entry.size <= _NEAR:
        blob = far[0 : entry.size]
        crc = zlib.crc32(blob)
    else:
        blob, crc = far, 0
        for at in range(0, entry.size, _NEAR):
            crc = zlib.crc32(far[at : min(at + _NEAR, entry.size)], crc)
    if crc != entry.crc:
        raise ChecksumMismatch(f"{entry.name}: its checksum does not match: the file was damaged")
    return blob


def _check_memory(entries: Iterable[Entry], max_bytes: int | None, widened: bool = False) -> None:
    """Raise TooLarge where these, all in memory at once, take more than is allowed."""
    total = sum(4 * entry.elements if widened and entry.dtype in FOREIGN else entry.nbytes for entry in entries)
    _check_total(total, available_memory() // 2 if max_bytes is None else max_bytes)


def _check_one_by_one(entries: Sequence[Entry], max_bytes: int | None) -> None:
    """Raise TooLarge where all together have more than `max_bytes`, or one takes more memory than is allowed."""
    if max_bytes is None:
        _check_total(max((entry.nbytes for entry in entries), default=0), available_memory() // 2)
    else:
        _check_memory(entries, max_bytes)


def _check_total(total: int, allowed: int) -> None:
    if total > allowed:
        raise TooLarge(f"decodes to {total} bytes, allowed are {allowed}; max_bytes= allows more")


def check_disk(entries: Iterable[Entry], folder: Path) -> None:
    """Raise TooLarge where these tensors, written to `folder`, would fill its disk."""
    total = sum(entry.nbytes for entry in entries)
    with contextlib.suppress(OSError):  # of a missing folder, writing says more
        free = shutil.disk_usage(folder).free
        if total > free:
            raise TooLarge(f"decodes to {total} bytes, and {folder} has {free} left; --name writes single tensors")


def available_memory() -> int:
    """Bytes of memory that are free or can be freed at once; 4 GiB where the system does not say."""
    try:
        with Path("/proc/meminfo").open() as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 << 30


# ---------------------------------------------------------------- description


def _describe(source: _Bytes, entry: Entry) -> dict[str, Any]:
    blob = _read_blob(source, entry)
    threads = cores() if entry.elements else 1
    flat, sections = blobs.decode_tensor(blob, entry.dtype, entry.elements, entry.name, threads, split=True)
    nonzero, distinct, saved = 0, 0, 0.0
    for counts in _counts(flat):
        nonzero, distinct, saved = nonzero + int(counts.sum()), distinct + len(counts), saved + _repeats(counts)
    # The entropy of the values and n x H(density) together are that of all elements, zeros being a value.
    bits = _repeats(np.array([flat.size])) - saved - _repeats(np.array([flat.size - nonzero]))
    method, coder = blobs.layout(blob, entry.dtype, entry.elements)
    return {
        "name": entry.name,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "density": nonzero / flat.size if flat.size else 1.0,
        "distinct": distinct,
        "bytes": len(blob),
        **sections._asdict(),
        "method": method,
        "coder": coder,
        "same_as": None,
        "entropy_bytes": max(0.0, bits) / 8,
    }


def _describe_equal(entry: Entry, first: dict[str, Any]) -> dict[str, Any]:
    """The description of a tensor whose bytes are those of `first`: they are counted there."""
    nothing = {"bytes": 0, **Sections()._asdict(), "entropy_bytes": 0.0}
    return {**first, **nothing, "name": entry.name, "same_as": first["name"]}


def _counts(flat: Bits) -> Iterator[NDArray[np.int64]]:
    """How often each value of `flat` (n,) that is not zero occurs, some of the values at a time.

    Wide elements are sorted in place: that takes no memory, however many are distinct.
    """
    if flat.itemsize <= 2:
        counts = np.zeros(1 << 8 * flat.itemsize, np.int64)
        for start in range(0, flat.size, blobs.CHUNK):
            counts += np.bincount(flat[start : start + blobs.CHUNK], minlength=len(counts))
        yield counts[1:][counts[1:] > 0]
        return
    flat.sort()
    values = flat[int(np.searchsorted(flat, flat.dtype.type(0), side="right")) :]
    begun = 0
    for start in range(1, len(values) + 1, blobs.CHUNK):
        part = values[start - 1 : start + blobs.CHUNK]
        ends = np.flatnonzero(part[1:] != part[:-1]) + start
        if start + blobs.CHUNK > len(values):
            ends = np.append(ends, len(values))
        yield np.diff(ends, prepend=begun)
        begun = int(ends[-1]) if ends.size else begun


def _repeats(counts: NDArray[np.int64]) -> float:
    """The sum of c log2 c: an ideal order-0 code of n symbols takes n log2 n bits less this."""
    used = counts[counts > 1]
    return float((used * np.log2(used)).sum())
