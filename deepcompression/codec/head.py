"""The head of a tensor's blob: its form, mask and codebook, written and read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import arithmetic, arrays, codebooks, streams
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import Cursor, Remote, varint
from deepcompression.codec.codebooks import Book
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.positions import BITMAP, DENSE, FLAGS, GAPS, MOST_ESCAPE
from deepcompression.codec.streams import Stream
from deepcompression.errors import MalformedFile

CHUNK = 1 << 20
RAW, CODEBOOK, GRID = range(3)
ADAPTIVE, MASKS, GROUPS = 1 << 4, 1 << 5, 1 << 6


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

    @property
    def arithmetic(self) -> bool:
        """Whether chunks are matrices of whole rows, coded arithmetically."""
        return self.adaptive or self.positions == FLAGS

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
        return arithmetic.rows_a_chunk(self.width) * self.width if self.arithmetic else CHUNK

    @property
    def model(self) -> Model:
        """What predicts the symbols of arithmetic code."""
        return Model(self.width, self.k, self.positions == FLAGS, self.prior, self.context)

    @property
    def k(self) -> int:
        """Codes are below it; 1 where values are raw."""
        return self.book.k if self.book else 1


def read_head(cursor: Cursor, dtype: str, count: int) -> tuple[Head, int]:
    """The head of the blob of so many elements, and how many of its bytes are the book.

    Args:
        cursor: at the blob's beginning; moves behind the head.
        dtype: of the tensor.
        count: its elements, one at least.

    Raises:
        MalformedFile: it breaks FORMAT.md.
    """
    form = cursor.take(1, "the form")[0]
    place, kind, adaptive = form & 3, form >> 2 & 3, bool(form & ADAPTIVE)
    raw_codes = kind == RAW and (adaptive or form & GROUPS)
    mixed = (adaptive and place in (BITMAP, GAPS)) or (place == FLAGS and kind != RAW and not adaptive)
    if form & 128 or kind == 3 or raw_codes or mixed:
        raise cursor.fail(f"the form {form:#04x} is not possible")
    columns, rows_kept, columns_kept = 0, None, None
    if adaptive or place == FLAGS or form & MASKS:
        columns = cursor.varint("the columns", most=count)
        if columns == 0 or count % columns:
            raise cursor.fail(f"{count} elements have no {columns} columns")
    if form & MASKS:
        rows_kept, columns_kept = _read_mask(cursor, count // columns), _read_mask(cursor, columns)
    group = cursor.varint("the elements a group", most=count - 1) if form & GROUPS else 0
    if form & GROUPS and group == 0:
        raise cursor.fail("a group of no elements")
    found: dict[str, Any] = {}
    codebook = 0
    if kind == RAW:
        found["stored"], found["deflated"] = arrays.read_type(cursor, dtype)
    else:
        start = cursor.at
        sparse = place != DENSE
        found["book"] = codebooks.read_book(cursor, dtype, count, group, grid=kind == GRID, sparse=sparse)
        codebook = cursor.at - start
    if place == GAPS:
        found["escape"] = cursor.varint("the escape value", most=MOST_ESCAPE)
        if found["escape"] == 0:
            raise cursor.fail("the escape value is 0")
        found["position_stream"] = streams.read_stream(cursor, found["escape"] + 1)
    if place == BITMAP:
        found["position_stream"] = streams.read_stream(cursor, 2)
    if kind != RAW and not adaptive:
        found["code_stream"] = streams.read_stream(cursor, found["book"].k)
    if adaptive or place == FLAGS:
        found["prior"], found["context"] = cursor.take(2, "prior and context")
        n, v = found["context"] & 3, found["context"] >> 2
        if n > 2 or v > 3 or (n and place != FLAGS) or (v and not adaptive) or (v == 1 and place != FLAGS):
            raise cursor.fail(f"the context {found['context']} is not possible")
    head = Head(count, dtype, place, kind, adaptive, columns, rows_kept, columns_kept, **found)
    if head.arithmetic and head.width > arithmetic.MOST_COLUMNS:
        raise cursor.fail(f"arithmetic code has {head.width} columns, at most {arithmetic.MOST_COLUMNS} are allowed")
    return head, codebook


def _read_mask(cursor: Cursor, count: int) -> NDArray[np.bool_]:
    kind = cursor.take(1, "a mask")[0]
    if kind == 0:
        return np.ones(count, bool)
    if kind == 1:
        packed = cursor.take((count + 7) // 8, "a mask")
        unpacked = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        if unpacked[count:].any():
            raise cursor.fail("the padding of a mask is not zero")
        kept: NDArray[np.bool_] = unpacked[:count].astype(bool)
    elif kind == 2 and count <= arithmetic.MOST_COLUMNS:
        code = cursor.take(cursor.varint("the length of a mask"), "a mask")
        kept = decode_chunk(cursor, code, 1, _mask_model(count)) != 0
    else:
        raise cursor.fail(f"a mask of kind {kind} for {count} flags")
    if not kept.any():
        raise cursor.fail("a mask keeps nothing")
    return kept


def decode_chunk(cursor: Cursor, code: memoryview, rows: int, model: Model) -> Symbols:
    """The symbols (rows x columns,) of one arithmetic code.

    Args:
        cursor: of the blob, for messages.
        code: one chunk's, or a mask's.
        rows: of the chunk.
        model: what predicts them.

    Raises:
        MalformedFile: no encoder wrote it; names the tensor.
    """
    try:
        return arithmetic.decode(code, rows, model)
    except MalformedFile as error:
        raise cursor.fail(str(error)) from None


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
    kind = ("raw", "codebook", "grid")[head.values] if not head.deflated else "deflated"
    grouped = "s" if head.book and head.book.group else ""
    coded = any(s is not None and s.lengths is not None for s in (head.position_stream, head.code_stream))
    coder = "adaptive" if head.arithmetic else "huffman" if coded else "packed"
    return f"{place}+{kind}{grouped}" + ("+masks" if head.rows_kept is not None else ""), coder


@dataclass(frozen=True)
class Masks:
    """The rows and columns of a matrix that are not wholly zero."""

    columns: int
    rows_kept: NDArray[np.bool_]
    columns_kept: NDArray[np.bool_]

    def of(self, flat: NDArray[Any]) -> NDArray[Any]:
        """The elements that are kept, of all `flat` (n,)."""
        return flat.reshape(-1, self.columns)[self.rows_kept][:, self.columns_kept].reshape(-1)


def write_head(dtype: str, form: int, mask: Masks | None, columns: int, book: Book | None) -> bytes:
    """The first fields of a head: form, columns, masks, group and book.

    Args:
        dtype: of the tensor.
        form: positions, and whether codes are adaptive.
        mask: rows and columns that are left, where some are not.
        columns: of the matrix, for arithmetic code.
        book: None where values are raw.
    """
    parts = []
    if mask is not None:
        form |= MASKS
        parts.append(varint(mask.columns) + _write_mask(mask.rows_kept) + _write_mask(mask.columns_kept))
    elif form & ADAPTIVE or form & 3 == FLAGS:
        parts.append(varint(columns))
    if book is not None:
        form |= (CODEBOOK if book.values is not None else GRID) << 2
        if book.group:
            form |= GROUPS
            parts.append(varint(book.group))
        parts.append(book.write(dtype))
    return b"".join([bytes([form]), *parts])


def _mask_model(count: int) -> Model:
    """A mask is one row of flags."""
    return Model(count, 1, True, 0, 1)


def _write_mask(kept: NDArray[np.bool_]) -> bytes:
    if kept.all():
        return b"\0"
    plain = b"\1" + np.packbits(kept, bitorder="little").tobytes()
    if len(kept) > arithmetic.MOST_COLUMNS:
        return plain
    code = arithmetic.encode(kept.astype(np.uint8), _mask_model(len(kept)), len(plain))
    coded = plain if code is None else b"\2" + varint(len(code)) + code
    return coded if len(coded) < len(plain) else plain
