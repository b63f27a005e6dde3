from __future__ import annotations

import math

import numpy as np
import pytest
from forged import array, deflated, varint
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import bit_tensors, layers, on_grid

from deepcompression.codec import arrays, codebooks, grids
from deepcompression.codec.bitstream import Cursor
from deepcompression.codec.book import ALL, Book, Groups, read_book
from deepcompression.codec.dtypes import DTYPES, RawTensor, Writing, unsigned
from deepcompression.codec.encoder import encode_tensor
from deepcompression.codec.file import decode, encode
from deepcompression.codec.shared import Shared
from deepcompression.errors import MalformedFile


def bits(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32).view(np.uint32)


def rebuilt(way: Shared) -> np.ndarray:
    """The elements that symbols and a book stand for."""
    stored = np.flatnonzero(way.symbols)
    groups = way.book.groups.of(stored) if way.book.groups else None
    flat = np.zeros(len(way.symbols), unsigned(way.dtype))
    codes = way.symbols[stored] - way.symbols.dtype.type(1)
    flat[stored] = way.book.bits(codes, way.dtype, groups)
    return flat


@given(bit_tensors(), st.booleans())
def test_deflate_round_trip(tensor: RawTensor, quick: bool) -> None:
    """Byte planes of any type come back, whole or quick, none of them too."""
    flat = tensor.bits.reshape(-1)
    data = arrays.deflate(flat, quick)
    back = arrays.inflate(memoryview(data), flat.size, flat.dtype, Cursor(b"", "w"))
    assert back.dtype == flat.dtype
    assert np.array_equal(back, flat)


@given(bit_tensors())
def test_array_round_trip(tensor: RawTensor) -> None:
    """Arrays of any type come back, the cursor stands behind them, and they are never larger than they were."""
    flat = tensor.bits.reshape(-1)
    written = arrays.write_array(flat, tensor.dtype)
    cursor = Cursor(written + b"x", "w")
    assert np.array_equal(arrays.read_array(cursor, flat.size, tensor.dtype), flat)
    assert cursor.left == 1
    assert len(written) <= 1 + flat.nbytes


PLANES = np.arange(8, dtype=np.float32).view(np.uint8).reshape(8, 4).T.tobytes()


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        (b"", 1, "the type of stored values needs 1 bytes"),
        (b"\x01" + bytes(32), 8, "as type 1"),  # the type itself is written as 0
        (b"\x04" + bytes(64), 8, "as type 4"),  # wider
        (b"\x06" + bytes(8), 8, "as type 6"),  # another kind
        (b"\x0e" + bytes(8), 8, "as type 14"),  # complex64 was never one
        (b"\x7f" + bytes(32), 8, "as type 127"),
        (bytes(32), 8, "8 values of type float32 needs 32 bytes"),
        (b"\x80", 8, "the length of deflated values needs 1 bytes"),
        (b"\x80\x05ab", 8, "deflated values needs 5 bytes"),
        (b"\x80\x02\xff\xff", 8, "are damaged"),
        (b"\x80\x00", 8, "are not the 32 bytes"),
        (b"\x80" + varint(9) + b"\x00" * 9, 1 << 40, "cannot be in 9 deflated bytes"),
    ],
)
def test_array_refuses(text: bytes, count: int, message: str) -> None:
    """Impossible types, lengths beyond the buffer and damaged planes are named, before memory is taken."""
    with pytest.raises(MalformedFile, match=f"w: .*{message}"):
        arrays.read_array(Cursor(text, "w"), count, "float32")


@pytest.mark.parametrize(
    "data",
    [
        deflated(PLANES) + b"\0",  # something follows
        deflated(PLANES)[:-1],  # breaks off
        deflated(PLANES[:-1]),  # too few
        deflated(PLANES + b"\0"),  # too many
        deflated(bytes(1 << 20)),  # far too many
        deflated(PLANES)[:-1] + b"\xff",
        deflated(PLANES) + deflated(PLANES),
    ],
)
def test_deflated_planes_refuse(data: bytes) -> None:
    """Deflated values are exactly the bytes that they must be, and end with what was given."""
    with pytest.raises(MalformedFile, match="w: the deflated values"):
        arrays.inflate(memoryview(data), 8, np.dtype(np.uint32), Cursor(b"", "w"))
    assert arrays.inflate(memoryview(deflated(PLANES)), 8, np.dtype("u4"), Cursor(b"", "w")).tolist() == [
        *bits(*range(8))
    ]


