"""Files field by field, right or wrong, with all checksums right; and a writer that chooses at random."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from deepcompression.codec import (
    apart,
    arithmetic,
    codebooks,
    encoder,
    group_books,
    head,
    huffman,
    parting,
    streams,
    tiling,
    zeros,
)
from deepcompression.codec.bitstream import varint, width
from deepcompression.codec.dtypes import DTYPES
from deepcompression.codec.index import MAGIC

__all__ = ["array", "coded", "deflated", "mask", "one", "record", "sealed", "small_chunks", "varint", "wild"]


def sealed(index: bytes, rest: bytes = b"", coder: int = 1, version: int = 1) -> bytes:
    """A file with this index, and what follows it."""
    prefix = MAGIC + bytes([version, coder]) + len(index).to_bytes(4, "little")
    return prefix + zlib.crc32(prefix + index).to_bytes(4, "little") + index + rest


def record(
    name: bytes, dtype: str | int, shape: Sequence[int], blob: bytes, shared: int = 0, size: int | None = None
) -> bytes:
    """What an index says of a tensor; `shared` bytes of the name are the previous one's."""
    number = dtype if isinstance(dtype, int) else DTYPES[dtype].number
    head = (
        varint(shared) + varint(len(name)) + name + bytes([number]) + varint(len(shape)) + b"".join(map(varint, shape))
    )
    return head + varint(len(blob) if size is None else size) + zlib.crc32(blob).to_bytes(4, "little")


def one(blob: bytes, shape: Sequence[int] = (8,), dtype: str | int = "float32", behind: bytes = b"") -> bytes:
    """A file with the tensor `w` of this blob, and `behind` it in the index."""
    return sealed(b"\x01" + record(b"w", dtype, shape, blob) + behind, blob)


def array(values: np.ndarray, number: int = 0) -> bytes:
    """An Array of values as they are, said to be of the type `number`."""
    return bytes([number]) + values.tobytes()


def deflated(planes: bytes) -> bytes:
    """RFC 1951's compression of these bytes."""
    made = zlib.compressobj(9, zlib.DEFLATED, -15)
    return made.compress(planes) + made.flush()


def mask(flags: Sequence[int]) -> bytes:
    """A mask as plain bits."""
    return b"\x01" + np.packbits(np.array(flags, np.uint8), bitorder="little").tobytes()


def coded(lengths: Sequence[int], tuple_size: int = 1) -> bytes:
    """The header of a Huffman-coded stream, whether these lengths are a code or not."""
    return bytes([128 | tuple_size]) + huffman.write_lengths(np.array(lengths, np.uint8))


@contextlib.contextmanager
def wild(random: Random, chunk: int | None = None) -> Iterator[None]:
    """A writer that takes any of the layouts, streams and settings that it weighs, and not the smallest.

    Args:
        chunk: elements a chunk, in place of the format's; readers need the same.
    """

    def smaller(one: Any, other: Any) -> Any:
        return random.choice([each for each in (one, other) if each is not None] or [None])

    def least(*options: Any, key: Any = None, **default: Any) -> Any:
        if key is None:
            return min(*options, **default)
        return random.choice(list(options[0] if len(options) == 1 else options) or [default["default"]])

    def plan(counts: NDArray[np.int64], k: int, size: int, coder: str, *_: int) -> tuple[int, streams.Stream]:
        lengths = None if k == 1 or coder == "packed" or random.random() < 0.4 else huffman.code_lengths(counts)
        return 0, streams.Stream(k, size, lengths)

    def descended(setting: tuple[int, int], shift: int, _: Any) -> tuple[int, int]:
        return setting[0] & ~(15 << shift) | random.choice(apart._PRIORS) << shift, setting[1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, "_smaller", smaller)
        for module in (encoder, apart, parting, tiling, zeros):
            patch.setattr(module, "min", least, raising=False)
        patch.setattr(parting, "promising", lambda *given: DTYPES[given[1]].floating and random.random() < 0.5)
        patch.setattr(encoder, "_NEAR", math.inf)
        patch.setattr(encoder, "_ahead", lambda *_: random.random() < 0.3)
        patch.setattr(apart, "_descended", descended)
        for module, name in (
            (codebooks, "differ"),
            (codebooks, "_dearer"),
            (parting, "_changes"),
            (parting, "_repeats"),
        ):
            patch.setattr(module, name, lambda *_: random.random() < 0.3)
        patch.setattr(tiling, "_LEAST", 1)
        patch.setattr(encoder, "_FINE", 3)
        patch.setattr(encoder, "_low_bits", lambda k: range(1, width(k)))
        patch.setattr(tiling, "_GAIN", 2.0)
        patch.setattr(group_books, "_FEWEST_IN_ALL", 1)
        patch.setattr(group_books, "_WORTH", 9.0)
        patch.setattr(streams, "plan", plan)
        if chunk is not None:
            small_chunks(patch.setattr, chunk)
        yield


def small_chunks(setting: Callable[[object, str, int], None], chunk: int) -> None:
    """Let chunks be of so many elements, and blocks of a third of it, for writers and readers alike."""
    setting(head, "CHUNK", chunk)
    setting(arithmetic, "MOST_ROWS_ELEMENTS", chunk)
    setting(huffman, "BLOCK", max(1, chunk // 3))
