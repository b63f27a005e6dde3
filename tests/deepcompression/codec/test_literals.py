"""Deflate streams without matches, as we write them: what zlib reads, and the same bytes by numba and by numpy."""

from __future__ import annotations

import zlib
from types import ModuleType

import numpy as np
import pytest
from dahuffman import HuffmanCodec
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompression import _numba
from deepcompression.codec import arrays, huffman, literals
from deepcompression.codec.encoder import encode_tensor

kernels: ModuleType = pytest.importorskip("deepcompression.codec.kernels")


def by(module: ModuleType | None, plane: np.ndarray) -> bytes:
    """The stream, by compiled code or without it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_numba, "kernels", lambda *_: module)
        return literals.deflated(plane)


def written(plane: np.ndarray) -> bytes:
    """The stream, of which both ways make the same, and from which zlib and our reader make the bytes."""
    made, same = by(kernels, plane), by(None, plane)
    assert made == same
    reader = zlib.decompressobj(-15)
    assert reader.decompress(made) + reader.flush() == plane.tobytes()
    assert reader.eof
    assert not reader.unused_data
    if len(plane):
        out = np.empty(len(plane) + 16, np.uint8)
        assert kernels.inflate_literals(np.frombuffer(made + bytes(24), np.uint8).copy(), len(made), out)
        assert np.array_equal(out[:-16], plane)
    return made


@st.composite
def planes(draw: st.DrawFn) -> np.ndarray:
    """Pieces of bytes, each with as many values and as skewed as it likes, of one block or of several."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pieces = []
    for _ in range(draw(st.integers(0, 4))):
        count = draw(st.sampled_from([1, 2, 3, 300, 5_000, 32_768, 70_000]))
        used = random.permutation(256)[: draw(st.sampled_from([1, 2, 19, 30, 255, 256]))]
        shares = random.random(len(used)) ** draw(st.sampled_from([0, 1, 8, 40]))
        pieces.append(random.choice(used, count, p=shares / shares.sum()))
    return np.concatenate([*pieces, np.zeros(0, int)]).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(planes())
def test_what_is_written_comes_back(plane: np.ndarray) -> None:
    """Any bytes come back, by zlib and by our reader, from the same stream; it is never larger than stored blocks."""
    blocks = -(-len(plane) // literals.BLOCK)
    assert len(written(plane)) <= max(2, len(plane) + 5 * blocks + 1)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_short_bytes_come_back(data: bytes) -> None:
    """Bytes without any order come back too, however few they are."""
    written(np.frombuffer(data, np.uint8))


def test_the_deepest_tree_is_cut() -> None:
    """Where Huffman's tree is deeper than the format allows, the code is cut, to hardly more than zlib makes of it."""
    counts = [1, 1]
    while sum(counts) + counts[-1] + counts[-2] < literals.BLOCK:
        counts.append(counts[-1] + counts[-2])
    assert len(counts) > literals.LONGEST + 2
    plane = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    assert len(written(plane)) <= 1.01 * len(arrays.deflated(plane.data, 6, zlib.Z_HUFFMAN_ONLY))


@pytest.mark.parametrize("spread", [1.5, 4.0, 30.0])
def test_hardly_larger_than_by_zlib(spread: float) -> None:
    """Bytes as exponents lie, with others in each region, take hardly more than zlib makes of them without matches."""
    random = np.random.default_rng(0)
    middles = np.repeat(random.normal(120, 3, 8), 40_000)
    plane = np.clip(random.normal(middles, spread), 0, 255).astype(np.uint8)
    assert len(written(plane)) <= 1.005 * len(arrays.deflated(plane.data, 6, zlib.Z_HUFFMAN_ONLY))


def test_no_machine_has_a_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Floats whose exponents have a code for each region are written without zlib, of which others have others."""
    random = np.random.default_rng(0)
    scale = np.repeat(np.exp2(random.integers(-20, 0, 32)), 1 << 13)
    flat = (random.normal(size=scale.size) * scale).astype(np.float32).view(np.uint32)
    found: list[bytes] = []
    monkeypatch.setattr(
        literals, "deflated", lambda plane, make=literals.deflated: found.append(make(plane)) or found[-1]
    )
    blob = encode_tensor(flat, "float32", (flat.size,), "huffman")
    assert len(found) == 1
    assert found[0] in blob


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 40) | st.integers(1, 1 << 42), min_size=2, max_size=300))
def test_the_tree_is_dahuffmans(counts: list[int]) -> None:
    """Compiled code builds the very tree, of equals too, that dahuffman builds where numba is not."""
    lengths = np.empty(len(counts), np.uint8)
    kernels.tree_lengths(np.array(counts), lengths)
    table = HuffmanCodec.from_frequencies(dict(enumerate(counts)), eof=0).get_code_table()
    assert lengths.tolist() == [table[symbol][0] for symbol in range(len(counts))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 3) | st.integers(1, 1 << 40), min_size=2, max_size=300))
def test_words_are_the_same_compiled(counts: list[int]) -> None:
    """The words of codes are the same by numba and by numpy, where some symbol has none too."""
    longest = huffman.limit(len(counts))
    lengths = np.append(huffman.package_merge(np.array(counts), longest), 0).astype(np.uint8)  # one has no code
    words = np.zeros(len(lengths), np.uint32)
    kernels.fill_entries(lengths, words)
    assert np.array_equal(words, huffman.canonical(lengths) << np.uint32(5) | lengths)


@settings(max_examples=60, deadline=None)
@given(planes().map(lambda plane: plane[:9_000].tobytes()))
def test_zlib_needs_no_more_memory(data: bytes) -> None:
    """What zlib deflates best with no more memory than the bytes need is the same with all that it can have."""
    made = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    assert arrays.deflated(memoryview(data), 9) == made.compress(data) + made.flush()