@pytest.mark.parametrize(
    ("dtype", "number", "bits", "sound"),
    [
        ("float32", 2, np.array([0x7E00], np.uint16), False),
        ("float32", 2, np.array([0xFC01], np.uint16), False),
        ("float32", 2, np.array([0x7C00], np.uint16), True),  # an infinity
        ("float32", 3, np.array([0x7F81], np.uint16), True),  # bfloat16 is widened by its bits
        ("float64", 3, np.array([0x7F81], np.uint16), False),
        ("float64", 1, np.array([0x7F800001], np.uint32), False),
        ("float64", 0, np.array([0x7FF0000000000001], np.uint64), True),
        ("bool", 0, np.array([1], np.uint8), True),
        ("bool", 0, np.array([2], np.uint8), False),
    ],
)
def test_nan_and_bool(dtype: str, number: int, bits: np.ndarray, sound: bool) -> None:
    """A NaN that widening might change on some machine, and a bool of 2, are refused in arrays as in raw values."""
    cursor = Cursor(array(bits, number), "w")
    if sound:
        arrays.read_array(cursor, 1, dtype)
        return
    with pytest.raises(MalformedFile, match=r"w: a (NaN of|bool is)"):
        arrays.read_array(cursor, 1, dtype)


@settings(max_examples=60, deadline=None)
@given(st.one_of(layers(), bit_tensors()))
def test_every_way_gives_the_elements(tensor: RawTensor) -> None:
    """Each book that is found, of the tensor or of groups, gives all bits back, sparse and dense, and is read again."""
    flat = tensor.bits.reshape(-1)
    for way in codebooks.find(flat, Writing(tensor.dtype, tensor.bits.shape)):
        assert np.array_equal(rebuilt(way), flat)
        for book, sparse in ((way.book, True), (way.dense(bool((flat == 0).any()))[1], False)):
            grid = book.values is None
            cursor = Cursor(book.write(tensor.dtype), "w")
            read = read_book(cursor, tensor.dtype, flat.size, book.groups, grid=grid, sparse=sparse)
            assert cursor.left == 0
            assert (read.k, read.groups, read.lowest, read.skips_zero) == (
                book.k,
                book.groups,
                book.lowest,
                sparse and grid,
            )
            assert np.array_equal(read.scales if grid else read.values, book.scales if grid else book.values)


@settings(max_examples=60, deadline=None)
@given(layers())
def test_dense_codes_give_the_elements(tensor: RawTensor) -> None:
    """Where zero is a code like others, every code stands for its element."""
    flat = tensor.bits.reshape(-1)
    for way in codebooks.find(flat, Writing(tensor.dtype, tensor.bits.shape)):
        table, book = way.dense(bool((flat == 0).any()))
        rows = book.groups.gathered(way.symbols) if len(table) > 1 else way.symbols[None]
        codes = np.take_along_axis(table, rows, axis=1)
        codes = book.groups.scattered(codes) if len(table) > 1 else codes[0]
        groups = book.groups.of(np.arange(flat.size)) if book.groups else None
        assert int(codes.max()) < book.k
        assert np.array_equal(book.bits(codes, tensor.dtype, groups), flat)


def test_what_is_found() -> None:
    """A quantized tensor has a codebook and a grid; quantized by row, by group, or shared by row, what fits."""
    random = np.random.default_rng(0)
    integers = random.integers(-8, 8, (64, 256))
    scales = random.uniform(0.01, 0.02, (64, 8)).astype(np.float32)
    for each, group in ((scales[:1, :1], 0), (scales[:, :1], 256), (np.repeat(scales, 32, axis=1), 32)):
        tensor = on_grid(integers, each, "float32")
        found = codebooks.find(tensor.bits.reshape(-1), Writing("float32", (64, 256)))[0 if group else 1]
        assert found.book.scales is not None
        assert (found.book.groups.size, found.book.k, found.book.lowest, found.book.skips_zero) == (group, 15, -8, True)
    rows = np.take_along_axis(random.normal(size=(64, 9)), random.integers(0, 9, (64, 128)), axis=1)
    (found,) = codebooks.find(rows.reshape(-1).view(np.uint64), Writing("float64", (64, 128)))[:1]
    assert found.book.values is not None
    assert (found.book.groups.size, found.book.k) == (128, 9)
    assert codebooks.find(np.zeros(5, np.uint32), Writing("float32", (5,))) == []


