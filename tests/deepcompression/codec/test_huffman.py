from __future__ import annotations

import contextlib
import heapq
import sys
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
from dahuffman.huffmancodec import HuffmanCodec, PrefixCodec
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import streams as drawn_streams

from deepcompression import _numba
from deepcompression.codec import huffman as coders
from deepcompression.codec import streams
from deepcompression.codec.bitstream import Cursor, varint
from deepcompression.codec.streams import Stream
from deepcompression.errors import MalformedFile


@contextlib.contextmanager
def by(compiled: bool, block: int = coders.BLOCK) -> Iterator[None]:
    """Blocks of so many symbols, by numba or by numpy alone."""
    module = pytest.importorskip("deepcompression.codec.kernels") if compiled else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coders, "BLOCK", block)
        patch.setattr(_numba, "kernels", lambda *_: module)
        yield


def huffman(symbols: np.ndarray, k: int, tuple_size: int = 1) -> Stream:
    """The Huffman-coded stream for these symbols, whether it is the smallest or not."""
    made = streams.tuples(symbols, k, tuple_size)
    return Stream(k, tuple_size, coders.code_lengths(np.bincount(made, minlength=k**tuple_size)))


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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 1 << 40), min_size=2, max_size=300), st.integers(0, 3))
def test_package_merge_is_compiled_as_it_is_written(frequencies: list[int], more: int) -> None:
    """Compiled code gives the lengths that numpy gives, of frequencies in any order, some equal."""
    counts = np.array(frequencies + frequencies[:5])
    longest = (len(counts) - 1).bit_length() + more
    made = []
    for compiled in (True, False):
        with by(compiled):
            made.append(coders.package_merge(counts, longest).tolist())
    assert made[0] == made[1]


@given(st.lists(st.integers(0, 10_000), min_size=16, max_size=70))
def test_averaged_counts_are_those_of_windows(counts: list[int]) -> None:
    """Smoother codes are of counts summed over windows, in which the first and the last stand for what is outside."""
    numbers = np.array(counts)
    lengths = coders.code_lengths(numbers)
    made = streams._smoother(numbers, lengths)
    for reach, found in zip((1, 2, 4, 8), made, strict=bool(made)):
        width = 2 * reach + 1
        sums = np.convolve(np.pad(numbers, reach, mode="edge"), np.ones(width, np.int64), mode="valid")
        assert found.tolist() == coders.code_lengths(np.minimum(sums, int(numbers.sum()) * width)).tolist()


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
    written = coders.write_lengths(lengths)
    assert len(written) == coders.table_bytes(lengths)
    cursor = Cursor(written + b"\xff", "x")
    assert np.array_equal(coders.read_lengths(cursor, len(lengths)), lengths)
    assert cursor.left == 1


def test_long_table_leaves_the_cursor_behind_it() -> None:
    """The largest alphabet's table is read without touching what follows it."""
    lengths = coders.code_lengths(np.random.default_rng(0).integers(1, 1000, 65_536))
    cursor = Cursor(coders.write_lengths(lengths) + b"rest", "w")
    assert np.array_equal(coders.read_lengths(cursor, 65_536), lengths)
    assert cursor.left == 4


@pytest.mark.parametrize(
    ("text", "k"),
    [
        ("", 2),  # nothing
        ("00000" + "000", 2),  # a length of 0
        ("10000" + "100", 2),  # lengths 1, 2: incomplete
        ("10000" + "000", 3),  # lengths 1, 1, 1: too many
        ("10000" + "101", 2),  # breaks off
        ("10000" + "10110" + "000000", 2),  # up and down again
        ("10000" + "001", 2),  # padding is not zero
        ("10110" + "0" * 11, 2),  # longer than the limit
        ("10000" + "0" + "10" * 12 + "0" * 2, 3),  # complete without the one beyond the limit
        ("10000" + "110" + "1010" + "0" * 4, 3),  # a length of 0 between others
        ("10000" + "10" * 40 + "000", 2),  # climbs far beyond the limit
    ],
)
def test_table_refuses(text: str, k: int) -> None:
    """Tables that are no complete prefix code, or not spelt as FORMAT.md says, are errors."""
    buffer = bytes(int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8))
    with pytest.raises(MalformedFile):
        coders.read_lengths(Cursor(buffer, "x"), k)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([2, 3, 5, 16, 31, 256]), st.integers(1, 12), st.data())
