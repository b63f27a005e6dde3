"""One tensor, one blob: every layout comes back, and every rule for blobs that a file can break has a test here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import Random

import numpy as np
import pytest
from forged import array, coded, deflated, mask, small_chunks, varint, wild
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import bit_tensors, layers, on_grid

import deepcompression
from deepcompression import _numba
from deepcompression.codec import decoder, encoder, head
from deepcompression.codec.dtypes import RawTensor
from deepcompression.codec.file import decode, encode
from deepcompression.codec.index import CODERS
from deepcompression.errors import MalformedFile


@contextlib.contextmanager
def by(compiled: bool) -> Iterator[None]:
    """The coders by numba (by numpy where there is none), or by numpy alone."""
    compiled = compiled and find_spec("numba") is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            _numba, "kernels", lambda *_: import_module("deepcompression.codec.kernels") if compiled else None
        )
        yield


@contextlib.contextmanager
def chunks_of(elements: int) -> Iterator[None]:
    """Chunks of so many elements, and blocks of a third of it."""
    with pytest.MonkeyPatch.context() as patch:
        small_chunks(patch.setattr, elements)
        yield


def there_and_back(tensor: RawTensor, coder: str, threads: int = 1) -> bytes:
    """The blob of a tensor, which gives its bits back, by numba and without, and whose bytes are all accounted for."""
    flat = tensor.bits.reshape(-1)
    with by(compiled=True):
        blob = encoder.encode_tensor(flat, tensor.dtype, tensor.bits.shape, coder, threads)
    for compiled in (True, False):
        with by(compiled):
            decoded, sections = decoder.decode_tensor(blob, tensor.dtype, flat.size, "w", threads)
        assert decoded.dtype == flat.dtype
        assert np.array_equal(decoded, flat)
        assert sum(sections) == len(blob)
    return blob


@settings(deadline=None, max_examples=80)
@given(bit_tensors(), st.sampled_from(CODERS))
def test_round_trip(tensor: RawTensor, coder: str) -> None:
    """Each dtype, shape, density and number of values keeps every bit, and takes a form and a type more than raw."""
    blob = there_and_back(tensor, coder)
    assert len(blob) <= tensor.bits.nbytes + 2


@settings(deadline=None, max_examples=80)
@given(st.one_of(bit_tensors(), layers()), st.sampled_from(CODERS), st.sampled_from([16, 100, 1000]))
def test_round_trip_in_chunks(tensor: RawTensor, coder: str, chunk: int) -> None:
    """Tensors of many chunks and blocks, some of them empty, keep every bit."""
    with chunks_of(chunk):
        there_and_back(tensor, coder)


@settings(deadline=None, max_examples=150)
@given(st.one_of(bit_tensors(), layers()), st.sampled_from(CODERS), st.sampled_from([16, 300, 1 << 20]), st.randoms())
def test_whatever_the_writer_chooses(tensor: RawTensor, coder: str, chunk: int, random: Random) -> None:
    """Every layout, stream, context and setting that a writer weighs keeps every bit, not just the smallest."""
    with wild(random, chunk):
        there_and_back(tensor, coder)


@settings(deadline=None, max_examples=25)
@given(layers(), st.sampled_from(CODERS), st.integers(2, 5))
def test_threads_do_not_matter(tensor: RawTensor, coder: str, threads: int) -> None:
    """However many threads work, the bytes are the same."""
    flat = tensor.bits.reshape(-1)
    with chunks_of(100), by(compiled=True):
        blob = encoder.encode_tensor(flat, tensor.dtype, tensor.bits.shape, coder)
        assert encoder.encode_tensor(flat, tensor.dtype, tensor.bits.shape, coder, threads) == blob
        assert np.array_equal(decoder.decode_tensor(blob, tensor.dtype, flat.size, "w", threads)[0], flat)


@settings(deadline=None, max_examples=40)
@given(bit_tensors(), st.sampled_from(CODERS), st.sampled_from([100, 1000]))
def test_compiled_equals_numpy(tensor: RawTensor, coder: str, chunk: int) -> None:
    """numba and numpy write the same blob."""
    flat = tensor.bits.reshape(-1)[:300]
    written = []
    for compiled in (False, True):
        with chunks_of(chunk), by(compiled):
            written.append(encoder.encode_tensor(flat, tensor.dtype, flat.shape, coder))
    assert written[0] == written[1]


@pytest.mark.parametrize("coder", ["packed", "huffman"])
@pytest.mark.parametrize("distinct", [1, 2, 65_535, 65_536, 65_537])
def test_number_of_distinct_values(distinct: int, coder: str) -> None:
    """Codebooks of one to 65,536 values, and what lies beyond, with and without zeros among them."""
    values = np.arange(1, 2 * distinct + 1, dtype=np.uint32) % distinct + 1
    for zeros in (0, 1, 70_000):
        if coder == "packed" or distinct < 3 or zeros == 1:
            flat = np.random.default_rng(0).permutation(np.concatenate([values, np.zeros(zeros, np.uint32)]))
            there_and_back(RawTensor(flat, "uint32"), coder)


def in_rows(each: np.ndarray, dead: int = 0) -> np.ndarray:
    """A quantized matrix with a scale a row; the first `dead` rows are zero."""
    integers = np.random.default_rng(1).integers(1, 16, (48, 160))
    integers[:dead] = 0
    return on_grid(integers, each, "float32").bits.view(np.float32)


SCALES = np.random.default_rng(0).uniform(0.01, 0.02, (48, 1)).astype(np.float32)
NORMAL = np.random.default_rng(0).normal(size=4000)
LARGE = np.random.default_rng(0).integers(1, 1 << 64, 4000, np.uint64)
BOOKS = np.random.default_rng(0).normal(size=(48, 9)).astype(np.float32)


def pruned(height: int, width: int, most: int = 0) -> np.ndarray:
    """Weights (200, 240) by blocks, a third of them kept, or with at most so many in each."""
    random = np.random.default_rng(0)
    tiles = random.normal(size=(200 // height, height, 240 // width, width)).astype(np.float32)
    kept = random.random((200 // height, 1, 240 // width, 1)) < 1 / 3
    if most:
        kept = random.random(tiles.shape).argsort(axis=3 if height == 1 else 1) < most
    return np.where(kept, tiles, np.float32(0)).reshape(200, 240)


@pytest.mark.parametrize(
    ("tensor", "coder", "layout"),
    [
        (np.eye(40, dtype=np.float32), "packed", "gaps+codebook"),
        (np.tile(np.float32([0, 1 / 3, 0, 2 / 3]), 200), "packed", "bitmap+codebook"),
        (np.tile(np.float32([1 / 3, 2 / 3, 1 / 7]), 200), "packed", "dense+codebook"),
        (NORMAL[:30], "packed", "dense+raw"),
        (NORMAL[:30], "adaptive", "dense+raw"),
        (np.arange(-1000, 1000, dtype=np.float32) * np.float32(0.37), "packed", "dense+grid"),
        (np.eye(40, dtype=np.float32)[:, ::-1], "adaptive", "flags+codebook"),
        (np.where(np.eye(20, 40) + np.eye(20, 40, k=20) > 0, NORMAL[:40], 0), "adaptive", "flags+raw"),
        (np.where(np.arange(4000) % 50 == 0, NORMAL, 0), "packed", "gaps+raw"),
        (np.where(NORMAL > 0.3, LARGE, 0).astype(np.uint64), "packed", "bitmap+raw"),
        (np.sort(NORMAL), "huffman", "dense+deflated"),
        (in_rows(SCALES), "packed", "dense+grids"),
        (in_rows(SCALES, dead=24), "huffman", "dense+grids+masks"),
        (BOOKS[:, np.random.default_rng(0).integers(0, 9, 480)], "packed", "dense+codebooks"),
        (pruned(4, 1, 2), "adaptive", "flags+planes+patterns"),
        (pruned(4, 1, 2), "huffman", "bitmap+planes+patterns"),
        (pruned(4, 4), "huffman", "gaps+planes+blocks"),
        (np.sign(pruned(1, 8)), "huffman", "gaps+codebook+blocks"),
        (np.random.default_rng(0).normal(size=5000).astype(np.float32), "huffman", "dense+planes"),
    ],
)
def test_layout(tensor: np.ndarray, coder: str, layout: str) -> None:
    """The layout that must win in clear cases does win."""
    flat = np.ascontiguousarray(tensor).reshape(-1).view(f"u{tensor.itemsize}").reshape(tensor.shape)
    blob = there_and_back(RawTensor(flat, tensor.dtype.name), coder)
    assert head.layout(blob, tensor.dtype.name, tensor.size)[0] == layout


@pytest.mark.parametrize(("coder", "most"), [("huffman", 0.70), ("adaptive", 0.66)])
@pytest.mark.parametrize("shape", [(64, 64, 3, 3), (96, 384)])
def test_patterns_of_four_are_not_taken_for_longer_ones(coder: str, most: float, shape: tuple[int, ...]) -> None:
    """Where zeros are 2 of every 4 inputs cost little more than log2(6) / 4 bits a weight, in layers of any size."""
    keys = np.random.default_rng(0).random((shape[0], shape[1] // 4, 4, *shape[2:]))
    flags = (keys.argsort(axis=2).argsort(axis=2) < 2).astype(np.int8).reshape(shape)
    blob = encoder.encode_tensor(flags.reshape(-1).view(np.uint8), "int8", shape, coder)
    assert 8 * len(blob) < most * flags.size


def by_axis(shape: tuple[int, ...], axis: int, dtype: str, rounds: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Integers of this shape, and a scale for each channel of an axis, or for each so many of the first axis of it."""
    random = np.random.default_rng(axis)
    integers = np.round(random.normal(size=shape) * 40)
    scales = random.uniform(0.01, 0.02, [shape[i] if i == axis else 1 for i in range(len(shape))])
    if rounds:
        scales = scales * random.uniform(1, 2, (shape[0] // rounds, *[1] * (len(shape) - 1))).repeat(rounds, axis=0)
    return integers, scales if dtype == "float64" else scales.astype(np.float32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
@pytest.mark.parametrize(
    ("shape", "axis", "rounds"), [((48, 24), 1, 0), ((18, 16, 3), 1, 0), ((4, 12, 24), 2, 0), ((64, 16), 1, 32)]
)
def test_grids_of_any_axis(shape: tuple[int, ...], axis: int, rounds: int, dtype: str) -> None:
    """A scale for each channel of the second or the last axis, or for parts of it, is found, with -0.0 and without."""
    integers, scales = by_axis(shape, axis, dtype, rounds)
    for negative in (True, False):
        tensor = on_grid(integers if negative else integers + 0.0, scales, dtype)
        blob = there_and_back(tensor, "huffman")
        assert blob[0] & head.MORE and head.layout(blob, dtype, integers.size)[0].endswith("+grids")
        assert len(blob) < integers.size + scales.size * scales.itemsize + 200


@pytest.mark.parametrize("per", ["tensor", "channel", "axis 1"])
@pytest.mark.parametrize("bits", [2, 8])
def test_codes_of_a_grid_cost_their_entropy(bits: int, per: str) -> None:
    """Codes of 10,000 weights take at most 2 % and 64 bytes more than their order-0 entropy, with their -0.0, too."""
    random = np.random.default_rng(bits)
    weights = random.normal(size=(100, 100)).astype(np.float32)
    axis = {"tensor": None, "channel": 1, "axis 1": 0}[per]
    scales = np.abs(weights).max(axis=axis, keepdims=True) / np.float32((1 << bits - 1) - 1)
    rounded = np.round(weights / scales)
    symbols = np.where(np.signbit(rounded) & (rounded == 0), 1000, rounded)
    counts = np.unique(symbols, return_counts=True)[1]
    entropy = float((counts * np.log2(counts.sum() / counts)).sum()) / 8
    flat = (rounded * scales).view(np.uint32).reshape(-1)
    for coder in ("huffman", "adaptive") if entropy > len(flat) / 8 else ("adaptive",):
        blob = encoder.encode_tensor(flat, "float32", weights.shape, coder)
        sections = decoder.decode_tensor(blob, "float32", flat.size, "w")[1]
        assert len(blob) - sections.codebook <= 1.02 * entropy + 64


@pytest.mark.parametrize(("limit", "cost"), [("AUTO_LIMIT", "DECODE_COST"), ("AUTO_ENCODE_LIMIT", "ENCODE_COST")])
def test_auto_is_soon_enough(limit: str, cost: str) -> None:
    """`auto` is adaptive for tensors that decode and encode in time by the tables of costs, Huffman for larger ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder, limit, 2000 * getattr(encoder, cost)["adaptive"])
        for rows, coder in ((190, "adaptive"), (210, "huffman")):
            flat = np.tile(np.eye(10, dtype=np.float32).reshape(-1), 21)[: 10 * rows].view(np.uint32)
            auto, named = (encoder.encode_tensor(flat, "float32", (rows, 10), one) for one in ("auto", coder))
            assert auto == named
            assert (head.layout(auto, "float32", flat.size)[1] == "adaptive") == (coder == "adaptive")


def test_auto_of_floats_that_differ() -> None:
    """Of floats that hardly share values, contexts save next to nothing: `auto` has them decoded as fast as can be."""
    flat = np.random.default_rng(0).normal(size=5000).astype(np.float32).view(np.uint32)
    auto, huffman = (encoder.encode_tensor(flat, "float32", (50, 100), one) for one in ("auto", "huffman"))
    assert auto == huffman


def test_empty_and_last_chunks() -> None:
    """A chunk without a stored element is written and read in every layout, at the end too."""
    random = np.random.default_rng(0)
    for kind in (np.float32, np.float64):
        for values in (random.normal(size=300), random.choice([0.1, 0.7, 0.3], 300)):
            flat = np.zeros(1000, kind)
            flat[200:500] = values * (random.random(300) < 0.5)
            for coder in CODERS:
                with chunks_of(128):
                    there_and_back(RawTensor(flat.view(f"u{flat.itemsize}"), flat.dtype.name), coder)


# ---------------------------------------------------------------- what FORMAT.md says


def examples() -> list[bytes]:
    """The files that FORMAT.md writes out."""
    text = (Path(deepcompression.__file__).parent / "codec" / "FORMAT.md").read_text()
    code = re.findall(r"(?m)^    (?:89 44 43 5a.*\n)(?:    .*\n)*", text[text.index("## Examples") :])
    return [bytes.fromhex("".join(re.findall(r"^ +((?:[0-9a-f]{2} )*[0-9a-f]{2})(?:  |$)", one, re.M))) for one in code]


def test_examples_of_the_format() -> None:
    """The files that FORMAT.md writes out, byte by byte, decode to what it says and are written so."""
    first = np.zeros(8, np.float32)
    first[[2, 4]] = 0.5
    second = np.zeros((4, 8), np.float32)
    second[[0, 3], [1, 2]] = -0.25
    second[[0, 1, 1, 2, 3], [2, 1, 2, 1, 1]] = 0.5
    *files, third = examples()
    assert decode(third)["w"].bits.view(np.float32).tolist() == [[0, 3, 0, 0], [4, 0, 0, 0]]
    expected = [(first, "packed"), (second, "packed"), (second, "adaptive")]
    for file, (tensor, coder) in zip(files, expected, strict=True):
        assert np.array_equal(decode(file)["w"].bits, tensor.view(np.uint32))
        assert encode({"w": tensor}, coder) == file


F = np.float32
ONES = np.ones(8, F).tobytes()
SINGLE = b"\x01"  # a stream's header: symbols one by one, packed
EIGHT = b"\x08"  # of a bitmap: eight flags a tuple
BOOK = b"\x01" + array(F([1, 2]))  # of two values, in one codebook
BOOK4 = b"\x03" + array(F([1, 2, 3, 4]))
BOOKS2 = b"\x01" + array(F([1, 2, 3, 4]))  # of two groups
GRID = b"\x03\x03" + array(F([0.5]))  # -1 to 2 by 0.5; where zeros are positions -2, -1, 1, 2
ALL = b"\x00"  # a mask that keeps all


@pytest.mark.parametrize(
    ("blob", "expected"),
    [
        (b"\x00\x00" + np.arange(8, dtype=F).tobytes(), list(range(8))),
        (b"\x00\x02" + np.arange(8, dtype=np.float16).tobytes(), list(range(8))),
        (b"\x00\x80" + deflated(np.arange(8, dtype=F).view(np.uint8).reshape(8, 4).T.tobytes()), list(range(8))),
        (b"\x01\x00" + EIGHT + b"\x81" + F([3, 4]).tobytes(), [3, 0, 0, 0, 0, 0, 0, 4]),
        (b"\x02\x00" + b"\x03" + SINGLE + b"\x02\x09" + F([3, 4]).tobytes(), [0, 3, 0, 0, 4, 0, 0, 0]),
        (b"\x02\x00" + b"\x03" + SINGLE + b"\x02\x03" + F([3]).tobytes(), [0, 0, 0, 3, 0, 0, 0, 0]),
        (b"\x02\x00" + b"\x03" + SINGLE + b"\x00", [0] * 8),
        (b"\x04" + BOOK + SINGLE + b"\x03", [2, 2, 1, 1, 1, 1, 1, 1]),
        (b"\x04" + BOOK + EIGHT + b"\x03", [2, 2, 1, 1, 1, 1, 1, 1]),
        (b"\x04" + BOOK + coded([1, 1]) + b"\x01\x03", [2, 2, 1, 1, 1, 1, 1, 1]),
        (b"\x04\x00" + array(F([7])), [7] * 8),
        (b"\x44\x04" + BOOKS2 + SINGLE + b"\x21", [2, 1, 1, 1, 3, 4, 3, 3]),
        (b"\x44\x05" + BOOKS2 + SINGLE + b"\x21", [2, 1, 1, 1, 1, 4, 3, 3]),
        (b"\x08" + GRID + SINGLE + b"\x1b\xe4", [0.5, 0, -0.5, -1, -1, -0.5, 0, 0.5]),
        (b"\x09" + GRID + EIGHT + SINGLE + b"\x0f" + b"\xe4", [-1, -0.5, 0.5, 1, 0, 0, 0, 0]),
        (b"\x14\x08" + BOOK + b"\x00\x00" + b"", [2] * 8),
        (b"\x03\x04\x00\x66\x00" + b"\x00" + F(range(1, 9)).tobytes(), list(range(1, 9))),
        (b"\x20\x04" + ALL + ALL + b"\x00" + np.arange(8, dtype=F).tobytes(), list(range(8))),
        (b"\x20\x04" + mask([0, 1]) + mask([1, 0, 1, 0]) + b"\x00" + F([5, 6]).tobytes(), [0, 0, 0, 0, 5, 0, 6, 0]),
        (b"\x20\x04" + mask([0, 1]) + b"\x02\x00" + b"\x00" + F([5, 6, 7, 8]).tobytes(), [0, 0, 0, 0, 5, 6, 7, 8]),
        # version 2: channels, -0.0, blocks, patterns, planes
        (b"\xc4\x01\x01\x02\x04" + BOOKS2 + SINGLE + b"\x21", [2, 3, 1, 3, 1, 4, 1, 3]),
        (b"\xc4\x01\x01\x02\x02\x01" + array(F(range(8))) + SINGLE + b"\x21", [1, 2, 0, 2, 4, 7, 4, 6]),
        (b"\x88\x02" + GRID + SINGLE + b"\x1b\xe4", [0, -0.0, -0.5, -1, -1, -0.5, -0.0, 0]),
        (b"\x89\x02" + GRID + EIGHT + SINGLE + b"\x0f" + b"\xe4", [-1, -0.5, -0.0, 0.5, 0, 0, 0, 0]),
        (b"\x85\x04\x04\x01\x02" + BOOK + SINGLE + SINGLE + b"\x05\x01", [2, 1, 0, 0, 1, 1, 0, 0]),
        (b"\x85\x04\x04\x02\x02" + BOOK + SINGLE + SINGLE + b"\x02\x01", [0, 0, 2, 1, 0, 0, 1, 1]),
        (b"\x81\x04\x04\x02\x01\x00" + SINGLE + b"\x02" + F([0, 3]).tobytes(), [0, 0, 0, 0, 0, 3, 0, 0]),
        (b"\x95\x04\x04\x02\x02" + BOOK + SINGLE + b"\x00\x02", [0, 0, 2, 2, 0, 0, 2, 2]),
        (b"\x81\x08\x04\x01\x04\x01\x00" + SINGLE + b"\x0a" + F([3, 4]).tobytes(), [0, 3, 0, 0, 4, 0, 0, 0]),
        (b"\x81\x08\x02\x04\x01\x01\x00" + SINGLE + b"\x0a" + F([3, 4]).tobytes(), [0, 4, 3, 0, 0, 0, 0, 0]),
        (b"\x83\x08\x04\x01\x04\x01\x00" + b"\x00\x00" + b"\x00" + F([1, 2]).tobytes(), [0, 0, 0, 1, 0, 0, 0, 2]),
        (b"\x84\x10" + BOOK4 + b"\x01" + SINGLE + b"\x0f\x55", [4, 3, 4, 3, 2, 1, 2, 1]),
        (b"\x94\x10\x08" + BOOK4 + b"\x01\x00\x00" + b"\x00" + b"\x05", [4, 3, 4, 3, 3, 3, 3, 3]),
        (b"\x97\x10\x08" + BOOK4 + b"\x01\x66\x00" + b"\x00" + b"\x05", [4, 3, 4, 3, 3, 3, 3, 3]),
        (b"\x95\x14\x04\x01\x02" + BOOK4 + b"\x01" + SINGLE + b"\x00" + b"\x05\x00\x05", [4, 3, 0, 0, 4, 3, 0, 0]),
        (b"\x8c\x00\x00" + bytes(4) + b"\x7f" * 8 + bytes(23) + b"\x01", [1, 1, 1, 1, 1, 1, 1, -1]),
        (b"\x64\x04" + mask([1, 0]) + ALL + b"\x04" + BOOKS2 + SINGLE + b"\x02", [1, 2, 1, 1, 0, 0, 0, 0]),
    ],
)
def test_written_by_hand(blob: bytes, expected: list[float]) -> None:
    """Each field of a blob means what FORMAT.md says, also in combinations that our writer never makes."""
    found = decoder.decode_tensor(blob, "float32", 8, "w")[0]
    assert found.tolist() == F(expected).view(np.uint32).tolist()


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        # the form
        (b"", "the form needs 1 bytes"),
        (b"\x80", "more of the form needs"),
        (b"\x80\x00", "the form 0x80 00"),  # longer than needed
        (b"\xc4\x20", "the form 0xc4 20"),
        (b"\x84\x01", "the form 0x84 01"),  # channels without groups
        (b"\xc4\x02", "the form 0xc4 02"),  # -0.0 without a grid
        (b"\x85\x0c", "the form 0x85 0c"),  # tiles of no kind
        (b"\x84\x04", "the form 0x84 04"),  # dense blocks
        (b"\x86\x08", "the form 0x86 08"),  # patterns as gaps
        (b"\xa5\x04", "the form 0xa5 04"),  # blocks and masks
        (b"\x9c\x00", "the form 0x9c 00"),  # adaptive codes of planes
        (b"\xcc\x00", "the form 0xcc 00"),  # groups of planes
        (b"\xc4\x01\x02\x01\x01", "no groups of 1 runs of 2 in 1 channels"),
        (b"\xc4\x01\x02\x02\x00", "no groups of 0 runs of 2 in 2 channels"),
        (b"\xc4\x01\x02\x02\x03", "no groups of 3 runs of 2 in 2 channels"),
        (b"\xc4\x01\x02\x09\x01", "the channels is 9"),
        (b"\xc4\x01\x01\x02\x04\x04" + array(F([1, 2, 3, 4, 5])), "the size of the codebook is 4"),
        (b"\x88\x02\x02\x01" + array(F([1])), "-0.0 is not on a grid of 2 from 1"),
        (b"\x88\x02\x03\x01" + array(F([1])), "-0.0 is not on a grid of 2 from -2"),
        (b"\x8a\x02\x00\x01" + array(np.full(1, 1e-46, F)), "these scales is impossible"),
        (b"\x85\x04\x04\x00\x04", "no tiles of 0 x 4"),
        (b"\x85\x04\x04\x01\x03", "no tiles of 1 x 3"),
        (b"\x85\x04\x04\x03\x01", "no tiles of 3 x 1"),
        (b"\x85\x04\x04\x01\x01", "no tiles of 1 x 1"),
        (b"\x85\x08\x04\x01\x04\x00", "no element of a tile"),
        (b"\x85\x08\x04\x01\x04\x04", "the most elements of a tile is 4"),
        (b"\x87\x08\x04\x01\x04\x02" + BOOK + SINGLE + b"\x01\x00", "the context 0"),  # a prior of patterns
        (b"\x87\x08\x04\x01\x04\x02" + BOOK + SINGLE + b"\x00\x01", "the context 1"),
        (b"\x87\x04\x04\x01\x04" + BOOK + SINGLE + b"\x66\x04", "the context 4"),  # codes of blocks are apart
        (b"\x97\x04\x04\x01\x04" + BOOK + b"\x66\x00\x02", "the context 2 of codes in tiles"),
        (b"\x95\x04\x04\x01\x04" + BOOK + SINGLE + b"\x00\x00\x01", "codes of no elements have bytes"),
        (b"\x85\x08\x04\x01\x04\x02\x01" + array(F([0, 2])), "a zero where zeros"),
        (b"\x81\x08\x04\x01\x04\x02\x00" + SINGLE + b"\x10" + F([0]).tobytes(), "a zero is stored"),
        # low bits
        (b"\x80\x10", "the form 0x80 10"),
        (b"\x84\x20", "the form 0x84 20"),
        (b"\x84\x10" + BOOK4, "the low bits needs"),
        (b"\x84\x10" + BOOK4 + b"\x00", "no 0 low bits"),
        (b"\x84\x10" + BOOK4 + b"\x02", "no 2 low bits"),
        (b"\x84\x10" + BOOK4 + b"\x01" + SINGLE + b"\x0f", "the low bits of codes needs"),
        (b"\x84\x10\x02" + array(F([1, 2, 3])) + b"\x01" + SINGLE + b"\x0f\x55", "a code is not below 3"),
        (b"\x94\x10\x08" + BOOK4 + b"\x01\x00\x00" + b"\x00" + b"\x05x", "1 bytes follow a chunk's low bits"),
        # planes
        (b"\x8c\x00\x80", "planes are not deflated together"),
        (b"\x8c\x00\x00\x04", "a plane is coded in the unknown way 4"),
        (b"\x8c\x00\x00\x03" + ALL + b"\x02", "the context 2 of a plane"),
        (b"\x8c\x00\x00" + bytes(4) + ONES[1:], "a plane needs 8 bytes"),
        (b"\x8c\x00\x00" + bytes(4) + ONES + b"x", "1 bytes follow a chunk's last value"),
        (b"\x8c\x00\x00\x02" + bytes(3) + b"\x02" + b"\xff" * 2 + bytes(24), "a deflated plane is damaged"),
        (b"\x8c\x00\x00\x02" + bytes(3) + b"\x02\x03\x00" + bytes(24), "a deflated plane is not the 8 bytes"),
        (b"\x8c\x00\x00\x03" + mask([1] + [0] * 255) + bytes(4) + b"\x01x", "a plane without choices has bytes"),
        (b"\x0c", "the form 0x0c"),
        (b"\x10", "the form 0x10"),  # adaptive codes of raw values
        (b"\x13", "the form 0x13"),
        (b"\x40", "the form 0x40"),  # groups of raw values
        (b"\x15", "the form 0x15"),  # adaptive codes with a bitmap
        (b"\x16", "the form 0x16"),  # with gaps
        (b"\x07", "the form 0x07"),  # flags with codes that are not adaptive
        (b"\x0b", "the form 0x0b"),
        # columns, masks, groups
        (b"\x03", "the columns needs 1 bytes"),
        (b"\x03\x00", "have no 0 columns"),
        (b"\x03\x03", "have no 3 columns"),
        (b"\x03\x09", "the columns is 9"),
        (b"\x14\x05", "have no 5 columns"),
        (b"\x20\x04", "a mask needs 1 bytes"),
        (b"\x20\x04\x03", "a mask of kind 3"),
        (b"\x20\x04" + mask([1, 1])[:1], "a mask needs 1 bytes"),
        (b"\x20\x04\x01\x05", "padding of a mask is not zero"),
        (b"\x20\x04" + mask([0, 0]), "a mask keeps nothing"),
        (b"\x20\x04" + ALL + mask([0] * 4), "a mask keeps nothing"),
        (b"\x20\x04\x02\x09", "a mask needs 9 bytes"),
        (b"\x20\x04\x02\x01\x00", "arithmetic code does not end"),
        (b"\x20\x04\x02\x06" + b"\xff" * 6, "arithmetic code does not end"),
        (b"\x20\x04\x02\x08" + b"\1" * 8, "arithmetic code does not end"),
        (b"\x20\x02\x02\x06" + b"\xff" * 5 + b"\xfe", "a mask keeps nothing"),
        (b"\x44", "the elements a group needs"),
        (b"\x44\x00", "a group of no elements"),
        (b"\x44\x08", "the elements a group is 8"),
        (b"\x48\xff\xff\xff\xff\x0f", "the elements a group is"),
        # raw values
        (b"\x00", "the type of stored values"),
        (b"\x00\x01" + ONES, "as type 1"),
        (b"\x00\x04" + ONES, "as type 4"),
        (b"\x00\x06" + ONES, "as type 6"),
        (b"\x00\x63" + ONES, "as type 99"),
        (b"\x00\x00" + ONES[1:], "8 values of type float32 needs 32 bytes"),
        (b"\x00\x00" + ONES + b"x", "1 bytes follow a chunk's last value"),
        (b"\x00\x80", "the deflated values"),
        (b"\x00\x80" + deflated(ONES) + b"\0", "the deflated values are not the 32 bytes"),
        (b"\x00\x80" + deflated(ONES + b"\0"), "the deflated values are not the 32 bytes"),
        (b"\x00\x80" + deflated(bytes(1 << 24)), "the deflated values are not the 32 bytes"),
        (b"\x01\x00" + EIGHT + b"\x81" + F([3, 0]).tobytes(), "a zero is stored"),
        (b"\x02\x00\x03" + SINGLE + b"\x01\x00" + F([0]).tobytes(), "a zero is stored"),
        (b"\x03\x04\x00\x66\x00\x00" + F(range(8)).tobytes(), "a zero is stored"),
        # positions
        (b"\x01\x00", "a stream's header"),
        (b"\x01\x00\x0d", "impossible header 0x0d"),
        (b"\x01\x00" + EIGHT, "the packed stream needs 1 bytes"),
        (b"\x01\x00" + b"\x03" + bytes(2) + F([0]).tobytes(), "bytes follow a chunk's last value"),
        (b"\x01\x00" + b"\x03" + b"\x00\x02" + F([1]).tobytes(), "padding is not zero"),
        (b"\x01\x00" + b"\x03" + b"\x00\x01" + F([1]).tobytes(), "not filled up with zeros"),
        (b"\x02\x00\x00", "the escape value is 0"),
        (b"\x02\x00\x80\x80\x04", "the escape value is 65536"),
        (b"\x02\x00\x03" + SINGLE, "the number of gaps needs"),
        (b"\x02\x00\x03" + SINGLE + b"\x09", "the number of gaps is 9"),
        (b"\x02\x00\x03" + SINGLE + b"\x01\x03", "end in an escape"),
        (b"\x02\x00\x03" + SINGLE + b"\x03\x3f", "the gaps lead to element 9 of 8"),
        (b"\x02\x00\x03" + SINGLE + b"\x03\x2f" + F([1]).tobytes(), "the gaps lead to element 9 of 8"),
        (b"\x02\x00\x03" + SINGLE + b"\x02\x09" + F([1]).tobytes(), "2 values of type float32 needs 8 bytes"),
        # codes
        (b"\x04" + BOOK, "a stream's header"),
        (b"\x04" + BOOK + b"\x00", "impossible header 0x00"),
        (b"\x04" + BOOK + SINGLE, "the packed stream needs"),
        (b"\x04" + BOOK + SINGLE + b"\x00x", "1 bytes follow a chunk's last value"),
        (b"\x04\x02" + array(F([1, 2, 3])) + SINGLE + b"\xff\xff", "not below 3"),
        (b"\x04" + BOOK + coded([1, 2]), "no complete prefix code"),
        (b"\x04" + BOOK + coded([1, 1]), "cannot fit"),
        (b"\x04" + BOOK + coded([1, 1]) + b"\x02\0", "the coded blocks needs 2 bytes"),
        (b"\x04" + BOOK + coded([1, 1]) + b"\x02\0\0", "does not end where its length says"),
        (b"\x04" + BOOK + coded([1, 1]) + b"\x01\0x", "1 bytes follow a chunk's last value"),
        (b"\x05" + b"\x01" + array(F([0, 2])), "a zero where zeros"),
        (b"\x17\x04" + b"\x01" + array(F([0, 2])), "a zero where zeros"),
        (b"\x0a" + b"\x03\x03" + array(np.full(1, 1e-46, F)), "these scales is impossible"),
        (b"\x04\x00" + array(F([7])) + b"x", "1 bytes follow a chunk's last value"),
        # arithmetic coding
        (b"\x14\x08" + BOOK, "prior and context needs"),
        (b"\x14\x08" + BOOK + b"\x00\x01", "the context 1"),  # neighbours without flags
        (b"\x14\x08" + BOOK + b"\x00\x04", "the context 4"),  # by size without flags
        (b"\x17\x08" + BOOK + b"\x00\x03", "the context 3"),
        (b"\x17\x08" + BOOK + b"\x00\x10", "the context 16"),
        (b"\x03\x08\x00\x66\x04", "the context 4"),  # of codes, where there are none
        (b"\x03\x08\x00\x66\x00", "the length of the flags needs"),
        (b"\x03\x08\x00\x66\x00\x05", "the flags needs 5 bytes"),
        (b"\x03\x08\x00\x66\x00\x01\x00", "arithmetic code does not end"),
        (b"\x03\x08\x00\x66\x00\x00" + ONES + b"x", "1 bytes follow a chunk's last value"),
        (b"\x14\x08" + BOOK + b"\x00\x00" + b"\xff" * 6, "arithmetic code does not end"),
        (b"\x14\x08" + BOOK + b"\x00\x00" + b"\x01\x00", "arithmetic code does not end"),
        (b"\x14\x08" + BOOK + b"\x00\x00" + b"\x01" * 9, "arithmetic code does not end"),
    ],
)
def test_lies(blob: bytes, message: str) -> None:
    """Each rule that a blob can break has its own message, which names the tensor."""
    with pytest.raises(MalformedFile, match=f"fc1: .*{message}"):
        decoder.decode_tensor(blob, "float32", 8, "fc1")


@pytest.mark.parametrize(
    ("lengths", "body", "message"),
    [
        ([16, 16], 32, None),
        ([], 2, "a chunk's length needs"),
        ([15, 17], 32, "4 values of type float32 needs 16 bytes"),
        ([17, 16], 33, "1 bytes follow a chunk's last value"),
        ([16, 17], 32, "a chunk needs 17 bytes, 16 are left"),
        ([16, 16], 33, "1 bytes follow the last chunk"),
        ([16, 1 << 63], 32, "a chunk needs"),
    ],
)
def test_chunk_lengths(lengths: list[int], body: int, message: str | None) -> None:
    """Chunks follow each other without gap or overlap and end with the blob."""
    blob = b"\x00\x00" + b"".join(map(varint, lengths)) + (b"\x80" if not lengths else b"\1") * body
    with chunks_of(4):
        if message is None:
            decoder.decode_tensor(blob, "float32", 8, "w")
            return
        with pytest.raises(MalformedFile, match=f"w: {message}"):
            decoder.decode_tensor(blob, "float32", 8, "w")


def test_chunks_are_bounded_by_the_blob() -> None:
    """A blob cannot claim more chunks than it has bytes for their lengths."""
    with chunks_of(4), pytest.raises(MalformedFile, match="250000 chunks cannot be in 3 bytes"):
        decoder.decode_tensor(b"\x00\x00abc", "float32", 1_000_000, "w")


def test_empty_and_bool_tensors() -> None:
    """A tensor without elements has no bytes; a bool is 0 or 1 however it is stored."""
    with pytest.raises(MalformedFile, match="1 bytes follow an empty tensor"):
        decoder.decode_tensor(b"\0", "float32", 0, "w")
    for blob in (b"\x00\x00\x02", b"\x04\x00\x00\x02", b"\x00\x80" + deflated(b"\x07")):
        with pytest.raises(MalformedFile, match="neither 0 nor 1"):
            decoder.decode_tensor(blob, "bool", 1, "w")


@settings(max_examples=150, deadline=None)
@given(st.one_of(bit_tensors(), layers()), st.sampled_from(CODERS), st.sampled_from([50, 1 << 20]), st.data())
def test_damage_is_safe(tensor: RawTensor, coder: str, chunk: int, data: st.DataObject) -> None:
    """Damage that no checksum tells gives an error or a tensor of the right size; nothing else."""
    with chunks_of(chunk):
        with by(compiled=True):
            blob = bytearray(encoder.encode_tensor(tensor.bits.reshape(-1), tensor.dtype, tensor.bits.shape, coder))
        for _ in range(data.draw(st.integers(1, 4))):
            if blob:
                blob[data.draw(st.integers(0, min(len(blob) - 1, 60)))] = data.draw(st.integers(0, 255))
        blob = blob[: data.draw(st.integers(0, len(blob)))] if data.draw(st.booleans()) else blob
        with contextlib.suppress(MalformedFile):
            decoded, _ = decoder.decode_tensor(bytes(blob), tensor.dtype, tensor.bits.size, "w")
            assert decoded.shape == (tensor.bits.size,)