def test_books_of_rows_keep_wide_values() -> None:
    """A row of zeros among rows with codebooks does not round the 64-bit values of the others."""
    rows = np.random.default_rng(0).integers(1 << 62, 1 << 63, (60, 6)).astype(np.uint64)[:, np.arange(240) % 6]
    rows[3] = 0
    (way, *_) = codebooks.find(rows.reshape(-1), Writing("uint64", rows.shape))
    assert way.book.groups.size == 240
    assert np.array_equal(rebuilt(way), rows.reshape(-1))


@pytest.mark.parametrize("lowest", [1, 2, 50_000])
def test_widest_grids(lowest: int) -> None:
    """Grids that reach the largest integer of the format are written as a reader allows, with and without zeros."""
    integers = np.random.default_rng(0).permutation(np.arange(lowest, 65_537)).astype(np.float32)[:, None]
    for some_zero in (False, True):
        flat = np.append(integers, np.zeros(int(some_zero))).astype(np.float32).view(np.uint32)
        for way in codebooks.find(flat, Writing("float32", flat.shape)):
            book = way.dense(some_zero)[1]
            read_book(
                Cursor(book.write("float32"), "w"), "float32", flat.size, ALL, grid=book.values is None, sparse=False
            )


def codebook(k: int, *numbers: float) -> bytes:
    return varint(k - 1) + array(np.array(numbers, np.float32))


@pytest.mark.parametrize(
    ("text", "group", "sparse", "message"),
    [
        (codebook(3, 1, 2, 3), 0, True, None),
        (codebook(3, -1, -0.0, 0), 0, False, None),
        (codebook(2, 1, 1, 5, 5), 5, True, None),  # groups MAY repeat
        (codebook(2, 1, 2, 0, 5), 5, False, None),
        (b"", 0, False, "the size of the codebook needs"),
        (varint(65_536) + bytes(9), 0, False, "the size of the codebook is 65536"),
        (codebook(11, *range(11)), 0, False, "the size of the codebook is 10"),  # of ten elements
        (codebook(6, *range(12)), 5, False, "the size of the codebook is 5"),  # of groups of five
        (codebook(3, 1, 2), 0, False, "3 values of type float32 needs"),
        (codebook(3, 1, 3, 2), 0, False, "not ascending"),
        (codebook(3, 1, 2, 2), 0, False, "not ascending"),
        (codebook(3, 1, 2, -3), 0, False, "not ascending"),
        (codebook(2, 2, 1, 1, 2), 5, False, "not ascending"),
        (codebook(3, 0, 1, 2), 0, True, "a zero where zeros"),
        (codebook(2, 1, 2, 0, 5), 5, True, "a zero where zeros"),
    ],
)
def test_codebook_refuses(text: bytes, group: int, sparse: bool, message: str | None) -> None:
    """A codebook of ten elements has ten values at most, ascends (-0.0 before 0), and has no needless zero."""
    if message is None:
        read_book(Cursor(text, "w"), "float32", 10, Groups(group), grid=False, sparse=sparse)
        return
    with pytest.raises(MalformedFile, match=f"w: .*{message}"):
        read_book(Cursor(text, "w"), "float32", 10, Groups(group), grid=False, sparse=sparse)


def grid(zigzag: int, k: int, *scales: float, kind: str = "f4") -> bytes:
    return varint(zigzag) + varint(k - 1) + array(np.array(scales, kind))