def test_tuples_round_trip(k: int, size: int, data: st.DataObject) -> None:
    """Tuples are c0 + c1 k + c2 k^2 + .. with the last filled up by zeros, and come back as symbols."""
    size = max(n for n in range(1, size + 1) if n == 1 or k**n <= streams.MOST_TUPLES)
    symbols = np.array(data.draw(st.lists(st.integers(0, k - 1), max_size=40)), np.uint8)
    made = streams.tuples(symbols, k, size)
    filled = symbols.tolist() + [0] * (-len(symbols) % size)
    digits = [filled[i : i + size] for i in range(0, len(filled), size)]
    assert made.tolist() == [sum(c * k**i for i, c in enumerate(one)) for one in digits]
    assert streams.singles(made, k, size, len(symbols)).tolist() == symbols.tolist()


@settings(max_examples=40, deadline=None)
@given(drawn_streams(), st.integers(1, 4), st.booleans(), st.booleans())
def test_stream_round_trip(stream: tuple[np.ndarray, int], tuple_size: int, coded: bool, small: bool) -> None:
    """Packed and Huffman-coded streams, in tuples or not, of any number of blocks, give the symbols back."""
    symbols, k = stream
    tuple_size = tuple_size if k**tuple_size <= 1024 else 1
    with by(compiled=False, block=512 if small else coders.BLOCK):
        written = huffman(symbols, k, tuple_size) if coded else Stream(k, tuple_size)
        head = Cursor(written.header() + b"x", "x")
        read = streams.read_stream(head, k)
        assert (read.k, read.tuple_size, head.left) == (k, tuple_size, 1)
        body = Cursor(streams.encode(symbols, written) + b"x", "x")
        (decoded,) = streams.decode([body], [len(symbols)], read)
    assert np.array_equal(decoded, symbols)
    assert decoded.dtype == (np.uint8 if k <= 256 else np.uint16)
    assert body.left == 1


@pytest.mark.parametrize("coded", [False, True])
@pytest.mark.parametrize("count", [1, 9, 70])
def test_chunks_are_decoded_together(coded: bool, count: int) -> None:
    """Streams of several chunks, some empty, decode together as they do one by one: few blocks, and many in step."""
    random = np.random.default_rng(count)
    parts = [np.minimum(random.geometric(0.3, n) - 1, 15).astype(np.uint8) for n in random.integers(0, 300, count)]
    parts[0] = parts[0][:0]
    stream = huffman(np.concatenate(parts), 16, 2) if coded else Stream(16, 2)
    with by(compiled=False, block=64):
        cursors = [Cursor(streams.encode(part, stream) + b"x", "x") for part in parts]
        decoded = streams.decode(cursors, list(map(len, parts)), stream)
    assert [each.tolist() for each in decoded] == [part.tolist() for part in parts]
    assert {cursor.left for cursor in cursors} == {1}


def test_one_symbol_takes_no_bytes() -> None:
    """An alphabet of one has neither header nor stream."""
    stream = Stream(1)
    assert (stream.header(), streams.encode(np.zeros(9, np.uint8), stream)) == (b"", b"")
    cursor = Cursor(b"x", "x")
    assert streams.read_stream(cursor, 1) == stream
    assert streams.decode([cursor], [9], stream)[0].tolist() == [0] * 9
    assert cursor.left == 1


