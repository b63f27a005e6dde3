"""Grids: elements that are a scale times an integer, bit for bit, and the way back from the elements to both.

Checkpoints are quantized to integers with a scale for a tensor, a channel or a group, and often kept as floats again.
What the products are is said in FORMAT.md (Values, grid).

The way back, for every group. A distinct magnitude v is what some interval, lower to upper, is rounded to. A scale s is
possible where every such interval holds a multiple of s. The largest is found by jumping down: where the interval of v
holds none, no scale from upper / (q + 1) to s is possible, with q = upper // s. With the integers known, the intervals
divided by them bracket the scale; what counts in the end is that the products equal the elements.

One file: the product and the search of its scale, of which each step rests on how the product is rounded.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression import _numba
from deepcompression.codec.dtypes import Bits, to_array, unsigned

Scales = NDArray[np.floating[Any]]
Places = NDArray[np.signedinteger[Any]]  # the bits of scales, which ascend as they do
Floats = NDArray[np.float64]

# The largest magnitude of an integer. Beyond twice the numbers of a significand neighbouring integers give the same
# element, and nearly everything is on some grid.
LIMITS = {"float32": 65_536, "float64": 65_536, "float16": 4_096, "bfloat16": 512}
SIGNIFICAND = {"float32": 24, "float64": 53, "float16": 11, "bfloat16": 8}  # bits
CHANCE = 8  # bits
INFINITY = {"float32": 0x7F80_0000, "float64": 0x7FF0_0000_0000_0000, "float16": 0x7C00, "bfloat16": 0x7F80}

PIECE = 2**17  # elements worked on at once
SAMPLE = 2**12  # elements looked at first
GROUPS = 4  # groups of the sample, at least
JUMPS = 64  # jumps that many groups make side by side
FEW, FEW_JUMPS = 64, 8  # groups that a sieve does sooner, after so many jumps
SIEVED = 1 << 26  # integers tried in all for groups that need more: few values far apart; some ten nanoseconds each
NARROW = 16  # of their least scales are tried 1 / 16 first: those of 12 bits
WITNESSES = 16  # magnitudes that those are tried by, beside the least
_WORTH = 1, 1 << 22  # magnitudes that repay a compiled call, and importing it


def product(integers: NDArray[np.int32], scales: Scales, dtype: str) -> Bits:
    """The element bits of integers times scales, as FORMAT.md (Values, grid) rounds them.

    Args:
        integers: int32, any shape.
        scales: float32 or float64, finite and above 0, broadcast against `integers`.
        dtype: float32, float16, bfloat16 or float64.

    Returns:
        Unsigned integers of the element's size, of the broadcast shape; 0 gives +0.0.

    Raises:
        ValueError: the dtype is none of the four.
    """
    _check(dtype)
    with np.errstate(over="ignore", under="ignore"):
        if dtype == "float64":
            return np.asarray(np.multiply(integers, scales, dtype=np.float64)).view(np.uint64)
        values = np.asarray(np.multiply(integers, np.asarray(scales, np.float32), dtype=np.float32))
        if dtype == "bfloat16":
            return _rounded_bfloat16(values)
        return values.astype(dtype, copy=False).view(unsigned(dtype))


def _rounded_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of `values` to the nearest bfloat16, ties to even; `values` holds no NaN and is overwritten."""
    bits = values.view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    bits += np.uint32(0x7FFF)
    bits += odd
    bits >>= np.uint32(16)
    return bits.astype(np.uint16)


