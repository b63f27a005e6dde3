"""Context-adaptive binary arithmetic coding of a matrix, in the spirit of DeepCABAC (FORMAT.md, Arithmetic coding).

Whether a weight is stored is predicted from the densities of its row and column so far and from its neighbours;
a code, bit by bit, from those before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression import _numba
from deepcompression.codec.arithmetic_loop import run
from deepcompression.codec.bitstream import Cursor, width
from deepcompression.errors import MalformedFile

Symbols = NDArray[np.unsignedinteger[Any]]
MOST_ROWS_ELEMENTS = 1 << 22
MOST_COLUMNS = 1 << 22
_LEVELS, _FLAG_CELLS = 33, 33 * 16
_x = np.arange(65_537)
_octave = np.frexp(np.maximum(_x, 1).astype(np.float64))[1] - 1
LOG = (16 * _octave + (16 * np.maximum(_x, 1) >> _octave) - 16).astype(np.int64)
RATE = 131_072 // (2 * np.arange(512) + 3)


@dataclass(frozen=True)
class Model:
    """What predicts the symbols of a matrix (FORMAT.md, Arithmetic coding).

    columns: of the matrix. k: codes are below it. flags: whether symbols are 0 for what is not stored, else code + 1.
    prior: a + 16 b, how much the density of all counts beside a column's and a row's. context: n + 4 v, which
    neighbours of a flag and of a code are looked at.
    """

    columns: int
    k: int
    flags: bool
    prior: int = 0
    context: int = 0


def rows_a_chunk(columns: int) -> int:
    """Rows of `columns` elements that are coded together."""
    return max(1, MOST_ROWS_ELEMENTS // columns)


def fresh_cells(k: int) -> NDArray[np.int64]:
    """The cells (528 + 7 * 2**width(k),) at the beginning of a chunk: those of flags by level, then those of codes."""
    x = 8 * np.arange(_LEVELS) + 4
    chance = np.minimum((1 << 22) - (1 << 16), (16 + x % 16) << (x // 16 + 2))
    cells = np.full(_FLAG_CELLS + (7 << width(k)), (1 << 21) << 10 | 1, np.int64)
    cells[:_FLAG_CELLS] = np.repeat(chance, 16) << 10 | 4
    return cells


def encode(symbols: Symbols, model: Model, most: int) -> bytes | None:
    """The code of one chunk, or None where it would take more than about `most` bytes.

    Args:
        symbols: (rows x columns,) with flags 0 for what is not stored, else code + 1; without them the codes.
        model: what predicts them.
        most: bytes.
    """
    out: Any = np.zeros(most + 16, np.uint8)
    size = _run(False, out, len(out), symbols, model)
    return None if size < 0 else out[:size].tobytes()


def decode(data: memoryview | bytes, rows: int, model: Model) -> Symbols:
    """The inverse of `encode`: symbols (rows x columns,).

    Args:
        data: the code.
        rows: of the matrix.
        model: the one that it was written with.

    Raises:
        MalformedFile: no encoder wrote `data`.
    """
    alphabet = model.k + model.flags
    kind = np.uint8 if alphabet <= 256 else np.uint16 if alphabet <= 65_536 else np.uint32
    symbols: Symbols = np.zeros(rows * model.columns, kind)
    size = len(data)
    asked = _run(True, np.frombuffer(data, np.uint8).copy(), size, symbols, model)
    if asked < size or (size and data[size - 1] == 0):
        raise MalformedFile("the arithmetic code does not end where its length says")
    return symbols


def decode_part(cursor: Cursor, data: memoryview, rows: int, model: Model) -> Symbols:
    """As `decode`, of a part of a blob, which an error names.

    Args:
        cursor: of the blob.
        data: the code.
        rows: of the matrix.
        model: the one that it was written with.

    Raises:
        MalformedFile: no encoder wrote it; names the tensor.
    """
    try:
        return decode(data, rows, model)
    except MalformedFile as error:
        raise cursor.fail(str(error)) from None


def _run(decoding: bool, data: NDArray[np.uint8], size: int, symbols: Symbols, model: Model) -> int:
    """`run` compiled where that pays, else on plain lists, which Python reads faster than arrays."""
    columns, rows = model.columns, len(symbols) // model.columns
    flagged = columns if model.flags else 0  # columns may be a million
    stored = np.zeros(flagged, np.int64)
    last = np.full(columns, model.k >> 1, np.int64)
    shares = (1 << 32) // (np.arange(flagged, dtype=np.int64) + (1 << (model.prior >> 4)))
    tables = [fresh_cells(model.k), stored, last, shares, LOG, RATE]
    # An encoder tries many settings: compiled code repays its import sooner.
    compiled = _numba.kernels(rows * columns, 1 << 6, 1 << 18 if decoding else 1 << 10)
    settings = rows, columns, model.k, model.flags, model.prior, model.context
    if compiled is not None:
        return int(compiled.run(decoding, data, size, symbols, *settings, *tables))
    plain = symbols.tolist()
    code = bytearray(data.tobytes())
    result = run(decoding, code, size, plain, *settings, *(table.tolist() for table in tables))
    if decoding:
        symbols[:] = plain
    else:
        data[:] = np.frombuffer(code, np.uint8)
    return result