@settings(max_examples=15, deadline=None)
@given(drawn_streams())
def test_dahuffman_decodes_our_blocks(stream: tuple[np.ndarray, int]) -> None:
    """An independent decoder, given our code table, reads the first block's symbols."""
    symbols, k = stream
    symbols = np.append(symbols, symbols.dtype.type(0))
    lengths = coders.code_lengths(np.bincount(symbols, minlength=k))
    words = [
        int(f"{word:0{length}b}"[::-1], 2) for word, length in zip(coders.canonical(lengths), lengths, strict=True)
    ]
    codec = PrefixCodec({i: (int(lengths[i]), words[i]) for i in range(k)})
    coded, sizes = coders.encode_blocks(symbols, lengths)
    block = symbols[: coders.BLOCK].tolist()
    turned = bytes(int(f"{byte:08b}"[::-1], 2) for byte in coded[: sizes[0]])
    assert list(islice(codec.decode_streaming(turned), len(block))) == block


def test_not_larger_than_dahuffman() -> None:
    """On symbols of a shared layer, our stream with its table is within a per cent of dahuffman's."""
    random = np.random.default_rng(0)
    for k in (16, 32, 256):
        symbols = np.minimum(random.geometric(4 / k, 60_000) - 1, k - 1).astype(np.uint8)
        size, stream = streams.plan(np.bincount(symbols, minlength=k), k, 1, "huffman")
        ours = len(stream.header()) + len(streams.encode(symbols, stream))
        assert ours <= 1.01 * len(HuffmanCodec.from_data(symbols.tolist()).encode(symbols.tolist()))
        assert abs(size - ours) <= 8


@settings(max_examples=25, deadline=None)
@given(stream=drawn_streams(), small=st.booleans())
def test_compiled_equals_numpy(stream: tuple[np.ndarray, int], small: bool) -> None:
    """numba and numpy, block by block and in step, write the same bytes and read the same symbols and ends."""
    symbols, k = stream
    lengths = coders.code_lengths(np.bincount(symbols, minlength=k))
    results = []
    for compiled in (False, True):
        with by(compiled, block=700 if small else coders.BLOCK):
            coded, sizes = coders.encode_blocks(symbols, lengths)
            counts = [coders.BLOCK] * len(sizes)
            if counts:
                counts[-1] = len(symbols) - coders.BLOCK * (len(sizes) - 1)
            decoded, ends = coders.decode_blocks(coded, sizes, counts, lengths)
            results.append((coded, sizes, decoded.tolist(), ends.tolist()))
    assert results[0] == results[1]


def test_environment_forces_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """DEEPCOMPRESSION_NO_NUMBA keeps even the longest stream off numba."""
    monkeypatch.setenv("DEEPCOMPRESSION_NO_NUMBA", "1")
    assert _numba.kernels(1 << 40) is None


