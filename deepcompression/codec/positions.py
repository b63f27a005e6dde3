"""Where the stored elements of a chunk are: as a bitmap, or as gaps with the alphabet that costs least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import streams
from deepcompression.codec.bitstream import Cursor, varint
from deepcompression.codec.dtypes import Writing
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.streams import Stream

DENSE, BITMAP, GAPS, FLAGS = range(4)
MOST_ESCAPE = (1 << 16) - 1
BITMAP_TUPLE = 8


@dataclass(frozen=True)
class Places:
    """How positions are written: as a BITMAP, or as GAPS with an escape value, and by which stream of symbols."""

    kind: int
    stream: Stream
    escape: int = 0

    def header(self) -> bytes:
        """What the head of a blob says of them."""
        return (varint(self.escape) if self.kind == GAPS else b"") + self.stream.header()

    def write(self, part: NDArray[Any]) -> bytes:
        """The positions of the elements of a chunk that are not 0."""
        if self.kind == BITMAP:
            return streams.encode((part != 0).astype(np.uint8), self.stream)
        symbols = _gap_symbols(np.diff(np.flatnonzero(part), prepend=-1) - 1, self.escape)
        return varint(len(symbols)) + streams.encode(symbols, self.stream)


def plans(parts: list[NDArray[Any]], how: Writing) -> list[tuple[int, Places]]:
    """The ways to write where the stored elements of all chunks are, each with its bytes: as a bitmap, and as gaps."""
    return [_plan_bitmap(parts, how), _plan_gaps(parts, how)]


def _plan_bitmap(parts: list[NDArray[Any]], how: Writing) -> tuple[int, Places]:

    def count(part: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(np.packbits(part != 0, bitorder="little"), minlength=256)

    counts = np.sum(mapped(count, parts, how.threads), axis=0)
    size, stream = streams.plan(counts, 2, BITMAP_TUPLE, how.coder, len(parts))
    return size, Places(BITMAP, stream)


def _plan_gaps(parts: list[NDArray[Any]], how: Writing) -> tuple[int, Places]:
    """Gap coding with the escape value that costs least."""

    def gaps(part: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.unique(np.diff(np.flatnonzero(part), prepend=-1) - 1, return_counts=True)

    pairs = mapped(gaps, parts, how.threads)
    distinct, place = np.unique(np.concatenate([pair[0] for pair in pairs]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([pair[1] for pair in pairs]), len(distinct)).astype(np.int64)
    frames = sum(len(varint(int(pair[1].sum()))) for pair in pairs)
    best: tuple[int, Places] | None = None
    for escape in _escapes(int(distinct[-1]) if distinct.size else 0, how.coder):
        each = _gap_counts(distinct, counts, escape)
        size, stream = streams.plan(each, escape + 1, 1, how.coder, len(parts), best[0] if best else 1 << 62)
        size += frames + len(varint(escape))
        if best is None or size < best[0]:
            best = size, Places(GAPS, stream, escape)
    assert best is not None
    return best


def _escapes(longest: int, coder: str) -> list[int]:
    """Escape values worth a try: powers of two less one (of which fixed-width codes use every bit), and longest + 1."""
    tried = [(1 << bits) - 1 for bits in range(1, 17) if bits == 1 or (1 << (bits - 1)) <= longest + 1]
    if coder != "packed" and longest + 1 <= min(MOST_ESCAPE, 1 << 12):
        tried.append(longest + 1)
    return sorted(set(tried))


def _gap_counts(distinct: NDArray[np.int64], counts: NDArray[np.int64], escape: int) -> NDArray[np.int64]:
    """How often each symbol (escape + 1,) occurs where gaps `distinct` occur `counts` times."""
    found = np.bincount(distinct % escape, counts, escape + 1).astype(np.int64)
    found[escape] = int(counts @ (distinct // escape))
    return found


def _gap_symbols(gaps: NDArray[np.int64], escape: int) -> Symbols:
    """Each of `gaps` (m,) as gap // escape times the escape symbol, and the rest."""
    escapes = gaps // escape
    ends = np.cumsum(escapes + 1) - 1
    symbols: Symbols = np.full(int(ends[-1]) + 1 if gaps.size else 0, escape, np.uint8 if escape < 256 else np.uint16)
    symbols[ends] = gaps % escape
    return symbols


def read(counts: Sequence[int], cursors: Sequence[Cursor], places: Places) -> list[NDArray[np.int64]]:
    """Places in each chunk of so many elements, from a BITMAP or GAPS.

    Args:
        counts: elements of each chunk.
        cursors: at the positions of each chunk; they move behind them.
        places: how they were written.

    Raises:
        MalformedFile: gaps lead out of their chunk.
    """
    if places.kind == BITMAP:
        return [np.flatnonzero(each) for each in streams.decode(cursors, counts, places.stream)]
    sizes = [cursor.varint("the number of gaps", most=count) for count, cursor in zip(counts, cursors, strict=True)]
    symbols = streams.decode(cursors, sizes, places.stream)
    return [_places(*chunk, places.escape) for chunk in zip(symbols, counts, cursors, strict=True)]


def _places(symbols: Symbols, count: int, cursor: Cursor, escape: int) -> NDArray[np.int64]:
    is_weight = symbols != escape
    ends = np.cumsum(symbols.astype(np.int64) + is_weight)
    if symbols.size and (int(ends[-1]) > count or not is_weight[-1]):
        raise cursor.fail(f"the gaps lead to element {int(ends[-1])} of {count}, or end in an escape")
    places: NDArray[np.int64] = ends[is_weight] - 1
    return places
