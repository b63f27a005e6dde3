"""Positions and values that are coded apart, each in the way that is smallest for it, and put together to a blob."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import arithmetic, arrays, streams
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import width
from deepcompression.codec.dtypes import Bits, Writing
from deepcompression.codec.head import ADAPTIVE, version_of
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.shared import histogram
from deepcompression.codec.streams import Stream

SAMPLE = 1 << 18
_NEWER = 16  # bytes that a form of version 2 has to save
_PRIORS = (6, 2, 3, 4, 5, 7, 8, 15)


class Written(NamedTuple):
    """A blob's head and chunks; `size` counts both."""

    head: bytes
    chunks: list[bytes]

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return len(self.head) + sum(map(len, self.chunks))

    @property
    def price(self) -> int:
        """Bytes, and some for what readers of version 1 cannot read."""
        return self.size + _NEWER * (version_of(self.head) - 1)


class Piece(NamedTuple):
    """Positions or values of a tensor in a blob: bits of the form, fields of the head, a part of each chunk.

    The head has `first` of the values where a book or a type stands, `middle` where headers of streams stand, `last`
    where contexts stand; those of positions before those of values.
    """

    chunks: Sequence[bytes]
    form: int = 0
    first: bytes = b""
    middle: bytes = b""
    last: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of all that."""
        return len(self.first) + len(self.middle) + len(self.last) + sum(map(len, self.chunks))


def joined(head: Callable[[int], bytes], where: Piece, what: Piece) -> Written:
    """A blob of positions and values.

    Args:
        head: its first fields, by form.
        where: the positions.
        what: the values.
    """
    fields = [head(where.form | what.form), what.first, where.middle, what.middle, where.last, what.last]
    return Written(b"".join(fields), [place + value for place, value in zip(where.chunks, what.chunks, strict=True)])


def codes(parts: list[Symbols], k: int, how: Writing) -> Piece:
    """Codes as a stream or, by the adaptive coder, in arithmetic code: what is smaller.

    Args:
        parts: the codes of each chunk.
        k: they are below it.
        how: they are written.
    """
    counts = np.sum([histogram(part, k, how.threads) for part in parts], axis=0)
    stream = plan_codes(parts, counts, k, how, sparse=False)[1]
    found = [Piece(mapped(lambda part: streams.encode(part, stream), parts, how.threads), middle=stream.header())]
    if how.coder == "adaptive" and k > 1:
        context, chunks = in_rows_of_one(parts, k, how)
        found.append(Piece(chunks, ADAPTIVE, last=bytes([context])))
    return min(found, key=lambda piece: piece.size)


def in_rows_of_one(parts: list[Symbols], k: int, how: Writing) -> tuple[int, list[bytes]]:
    """The arithmetic code of each of `parts`, one row without flags, and its v, 0 or 3: what codes a sample smaller.

    Args:
        parts: symbols below `k` of each chunk.
        k: at least 2.
        how: they are written.
    """

    def code(part: Symbols, v: int) -> bytes:
        most = 2 * width(k) * len(part) + 64
        made = arithmetic.encode(part, Model(len(part), k, False, 0, 4 * v), most) if len(part) else b""
        assert made is not None  # a bit never costs 17
        return made

    sample = max(parts, key=len)[:SAMPLE]
    context = min((0, 3), key=lambda v: len(code(sample, v)))
    return context, mapped(lambda part: code(part, context), parts, how.threads)


def cut(symbols: NDArray[Any], chunk: int) -> list[NDArray[Any]]:
    """`symbols` (n,) in chunks of so many."""
    return [symbols[i : i + chunk] for i in range(0, len(symbols), chunk)]


def plan_codes(
    parts: list[Symbols], counts: NDArray[np.int64], k: int, how: Writing, *, sparse: bool = True
) -> tuple[int, Stream]:
    """The smallest stream for the codes of all chunks, and its bytes.

    Args:
        parts: codes of each chunk; with `sparse` symbols, 0 for what has no code, else code + 1.
        counts: (k,) of each code.
        k: codes are below it.
        how: they are written.
        sparse: whether parts are symbols.
    """
    best = streams.plan(counts, k, 1, how.coder, len(parts))
    for size in streams.tuple_sizes(k)[1:]:

        def count(part: Symbols, size: int = size) -> NDArray[np.int64]:
            codes = part[part != 0] - part.dtype.type(1) if sparse else part
            return np.bincount(streams.tuples(codes, k, size), minlength=k**size)

        total: NDArray[np.int64] = np.sum(mapped(count, parts, how.threads), axis=0)
        found = streams.plan(total, k, size, how.coder, len(parts), best[0])
        best = min(best, found, key=lambda option: option[0])
    return best


def fitted(symbols: NDArray[Any], model: Model) -> Model:
    """With the prior and the context that code the first rows of a matrix smallest, searched one after the other."""
    flags, rows = model.flags, max(1, min(len(symbols), SAMPLE) // model.columns)
    sample = symbols[: rows * model.columns]
    known: dict[tuple[int, int], int] = {}

    def size(setting: tuple[int, int]) -> int:
        if setting not in known:
            tried = replace(model, prior=setting[0], context=setting[1])
            code = arithmetic.encode(sample, tried, 4 * len(sample) + 64)
            known[setting] = 1 << 60 if code is None else len(code)
        return known[setting]

    best = (0x66, 1 if flags else 0)
    if flags:
        best = min([(best[0] & 0xF0 | a, best[1]) for a in _PRIORS], key=size)
        best = min([(best[0] & 0x0F | b << 4, best[1]) for b in _PRIORS], key=size)
        best = min([best, (best[0], 0), (best[0], 2)], key=size)
        best = min([best, *((best[0] & 0xF0 | a, best[1]) for a in _PRIORS)], key=size)
    if model.k > 1:
        best = min([best, *((best[0], best[1] & 3 | v << 2) for v in ((1, 2, 3) if flags else (2, 3)))], key=size)
    return replace(model, prior=best[0], context=best[1])


def plain(stored: Bits) -> bytes:
    """The bytes of values as they are."""
    return stored.astype(stored.dtype.newbyteorder("<"), copy=False).tobytes()


def deflater(stored: Bits) -> Callable[[Bits], bytes] | None:
    """The way to deflate that makes the beginning of `stored` smallest; None where it gains nothing."""
    sample = stored[: 1 << 16]
    if not sample.size:
        return None
    whole, quick = len(arrays.deflate(sample)), len(arrays.deflate(sample, quick=True))
    if min(whole, quick) >= sample.nbytes:
        return None
    hasty = quick < whole or (quick <= whole * 1.02 and sample.size == 1 << 16)
    return functools.partial(arrays.deflate, quick=hasty)