@pytest.mark.parametrize(
    ("text", "dtype", "group", "sparse", "message"),
    [
        (grid(15, 16, 0.5), "float32", 0, False, None),
        (grid(15, 15, 0.5), "float32", 0, True, None),
        (grid(15, 16, 0.5, 2.0), "bfloat16", 5, False, None),
        (grid(0, 4, 1e-300, kind="f8"), "float64", 0, False, None),
        (grid(131_071, 65_536, 1), "float32", 0, False, None),  # from -65,536
        (grid(131_072, 1, 1), "float32", 0, False, None),  # 65,536 alone
        (grid(2, 65_536, 1), "float32", 0, True, None),  # 1 to 65,536
        (grid(5, 2, 1e-45), "float16", 0, True, None),  # -3 and -2 give -0.0, which is no +0.0
        (grid(0, 2, 1), "int32", 0, False, "int32 cannot be on a grid"),
        (grid(0, 2, 1), "float8_e5m2", 0, False, "float8_e5m2 cannot be on a grid"),
        (grid(131_073, 2, 1), "float32", 0, False, "the lowest integer of the grid is 131073"),
        (grid(131_072, 2, 1), "float32", 0, False, "a grid from 65536 to 65537"),
        (grid(4, 65_536, 1), "float32", 0, False, "a grid from 2 to 65537"),
        (grid(1, 65_536, 1), "float32", 0, True, None),  # -1, and 1 to 65,535
        (grid(0, 65_536, 1), "float32", 0, True, None),  # 1 to 65,536: zero is left out
        (varint(0) + varint(65_536) + bytes(5), "float32", 0, False, "the size of the grid is 65536"),
        (grid(0, 2, np.inf), "float32", 0, False, "with these scales is impossible"),
        (grid(0, 2, np.nan), "float32", 0, False, "with these scales is impossible"),
        (grid(0, 2, 0), "float32", 0, False, "with these scales is impossible"),
        (grid(0, 2, -0.0), "float32", 0, False, "with these scales is impossible"),
        (grid(0, 2, -1), "float32", 0, False, "with these scales is impossible"),
        (grid(0, 2, 1, np.nan), "float32", 5, False, "with these scales is impossible"),
        (grid(0, 2, 1), "float32", 5, False, "2 values of type float32 needs"),
        (grid(0, 2, 1), "float64", 0, False, "1 values of type float64 needs"),
        (grid(0, 2, 1e-45), "float16", 0, True, "the grid has a zero"),
        (grid(4, 2, 1e-45), "float16", 0, True, "the grid has a zero"),
        (grid(3, 3, 1, 1e-45), "float16", 5, True, "the grid has a zero"),
    ],
)
def test_grid_refuses(text: bytes, dtype: str, group: int, sparse: bool, message: str | None) -> None:
    """A grid has scales that are finite and above zero, integers within bounds, and no needless zero."""
    if message is None:
        read_book(Cursor(text, "w"), dtype, 10, Groups(group), grid=True, sparse=sparse)
        return
    with pytest.raises(MalformedFile, match=f"w: .*{message}"):
        read_book(Cursor(text, "w"), dtype, 10, Groups(group), grid=True, sparse=sparse)


@pytest.mark.parametrize("skips_zero", [False, True])
@pytest.mark.parametrize("lowest", [-5, -1, 0, 1, 7])
def test_integers_of_codes(lowest: int, skips_zero: bool) -> None:
    """Codes count up from the lowest integer, past zero where zeros are stored as positions."""
    expected = [q for q in range(lowest, lowest + 9) if q or not skips_zero][:8]
    book = Book(8, None, 0, np.ones(1, np.float32), lowest, skips_zero)
    assert book.integers(np.arange(8)).tolist() == expected
    table = book.bits(np.arange(8, dtype=np.uint8), "float32", None).view(np.float32)
    assert table.tolist() == expected


def test_types_of_arrays_are_those_of_the_format() -> None:
    """Every pair of a dtype and a stored type is allowed or not as FORMAT.md says."""
    narrow = {"float32": {"float16", "bfloat16"}, "float64": {"float16", "bfloat16", "float32"}}
    whole = [name for name in DTYPES if not DTYPES[name].floating and name != "bool"]
    for name in whole:
        narrow[name] = {other for other in whole if DTYPES[other].itemsize < DTYPES[name].itemsize}
        narrow[name] -= {"uint64", "int64"}
    for name in DTYPES:
        for other, (number, itemsize, _) in DTYPES.items():
            text = Cursor(bytes([number]) + bytes(itemsize), "w")
            if other in narrow.get(name, set()):
                assert arrays.read_array(text, 1, name).tolist() == [0]
                continue
            with pytest.raises(MalformedFile):
                arrays.read_array(text, 1, name)


