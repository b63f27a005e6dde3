"""A tensor whose elements share values, as symbols and the book that they stand for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec.book import Book
from deepcompression.codec.dtypes import Bits, order
from deepcompression.codec.huffman import Symbols

_SLICE = 1 << 20


@dataclass(frozen=True, eq=False)
class Shared:
    """A tensor as symbols (n,): 0 for the bit pattern +0.0, else the code in `book`, plus 1."""

    symbols: Symbols
    book: Book
    dtype: str

    def least(self, threads: int) -> float:
        """Bytes that no layout goes below: an ideal order-0 code of the stored values, and the book as it stands."""
        counts = histogram(self.symbols, self.book.k + 1, threads)[1:]
        return entropy(counts) * (1 - 1e-6) + len(self.book.write(self.dtype))

    def dense(self, some_zero: bool) -> tuple[Symbols, Book]:
        """The code of each symbol (groups or 1, k + 1) where zeros are codes too, and the book that has them.

        Without zeros the book stays as it is, and the code of symbol 0 means nothing.
        """
        if self.book.values is None:
            return self._dense_grid(some_zero)
        if some_zero:
            return self._with_zero(self.book.values)
        return symbols_of(np.maximum(np.arange(self.book.k + 1) - 1, 0)[None], self.book.k), self.book

    def _dense_grid(self, some_zero: bool) -> tuple[Symbols, Book]:
        if self.book.negative_zero:  # what is above -0.0 makes room for the integer 0
            codes = np.arange(self.book.k)
            codes += codes > -self.book.lowest
            whole = replace(self.book, k=self.book.k + 1, skips_zero=False)
            return symbols_of(np.append(1 - self.book.lowest, codes)[None], whole.k), whole
        integers = self.book.integers(np.arange(self.book.k))
        lowest, highest = int(integers[0]), int(integers[-1])
        if some_zero:
            lowest, highest = min(lowest, 0), max(highest, 0)
        whole = Book(highest - lowest + 1, None, self.book.groups, self.book.scales, lowest)
        table = np.concatenate([np.zeros(1, np.int32), integers]) - lowest
        return symbols_of(table[None], whole.k), whole

    def _with_zero(self, values: Bits) -> tuple[Symbols, Book]:
        """The codebook with zero at its place among the others, group by group."""
        whole = np.concatenate([np.zeros((len(values), 1), values.dtype), values], axis=1)
        by_key = np.argsort(order(whole, self.dtype), axis=1, kind="stable")
        k = whole.shape[1]
        book = Book(k, np.take_along_axis(whole, by_key, axis=1), self.book.groups)
        return symbols_of(np.argsort(by_key, axis=1), k), book


def entropy(counts: NDArray[np.int64]) -> float:
    """Bytes of an ideal order-0 code of symbols that occur so often."""
    used = counts[counts > 0].astype(np.float64)
    return float(np.add.reduce(used * np.log2(np.add.reduce(used) / used))) / 8 if used.size else 0.0


def histogram(symbols: Symbols, k: int, threads: int) -> NDArray[np.int64]:
    """How often each symbol below `k` occurs (k,); in slices, since numpy counts 8 bytes wide.

    Args:
        symbols: (n,).
        k: they are below it.
        threads: at most so many.
    """
    parts = mapped(lambda i: np.bincount(symbols[i : i + _SLICE], minlength=k), range(0, len(symbols), _SLICE), threads)
    total: NDArray[np.int64] = np.sum(parts, axis=0) if parts else np.zeros(k, np.int64)
    return total


def symbols_of(numbers: NDArray[Any], k: int) -> Symbols:
    """`numbers` below `k` in the narrowest unsigned type."""
    return numbers.astype(np.uint8 if k <= 256 else np.uint16 if k <= 65_536 else np.uint32)
