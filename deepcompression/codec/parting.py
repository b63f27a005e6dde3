"""How the planes of floats are coded smallest (FORMAT.md, Planes), and whether to part them at all."""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import arrays, planes, streams
from deepcompression.codec.apart import Piece, in_rows_of_one, plan_codes
from deepcompression.codec.bitstream import varint
from deepcompression.codec.dtypes import DTYPES, Bits, Writing
from deepcompression.codec.head import PLANES
from deepcompression.codec.planes import ARITHMETIC, DEFLATED, STREAM, Bytes, Plane
from deepcompression.codec.shared import histogram

_LEAST = 1 << 12  # values, below which files of version 1 do as well
_LOOKED_AT, _DEFLATED = 1 << 16, 1 << 14  # values of a sample
_CONTEXTS = 1.25  # times as many bytes as another way's may become fewer by contexts
_NOISE = 0.995  # of its bytes is the entropy of a plane that is stored as it is


def entropy(counts: NDArray[np.int64]) -> float:
    """Bytes of an ideal order-0 code of symbols that occur so often."""
    used = counts[counts > 0].astype(np.float64)
    return float((used * np.log2(used.sum() / used)).sum()) / 8 if used.size else 0.0


def promising(parts: list[Bits], stored: str, how: Writing, most: int) -> bool:
    """Whether planes may be smaller than the values, or the same deflated: by the entropy of a sample.

    Args:
        parts: bits of the stored values of each chunk.
        stored: the type that they are stored as.
        how: they are written.
        most: bytes that the tensor takes otherwise.
    """
    total = sum(map(len, parts))
    if how.coder == "packed" or not DTYPES[stored].floating or total < _LEAST:
        return False
    sample = planes.rotated(np.concatenate([part[:: max(1, total // _LOOKED_AT)] for part in parts]))
    counts = [np.bincount(planes.plane_of(sample, plane), minlength=256) for plane in range(sample.itemsize)]
    share = sum(map(entropy, counts)) / sample.nbytes
    if share * total * sample.itemsize > _CONTEXTS * most:
        return False
    start = max(parts, key=len)[:_DEFLATED]
    return share < 0.98 and share < 0.997 * len(arrays.deflate(start)) / start.nbytes


def parted(parts: list[Bits], kind: int, how: Writing) -> Piece:
    """The values of each chunk as planes.

    Args:
        parts: bits of the stored values of each chunk.
        kind: the number of the type that they are stored as, in the file.
        how: they are written.
    """
    head, chunks = bytes([kind]), [b""] * len(parts)
    for number in range(parts[0].itemsize):

        def plane_of(part: Bits, number: int = number) -> Bytes:
            return planes.plane_of(planes.rotated(part), number)  # anew each time, or the tensor is here twice

        plane, coded = _smallest(mapped(plane_of, parts, how.threads), how)
        head += plane.header()
        for place, code in enumerate(coded):
            chunks[place] += code  # one by one: never all of them twice
    return Piece(chunks, PLANES << 2, head)


def _smallest(parts: list[Bytes], how: Writing) -> tuple[Plane, list[bytes]]:
    """How one plane, a part a chunk, is coded smallest, and each chunk's code."""
    sample = parts[0][:: max(1, len(parts[0]) // _LOOKED_AT)]
    options: list[tuple[Plane, list[bytes]]] = [(Plane(), [part.tobytes() for part in parts])]
    ideal = entropy(np.bincount(sample, minlength=256))
    if ideal < _NOISE * len(sample):
        options.append(_as_symbols(parts, how))
    if ideal > 0 and len(_deflate(parts[0][:_LOOKED_AT])) < 0.97 * ideal * min(_LOOKED_AT, len(parts[0])) / len(sample):
        deflated = mapped(_deflate, parts, how.threads)
        options.append((Plane(DEFLATED), [varint(len(code)) + code for code in deflated]))
    return min(options, key=lambda option: len(option[0].header()) + sum(map(len, option[1])))


def _deflate(part: Bytes) -> bytes:
    made = zlib.compressobj(6, zlib.DEFLATED, -15, 9)
    return made.compress(part.tobytes()) + made.flush()


def _as_symbols(parts: list[Bytes], how: Writing) -> tuple[Plane, list[bytes]]:
    """The bytes that occur, as symbols of a stream or, by the adaptive coder, of arithmetic code."""
    counts = np.sum([histogram(part, 256, how.threads) for part in parts], axis=0)
    used = np.flatnonzero(counts).astype(np.uint8)
    table = np.zeros(256, np.uint8)
    table[used] = np.arange(len(used))
    symbols = [table[part] for part in parts]
    size, stream = plan_codes(symbols, counts[used], len(used), how, sparse=False)
    if how.coder == "adaptive" and len(used) > 1 and entropy(counts) < 0.998 * size:
        context, chunks = in_rows_of_one(symbols, len(used), how)
        if sum(map(len, chunks)) + 4 * len(chunks) < size:
            plane = Plane(ARITHMETIC, used, None, context)
            return plane, [varint(len(code)) + code for code in chunks]
    chunks = mapped(lambda part: streams.encode(part, stream), symbols, how.threads)
    return Plane(STREAM, used, stream), chunks
