"""A codebook for each group of a tensor: of which groups, told by samples of some, and its codes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import grouping
from deepcompression.codec.book import MOST_DISTINCT, Groups
from deepcompression.codec.dtypes import Bits, order
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.sampling import Samples
from deepcompression.codec.shared import symbols_of

_FEWEST, _FEWEST_IN_ALL = 16, 256  # elements of a group with a codebook of its own, and of the tensor
_FEWEST_LAID = 2048  # elements of a vector that is worth a look: biases are none
_WORTH = 0.98  # of what others take, from which a codebook for each group is not tried
_TRIES = 2
_LENGTH = 1024
_ALL_DIFFER = 0.9  # share of distinct elements, from which no codebook repays itself


def candidates(samples: Samples, shape: tuple[int, ...], each: float, others: float) -> list[Groups]:
    """The few groups for which a codebook each seems to take the least, if that is less than one for all.

    Args:
        samples: of the tensor.
        shape: of the tensor.
        each: bits of a value in a codebook.
        others: bits of a stored element that other ways take, beside one codebook for all.
    """
    if samples.flat.size < (_FEWEST_LAID if len(shape) < 2 else _FEWEST_IN_ALL):
        return []
    stored = np.count_nonzero(samples.flat) / samples.flat.size
    found = []
    for sizes in _laid(samples.flat, shape):
        for groups in sizes:
            runs = samples.runs(groups)
            known = min(samples.whole(groups), others)
            book = runs.most * each / (groups.size * stored)
            if book > known:  # of smaller groups it is larger
                break
            cost = runs.together() + book
            if cost < _WORTH * known and samples.tell(groups):
                found.append((cost - known, groups))
    return [groups for _, groups in sorted(found)[:_TRIES]]


def _laid(flat: NDArray[Any], shape: tuple[int, ...]) -> Iterator[list[Groups]]:
    """Groups of several rows, rows and their parts; channels of other axes and their parts; the largest first."""
    for channel in grouping.channels(shape):
        parts = grouping.parts(channel)
        if channel.channels == 1:
            rows = grouping.divisors(flat.size // channel.run)
            parts = [Groups(channel.run * some) for some in rows if some > 1] + parts
        sizes = [groups for groups in parts if _FEWEST <= groups.size < flat.size]
        if sizes and not _all_differ(flat, channel):
            yield sizes


def _all_differ(flat: NDArray[Any], channel: Groups) -> bool:
    """Whether hardly an element occurs twice in what stands together."""
    length = min(_LENGTH, flat.size)
    whole = channel.channels == 1
    begun = grouping.spread(flat, 4, length) if whole else grouping.beginnings(flat, channel)
    ordered = np.sort(begun, axis=1)
    return bool(np.count_nonzero(ordered[:, 1:] != ordered[:, :-1]) > _ALL_DIFFER * ordered.size)


def made(flat: Bits, groups: Groups, dtype: str) -> tuple[Symbols, Bits] | None:
    """Symbols (n,) of elements, and the codebook (groups, k) of each group, ascending; None where they do not repay.

    Args:
        flat: (n,), of whole groups.
        groups: of it.
        dtype: of the elements, by which values ascend.
    """
    rows = groups.gathered(flat)
    most = min(groups.size // 2, MOST_DISTINCT - 1)
    symbols = np.zeros(rows.shape, np.uint16)
    books: list[Bits] = []
    for i, row in enumerate(rows):
        distinct = np.unique(row)
        distinct = distinct[distinct != 0]
        if len(distinct) > most:
            return None
        by_key = np.argsort(order(distinct, dtype), kind="stable")
        places = np.zeros(len(distinct) + 1, np.uint16)
        places[1 + by_key] = np.arange(1, len(distinct) + 1)
        symbols[i] = places[np.searchsorted(distinct, row, side="right")]
        books.append(distinct[by_key])
    k = max(1, *(len(book) for book in books))
    filled = [np.append(book, np.full(k - len(book), book[-1] if len(book) else 1, book.dtype)) for book in books]
    return symbols_of(groups.scattered(symbols), k + 1), np.stack(filled)
