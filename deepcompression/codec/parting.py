"""How the planes of floats are coded smallest (FORMAT.md, Planes), and whether to part them at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import starmap
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import arrays, literals, planes, streams
from deepcompression.codec.apart import Piece, in_rows_of_one, plan_codes
from deepcompression.codec.bitstream import varint
from deepcompression.codec.dtypes import DTYPES, Bits, Writing
from deepcompression.codec.head import PLANES
from deepcompression.codec.planes import ARITHMETIC, DEFLATED, STREAM, Bytes, Plane
from deepcompression.codec.shared import entropy
from deepcompression.codec.streams import Stream

LEAST = 1 << 12  # values, below which files of version 1 do as well
_LOOKED_AT, _DEFLATED = 1 << 15, 1 << 12  # values of a sample
_HASTY = 1  # level at which they are deflated: matches as such are found
_RUN, _APART = 1 << 12, 1 << 16  # values of a run that tells what those near it have, and from one to the next
_TELL, _RUNS = 16, 64  # runs that tell, and about as many as are looked at
CONTEXTS = 1.25  # times as many bytes as another way's may become fewer by contexts
_NOISY = 0.98  # of the bytes of a few is the entropy of noise
_FEW_THREES = 0.004  # of them that repeat, by which deflate saves less than 0.03
_NOISE = 0.995  # of its bytes is the entropy of a plane that is stored as it is
_TOLD = 1.004  # times fewer bytes than a sample says, codes for all of a plane surely do not take
_FAR = 1.03  # times the entropy, from which codes of single bytes are far from it


def promising(parts: list[Bits], stored: str, how: Writing, most: int, share: float | None = None) -> bool:
    """Whether planes may be smaller than the values, or the same deflated: by the entropy of a sample.

    Args:
        parts: bits of the stored values of each chunk.
        stored: the type that they are stored as.
        how: they are written.
        most: bytes that the tensor takes otherwise.
        share: of their bytes that planes take, if a `guess` told it.
    """
    total = sum(map(len, parts))
    if how.coder == "packed" or not DTYPES[stored].floating or total < LEAST:
        return False
    if share is None:
        share = _share(np.concatenate([part[:: total // _LOOKED_AT + 1] for part in parts]))
    if share >= 0.98 or share * total * parts[0].itemsize > CONTEXTS * most:
        return False
    middle = _middle(parts)
    values = middle.tobytes()
    return sum(_planes(values, middle.dtype)[1]) < 0.997 * _deflated_size(values, middle.dtype)


class Guess(NamedTuple):
    """Bytes that elements take; and of these, what planes take, if there seem to be no zeros among them."""

    size: int = 0
    share: float | None = None


def guess(flat: Bits, dtype: str) -> Guess:
    """What elements take as they are, deflated or as planes, as samples of them say.

    Args:
        flat: (n,) elements.
        dtype: of them.
    """
    sample = np.ascontiguousarray(flat[:: flat.size // _LOOKED_AT + 1])
    values = sample if np.count_nonzero(sample) == len(sample) else sample[sample != 0]
    middle = _middle([flat])
    deflated = flat.nbytes * _deflated_size(middle.tobytes(), middle.dtype) / middle.nbytes
    if not len(values):
        return Guess(int(deflated))
    flags = entropy(np.array([len(values), len(sample) - len(values)]))
    share = _share(values) if DTYPES[dtype].floating else 1.0
    size = int(min(deflated, (flags + share * values.nbytes) * flat.size / len(sample)))
    return Guess(size, share if len(values) == len(sample) and DTYPES[dtype].floating else None)


def _share(values: Bits) -> float:
    """Of the bytes of values, what ideal codes of their planes take."""
    return sum(entropy(planes.counted(plane)) for plane in planes.parted(values)) / values.nbytes


@lru_cache(maxsize=2)
def _deflated_size(values: bytes, kind: np.dtype[Any]) -> int:
    """Bytes of some values, deflated in haste: asked for twice of a tensor."""
    return len(arrays.deflate(np.frombuffer(values, kind), level=_HASTY))


@lru_cache(maxsize=2)
def _planes(values: bytes, kind: np.dtype[Any]) -> tuple[list[Bytes], list[float]]:
    """The planes of some values, and what ideal codes of each take: asked for twice of a tensor."""
    made = planes.parted(np.frombuffer(bytearray(values), kind))  # compiled code tells what is read-only apart
    return made, [entropy(planes.counted(plane)) for plane in made]


def _middle(parts: list[Bits]) -> Bits:
    """Values that stand together in the middle of a tensor: what it begins with may be of its own kind."""
    part = parts[len(parts) // 2] if len(parts[len(parts) // 2]) else max(parts, key=len)
    begin = max(0, len(part) - _DEFLATED) // 2
    return part[begin : begin + _DEFLATED]


class _Values(NamedTuple):
    """Bits of a tensor's stored values, chunk by chunk; runs from all over it, and its middle, one plane of each, and
    what an ideal code of that takes."""

    parts: list[Bits]
    place: int
    sample: Bytes
    middle: Bytes
    ideal: float
    how: Writing

    def mapped(self, function: Callable[[Bytes], Any]) -> list[Any]:
        """A function of the plane of each chunk: made for it alone, since all together are as much as the tensor."""
        return mapped(lambda part: function(planes.plane_of(part, self.place)), self.parts, self.how.threads)


class _Plan(NamedTuple):
    """How a plane is coded, and its bytes; what each chunk has of it, where that is known."""

    size: int
    plane: Plane
    coded: list[bytes] | None = None


def parted(parts: list[Bits], kind: int, how: Writing) -> Piece:
    """The values of each chunk as planes.

    Args:
        parts: bits of the stored values of each chunk.
        kind: the number of the type that they are stored as, in the file.
        how: they are written.
    """
    middle = _middle(parts)
    looked_at = zip(planes.parted(_runs(parts)), *_planes(middle.tobytes(), middle.dtype), strict=True)
    plans = [_smallest(_Values(parts, place, *looked, how)) for place, looked in enumerate(looked_at)]
    head = bytes([kind]) + b"".join(plan.plane.header() for plan in plans)
    return Piece(_chunks(parts, plans, how), PLANES << 2, head)


def _chunks(parts: list[Bits], plans: list[_Plan], how: Writing) -> list[memoryview]:
    """The planes of each chunk, as parts of one array: of large ones numpy takes memory in large pages, soon filled."""

    def coded(place: int, plan: _Plan) -> list[bytes] | None:
        if plan.coded is None and plan.plane.stream is not None:
            return mapped(lambda part: plan.plane.write(planes.plane_of(part, place)), parts, how.threads)
        return plan.coded

    made = list(starmap(coded, enumerate(plans)))
    each = [[len(part) if own is None else len(own[i]) for own in made] for i, part in enumerate(parts)]
    ends = np.cumsum(each).reshape(len(parts), -1)
    whole = np.empty(int(ends[-1, -1]), np.uint8)

    def fill(i: int) -> memoryview:
        for place, own in enumerate(made):
            out = whole[ends[i, place] - each[i][place] : ends[i, place]]
            if own is None:
                planes.take(parts[i], place, out)
            else:
                out[:] = np.frombuffer(own[i], np.uint8)
        return whole[ends[i, 0] - each[i][0] : ends[i, -1]].data

    return mapped(fill, range(len(parts)), how.threads)


def _runs(parts: list[Bits]) -> Bits:
    """Runs of `_RUN` values from all over a tensor, one after the other: a sixteenth of all but the largest."""
    apart = max(_APART, sum(map(len, parts)) // _RUNS)
    runs = [part[at : at + _RUN] for part in parts for at in range(0, len(part), apart)]
    return np.concatenate(runs or parts[:1])


def _smallest(values: _Values) -> _Plan:
    """How one plane is coded smallest."""
    total = sum(map(len, values.parts))
    best = _Plan(total, Plane())
    each = planes.counted_runs(values.sample, _RUN)
    told = 1.0  # of its bytes, by one code for all
    if len(values.sample):
        told = min(told, _likely(each.sum(axis=0, keepdims=True)) / len(values.sample))
    if _changes(each, told):
        best = min([best, _deflated(values, quick=True)], key=_size)
    if told < _NOISE and (told * total < _TOLD * best.size or values.how.coder == "adaptive"):
        best = min([best, _as_symbols(values)], key=_size)
    return min([best, _deflated(values, quick=False)], key=_size) if _repeats(values.middle, values.ideal) else best


def _size(plan: _Plan) -> int:
    return plan.size


def _changes(each: NDArray[np.int64], share: float) -> bool:
    """Whether codes of their own would make runs, whose bytes occur so often, smaller than `share`; few tell little."""
    margin = 0.99 if len(each) >= _TELL else 0.95
    return _likely(each) < (margin * share - 0.002) * float(each.sum())


def _likely(each: NDArray[np.int64]) -> float:
    """Bytes of codes of their own for runs in which bytes occur so often (runs, 256): few samples seem more alike than
    they are."""
    chance = float(np.maximum(0, np.count_nonzero(each, axis=1) - 1).sum()) / (16 * math.log(2))  # Miller, Madow
    totals = each.sum(axis=1).astype(np.float64)
    return float(_information(totals) - _information(each[each > 0].astype(np.float64))) / 8 + chance


def _information(counts: NDArray[np.float64]) -> float:
    """Sum of n log2 n."""
    used = counts[counts > 0]
    return float(used @ np.log2(used))


def _repeats(start: Bytes, ideal: float) -> bool:
    """Whether what deflate finds is more than what order-0 codes have, `ideal` bytes."""
    if ideal > _NOISY * len(start) and _threes(start) < _FEW_THREES * ideal:
        return False
    return ideal > 0 and len(arrays.deflated(start.data, _HASTY)) < 0.97 * ideal


def _threes(plane: Bytes) -> int:
    """How many bytes begin three in a row that are there another time: in noise hardly any."""
    threes = plane[:-2].astype(np.uint32)
    for following in (plane[1:-1], plane[2:]):
        threes <<= np.uint32(8)
        threes |= following
    threes.sort()
    return int(np.count_nonzero(threes[1:] == threes[:-1]))


def _deflated(values: _Values, quick: bool) -> _Plan:
    """A plane deflated, with matches or, if `quick`, by codes of each region alone."""
    coded = [varint(len(code)) + code for code in values.mapped(literals.deflated if quick else _deflate)]
    return _Plan(1 + sum(map(len, coded)), Plane(DEFLATED), coded)


def _deflate(plane: Bytes) -> bytes:
    return arrays.deflated(plane.data, 6)


def _as_symbols(values: _Values) -> _Plan:
    """The bytes that occur, as symbols of a stream or, by the adaptive coder, of arithmetic code."""
    how, chunks = values.how, len(values.parts)
    counts = np.sum(values.mapped(planes.counted), axis=0)
    used = np.flatnonzero(counts).astype(np.uint8)

    def symbols() -> list[Bytes]:
        return values.mapped(lambda plane: streams.translated(plane, used))

    size, stream = streams.plan(counts[used], len(used), 1, how.coder, chunks)
    ideal = entropy(counts)
    if size > _FAR * ideal and len(streams.tuple_sizes(len(used))) > 1:
        size, stream = plan_codes(symbols(), counts[used], len(used), how, sparse=False)
    head = len(Plane(STREAM, used, Stream(1)).header())
    if how.coder == "adaptive" and len(used) > 1 and ideal < 0.998 * size:
        context, codes = in_rows_of_one(symbols(), len(used), how)
        if sum(map(len, codes)) + 4 * len(codes) < size:
            coded = [varint(len(code)) + code for code in codes]
            return _Plan(head + 1 + sum(map(len, coded)), Plane(ARITHMETIC, used, None, context), coded)
    return _Plan(head + size, Plane(STREAM, used, stream))
