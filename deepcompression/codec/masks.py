"""Masks in the head of a blob (FORMAT.md, Masks): the rows and columns that are kept, or the bytes that occur."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import arithmetic
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import Cursor, varint


@dataclass(frozen=True)
class Masks:
    """The rows and columns of a matrix that are not wholly zero."""

    columns: int
    rows_kept: NDArray[np.bool_]
    columns_kept: NDArray[np.bool_]

    def of(self, flat: NDArray[Any]) -> NDArray[Any]:
        """The elements that are kept, of all `flat` (n,)."""
        return flat.reshape(-1, self.columns)[self.rows_kept][:, self.columns_kept].reshape(-1)


def read_mask(cursor: Cursor, count: int) -> NDArray[np.bool_]:
    """A mask of so many flags; MalformedFile where it breaks FORMAT.md."""
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
        kept = arithmetic.decode_part(cursor, code, 1, _model(count)) != 0
    else:
        raise cursor.fail(f"a mask of kind {kind} for {count} flags")
    if not kept.any():
        raise cursor.fail("a mask keeps nothing")
    return kept


def write_mask(kept: NDArray[np.bool_]) -> bytes:
    """The mask of these flags, as short as can be."""
    if kept.all():
        return b"\0"
    plain = b"\1" + np.packbits(kept, bitorder="little").tobytes()
    if len(kept) > arithmetic.MOST_COLUMNS:
        return plain
    code = arithmetic.encode(kept.astype(np.uint8), _model(len(kept)), len(plain))
    coded = plain if code is None else b"\2" + varint(len(code)) + code
    return coded if len(coded) < len(plain) else plain


def _model(count: int) -> Model:
    """A mask is one row of flags."""
    return Model(count, 1, True, 0, 1)
