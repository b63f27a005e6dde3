"""What a file holds, tensor by tensor: bytes, forms, entropies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import cores
from deepcompression.codec import decoder, head
from deepcompression.codec.dtypes import DTYPES, Bits
from deepcompression.codec.head import Sections
from deepcompression.codec.index import Entry, Index
from deepcompression.codec.reader import Readable, read_blob


def describe_tensor(source: Readable, entry: Entry) -> dict[str, Any]:
    """What the blob of one tensor holds, decoded: its bytes by section, its form, its entropies."""
    blob = read_blob(source, entry)
    threads = cores() if entry.elements else 1
    flat, sections = decoder.decode_tensor(
        blob, entry.dtype, entry.elements, entry.name, threads, split=True, version=entry.version
    )
    nonzero, distinct, saved = 0, 0, 0.0
    for counts in _counts(flat):
        nonzero, distinct, saved = nonzero + int(counts.sum()), distinct + len(counts), saved + _repeats(counts)
    # The entropy of the values and n x H(density) together are that of all elements, zeros being a value.
    bits = _repeats(np.array([flat.size])) - saved - _repeats(np.array([flat.size - nonzero]))
    method, coder = head.layout(blob, entry.dtype, entry.elements)
    return {
        "name": entry.name,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
        "density": nonzero / flat.size if flat.size else 1.0,
        "distinct": distinct,
        "bytes": len(blob),
        **sections._asdict(),
        "method": method,
        "coder": coder,
        "same_as": None,
        "entropy_bytes": max(0.0, bits) / 8,
    }


def describe_equal(entry: Entry, first: dict[str, Any]) -> dict[str, Any]:
    """The description of a tensor whose bytes are those of `first`: they are counted there."""
    nothing = {"bytes": 0, **Sections()._asdict(), "entropy_bytes": 0.0}
    return {**first, **nothing, "name": entry.name, "same_as": first["name"]}


def summary(index: Index, file_bytes: int, tensors: list[dict[str, Any]]) -> dict[str, Any]:
    """What `inspect` says of a file.

    Args:
        index: of the file.
        file_bytes: of all of it.
        tensors: what was said of each, in the index's order.
    """
    dense = sum(
        entry.elements * min(DTYPES[entry.dtype].itemsize, 4 if DTYPES[entry.dtype].floating else 16)
        for entry in index.entries
        if entry.same_as is None
    )
    return {
        "format_version": index.version,
        "file_bytes": file_bytes,
        "header_bytes": index.header_bytes,
        "dense_bytes": dense,
        "ratio": dense / file_bytes,
        "coder": index.coder,
        "metadata": index.metadata,
        "edits": index.edits,
        "tensors": tensors,
    }


def _counts(flat: Bits) -> Iterator[NDArray[np.int64]]:
    """How often each value of `flat` (n,) that is not zero occurs, some of the values at a time.

    Wide elements are sorted in place: that takes no memory, however many are distinct.
    """
    if flat.itemsize <= 2:
        counts = np.zeros(1 << 8 * flat.itemsize, np.int64)
        for start in range(0, flat.size, head.CHUNK):
            counts += np.bincount(flat[start : start + head.CHUNK], minlength=len(counts))
        yield counts[1:][counts[1:] > 0]
        return
    flat.sort()
    values = flat[int(np.searchsorted(flat, flat.dtype.type(0), side="right")) :]
    begun = 0
    for start in range(1, len(values) + 1, head.CHUNK):
        part = values[start - 1 : start + head.CHUNK]
        ends = np.flatnonzero(part[1:] != part[:-1]) + start
        if start + head.CHUNK > len(values):
            ends = np.append(ends, len(values))
        yield np.diff(ends, prepend=begun)
        begun = int(ends[-1]) if ends.size else begun


def _repeats(counts: NDArray[np.int64]) -> float:
    """The sum of c log2 c: an ideal order-0 code of n symbols takes n log2 n bits less this."""
    used = counts[counts > 1]
    return float((used * np.log2(used)).sum())
