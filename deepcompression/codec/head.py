"""The head of a tensor's blob: its form, mask and codebook, written and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import arithmetic, arrays, streams
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import Cursor, Remote, varint
from deepcompression.codec.book import ALL, Book, Groups, read_book, read_groups
from deepcompression.codec.masks import Masks, read_mask, write_mask
from deepcompression.codec.planes import ARITHMETIC, Plane, read_planes
from deepcompression.codec.positions import BITMAP, DENSE, FLAGS, GAPS, MOST_ESCAPE
from deepcompression.codec.streams import Stream
from deepcompression.codec.tiles import BLOCKS, PATTERNS, Tiles, read_tiles

VERSION = 2  # the newest
CHUNK = 1 << 20
RAW, CODEBOOK, GRID, PLANES = range(4)
ADAPTIVE, MASKS, GROUPS, MORE = 1 << 4, 1 << 5, 1 << 6, 1 << 7
CHANNELS, NEGATIVE, LOW = 1, 2, 16  # of the byte behind the form, where MORE is set; tiles are bits 2 and 3


class Sections(NamedTuple):
    """Where the bytes of one blob went; `table` is everything that describes codes and choices."""

    values: int = 0
    positions: int = 0
    codebook: int = 0
    table: int = 0


@dataclass(frozen=True)
class Head:
    """What the head of a blob says: how its chunks are to be read."""

    elements: int
    dtype: str
    positions: int
    values: int
    adaptive: bool = False
    columns: int = 0
    rows_kept: NDArray[np.bool_] | None = None
    columns_kept: NDArray[np.bool_] | None = None
    book: Book | None = None
    stored: str = ""
    deflated: bool = False
    escape: int = 0
    position_stream: Stream | None = None
    code_stream: Stream | None = None
    prior: int = 0
    context: int = 0
    tiles: Tiles | None = None
    code_context: int = 0
    low: int = 0
    planes: tuple[Plane, ...] = ()

    @property
    def arithmetic(self) -> bool:
        """Whether chunks are matrices of whole rows, flags and codes of them in one arithmetic code."""
        return self.tiles is None and (self.adaptive or self.positions == FLAGS)

    @property
    def sparse(self) -> bool:
        """Whether no stored element is zero."""
        return self.positions != DENSE and (self.tiles is None or self.tiles.kind == PATTERNS)

    @property
    def kept(self) -> int:
        """Elements that are left where masks took some rows and columns away."""
        if self.rows_kept is None or self.columns_kept is None:
            return self.elements
        return int(self.rows_kept.sum()) * int(self.columns_kept.sum())

    @property
    def width(self) -> int:
        """Columns that are left."""
        return self.columns if self.columns_kept is None else int(self.columns_kept.sum())

    @property
    def chunk(self) -> int:
        """Elements a chunk."""
        if self.tiles is not None:
            return self.tiles.chunk(CHUNK)
        return arithmetic.rows_a_chunk(self.width) * self.width if self.arithmetic else CHUNK

    @property
    def model(self) -> Model:
        """What predicts the symbols of arithmetic code."""
        return Model(self.width, self.k, self.positions == FLAGS, self.prior, self.context)

    @property
    def k(self) -> int:
        """What is coded of codes is below it; 1 where values are raw."""
        return ((self.book.k - 1) >> self.low) + 1 if self.book else 1


class _Form(NamedTuple):
    """The first one or two bytes of a blob, apart."""

    positions: int
    values: int
    adaptive: bool
    masked: bool
    grouped: bool
    channels: bool
    negative: bool
    tiles: int
    low: bool

    @property
    def needs_columns(self) -> bool:
        return self.adaptive or self.masked or self.tiles > 0 or self.positions == FLAGS

    @property
    def has_book(self) -> bool:
        return self.values in (CODEBOOK, GRID)

    @property
    def sparse(self) -> bool:
        return self.positions != DENSE and self.tiles != BLOCKS

    @property
    def possible(self) -> bool:
        """Whether its parts go together."""
        if not self.has_book and (self.adaptive or self.grouped or self.low):
            return False
        if (self.channels and not self.grouped) or (self.negative and self.values != GRID):
            return False
        if self.tiles:
            kinds = (BITMAP, GAPS, FLAGS) if self.tiles == BLOCKS else (BITMAP, FLAGS)
            return self.positions in kinds and not self.masked
        apart = self.positions == FLAGS and self.has_book and not self.adaptive
        return not apart and not (self.adaptive and self.positions in (BITMAP, GAPS))


def _read_form(cursor: Cursor, version: int) -> _Form:
    byte = cursor.take(1, "the form")[0]
    values = byte >> 2 & 3
    more = 0
    if byte & MORE and version > 1:
        more = cursor.take(1, "more of the form")[0]
    beyond = (byte & MORE and version == 1) or (values == PLANES and not byte & MORE) or more >> 5 or more >> 2 & 3 == 3
    idle = byte & MORE and not more and values != PLANES
    adaptive, masked, grouped = (bool(byte & one) for one in (ADAPTIVE, MASKS, GROUPS))
    channels, negative = bool(more & CHANNELS), bool(more & NEGATIVE)
    form = _Form(byte & 3, values, adaptive, masked, grouped, channels, negative, more >> 2 & 3, bool(more & LOW))
    if beyond or idle or not form.possible:
        raise cursor.fail(f"the form {byte:#04x}{f' {more:02x}' if byte & MORE else ''} is not possible")
    return form


def read_head(cursor: Cursor, dtype: str, count: int, version: int = VERSION) -> tuple[Head, int]:
    """The head of the blob of so many elements, and how many of its bytes are the book.

    Args:
        cursor: at the blob's beginning; moves behind the head.
        dtype: of the tensor.
        count: its elements, one at least.
        version: of the file.

    Raises:
        MalformedFile: it breaks FORMAT.md.
    """
    form = _read_form(cursor, version)
    columns, rows_kept, columns_kept, tiles = 0, None, None, None
    if form.needs_columns:
        columns = cursor.varint("the columns", most=count)
        if columns == 0 or count % columns:
            raise cursor.fail(f"{count} elements have no {columns} columns")
    if form.masked:
        rows_kept, columns_kept = read_mask(cursor, count // columns), read_mask(cursor, columns)
    if form.tiles:
        tiles = read_tiles(cursor, form.tiles, columns, count)
    groups = read_groups(cursor, count, form.channels) if form.grouped else ALL
    found, codebook = _read_values(cursor, form, dtype, count, groups)
    found |= _read_streams(cursor, form, tiles, found)
    head = Head(
        count, dtype, form.positions, form.values, form.adaptive, columns, rows_kept, columns_kept, tiles=tiles, **found
    )
    if head.arithmetic and head.width > arithmetic.MOST_COLUMNS:
        raise cursor.fail(f"arithmetic code has {head.width} columns, at most {arithmetic.MOST_COLUMNS} are allowed")
    return head, codebook


def _read_values(cursor: Cursor, form: _Form, dtype: str, count: int, groups: Groups) -> tuple[dict[str, Any], int]:
    """What the head says of the values, and the bytes of the book."""
    start = cursor.at
    if form.has_book:
        grid = form.values == GRID
        read = read_book(cursor, dtype, count, groups, grid=grid, sparse=form.sparse, negative=form.negative)
        size = cursor.at - start
        low = cursor.take(1, "the low bits")[0] if form.low else 0
        if form.low and (not 1 <= low <= 15 or (read.k - 1) >> low == 0):
            raise cursor.fail(f"codes below {read.k} have no {low} low bits")
        return {"book": read, "low": low}, size
    stored, deflated = arrays.read_type(cursor, dtype)
    if form.values == RAW:
        return {"stored": stored, "deflated": deflated}, 0
    if deflated:
        raise cursor.fail("planes are not deflated together")
    return {"stored": stored, "planes": read_planes(cursor, stored)}, 0


def _read_streams(cursor: Cursor, form: _Form, tiles: Tiles | None, values: dict[str, Any]) -> dict[str, Any]:
    """What the head says of how positions and codes are coded."""
    found: dict[str, Any] = {}
    if form.positions == GAPS:
        found["escape"] = cursor.varint("the escape value", most=MOST_ESCAPE)
        if found["escape"] == 0:
            raise cursor.fail("the escape value is 0")
        found["position_stream"] = streams.read_stream(cursor, found["escape"] + 1)
    if form.positions == BITMAP:
        found["position_stream"] = streams.read_stream(cursor, tiles.alphabet if tiles else 2)
    if form.has_book and not form.adaptive:
        found["code_stream"] = streams.read_stream(cursor, ((values["book"].k - 1) >> values["low"]) + 1)
    if form.positions == FLAGS or (form.adaptive and not tiles):
        found["prior"], found["context"] = cursor.take(2, "prior and context")
        _check_context(cursor, form, found["prior"], found["context"])
    if form.adaptive and tiles:
        found["code_context"] = cursor.take(1, "the context of codes")[0]
        if found["code_context"] not in (0, 3):
            raise cursor.fail(f"the context {found['code_context']} of codes in tiles is not possible")
    return found


def _check_context(cursor: Cursor, form: _Form, prior: int, context: int) -> None:
    n, v = context & 3, context >> 2
    flags = form.positions == FLAGS and form.tiles != PATTERNS
    codes = form.tiles == PATTERNS or (form.adaptive and not form.tiles)
    wrong = n > 2 or v > 3 or (n and not flags) or (v and not codes) or (v == 1 and not flags)
    if wrong or (form.tiles == PATTERNS and prior):
        raise cursor.fail(f"the context {context} is not possible")


def version_of(blob: bytes) -> int:
    """The least version of a file that may hold this blob."""
    return 2 if blob and blob[0] & MORE else 1


def layout(blob: bytes | memoryview | Remote, dtype: str, count: int) -> tuple[str, str]:
    """How a blob that decodes is written, e.g. ("gaps+codebook", "huffman"): layout and coder.

    Args:
        blob: of a tensor.
        dtype: of its elements.
        count: how many they are.
    """
    if not count:
        return "empty", "packed"
    head, _ = read_head(Cursor(blob, "layout"), dtype, count)
    place = ("dense", "bitmap", "gaps", "flags")[head.positions]
    kind = ("raw", "codebook", "grid", "planes")[head.values] if not head.deflated else "deflated"
    grouped = "s" if head.book and head.book.groups else ""
    parted = "+masks" if head.rows_kept is not None else ""
    if head.tiles is not None:
        parted = "+patterns" if head.tiles.kind == PATTERNS else "+blocks"
    used = (head.position_stream, head.code_stream, *(plane.stream for plane in head.planes))
    coded = any(stream is not None and stream.lengths is not None for stream in used)
    adaptive = head.adaptive or head.positions == FLAGS or any(plane.coding == ARITHMETIC for plane in head.planes)
    return f"{place}+{kind}{grouped}{parted}", "adaptive" if adaptive else "huffman" if coded else "packed"


def write_head(
    dtype: str, form: int, parting: Masks | Tiles | None, columns: int, book: Book | None, low: int = 0
) -> bytes:
    """The first fields of a head: form, columns, masks or tiles, groups and book.

    Args:
        dtype: of the tensor.
        form: positions, planes, and whether codes are adaptive.
        parting: the rows and columns that are left, where some are not; or tiles.
        columns: of the matrix, for arithmetic code.
        book: None where values are not codes.
        low: bits of codes that are apart.
    """
    parts, more = [], 0
    if isinstance(parting, Masks):
        form |= MASKS
        parts.append(varint(parting.columns) + write_mask(parting.rows_kept) + write_mask(parting.columns_kept))
    elif isinstance(parting, Tiles):
        more |= parting.kind << 2
        parts.append(varint(parting.columns) + parting.write())
    elif form & ADAPTIVE or form & 3 == FLAGS:
        parts.append(varint(columns))
    if book is not None:
        form |= (CODEBOOK if book.values is not None else GRID) << 2 | (GROUPS if book.groups else 0)
        more |= (CHANNELS if book.groups.channels > 1 else 0) | (NEGATIVE if book.negative_zero else 0)
        more |= LOW if low else 0
        parts.append(book.groups.write() + book.write(dtype) + (bytes([low]) if low else b""))
    if more or form >> 2 & 3 == PLANES:
        return b"".join([bytes([form | MORE, more]), *parts])
    return b"".join([bytes([form]), *parts])
