from __future__ import annotations

import contextlib
import heapq
from itertools import islice

import numpy as np
import pytest
from dahuffman.huffmancodec import HuffmanCodec, PrefixCodec
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import streams

from deepcompression import coders
from deepcompression.bits import Cursor
from deepcompression.errors import MalformedFile


def optimal_bits(counts: list[int]) -> int:
    """The oracle: what Huffman's algorithm costs, as the sum of its merges."""
    heap, total = sorted(counts), 0
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def kraft(lengths: np.ndarray) -> float:
    return float((0.5 ** lengths.astype(float)).sum())


def best_limited_bits(counts: list[int], longest: int) -> int:
    """The oracle: the least cost over all complete sets of lengths, by search; for tiny alphabets."""
    ordered = sorted(counts, reverse=True)

    def search(i: int, shortest: int, room: int) -> float:
        if i == len(ordered):
            return 0 if room >= 0 else float("inf")
        costs = [
            ordered[i] * length + search(i + 1, length, room - (1 << (longest - length)))
            for length in range(shortest, longest + 1)
            if room >= 1 << (longest - length)
        ]
        return min(costs, default=float("inf"))

    return int(search(0, 1, 1 << longest))


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=300))
def test_code_lengths_are_optimal(counts: list[int]) -> None:
    """Where the limit does not bind, the code costs what Huffman's does, and is complete."""
    lengths = coders.code_lengths(np.array(counts))
    assert kraft(lengths) == 1.0
    if lengths.max() < coders.limit(len(counts)):
        assert int(lengths.astype(int) @ np.array(counts)) == optimal_bits(counts)


@given(st.lists(st.integers(1, 500), min_size=2, max_size=6), st.integers(3, 4))
def test_package_merge_is_optimal(counts: list[int], longest: int) -> None:
    """Limited codes are the best ones within the limit, and complete."""
    lengths = coders.package_merge(np.array(counts), longest)
    assert lengths.max() <= longest
    assert kraft(lengths) == 1.0
    assert int(lengths @ np.array(counts)) == best_limited_bits(counts, longest)


def test_limit_binds_on_fibonacci() -> None:
    """The deepest tree there is, is cut to the limit at a cost below one per cent."""
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = coders.code_lengths(np.array(fibonacci))
    assert lengths.max() == coders.limit(30) == 12
    assert kraft(lengths) == 1.0
    assert int(lengths.astype(int) @ np.array(fibonacci)) <= 1.01 * optimal_bits(fibonacci)


def test_unused_symbols_have_codes() -> None:
    """A symbol that does not occur still has a code, so that every table is complete."""
    assert kraft(coders.code_lengths(np.array([0, 0, 5, 0]))) == 1.0


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=300))
def test_table_round_trip(counts: list[int]) -> None:
    """The table of lengths comes back, and the cursor stands behind it."""
    lengths = coders.code_lengths(np.array(counts))
    cursor = Cursor(coders.write_lengths(lengths) + b"\xff", "x")
    assert np.array_equal(coders.read_lengths(cursor, len(lengths)), lengths)
    assert cursor.left == 1


@pytest.mark.parametrize(
    ("text", "k"),
    [
        ("", 2),  # nothing
        ("00000" + "000", 2),  # a length of 0
        ("00001" + "100", 2),  # lengths 1, 2: incomplete
        ("00001" + "000", 3),  # lengths 1, 1, 1: too many
        ("00001" + "101", 2),  # breaks off
        ("00001" + "10110" + "000000", 2),  # up and down again
        ("00001" + "001", 2),  # padding is not zero
        ("01101" + "0" * 11, 2),  # longer than the limit
        ("00001" + "0" + "10" * 12 + "0" * 2, 3),  # complete without the one beyond the limit
    ],
)
def test_table_refuses(text: str, k: int) -> None:
    """Tables that are no complete prefix code, or not spelt as FORMAT.md says, are errors."""
    buffer = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    with pytest.raises(MalformedFile):
        coders.read_lengths(Cursor(buffer, "x"), k)


@settings(max_examples=25, deadline=None)
@given(streams())
def test_stream_round_trip(stream: tuple[np.ndarray, int]) -> None:
    """Both coders give the symbols back, and the cursor stands behind them."""
    symbols, k = stream
    for lengths in (None, coders.code_lengths(np.bincount(symbols, minlength=k))):
        description, coded = coders.encode(symbols, k, lengths)
        cursor = Cursor(description + coded + b"x", "x")
        decoded, described = coders.decode(cursor, len(symbols), k, lengths is not None)
        assert np.array_equal(decoded, symbols)
        assert (described, cursor.left) == (len(description), 1)


@settings(max_examples=15, deadline=None)
@given(streams())
def test_dahuffman_decodes_our_blocks(stream: tuple[np.ndarray, int]) -> None:
    """An independent decoder, given our code table, reads the first block's symbols."""
    symbols, k = stream
    lengths = coders.code_lengths(np.bincount(symbols, minlength=k))
    words = coders.canonical(lengths)
    codec = PrefixCodec({i: (int(lengths[i]), int(words[i])) for i in range(k)})
    coded, sizes = coders.encode_blocks(symbols, lengths)
    block = symbols[: coders.BLOCK].tolist()
    assert list(islice(codec.decode_streaming(coded[: sizes[0]]), len(block))) == block


