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
_TOLD = 1 << 16  # flags by which their contexts are chosen, where not hardly one is stored
_CODES_FITTED = 1 << 15  # codes by which theirs are
_BEGINNING = 1 << 16  # values by which the way to deflate them is chosen
FEW = 1 << 14  # elements, up to which nothing is spared
_PRIOR = 0x66
_PRIORS = (2, 3, 4, 5, 6, 7, 8, 15)
Setting = tuple[int, int]  # prior, context
Chunk = bytes | memoryview


class Written(NamedTuple):
    """A blob's head and chunks; `size` counts both."""

    head: bytes
    chunks: Sequence[Chunk]

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

    chunks: Sequence[Chunk]
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
    chunks = [
        b"".join([place, value]) if place else value for place, value in zip(where.chunks, what.chunks, strict=True)
    ]
    return Written(b"".join(fields), chunks)


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
    parts: list[Symbols],
    counts: NDArray[np.int64],
    k: int,
    how: Writing,
    *,
    sparse: bool = True,
    most: int = 1 << 62,
) -> tuple[int, Stream]:
    """The smallest stream for the codes of all chunks, and its bytes.

    Args:
        parts: codes of each chunk; with `sparse` symbols, 0 for what has no code, else code + 1.
        counts: (k,) of each code.
        k: codes are below it.
        how: they are written.
        sparse: whether parts are symbols.
        most: bytes that another way takes: no code is made where none can be smaller.
    """
    best = streams.plan(counts, k, 1, how.coder, len(parts), most)
    for size in streams.tuple_sizes(k)[1:]:

        def count(part: Symbols, size: int = size) -> NDArray[np.int64]:
            codes = part[part != 0] - part.dtype.type(1) if sparse else part
            return np.bincount(streams.tuples(codes, k, size), minlength=k**size)

        total: NDArray[np.int64] = np.sum(mapped(count, parts, how.threads), axis=0)
        found = streams.plan(total, k, size, how.coder, len(parts), min(best[0], most))
        best = min(best, found, key=lambda option: option[0])
    return best


def fitted(symbols: NDArray[Any], model: Model) -> Model:
    """With the prior and the contexts that code the first rows of a matrix smallest, searched one after the other."""
    return with_context(symbols, fitted_flags(symbols, model)) if model.k > 1 else fitted_flags(symbols, model)


def fitted_flags(symbols: NDArray[Any], model: Model) -> Model:
    """With the prior and the context of flags that code the first rows of a matrix smallest.

    What codes flags does not depend on the codes behind them: of many symbols, only flags are looked at.

    Args:
        symbols: (rows x columns,).
        model: of them.
    """
    if not model.flags:
        return replace(model, prior=_PRIOR)
    few = len(symbols) <= FEW
    sample = first_rows(symbols, model.columns, SAMPLE)
    if not few:
        begun = sample[:_TOLD]
        rare = np.count_nonzero(begun) * 16 < len(begun)
        sample = (first_rows(sample, model.columns, SAMPLE if rare else _TOLD) != 0).astype(np.uint8)
    prior, context = _searched(sample, model if few else replace(model, k=1), len(symbols) <= _TOLD)
    return replace(model, prior=prior, context=context)


def with_context(symbols: NDArray[Any], model: Model) -> Model:
    """With the context of codes that codes the first rows smallest; what predicts flags stays.

    Args:
        symbols: (rows x columns,).
        model: of them, with k > 1.
    """
    sample = first_rows(symbols, model.columns, _CODES_FITTED)
    if model.flags and np.count_nonzero(sample) * 16 < len(sample):  # few codes tell little
        sample = first_rows(symbols, model.columns, SAMPLE)
    tried = [replace(model, context=model.context & 3 | v << 2) for v in ((0, 1, 2, 3) if model.flags else (0, 2, 3))]
    return min(tried, key=lambda one: trial(sample, one))


def first_rows(symbols: NDArray[Any], columns: int, most: int) -> NDArray[Any]:
    """The first rows of a matrix, of so many elements at most, but one row at least.

    Args:
        symbols: (rows x columns,).
        columns: of the matrix.
        most: elements.
    """
    return symbols[: max(1, min(len(symbols), most) // columns) * columns]


def trial(sample: NDArray[Any], model: Model) -> int:
    """Bytes of the arithmetic code of some rows; very many where the code takes more than the symbols."""
    code = arithmetic.encode(sample, model, 4 * len(sample) + 64)
    return 1 << 60 if code is None else len(code)


def _searched(sample: NDArray[Any], model: Model, whole: bool) -> Setting:
    """The prior and the context of flags that code a sample smallest, found step by step; `whole` tries all steps."""
    known: dict[Setting, int] = {}

    def size(setting: Setting) -> int:
        if setting not in known:
            known[setting] = trial(sample, replace(model, prior=setting[0], context=setting[1]))
        return known[setting]

    step = _best if whole else _descended
    best = step(step((_PRIOR, 1), 0, size), 4, size)
    best = min([best, (best[0], 0), (best[0], 2)], key=size)
    return step(best, 0, size)


def _priors(setting: Setting, shift: int) -> list[Setting]:
    """The setting with each of `_PRIORS` at the bits from `shift` on of its prior."""
    return [(setting[0] & ~(15 << shift) | one << shift, setting[1]) for one in _PRIORS]


def _best(setting: Setting, shift: int, size: Callable[[Setting], int]) -> Setting:
    """The one of all that is smallest."""
    return min([setting, *_priors(setting, shift)], key=size)


def _descended(setting: Setting, shift: int, size: Callable[[Setting], int]) -> Setting:
    """One from which no neighbour is smaller."""
    tried = _priors(setting, shift)
    at = tried.index(setting)
    for step in (1, -1):
        while 0 <= at + step < len(tried) and size(tried[at + step]) < size(tried[at]):
            at += step
    return tried[at]


def plain(stored: Bits) -> bytes:
    """The bytes of values as they are."""
    return stored.astype(stored.dtype.newbyteorder("<"), copy=False).tobytes()


def deflated(parts: list[Bits], threads: int) -> list[bytes] | None:
    """The values of each chunk, deflated in the way that makes their beginning smallest; None where it gains nothing.

    Args:
        parts: the values, chunk by chunk.
        threads: at most so many.
    """
    stored = next((part for part in parts if part.any()), parts[0])
    sample = stored[:_BEGINNING]
    if not sample.size:
        return None
    whole, quick = arrays.deflate(sample), arrays.deflate(sample, quick=True)
    if min(len(whole), len(quick)) >= sample.nbytes:
        return None
    hasty = len(quick) < len(whole) or (len(quick) <= len(whole) * 1.02 and sample.size == _BEGINNING)
    if len(parts) == 1 and sample.size == stored.size:
        return [quick if hasty else whole]
    return mapped(functools.partial(arrays.deflate, quick=hasty), parts, threads)
