"""Where a file's bytes come from, and how much memory they may take."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import shutil
import stat
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from deepcompression import _numba
from deepcompression._parallel import cores, mapped
from deepcompression.codec import decoder
from deepcompression.codec.dtypes import FOREIGN, Bits, unsigned
from deepcompression.codec.head import Sections
from deepcompression.codec.index import PREFIX_BYTES, Entry, Index, read_index, read_prefix
from deepcompression.errors import ChecksumMismatch, FormatError, InputError, TooLarge, TruncatedFile

_MOST_COMPARED = 10_000  # names, to find the one that was meant
_NEAR = 4 << 20  # bytes of a blob that is read at once
Source = str | os.PathLike[str]


class Readable(Protocol):
    """Where bytes come from: an open file or a memory map."""

    def read_at(self, offset: int, size: int) -> bytes | memoryview:
        """Up to `size` bytes from `offset` on."""

    def size(self) -> int:
        """All bytes that there are."""


class Opened:
    """An open file, read by one thread at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.turn = threading.Lock()

    def read_at(self, offset: int, size: int) -> bytes:
        """The bytes from `offset` on."""
        with self.turn:
            self.file.seek(offset)
            return self.file.read(size)

    def size(self) -> int:
        """All bytes that there are."""
        return self.file.seek(0, os.SEEK_END)


@dataclass(frozen=True)
class Mapped:
    """Bytes in memory, or mapped to it."""

    view: memoryview

    def read_at(self, offset: int, size: int) -> memoryview:
        """The bytes from `offset` on."""
        return self.view[offset : offset + size]

    def size(self) -> int:
        """All bytes that there are."""
        return len(self.view)


@dataclass(frozen=True)
class Far:
    """The bytes of a blob, read when they are sliced."""

    source: Readable
    entry: Entry

    def __len__(self) -> int:
        return self.entry.size

    def __getitem__(self, place: slice) -> bytes | memoryview:
        found = self.source.read_at(self.entry.offset + place.start, place.stop - place.start)
        if len(found) < place.stop - place.start:
            raise TruncatedFile(f"{self.entry.name}: the file became shorter while it was read")
        return found


@contextlib.contextmanager
def open_stream(path: Source) -> Iterator[Opened]:
    """The file, opened; errors of the file system and of the format name the path."""
    with named(path), opened(path) as file:
        yield Opened(file)


def opened(path: Source) -> BinaryIO:
    """`path`, opened for reading; what may wait or go on for ever (a pipe, a device) is not."""
    kind = Path(path).stat().st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        raise OSError(errno.EINVAL, "it is no ordinary file")
    return Path(path).open("rb")


@contextlib.contextmanager
def named(path: Source) -> Iterator[None]:
    """Errors of the file system and of the format name `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: cannot be read: {error.strerror or error}") from error
    except FormatError as error:
        raise type(error)(f"{os.fspath(path)}: {error}") from error.__cause__


def stored_entry(index: Index, entry: Entry) -> Entry:
    """The entry whose blob holds the bits of `entry`."""
    return entry if entry.same_as is None else index.entries[entry.same_as]


def index_of(source: Readable) -> Index:
    """The index of a file, checked."""
    file_bytes = source.size()
    prefix = bytes(source.read_at(0, PREFIX_BYTES))
    index = bytes(source.read_at(len(prefix), read_prefix(prefix, file_bytes)))
    return read_index(prefix, index, file_bytes)


def selected(index: Index, names: Iterable[str] | None) -> list[Entry]:
    """The entries of these names, in the file's order; all of them for None.

    Raises:
        InputError: there is no tensor of a name; the nearest are told.
    """
    if names is None:
        return list(index.entries)
    wanted = {names} if isinstance(names, str) else set(names)
    known = [entry.name for entry in index.entries]
    for name in sorted(wanted - set(known)):
        short = [one for one in known[:_MOST_COMPARED] if len(one) <= 200]  # comparing takes the square of a length
        near = difflib.get_close_matches(name[:200], short, 3) or [one[:200] for one in known[:3]]
        raise InputError(f"no tensor is called {name!r}; there are {', '.join(near) or 'none'}")
    return [entry for entry in index.entries if entry.name in wanted]


def read_tensor(source: Readable, entry: Entry) -> tuple[Bits, Sections]:
    """The bits (elements,) of one tensor, and where its bytes went."""
    if entry.size == entry.crc == entry.elements == 0:  # of these a file may have a million
        return np.zeros(0, unsigned(entry.dtype)), Sections()
    return decode_blob(read_blob(source, entry), entry, cores())


def read_small(source: Readable, entries: Sequence[Entry]) -> dict[str, Bits]:
    """The bits of tensors by name, decoded side by side; large ones are better read each by all threads."""
    # One alone may be too small for compiled coders to repay their import.
    _numba.kernels(sum(entry.elements for entry in entries if 2 * entry.size < entry.nbytes))
    made = mapped(lambda entry: decode_blob(read_blob(source, entry), entry, 1)[0], entries, cores())
    return {entry.name: flat for entry, flat in zip(entries, made, strict=True)}


def decode_blob(blob: bytes | memoryview | Far, entry: Entry, threads: int) -> tuple[Bits, Sections]:
    """As ``read_tensor``, of a blob that was read already.

    Args:
        blob: as it is in the file.
        entry: what the index says of it.
        threads: at most so many.
    """
    return decoder.decode_tensor(blob, entry.dtype, entry.elements, entry.name, threads, version=entry.version)


def read_blob(source: Readable, entry: Entry) -> bytes | memoryview | Far:
    """The blob, its checksum checked; a large one stays where it is, to be read again chunk by chunk."""
    far = Far(source, entry)
    blob: bytes | memoryview | Far
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


def check_memory(entries: Iterable[Entry], max_bytes: int | None, widened: bool = False) -> None:
    """Raise TooLarge where these, all in memory at once, take more than is allowed.

    Args:
        entries: tensors that are to be decoded.
        max_bytes: at most so many together; None is half of what is available.
        widened: whether types that numpy lacks become float32.

    Raises:
        TooLarge: they have more.
    """
    total = sum(4 * entry.elements if widened and entry.dtype in FOREIGN else entry.nbytes for entry in entries)
    _check_total(total, available_memory() // 2 if max_bytes is None else max_bytes)


def check_one_by_one(entries: Sequence[Entry], max_bytes: int | None) -> None:
    """Raise TooLarge where all together have more than `max_bytes`, or one takes more memory than is allowed."""
    if max_bytes is None:
        _check_total(max((entry.nbytes for entry in entries), default=0), available_memory() // 2)
    else:
        check_memory(entries, max_bytes)


def _check_total(total: int, allowed: int) -> None:
    if total > allowed:
        raise TooLarge(f"decodes to {total} bytes, allowed are {allowed}; max_bytes= allows more")


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


def check_disk(entries: Iterable[Entry], folder: Path) -> None:
    """Raise TooLarge where these tensors, written to `folder`, would fill its disk."""
    total = sum(entry.nbytes for entry in entries)
    with contextlib.suppress(OSError):  # of a missing folder, writing says more
        free = shutil.disk_usage(folder).free
        if total > free:
            raise TooLarge(f"decodes to {total} bytes, and {folder} has {free} left; --name writes single tensors")