def test_without_numba_numpy_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numba is missing, long streams are coded by numpy."""
    monkeypatch.delenv("DEEPCOMPRESSION_NO_NUMBA", raising=False)
    monkeypatch.setitem(sys.modules, "deepcompression.codec.kernels", None)
    assert _numba.kernels(1 << 40) is None


@pytest.mark.parametrize("compiled", [False, True])
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.sampled_from([40, 16_384, 70_000]), small=st.booleans())
def test_garbage_is_refused_or_decoded_safely(compiled: bool, seed: int, n: int, small: bool) -> None:
    """Blocks of random bytes, with lengths to match, are refused or give symbols; nothing crashes."""
    random = np.random.default_rng(seed)
    stream = Stream(13, 1, np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 12], np.uint8))
    with by(compiled, block=600 if small else coders.BLOCK):
        sizes = random.integers(0, min(n, coders.BLOCK) * 12 // 8, -(-n // coders.BLOCK)).tolist()
        text = b"".join(map(varint, sizes)) + random.bytes(sum(sizes))
        with contextlib.suppress(MalformedFile):
            (symbols,) = streams.decode([Cursor(text, "x")], [n], stream)
            assert len(symbols) == n
            assert symbols.max() < stream.k


def test_plan_prefers_the_smaller() -> None:
    """Flat counts stay at fixed width, skewed ones are Huffman-coded, `packed` never is."""
    flat, skewed = np.full(16, 100), np.array([1000, 10, 10, 10])
    assert streams.plan(flat, 16, 1, "huffman")[1].lengths is None
    assert streams.plan(skewed, 4, 1, "huffman")[1].lengths is not None
    assert streams.plan(skewed, 4, 1, "packed")[1].lengths is None


def test_smoothed_tables_pay() -> None:
    """Where few symbols of a large alphabet occur, the table is smoothed rather than exact."""
    random = np.random.default_rng(0)
    counts = np.bincount(np.clip(random.normal(128, 30, 600), 0, 255).astype(int), minlength=256)
    size, stream = streams.plan(counts, 256, 1, "huffman")
    exact = Stream(256, 1, coders.code_lengths(counts))
    assert size < exact.size(counts)
    assert kraft(stream.lengths) == 1.0


@pytest.mark.parametrize(
    ("header", "k"),
    [(b"", 3), (b"\x00", 3), (b"\x80", 3), (b"\x21", 3), (b"\x41", 3), (b"\x08", 3), (b"\x02", 65), (b"\x1f", 65_536)],
)
def test_stream_header_refuses(header: bytes, k: int) -> None:
    """No header, no tuple, unknown bits, and tuples beyond 4,096 combinations are errors."""
    with pytest.raises(MalformedFile, match=r"x: (a stream of|a stream's header)"):
        streams.read_stream(Cursor(header, "x"), k)


@pytest.mark.parametrize(
    ("body", "stream", "count", "message"),
    [
        (b"\x03", Stream(3), 1, "not below 3"),
        (b"\x04", Stream(3), 1, "padding"),
        (b"", Stream(3), 1, "the packed stream needs 1 bytes"),
        (b"\x09", Stream(3, 2), 2, "not below 9"),
        (b"\x03", Stream(3, 2), 1, "not filled up with zeros"),
        (b"\x01\x05", Stream(3, 1, np.array([1, 2, 2], np.uint8)), 1, "does not end where"),  # dirt in the padding
        (b"\x00", Stream(3, 1, np.array([1, 2, 2], np.uint8)), 1, "does not end where"),  # an empty block
        (b"\x02\x00\x00", Stream(3, 1, np.array([1, 2, 2], np.uint8)), 1, "does not end where"),  # a byte too long
        (b"\x02\x00", Stream(3, 1, np.array([1, 2, 2], np.uint8)), 1, "the coded blocks needs 2 bytes"),
        (b"", Stream(3, 1, np.array([1, 2, 2], np.uint8)), 1, "cannot fit"),
        (b"\xff\xff\x7f", Stream(3, 1, np.array([1, 2, 2], np.uint8)), 1, "a block's length is"),
        (b"\0" * 10, Stream(3, 1, np.array([1, 2, 2], np.uint8)), 1 << 50, "cannot fit"),
        (b"\0" * 10, Stream(3), 1 << 50, "the packed stream needs"),
        (b"\x01\x01", Stream(2, 2, np.array([1, 2, 3, 3], np.uint8)), 1, None),
        (b"\x01\x03", Stream(2, 2, np.array([1, 2, 3, 3], np.uint8)), 1, "not filled up with zeros"),
    ],
)
def test_stream_refuses(body: bytes, stream: Stream, count: int, message: str | None) -> None:
    """Symbols out of range, dirt, blocks of the wrong length and counts beyond the buffer have their own messages."""
    for compiled in (False, True):
        with by(compiled):
            if message is None:
                assert len(streams.decode([Cursor(body, "x")], [count], stream)[0]) == count
                continue
            with pytest.raises(MalformedFile, match=message):
                streams.decode([Cursor(body, "x")], [count], stream)


def test_block_must_end_where_it_says() -> None:
    """Of several blocks, one that eats into the next is refused although all bytes are used."""
    stream = Stream(3, 1, np.array([1, 2, 2], np.uint8))
    with by(compiled=False, block=8):
        body = streams.encode(np.array([0] * 7 + [1, 2, 0], np.uint8), stream)
        assert body[:2] == b"\x02\x01"
        assert streams.decode([Cursor(body, "x")], [10], stream)[0].tolist() == [0] * 7 + [1, 2, 0]
        with pytest.raises(MalformedFile, match="does not end where"):
            streams.decode([Cursor(b"\x01\x02" + body[2:], "x")], [10], stream)