def test_not_larger_than_dahuffman() -> None:
    """On symbols of a shared layer, our stream with its table is within a per cent of dahuffman's."""
    random = np.random.default_rng(0)
    for k in (16, 32, 256):
        symbols = np.minimum(random.geometric(4 / k, 60_000) - 1, k - 1).astype(np.uint8)
        lengths = coders.plan(np.bincount(symbols, minlength=k), "huffman").lengths
        ours = sum(map(len, coders.encode(symbols, k, lengths)))
        assert ours <= 1.01 * len(HuffmanCodec.from_data(symbols.tolist()).encode(symbols.tolist()))


@settings(max_examples=15, deadline=None)
@given(stream=streams())
def test_compiled_equals_numpy(stream: tuple[np.ndarray, int]) -> None:
    """numba and numpy write the same bytes and read the same symbols and ends."""
    pytest.importorskip("numba")
    symbols, k = stream
    lengths = coders.code_lengths(np.bincount(symbols, minlength=k))
    results = []
    for worth in (1 << 62, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("DEEPCOMPRESSION_NO_NUMBA", raising=False)
            patch.setattr(coders, "WORTH_CALLING", worth)
            patch.setattr(coders, "WORTH_IMPORTING", worth)
            assert (coders.kernels(len(symbols)) is None) == (worth > 0)
            coded, sizes = coders.encode_blocks(symbols, lengths)
            decoded, ends = coders.decode_blocks(coded, sizes, len(symbols), lengths)
            results.append((coded, sizes, decoded.tolist(), ends.tolist()))
    assert results[0] == results[1]


def test_environment_forces_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """DEEPCOMPRESSION_NO_NUMBA keeps even the longest stream off numba."""
    monkeypatch.setenv("DEEPCOMPRESSION_NO_NUMBA", "1")
    assert coders.kernels(1 << 40) is None


@pytest.mark.parametrize("compiled", [False, True])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([40, 16_384, 70_000]))
def test_garbage_is_refused_or_decoded_safely(compiled: bool, seed: int, n: int) -> None:
    """Blocks of random bytes, with lengths to match, are refused or give symbols; nothing crashes."""
    if compiled:
        pytest.importorskip("numba")
    random = np.random.default_rng(seed)
    lengths = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12], np.uint8)
    sizes = random.integers(0, min(n, coders.BLOCK) * 12 // 8, -(-n // coders.BLOCK)).tolist()
    blocks = random.bytes(sum(sizes))
    text = coders.write_lengths(lengths) + b"".join(map(coders.bits.varint, sizes)) + blocks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coders, "WORTH_CALLING", 0 if compiled else 1 << 62)
        patch.setattr(coders, "WORTH_IMPORTING", 0 if compiled else 1 << 62)
        with contextlib.suppress(MalformedFile):
            symbols, _ = coders.decode(Cursor(text, "x"), n, len(lengths), huffman=True)
            assert len(symbols) == n
            assert symbols.max() < len(lengths)


def test_plan_prefers_the_smaller() -> None:
    """Flat counts stay at fixed width, skewed ones are Huffman-coded, `packed` never is."""
    flat, skewed = np.full(16, 100), np.array([1000, 10, 10, 10])
    assert coders.plan(flat, "huffman").lengths is None
    assert coders.plan(skewed, "huffman").lengths is not None
    assert coders.plan(skewed, "packed").lengths is None


def test_packed_symbol_out_of_range() -> None:
    """Fixed-width fields can spell numbers that are no symbols: refused, as is dirt in the padding."""
    with pytest.raises(MalformedFile, match="not below 3"):
        coders.decode(Cursor(b"\xc0", "x"), 1, 3, huffman=False)
    with pytest.raises(MalformedFile, match="padding"):
        coders.decode(Cursor(b"\x41", "x"), 1, 3, huffman=False)


def test_block_must_end_where_it_says() -> None:
    """A block that is longer than its symbols, even by zeros, is refused, as is dirt behind its last code."""
    lengths = np.array([1, 2, 2], np.uint8)
    table = coders.write_lengths(lengths)
    coded, _ = coders.encode_blocks(np.array([0, 1, 2], np.uint8), lengths)
    symbols, _ = coders.decode(Cursor(table + b"\x01" + coded, "x"), 3, 3, huffman=True)
    assert symbols.tolist() == [0, 1, 2]
    for block in (coded + b"\0", bytes([coded[0] | 1])):
        with pytest.raises(MalformedFile, match="does not end where"):
            coders.decode(Cursor(table + bytes([len(block)]) + block, "x"), 3, 3, huffman=True)


def test_count_is_bounded_by_the_buffer() -> None:
    """A stream cannot claim more symbols than it has bits, so memory is taken for real ones alone."""
    with pytest.raises(MalformedFile, match="cannot fit"):
        coders.decode(Cursor(b"\0" * 10, "x"), 1 << 50, 2, huffman=True)