@pytest.mark.parametrize("coder", ["adaptive", "huffman", "packed"])
@pytest.mark.parametrize(("shape", "axis"), [((20, 1000), 0), ((200, 100), 0), ((16, 32, 7, 7), 1), ((8, 2_500), None)])
def test_binary_weights_take_a_bit_each(coder: str, shape: tuple[int, ...], axis: int | None) -> None:
    """Plus or minus the scale of the tensor or of each channel, few channels or many: 1.02 bits beside the scales.

    Packed codes have no code for a 0 that is not there: they keep both values of a channel.
    """
    random = np.random.default_rng(0)
    scales = random.uniform(0.01, 0.1, [size if place == axis else 1 for place, size in enumerate(shape)])
    weight = random.choice(np.array([-1, 1], np.float32), shape) * scales.astype(np.float32)
    blob = encode_tensor(weight.reshape(-1).view(np.uint32), "float32", shape, coder)
    kept = 4 * scales.size * (2 if coder == "packed" else 1)
    assert len(blob) - kept <= 1.02 * weight.size / 8 + 64
    assert np.array_equal(
        decode(encode({"w": weight}, coder))["w"].bits.reshape(-1), weight.reshape(-1).view(np.uint32)
    )


@pytest.mark.parametrize(("bits", "channels"), [(2, 60), (4, 16)])
def test_few_channels_on_grids_of_their_own_cost_what_their_integers_do(bits: int, channels: int) -> None:
    """All values of all channels fit one codebook of 256, whose codes would be wider."""
    random = np.random.default_rng(0)
    most = (1 << bits - 1) - 1
    integers = random.integers(-most, most + 1, (channels, 1000)).astype(np.float32)
    weight = integers * random.uniform(0.01, 0.1, (channels, 1)).astype(np.float32)
    blob = encode_tensor(weight.reshape(-1).view(np.uint32), "float32", weight.shape, "huffman")
    assert len(blob) <= weight.size * np.log2(2 * most + 1) / 8 * 1.03 + 4 * channels + 64


def quantized(shape: tuple[int, ...], bits: int, group: int | None, axis: int = 0) -> np.ndarray:
    """Normal weights on symmetric grids: of the tensor (0), of each channel (None), of each `group` elements of one."""
    weight = np.moveaxis(np.random.default_rng(0).normal(size=shape).astype(np.float32), axis, 0)
    rows = weight.reshape((1, -1) if group == 0 else (len(weight), -1) if group is None else (-1, group))
    most = np.float32((1 << bits - 1) - 1)
    scales = np.abs(rows).max(axis=1, keepdims=True) / most
    rounded = np.rint(rows / scales) * scales + np.float32(0)
    return np.ascontiguousarray(np.moveaxis(rounded.reshape(weight.shape), 0, axis))


@pytest.mark.parametrize(
    ("shape", "group"),
    [((16, 96), 0), ((16, 96), None), ((32, 96), 32), ((16, 16, 3, 3), 9), ((10, 400), 25), ((2_304,), 36)],
)
def test_fewer_bits_never_cost_more(shape: tuple[int, ...], group: int | None) -> None:
    """Grids of the tensor, channels or groups of any size are found at every width, not codebooks that fit too."""
    sizes = []
    for bits in (2, 3, 4, 8):
        flat = quantized(shape, bits, group).reshape(-1).view(np.uint32)
        sizes.append(len(encode_tensor(flat, "float32", shape, "huffman")))
    assert sizes == sorted(sizes)
    groups = 1 if group == 0 else len(flat) // (group or math.prod(shape[1:]))
    assert sizes[-1] <= flat.size * 1.01 + 4 * groups + 300


@pytest.mark.parametrize(
    ("shape", "group"), [((300, 100), None), ((300, 96), 32), ((64, 1152), None), ((40, 240), None)]
)
def test_fine_grids_of_groups_and_channels(shape: tuple[int, ...], group: int | None) -> None:
    """16 bits are found in many short groups, whose values are hundreds of scales apart, and in few long channels."""
    flat = quantized(shape, 16, group).reshape(-1).view(np.uint32)
    size = len(encode_tensor(flat, "float32", shape, "huffman"))
    assert size <= flat.size * 2 * 1.01 + 4 * flat.size // (group or shape[1]) + 300