def recognise(bits: Bits, dtype: str, least: float = 0.0) -> tuple[Scales, NDArray[np.int32]] | None:
    """Scales and integers that give `bits` exactly, with the largest scale of each group that does.

    Of the scales that serve alike (rounding leaves several) it is the one with the fewest significant bits, which
    narrower types may hold. Nothing is found where -0.0, an infinity or a NaN occurs; where integers pass `LIMITS` or
    are 65,536 apart; and where so many groups hold but few values, hundreds of scales apart, that `SIEVED` tries do not
    do. A grid of float64 with a subnormal scale may be missed.

    Args:
        bits: element bits (G, m), one row for each group.
        dtype: float32, float16, bfloat16 or float64.
        least: scales below may be missed, where all is one group.

    Returns:
        Scales (G,), float64 for float64, else float32, 1 for a group of zeros; integers (G, m) int32. Or None.

    Raises:
        ValueError: the dtype is none of the four.
    """
    _check(dtype)
    if not bits.size:
        return np.ones(len(bits), _kind(dtype)), np.zeros(bits.shape, np.int32)
    if len(bits) == 1 and bits.size <= SAMPLE and _too_fine(bits[0], dtype):
        return None
    allowed = SIEVED
    for size in (SAMPLE, PIECE):
        if bits.size > 2 * size and _scales(_sample(bits, size), dtype, allowed, least) is None:
            return None
    scales = np.empty(len(bits), _kind(dtype))
    integers = np.empty(bits.shape, np.int32)
    rows = max(1, PIECE // bits.shape[1])
    for at in range(0, len(bits), rows):
        some = slice(at, at + rows)
        found = _scales(bits[some], dtype, allowed, least)
        if found is None or not _divide(bits[some], found[0], dtype, integers[some]):
            return None
        scales[some] = found[0]
        allowed -= found[1]
    return (scales, integers) if int(integers.max()) - int(integers.min()) < 65_536 else None


def _too_fine(bits: Bits, dtype: str) -> bool:
    """Whether elements (m,) lie so near each other, or 0, that multiples of so small a scale do not reach the largest.

    Sooner found than by what follows, which is exact: here, all is assumed to be rounded further than it can be.
    """
    ordered = np.sort(bits & bits.dtype.type(np.iinfo(bits.dtype).max >> 1))
    magnitudes = ordered[np.append(True, ordered[1:] != ordered[:-1])]
    if int(magnitudes[-1]) >= INFINITY[dtype]:
        return True
    values = to_array(magnitudes[int(magnitudes[0] == 0) :], dtype).astype(np.float64)
    if len(values) < 2:
        return False
    least = float(to_array(np.ones(1, bits.dtype), dtype)[0])
    rounded = 8 * least + values[1:] * 2.0 ** ((4 if dtype == "float64" else 2) - SIGNIFICAND[dtype])
    return bool(min(2 * values[0], (np.diff(values) + rounded).min()) * LIMITS[dtype] < 0.7 * values[-1])


def credible(integers: NDArray[np.int32], dtype: str) -> bool:
    """Whether the grids of groups with these `integers` (g, e), of `recognise`, are more than chance.

    Two magnitudes are often multiples of one number, large ones. Chance would have to make up for the bits by which
    integers are shorter than significands.
    """
    ordered = np.sort(np.abs(integers), axis=1)
    distinct = np.count_nonzero(np.diff(ordered, axis=1, prepend=0), axis=1)
    several = distinct > 1
    longest = np.log2(np.maximum(ordered[several, -1], 1))
    evidence = float(((distinct[several] - 1) * SIGNIFICAND[dtype] - distinct[several] * longest).sum())
    return evidence > CHANCE or not several.any()


def _check(dtype: str) -> None:
    if dtype not in LIMITS:
        raise ValueError(f"dtype: a grid is of {', '.join(LIMITS)}, not of {dtype}")


def _kind(dtype: str) -> np.dtype[Any]:
    return np.dtype(np.float64 if dtype == "float64" else np.float32)


def _sample(bits: Bits, size: int) -> Bits:
    """Elements (g, e) of a few groups, evenly spaced, some `size` in all: on no grid, if these are not."""
    groups, width = bits.shape
    count = min(groups, max(GROUPS, size // width))
    chosen = np.arange(count) * groups // count
    sampled: Bits = bits[chosen[:, None], np.arange(0, width, -(-width * count // size))]
    return sampled


def _divide(bits: Bits, scales: Scales, dtype: str, integers: NDArray[np.int32]) -> bool:
    """Write the `integers` (g, m) that give `bits` (g, m), piece by piece; whether there are such."""
    for at in range(0, bits.shape[1], PIECE):
        some = np.s_[:, at : at + PIECE]
        quotients = to_array(bits[some], dtype) / scales[:, None]
        integers[some] = np.rint(quotients, out=quotients)
        wrong = np.nonzero(product(integers[some], scales[:, None], dtype) != bits[some])
        if wrong[0].size and not _mend(bits[some], scales, dtype, integers[some], wrong):
            return False
    return True


def _mend(
    bits: Bits, scales: Scales, dtype: str, integers: NDArray[np.int32], wrong: tuple[NDArray[np.intp], ...]
) -> bool:
    """Move `integers` at `wrong` to a neighbour: below a power of two elements lie closer, and round up more often."""
    for step in (1, -1):
        moved = integers[wrong] + np.int32(step)
        fits = product(moved, scales[wrong[0]], dtype) == bits[wrong]
        wrong_now = tuple(index[~fits] for index in wrong)
        integers[tuple(index[fits] for index in wrong)] = moved[fits]
        wrong = wrong_now
    return not wrong[0].size


def _scales(bits: Bits, dtype: str, allowed: int, least: float) -> tuple[Scales, int] | None:
    """The scale (g,) of every row of `bits` (g, e), 1 for rows of zeros, and how many integers were tried in a sieve.

    None where a row has no scale, or where more than `allowed` would have to be tried.
    """
    magnitudes = _distinct(bits, dtype)
    if magnitudes is None:
        return None
    scales: Scales = np.ones(len(bits), _kind(dtype))
    filled = np.flatnonzero(magnitudes[:, -1])
    if not filled.size:
        return scales, 0
    found = _largest(_spans(magnitudes[filled], dtype), dtype, allowed, least)
    if found is None:
        return None
    scales[filled] = found[0]
    return scales, found[1]


def _distinct(bits: Bits, dtype: str) -> Bits | None:
    """The distinct magnitudes above 0 of every row, ascending, the last repeated to fill up: bits (g, d).

    A row of zeros has zeros. None where an element is not finite or a row has more magnitudes than integers have.
    """
    if bits.shape[1] > PIECE:
        return _distinct_pieces(bits, dtype)
    ordered = bits & bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    ordered.sort(axis=1)
    new = np.empty(ordered.shape, np.bool_)
    new[:, 0] = ordered[:, 0] != 0
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=new[:, 1:])
    counts = np.count_nonzero(new, axis=1)
    width = max(1, int(counts.max()))
    if width > LIMITS[dtype] or int(ordered[:, -1].max()) >= INFINITY[dtype]:
        return None
    result = np.repeat(ordered[:, -1:], width, axis=1)
    result[np.arange(width) < counts[:, None]] = ordered[new]
    return result


def _distinct_pieces(bits: Bits, dtype: str) -> Bits | None:
    known = bits[:, :0]
    for at in range(0, bits.shape[1], PIECE):
        part = _distinct(bits[:, at : at + PIECE], dtype)
        both = None if part is None else _distinct(np.concatenate([known, part], axis=1), dtype)
        if both is None:
            return None
        known = both
    return known


class _Spans(NamedTuple):
    """Magnitudes (g, d) ascending in a row, as bits, and the ends of what is rounded to them (a little wider)."""

    bits: Bits
    lower: Floats
    upper: Floats

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_] | slice) -> _Spans:
        """Those of some rows."""
        return _Spans(self.bits[rows], self.lower[rows], self.upper[rows])


def _spans(magnitudes: Bits, dtype: str) -> _Spans:
    if dtype == "float64":  # as exact as our own arithmetic: four places more either way
        one, four, top = np.uint64(1), np.uint64(4), np.uint64(INFINITY[dtype] - 1)
        lower = magnitudes - np.minimum(magnitudes - one, four)
        upper = np.minimum(magnitudes + four, top)
        return _Spans(magnitudes, lower.view(np.float64), upper.view(np.float64))
    one = magnitudes.dtype.type(1)
    values, below, above = (
        to_array(near, dtype).astype(np.float64) for near in (magnitudes, magnitudes - one, magnitudes + one)
    )
    above = np.where(np.isinf(above), values + (values - below), above)
    even = (magnitudes & one) == 0  # halfway is rounded to these
    wider, closer = (2.0**-46, 2.0**-46) if dtype == "float32" else (2.0**-24, 2.0**-25)  # rounded twice
    slack = np.where(even, wider, -closer)
    return _Spans(magnitudes, (values + below) / 2 * (1 - slack), (values + above) / 2 * (1 + slack))


def _largest(spans: _Spans, dtype: str, allowed: int, least: float) -> tuple[Scales, int] | None:
    """The largest scale (g,) of every row, and how many integers were tried; None as for `_scales`."""
    start = _start(spans)
    stop = np.maximum(spans.lower[:, -1] / LIMITS[dtype], max(least, np.finfo(np.float64).smallest_subnormal))
    if (start < stop).any():
        return None
    scales, undecided = _descend(spans, start, stop, dtype, JUMPS if len(start) > FEW else FEW_JUMPS)
    if np.count_nonzero(scales) < len(scales) - len(undecided):
        return None
    tried = 0
    for end in (NARROW * stop, stop):
        rows = undecided[(scales[undecided] == 0) & (start[undecided] >= end[undecided])]
        found = _sieved(spans.take(rows), start[rows], end[rows], dtype, allowed - tried)
        if found is None:
            return None
        scales[rows] = found[0]
        tried += found[1]
    return (scales, tried) if scales.all() else None


def _start(spans: _Spans) -> Floats:
    """What the scale (g,) of a row cannot exceed: its least magnitude, and the least gap between two."""
    apart = spans.bits[:, 1:] > spans.bits[:, :-1]
    gaps = np.subtract(spans.upper[:, 1:], spans.lower[:, :-1], where=apart, out=np.full(apart.shape, np.inf))
    least: Floats = gaps.min(axis=1, initial=np.inf)
    return np.minimum(spans.upper[:, 0], least)


def _descend(spans: _Spans, start: Floats, stop: Floats, dtype: str, jumps: int) -> tuple[Scales, NDArray[np.intp]]:
    """The largest scale of every row from `start` (g,) down to `stop` (g,), or 0; and the rows undecided by then."""
    scales: Scales = np.zeros(len(start), _kind(dtype))
    scale, left = start.copy(), np.full(len(start), jumps)
    rows = np.arange(len(start))
    compiled = _numba.kernels(spans.bits.size, *_WORTH)
    while (rows := rows[(left[rows] > 0) & (scale[rows] >= stop[rows])]).size:
        some = spans if len(rows) == len(spans.bits) else spans.take(rows)
        if compiled is not None:
            now, still = scale[rows], left[rows]
            compiled.jump_down(some.lower, some.upper, stop[rows], now, still)
            scale[rows], left[rows] = now, still
            hit = (still > 0) & (now >= stop[rows])
            rows, some = rows[hit], some.take(hit)
        integers = np.floor(some.upper / scale[rows, None])
        missed = integers * scale[rows, None] < some.lower
        jump = np.divide(some.upper, integers + 1, where=missed, out=np.full(missed.shape, np.inf)).min(axis=1)
        hits = np.flatnonzero(np.isinf(jump))
        if hits.size:
            low, found = _bracketed(some.take(hits), integers[hits], dtype)
            scales[rows[hits]] = found
            jump[hits] = np.where(found > 0, -1, np.minimum(low, scale[rows[hits]]))
        scale[rows] = np.nextafter(jump, 0)
        left[rows] -= 1
    return scales, np.flatnonzero(scale >= stop)


def _bracketed(spans: _Spans, integers: Floats, dtype: str) -> tuple[Floats, Scales]:
    """The lower ends (g,) of the scales that these integers (g, d) leave, and a scale (g,) that serves, or 0."""
    low, high = (spans.lower / integers).max(axis=1), (spans.upper / integers).min(axis=1)
    first, last = _between(low, high, dtype)
    scales: Scales = np.zeros(len(low), _kind(dtype))
    rows = np.flatnonzero(first <= last)
    for trial in _trials(first, last):
        if not rows.size:
            break
        some = trial[rows].view(scales.dtype)
        exact = (product(integers[rows].astype(np.int32), some[:, None], dtype) == spans.bits[rows]).all(axis=1)
        scales[rows[exact]] = some[exact]
        rows = rows[~exact]
    return low, scales


def _between(low: Floats, high: Floats, dtype: str) -> tuple[Places, Places]:
    """The bits of the least and of the greatest scale in low to high, as signed integers (floats above 0 ascend so)."""
    place: type[np.signedinteger[Any]] = np.int64 if dtype == "float64" else np.int32
    with np.errstate(over="ignore", under="ignore"):
        least, greatest = low.astype(_kind(dtype)), high.astype(_kind(dtype))
    first: Places = least.view(place) + np.less(least, low).astype(place)
    last: Places = greatest.view(place) - np.greater(greatest, high).astype(place)
    return np.maximum(first, place(1)), last


def _trials(first: Places, last: Places) -> Iterator[Places]:
    """Scales to try, as bits: that with the most trailing zeros of all from `first` to `last`, then those midway."""
    below = (first - 1) ^ last  # from the first bit on in which they differ, the shortest has zeros behind a 1
    for reach in (1, 2, 4, 8, 16, 32)[: 5 + (last.itemsize == 8)]:
        below |= below >> reach
    yield last & ~(below >> 1 & ((1 << (51 if last.itemsize == 8 else 22)) - 1))
    middle = first + (last - first) // 2
    for step in sorted(range(-8, 9), key=abs):
        yield np.clip(middle + step, first, last)


def _sieved(spans: _Spans, start: Floats, stop: Floats, dtype: str, allowed: int) -> tuple[Scales, int] | None:
    """The largest scale (g,) of every row from `start` down to `stop`, or 0, and how many integers were tried.

    None where more than `allowed` would have to be.
    """
    scales: Scales = np.zeros(len(start), _kind(dtype))
    first, counts = _divisors(spans, start, stop)
    if counts.sum() > allowed:
        return None
    for some in _in_turn(counts):
        part = spans.take(some)
        scales[some] = _sieve(part, start[some], stop[some], first[some], counts[some], dtype)
    return scales, int(counts.sum())


def _divisors(spans: _Spans, start: Floats, stop: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """The first integer (g,) that the least magnitude of a row may stand for, and how many (g,) there are."""
    first = np.maximum(1.0, np.floor(spans.lower[:, 0] / start))
    return first, (np.ceil(spans.upper[:, 0] / stop) - first + 1).astype(np.int64)


def _in_turn(counts: NDArray[np.int64]) -> Iterator[slice]:
    """Rows, some after others, of about so much work each that it is done at once."""
    turns = np.cumsum(counts) // PIECE
    bounds = [0, *np.flatnonzero(np.diff(turns)) + 1, len(counts)] if len(counts) else []
    yield from (slice(int(at), int(end)) for at, end in itertools.pairwise(bounds))


def _sieve(spans: _Spans, start: Floats, stop: Floats, first: Floats, counts: NDArray[np.int64], dtype: str) -> Scales:
    """The largest scale of every row from `start` (g,) down to `stop` (g,), or 0.

    It tries every integer that the least magnitude may stand for, of `_divisors`, and keeps those at which the next
    ones fit too.
    """
    row = np.repeat(np.arange(len(counts)), counts)
    divisors = np.arange(len(row)) + np.repeat(first - (np.cumsum(counts) - counts), counts)
    low = np.maximum(spans.lower[row, 0] / divisors, stop[row])
    high = np.minimum(spans.upper[row, 0] / divisors, start[row])
    for place in range(1, min(WITNESSES, spans.bits.shape[1] - 1) + 1):
        fits = np.floor(spans.upper[row, place] / low) * high >= spans.lower[row, place]
        row, low, high = row[fits], low[fits], high[fits]
        if not row.size:
            break
    scales: Scales = np.zeros(len(counts), _kind(dtype))
    several = max(1, PIECE // spans.bits.shape[1])
    for at in range(0, len(row), several):
        some = slice(at, at + several)
        same = spans.take(row[some])
        np.maximum.at(scales, row[some], _descend(same, high[some], low[some], dtype, 64 * JUMPS)[0])
    return scales
