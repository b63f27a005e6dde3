"""Where the stored elements of a chunk are: as a bitmap, or as gaps with the alphabet that costs least."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import streams
from deepcompression.codec.bitstream import Cursor, varint
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.streams import Stream

DENSE, BITMAP, GAPS, FLAGS = range(4)
MOST_ESCAPE = (1 << 16) - 1
BITMAP_TUPLE = 8


def write(part: NDArray[Any], kind: int, escape: int, stream: Stream) -> bytes:
    """The positions of the elements of a chunk that are not 0."""
    if kind == BITMAP:
        return streams.encode((part != 0).astype(np.uint8), stream)
    symbols = _gap_symbols(np.diff(np.flatnonzero(part), prepend=-1) - 1, escape)
    return varint(len(symbols)) + streams.encode(symbols, stream)


def plan_bitmap(parts: list[NDArray[Any]], coder: str, threads: int) -> tuple[int, int, Stream]:
    """Bytes of a bitmap of `parts`, 0 for no escape value, and the stream it takes."""

    def count(part: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(np.packbits(part != 0, bitorder="little"), minlength=256)

    counts = np.sum(mapped(count, parts, threads), axis=0)
    size, stream = streams.plan(counts, 2, BITMAP_TUPLE, coder, len(parts))
    return size, 0, stream


def plan_gaps(parts: list[NDArray[Any]], coder: str, threads: int) -> tuple[int, int, Stream]:
    """Gap coding with the escape value that costs least."""

    def gaps(part: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.unique(np.diff(np.flatnonzero(part), prepend=-1) - 1, return_counts=True)

    pairs = mapped(gaps, parts, threads)
    distinct, place = np.unique(np.concatenate([pair[0] for pair in pairs]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([pair[1] for pair in pairs]), len(distinct)).astype(np.int64)
    frames = sum(len(varint(int(pair[1].sum()))) for pair in pairs)
    best: tuple[int, int, Stream] | None = None
    for escape in _escapes(int(distinct[-1]) if distinct.size else 0, coder):
        each = _gap_counts(distinct, counts, escape)
        size, stream = streams.plan(each, escape + 1, 1, coder, len(parts), best[0] if best else 1 << 62)
        size += frames + len(varint(escape))
        if best is None or size < best[0]:
            best = size, escape, stream
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


def read(
    counts: Sequence[int], cursors: Sequence[Cursor], kind: int, escape: int, stream: Stream
) -> list[NDArray[np.int64]]:
    """Places in each chunk of so many elements, from a BITMAP or GAPS.

    Raises:
        MalformedFile: gaps lead out of their chunk.
    """
    if kind == BITMAP:
        return [np.flatnonzero(each) for each in streams.decode(cursors, counts, stream)]
    sizes = [cursor.varint("the number of gaps", most=count) for count, cursor in zip(counts, cursors, strict=True)]
    symbols = streams.decode(cursors, sizes, stream)
    return [_places(*chunk, escape) for chunk in zip(symbols, counts, cursors, strict=True)]


def _places(symbols: Symbols, count: int, cursor: Cursor, escape: int) -> NDArray[np.int64]:
    is_weight = symbols != escape
    ends = np.cumsum(symbols.astype(np.int64) + is_weight)
    if symbols.size and (int(ends[-1]) > count or not is_weight[-1]):
        raise cursor.fail(f"the gaps lead to element {int(ends[-1])} of {count}, or end in an escape")
    places: NDArray[np.int64] = ends[is_weight] - 1
    return places