def with_codebooks(shape: tuple[int, ...], group: int, k: int, axis: int = 0, density: float = 1.0) -> np.ndarray:
    """Each `group` consecutive elements of `shape`, `axis` first, have `k` float16 values of their own, or are zero."""
    random = np.random.default_rng(0)
    moved = np.moveaxis(np.empty(shape, np.float32), axis, 0)
    books = random.normal(size=(moved.size // group, k)).astype(np.float16).astype(np.float32)
    rows = np.take_along_axis(books, random.integers(0, k, (len(books), group)), axis=1)
    rows[random.random(rows.shape) >= density] = 0
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved.shape), 0, axis))


@pytest.mark.parametrize(
    ("shape", "group", "k", "axis"),
    [
        ((64, 144), 144, 4, 0),  # 256 values in all
        ((32, 144), 4 * 144, 4, 0),  # several rows
        ((32, 144), 8 * 144, 16, 0),
        ((16, 150), 75, 4, 0),  # half a row
        ((8, 576), 288, 4, 0),
        ((40, 800), 800, 256, 0),  # nearly a third of the values is the codebook
        ((16, 32, 3, 3), 144, 4, 1),
        ((48, 64), 48, 4, 1),
        ((2_048,), 256, 4, 0),
        ((64, 128), 128, 2, 0),
    ],
)
def test_codebooks_of_groups_cost_what_codes_and_values_do(
    shape: tuple[int, ...], group: int, k: int, axis: int
) -> None:
    """A codebook for a row, several, part of one or a channel is found, however many values all have together."""
    weight = with_codebooks(shape, group, k, axis)
    file = encode({"w": weight})
    assert len(file) <= 1.02 * (weight.size * np.log2(k) / 8 + 2 * k * weight.size // group) + 100
    assert np.array_equal(decode(file)["w"].bits, weight.view(np.uint32))


def test_sparse_codebooks_of_groups() -> None:
    """Where most weights are zero the positions take most, but no value of a group is looked up among those of all."""
    weight = with_codebooks((64, 288), 4 * 288, 4, density=0.15)
    size = len(encode_tensor(weight.reshape(-1).view(np.uint32), "float32", weight.shape, "huffman"))
    positions, codes = 0.61 * weight.size / 8, 2 * np.count_nonzero(weight) / 8
    assert size <= 1.05 * (positions + codes + 2 * 4 * 16) + 64


@pytest.mark.parametrize("k", [16, 200])
def test_no_codebooks_of_groups_where_all_share_one(k: int) -> None:
    """Rows that differ in how often they have a value, not in the values, keep one codebook, and no grids by chance."""
    random = np.random.default_rng(0)
    book = np.append(0, random.normal(size=k)).astype(np.float16).astype(np.float32)
    weight = book[np.minimum(random.geometric(random.uniform(4 / k, 8 / k, (64, 1)), (64, 576)) - 1, k)]
    found = codebooks.find(weight.reshape(-1).view(np.uint32), Writing("float32", weight.shape))
    assert [way.book.groups for way in found] == [ALL]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["float32", "float16", "bfloat16"]), st.integers(2, 400))
def test_grids_of_too_many_integers_are_given_up_early(seed: int, dtype: str, reach: int) -> None:
    """Few values on a grid: the search stops at a scale only below which a grid is too large for few elements."""
    random = np.random.default_rng(seed)
    integers = random.integers(-reach, reach + 1, 300)
    integers[integers == 0] = 1
    scale = np.array([random.integers(1, 16) / 2048], np.float32)
    flat = grids.product(integers.astype(np.int32), scale, dtype)
    whole = codebooks._codebook(flat, Writing(dtype, flat.shape))
    assert whole is not None and whole.book.values is not None
    found, early = (grids.recognise(whole.book.values, dtype, least) for least in (0.0, codebooks._least_scale(whole)))
    if found is not None and not codebooks._nearly_empty(int(np.ptp(found[1])), whole.book.k):
        assert early is not None and early[0] == found[0] and np.array_equal(early[1], found[1])
    elif early is not None:
        assert found is not None and early[0] == found[0]
