"""What codes stand for: a codebook or a grid (FORMAT.md, Values), of a tensor or of each of its groups."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import grids
from deepcompression.codec.arrays import read_array, write_array
from deepcompression.codec.bitstream import Cursor, varint
from deepcompression.codec.dtypes import Bits, order, unsigned
from deepcompression.codec.huffman import Symbols

MOST_DISTINCT = 1 << 16
MOST_INTEGER = 1 << 16
GRID_DTYPES = frozenset({"float32", "float16", "bfloat16", "float64"})


class Groups(NamedTuple):
    """Which element belongs to which group (FORMAT.md, Groups by channel): runs of `channels` in turn.

    run: its elements; 0: all are one group. rounds: after so many times around new groups begin.
    """

    run: int = 0
    channels: int = 1
    rounds: int = 1

    def __bool__(self) -> bool:
        return self.run > 0

    @property
    def size(self) -> int:
        """Elements of a group; 0 is all."""
        return self.run * self.rounds

    def count(self, elements: int) -> int:
        """Groups of so many elements."""
        return -(-elements // self.size) if self.run else 1

    def of(self, elements: NDArray[np.int64]) -> NDArray[np.int64]:
        """The group of each of `elements` (m,), which are places in the tensor."""
        runs = elements // self.run
        if self.channels == 1:
            return runs
        return runs // (self.channels * self.rounds) * self.channels + runs % self.channels

    def gathered(self, flat: NDArray[Any]) -> NDArray[Any]:
        """`flat` (n,) group by group (groups, size), where all groups are whole; a view where it can be."""
        if self.channels == 1:
            return flat.reshape(-1, self.size)
        turned = flat.reshape(-1, self.rounds, self.channels, self.run).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(turned).reshape(-1, self.size)

    def scattered(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The inverse of `gathered`: (n,)."""
        if self.channels == 1:
            return rows.reshape(-1)
        turned = rows.reshape(-1, self.channels, self.rounds, self.run).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(turned).reshape(-1)

    def write(self) -> bytes:
        """What the head of a blob says of them."""
        if not self.run:
            return b""
        return varint(self.run) + (varint(self.channels) + varint(self.rounds) if self.channels > 1 else b"")


ALL = Groups()


def read_groups(cursor: Cursor, elements: int, channels: bool) -> Groups:
    """The groups in the head of the blob of so many elements.

    Args:
        cursor: at them; moves behind.
        elements: of the tensor.
        channels: whether they go by channel.

    Raises:
        MalformedFile: they break FORMAT.md.
    """
    run = cursor.varint("the elements a group", most=elements - 1)
    if run == 0:
        raise cursor.fail("a group of no elements")
    if not channels:
        return Groups(run)
    count = cursor.varint("the channels", most=elements)
    rounds = cursor.varint("the runs a group", most=elements)
    if count < 2 or rounds == 0 or elements % (run * count * rounds):
        raise cursor.fail(f"{elements} elements have no groups of {rounds} runs of {run} in {count} channels")
    return Groups(run, count, rounds)


