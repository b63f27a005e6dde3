"""How the planes of floats are coded smallest (FORMAT.md, Planes), and whether to part them at all."""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import arrays, planes, streams
from deepcompression.codec.apart import Piece, in_rows_of_one, plan_codes
from deepcompression.codec.bitstream import varint
from deepcompression.codec.dtypes import DTYPES, Bits, Writing
from deepcompression.codec.head import PLANES
from deepcompression.codec.planes import ARITHMETIC, DEFLATED, STREAM, Bytes, Plane
from deepcompression.codec.shared import entropy
from deepcompression.codec.streams import Stream

LEAST = 1 << 12  # values, below which files of version 1 do as well
_LOOKED_AT, _DEFLATED = 1 << 15, 1 << 12  # values of a sample
_RUN, _APART = 1 << 12, 1 << 16  # values of a run that tells what those near it have, and from one to the next
_TELL = 16  # runs
CONTEXTS = 1.25  # times as many bytes as another way's may become fewer by contexts
_NOISE = 0.995  # of its bytes is the entropy of a plane that is stored as it is
_FAR = 1.03  # times the entropy, from which codes of single bytes are far from it


def promising(parts: list[Bits], stored: str, how: Writing, most: int) -> bool:
    """Whether planes may be smaller than the values, or the same deflated: by the entropy of a sample.

    Args:
        parts: bits of the stored values of each chunk.
        stored: the type that they are stored as.
        how: they are written.
        most: bytes that the tensor takes otherwise.
    """
    total = sum(map(len, parts))
    if how.coder == "packed" or not DTYPES[stored].floating or total < LEAST:
        return False
    share = _share(np.concatenate([part[:: max(1, total // _LOOKED_AT)] for part in parts]))
    if share >= 0.98 or share * total * parts[0].itemsize > CONTEXTS * most:
        return False
    middle = _middle(parts)
    return _share(middle) < 0.997 * len(arrays.deflate(middle)) / middle.nbytes


def guess(flat: Bits, dtype: str) -> int:
    """Bytes that elements take as they are, deflated or as planes, as samples of them say.

    Args:
        flat: (n,) elements.
        dtype: of them.
    """
    sample = flat[:: flat.size // _LOOKED_AT + 1]
    values = sample[sample != 0]
    middle = _middle([flat])
    deflated = flat.nbytes * len(arrays.deflate(middle)) / middle.nbytes
    if not len(values):
        return int(deflated)
    flags = entropy(np.array([len(values), len(sample) - len(values)]))
    share = _share(values) if DTYPES[dtype].floating else 1.0
    return int(min(deflated, (flags + share * values.nbytes) * flat.size / len(sample)))


def _share(values: Bits) -> float:
    """Of the bytes of values, what ideal codes of their planes take."""
    return sum(entropy(np.bincount(plane, minlength=256)) for plane in planes.parted(values)) / values.nbytes


def _middle(parts: list[Bits]) -> Bits:
    """Values that stand together in the middle of a tensor: what it begins with may be of its own kind."""
    part = parts[len(parts) // 2] if len(parts[len(parts) // 2]) else max(parts, key=len)
    begin = max(0, len(part) - _DEFLATED) // 2
    return part[begin : begin + _DEFLATED]


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
    sample = _runs(parts)
    plans = [_smallest(parts, place, sample, how) for place in range(parts[0].itemsize)]

    def chunk(number: int) -> bytes:
        return b"".join(
            plan.plane.write(parts[number], place) if plan.coded is None else plan.coded[number]
            for place, plan in enumerate(plans)
        )

    head = bytes([kind]) + b"".join(plan.plane.header() for plan in plans)
    return Piece(mapped(chunk, range(len(parts)), how.threads), PLANES << 2, head)


def _runs(parts: list[Bits]) -> Bits:
    """Runs of `_RUN` values from all over a tensor, one after the other: a sixteenth of a large one."""
    runs = [part[at : at + _RUN] for part in parts for at in range(0, len(part), _APART)]
    return np.concatenate(runs or parts[:1])


def _smallest(parts: list[Bits], place: int, sample: Bits, how: Writing) -> _Plan:
    """How one plane is coded smallest."""
    total = sum(map(len, parts))
    looked = planes.plane_of(sample, place)
    best = _Plan(total, Plane())
    each = [np.bincount(looked[at : at + _RUN], minlength=256) for at in range(0, len(looked), _RUN)]
    if each and _likely([np.sum(each, axis=0)]) < _NOISE * len(looked):
        best = min([best, _as_symbols(parts, place, how)], key=lambda plan: plan.size)
    start = planes.plane_of(_middle(parts), place)
    for quick in (False, True):
        if _changes(each, best.size / max(1, total)) if quick else _repeats(start):
            best = min([best, _deflated(parts, place, quick, how)], key=lambda plan: plan.size)
    return best


def _changes(each: list[NDArray[np.int64]], share: float) -> bool:
    """Whether codes of their own would make runs, whose bytes occur so often, smaller than `share`; few tell little."""
    margin = 0.99 if len(each) >= _TELL else 0.95
    return _likely(each) < (margin * share - 0.002) * float(np.sum(each))


def _likely(each: list[NDArray[np.int64]]) -> float:
    """Bytes of codes of their own for runs in which bytes occur so often: few samples seem more alike than they are."""
    chance = sum(max(0, int(np.count_nonzero(counts)) - 1) for counts in each) / (16 * math.log(2))  # Miller, Madow
    return sum(map(entropy, each)) + chance


def _repeats(start: Bytes) -> bool:
    """Whether what deflate finds is more than what order-0 codes have."""
    ideal = entropy(np.bincount(start))
    return ideal > 0 and len(_deflate(start, quick=False)) < 0.97 * ideal


def _deflated(parts: list[Bits], place: int, quick: bool, how: Writing) -> _Plan:
    """A plane deflated, with matches or, if `quick`, by codes of each region alone."""
    coded = mapped(lambda part: _deflate(planes.plane_of(part, place), quick), parts, how.threads)
    coded = [varint(len(code)) + code for code in coded]
    return _Plan(1 + sum(map(len, coded)), Plane(DEFLATED), coded)


def _deflate(part: Bytes, quick: bool) -> bytes:
    strategy = zlib.Z_HUFFMAN_ONLY if quick else zlib.Z_DEFAULT_STRATEGY
    made = zlib.compressobj(6, zlib.DEFLATED, -15, 9, strategy)
    return made.compress(part.tobytes()) + made.flush()


def _as_symbols(parts: list[Bits], place: int, how: Writing) -> _Plan:
    """The bytes that occur, as symbols of a stream or, by the adaptive coder, of arithmetic code."""
    counts = np.sum(mapped(lambda part: planes.counted(part, place), parts, how.threads), axis=0)
    used = np.flatnonzero(counts).astype(np.uint8)
    table = planes.symbols_of(used)

    def symbols() -> list[Bytes]:
        return [planes.translated(planes.plane_of(part, place), table) for part in parts]

    size, stream = streams.plan(counts[used], len(used), 1, how.coder, len(parts))
    ideal = entropy(counts)
    if size > _FAR * ideal and len(streams.tuple_sizes(len(used))) > 1:
        size, stream = plan_codes(symbols(), counts[used], len(used), how, sparse=False)
    head = len(Plane(STREAM, used, Stream(1)).header())
    if how.coder == "adaptive" and len(used) > 1 and ideal < 0.998 * size:
        context, chunks = in_rows_of_one(symbols(), len(used), how)
        if sum(map(len, chunks)) + 4 * len(chunks) < size:
            coded = [varint(len(code)) + code for code in chunks]
            plane = Plane(ARITHMETIC, used, None, context)
            return _Plan(head + 1 + sum(map(len, coded)), plane, coded)
    return _Plan(head + size, Plane(STREAM, used, stream))
