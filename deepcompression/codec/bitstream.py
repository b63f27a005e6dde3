"""Bits in bytes, least significant bit first; and a cursor that reads untrusted bytes."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepcompression.errors import MalformedFile

_CHUNK = 1 << 16


def pack(values: NDArray[Any], width: int) -> bytes:
    """`values` (n,), integers below 2**width, in `width` (1 to 16) bits each, padded with zero bits."""
    if width in (8, 16):
        return values.astype(f"<u{width // 8}").tobytes()
    return b"".join(_pack(values[i : i + _CHUNK], width) for i in range(0, len(values), _CHUNK))


def _pack(values: NDArray[Any], width: int) -> bytes:
    rows = np.unpackbits(values.astype("<u2").view(np.uint8), bitorder="little").reshape(-1, 16)
    return np.packbits(rows[:, :width], bitorder="little").tobytes()


def unpack(buffer: bytes | memoryview, count: int, width: int) -> NDArray[np.unsignedinteger[Any]]:
    """The inverse of `pack`: (count,) uint8 up to width 8, else uint16; `buffer` has packed_size() bytes.

    Args:
        buffer: the packed bytes.
        count: numbers.
        width: bits a number.
    """
    source = np.frombuffer(buffer, np.uint8)
    if width in (8, 16):
        return source.view(f"<u{width // 8}").astype(f"u{width // 8}")
    kept: NDArray[np.unsignedinteger[Any]] = np.empty(count, np.uint8 if width <= 8 else np.uint16)
    for i in range(0, count, _CHUNK):
        n = min(_CHUNK, count - i)
        start = i * width // 8
        rows = np.zeros((n, 8 * kept.itemsize), np.uint8)
        used = np.unpackbits(source[start : start + packed_size(n, width)], count=n * width, bitorder="little")
        rows[:, :width] = used.reshape(n, width)
        kept[i : i + n] = np.packbits(rows, bitorder="little").view("<u2" if width > 8 else np.uint8)
    return kept


def width(k: int) -> int:
    """Bits of a fixed-width code for `k` symbols; 0 where there is only one."""
    return (k - 1).bit_length()


def packed_size(count: int, width: int) -> int:
    """Bytes that `pack` makes of `count` values of `width` bits."""
    return (count * width + 7) // 8


def padding_is_zero(buffer: bytes | memoryview, used: int) -> bool:
    """Whether the bits of the last byte of `buffer` behind its first `used` bits are zero."""
    spare = 8 * len(buffer) - used
    return spare == 0 or buffer[-1] >> (8 - spare) == 0


def concatenate(codes: NDArray[Any], lengths: NDArray[Any]) -> bytes:
    """Codes (n >= 1,) one after the other, each its lengths[i] low bits (1 to 32), padded with zero bits."""
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    word = starts >> 5
    # A code that starts in a 32-bit word ends in it or the next: the codes of one word share a 64-bit window.
    first = np.flatnonzero(np.diff(word, prepend=-1))
    shared = np.add.reduceat(codes.astype(np.uint64) << (starts & 31).astype(np.uint64), first)
    words = np.zeros((int(ends[-1]) >> 5) + 2, np.uint32)
    words[word[first]] = (shared & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    words[word[first] + 1] |= (shared >> np.uint64(32)).astype(np.uint32)
    return words.astype("<u4").tobytes()[: (int(ends[-1]) + 7) // 8]


def windows(source: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """The 32 bits from each byte of `source` (bytes,) on; zeros follow the end."""
    padded = np.zeros(len(source) + 3, np.uint32)
    padded[: len(source)] = source
    n = len(source)
    joined: NDArray[np.uint32] = padded[:n].copy()
    for i in (1, 2, 3):
        joined |= padded[i : n + i] << np.uint32(8 * i)
    return joined


def varint(value: int) -> bytes:
    """`value` (below 2**64) as LEB128: seven bits a byte, low ones first, the top bit set but in the last."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


class Remote(Protocol):
    """Bytes that are read when they are sliced."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, place: slice, /) -> bytes | memoryview:
        """Those at `place`, which lies within."""


class Cursor:
    """Reads `buffer` front to back; a read past the end raises MalformedFile, which names `where`."""

    def __init__(self, buffer: bytes | memoryview | Remote, where: str) -> None:
        self.buffer = memoryview(buffer) if isinstance(buffer, bytes | memoryview) else buffer
        self._near = self.buffer if isinstance(self.buffer, memoryview) else None
        self.where = where
        self.at = 0

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return len(self.buffer) - self.at

    def fail(self, what: str) -> MalformedFile:
        """The error to raise: `what`, with the place."""
        return MalformedFile(f"{self.where}: {what}")

    def skip(self, count: int, what: str) -> slice:
        """Where in the buffer the next `count` bytes are, which are called `what` in the error."""
        if count > self.left:
            raise self.fail(f"{what} needs {count} bytes, {self.left} are left")
        self.at += count
        return slice(self.at - count, self.at)

    def take(self, count: int, what: str) -> memoryview:
        """The next `count` bytes."""
        return memoryview(self.buffer[self.skip(count, what)])

    def varint(self, what: str, most: int = 2**64 - 1) -> int:
        """The next LEB128 number: at most `most`, in as few bytes as it can be written."""
        if self._near is not None and self.at < len(self._near):  # most numbers are short: an index has many
            byte = self._near[self.at]
            if byte < 128 and byte <= most:
                self.at += 1
                return byte
        value = shift = 0
        while True:
            byte = self.take(1, what)[0]
            value |= (byte & 127) << shift
            if byte < 128:
                break
            shift += 7
            if shift > 63:
                raise self.fail(f"{what} has more than ten bytes")
        if value > most or (byte == 0 and shift > 0):
            raise self.fail(f"{what} is {value}, written in {shift // 7 + 1} bytes; at most {most}, shortest form")
        return value

    def end(self, what: str) -> None:
        """Raise unless everything was read."""
        if self.left:
            raise self.fail(f"{self.left} bytes follow {what}")