@dataclass(frozen=True, eq=False)
class Book:
    """What codes below `k` stand for: values, or integers times scales; of the whole tensor or group by group.

    values: (groups, k) bits, ascending; of a grid None. scales: (groups,) of a grid; lowest: its integer of code 0.
    groups: which element belongs to which. skips_zero: whether a grid leaves out the integer 0. negative_zero: whether
    -0.0 is on the grid, just below the integer 0, or in its place where that is left out.
    """

    k: int
    values: Bits | None = None
    groups: Groups = ALL
    scales: NDArray[Any] | None = None
    lowest: int = 0
    skips_zero: bool = False
    negative_zero: bool = False
    _written: dict[str, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    def write(self, dtype: str) -> bytes:
        """The book in the head of a blob, behind the number of elements a group."""
        if dtype not in self._written:  # asked for by every layout
            self._written[dtype] = self._write(dtype)
        return self._written[dtype]

    def _write(self, dtype: str) -> bytes:
        if self.values is not None:
            return varint(self.k - 1) + write_array(self.values.reshape(-1), dtype)
        assert self.scales is not None
        zigzag = 2 * self.lowest if self.lowest >= 0 else -2 * self.lowest - 1
        kind = "float64" if dtype == "float64" else "float32"
        scales = self.scales.astype(kind).view(unsigned(kind))
        return varint(zigzag) + varint(self.k - 1) + write_array(scales, kind)

    def integers(self, codes: NDArray[Any]) -> NDArray[np.int32]:
        """The integers of a grid that `codes` stand for; 0 for -0.0."""
        found = codes.astype(np.int32) + np.int32(self.lowest)
        if self.negative_zero:
            return found if self.skips_zero else found - (found > 0)
        return found + ((found >= 0) & (self.lowest <= 0)) if self.skips_zero else found

    def bits(self, codes: Symbols, dtype: str, groups: NDArray[np.int64] | None) -> Bits:
        """The element bits (m,) of `codes` (m,), which belong to `groups` (m,), None where there is one.

        Args:
            codes: (m,), below k.
            dtype: of the tensor.
            groups: (m,) the group of each; None where there is one.
        """
        if self.values is not None:
            flat = self.values.reshape(-1)
            return flat[codes] if groups is None else flat[groups * self.k + codes]
        assert self.scales is not None
        if groups is None:
            return self._products(np.arange(self.k), self.scales, dtype)[codes]
        return self._products(codes, self.scales[groups], dtype)

    def _products(self, codes: NDArray[Any], scales: grids.Scales, dtype: str) -> Bits:
        found = grids.product(self.integers(codes), scales, dtype)
        if self.negative_zero:
            found[codes == -self.lowest] = 1 << (8 * found.itemsize - 1)
        return found


def read_book(
    cursor: Cursor, dtype: str, elements: int, groups: Groups, *, grid: bool, sparse: bool, negative: bool = False
) -> Book:
    """The book in the head of the blob of so many elements; MalformedFile where it breaks FORMAT.md.

    Args:
        cursor: at the book; moves behind it.
        dtype: of the tensor.
        elements: of the tensor.
        groups: which of them belong together.
        grid: whether it is a grid, not a codebook.
        sparse: whether zeros are left out.
        negative: whether -0.0 is on the grid.

    Raises:
        MalformedFile: it breaks FORMAT.md.
    """
    if grid:
        book = Book(1, None, groups, skips_zero=sparse, negative_zero=negative)
        return _read_grid(cursor, dtype, groups.count(elements), book)
    count = groups.count(elements)
    k = cursor.varint("the size of the codebook", most=min(MOST_DISTINCT, groups.size or elements) - 1) + 1
    values = read_array(cursor, count * k, dtype).reshape(count, k)
    keys = order(values, dtype)
    wrong = keys[:, 1:] < keys[:, :-1] if groups else keys[:, 1:] <= keys[:, :-1]
    if wrong.any() or (sparse and not values.all()):
        raise cursor.fail("the codebook is not ascending, or has a zero where zeros are stored as positions")
    return Book(k, values, groups)


def _read_grid(cursor: Cursor, dtype: str, groups: int, book: Book) -> Book:
    """`book` with the scales of so many groups, its lowest integer and its size."""
    if dtype not in GRID_DTYPES:
        raise cursor.fail(f"{dtype} cannot be on a grid")
    zigzag = cursor.varint("the lowest integer of the grid", most=2 * MOST_INTEGER)
    lowest = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
    k = cursor.varint("the size of the grid", most=MOST_DISTINCT - 1) + 1
    kind = "float64" if dtype == "float64" else "float32"
    scales = read_array(cursor, groups, kind).view(kind)
    with np.errstate(invalid="ignore"):
        sound = bool((np.isfinite(scales) & (scales > 0)).all())
    book = replace(book, k=k, scales=scales, lowest=lowest)
    highest = int(book.integers(np.array([k - 1]))[0])
    if not sound or lowest < -MOST_INTEGER or highest > MOST_INTEGER:
        raise cursor.fail(f"a grid from {lowest} to {highest} with these scales is impossible")
    if book.negative_zero and not 0 <= -lowest < k:
        raise cursor.fail(f"-0.0 is not on a grid of {k} from {lowest}")
    if book.skips_zero and _smallest_is_zero(book, dtype):
        raise cursor.fail("the grid has a zero where zeros are stored as positions")
    return book


def _smallest_is_zero(book: Book, dtype: str) -> bool:
    """Whether some integer of a grid without 0 rounds to all bits zero with some scale."""
    assert book.scales is not None
    integers = book.integers(np.array([0, book.k - 1]))
    near = [1] if integers[0] <= 1 <= integers[1] else [int(integers[0])] if integers[0] > 0 else []
    return bool(near) and not grids.product(np.array(near, np.int32), np.array([book.scales.min()]), dtype).all()
