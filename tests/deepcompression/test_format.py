"""Every way a file can lie has a test and a named error here."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import bit_tensors

import deepcompression
from deepcompression import blobs, coders, format
from deepcompression.bits import Cursor, varint
from deepcompression.errors import (
    ChecksumMismatch,
    FormatError,
    MalformedFile,
    NotADczFile,
    TooLarge,
    TruncatedFile,
    UnsupportedVersion,
)
from deepcompression.io import RawTensor, decode, encode

GOLDEN = Path(__file__).parent.parent / "golden"
FLOAT32 = b"\x01"


def sealed(index: bytes, rest: bytes = b"", coder: int = 1) -> bytes:
    """A file with this index and rest, whose header checksum is right: what an attacker would write."""
    prefix = format.MAGIC + bytes([0, coder]) + len(index).to_bytes(4, "little")
    return prefix + zlib.crc32(prefix + index).to_bytes(4, "little") + index + rest


def record(name: bytes, dtype: bytes, shape: tuple[int, ...], blob: bytes, shared: int = 0) -> bytes:
    head = varint(shared) + varint(len(name)) + name + dtype + varint(len(shape)) + b"".join(map(varint, shape))
    return head + varint(len(blob)) + zlib.crc32(blob).to_bytes(4, "little")


def one(blob: bytes, shape: tuple[int, ...] = (8,), dtype: bytes = FLOAT32, coder: int = 1) -> bytes:
    """A file with one tensor of this blob, all checksums right."""
    return sealed(b"\x01" + record(b"w", dtype, shape, blob), blob, coder)


@settings(deadline=None)
@given(bit_tensors(), st.sampled_from(coders.CODERS))
def test_blob_round_trip(tensor: RawTensor, coder: str) -> None:
    """Each dtype, shape, density and number of values keeps every bit; all bytes are accounted for."""
    flat = tensor.bits.reshape(-1)
    blob = blobs.encode_tensor(flat, tensor.dtype, coder)
    decoded, sections = blobs.decode_tensor(blob, tensor.dtype, flat.size, coder, "w")
    assert decoded.dtype == flat.dtype
    assert np.array_equal(decoded, flat)
    assert sum(sections) == len(blob)
    assert len(blob) <= flat.nbytes + 1


@pytest.mark.parametrize("distinct", [1, 2, 65_535, 65_536, 65_537])
@pytest.mark.parametrize("zeros", [0, 1, 70_000])
def test_number_of_distinct_values(distinct: int, zeros: int) -> None:
    """Codebooks of one to 65,536 values, and what lies beyond, with and without zeros among them."""
    values = np.arange(1, 2 * distinct + 1, dtype=np.uint32) % distinct + 1
    flat = np.concatenate([values, np.zeros(zeros, np.uint32)])
    flat = np.random.default_rng(0).permutation(flat)
    for coder in coders.CODERS:
        blob = blobs.encode_tensor(flat, "uint32", coder)
        assert np.array_equal(blobs.decode_tensor(blob, "uint32", flat.size, coder, "w")[0], flat)


@pytest.mark.parametrize(
    ("values", "positions", "stored"),
    [
        (np.eye(40, dtype=np.float32), "gap+codebook", None),
        (np.tile(np.float32([0, 1 / 3, 0, 2 / 3]), 200), "bitmap+codebook", None),
        (np.tile(np.float32([1 / 3, 2 / 3, 1 / 7]), 200), "dense+codebook", None),
        (np.arange(1, 9, dtype=np.float32) / 8, "dense+raw", 2),
        (np.arange(1, 9, dtype=np.float32) * 2.0**100, "dense+raw", 3),
        (np.arange(1, 9, dtype=np.float64) / 2**20, "dense+raw", 2),
        (np.arange(1, 9, dtype=np.float64) / 1e3, "dense+raw", 0),
        (np.float32(np.arange(1, 9) / 1e3).astype(np.float64), "dense+raw", 1),
        (np.append(np.arange(1.0, 8), np.nan), "dense+raw", 0),
        (np.float32([1, 2, 3, np.nan]), "dense+raw", 3),
    ],
)
def test_layout(values: np.ndarray, positions: str, stored: int | None) -> None:
    """The layout and the narrow type that must win in clear cases do win."""
    flat = values.reshape(-1).view(f"u{values.dtype.itemsize}")
    blob = blobs.encode_tensor(flat, values.dtype.name, "packed")
    assert "+".join(blobs.method_names(blob)) == positions
    assert stored is None or blob[0] >> 3 & 3 == stored


def test_header_is_small() -> None:
    """Names, shapes and checksums of a LeNet-5 stay below the 300 bytes that a 3 KB file can bear."""
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}
    state = {f"{name}.weight": np.eye(shape[0], 9, dtype=np.float32) for name, shape in shapes.items()}
    state |= {f"{name}.bias": np.arange(shape[0], dtype=np.float32) for name, shape in shapes.items()}
    index_bytes = len(encode(state)) - sum(
        len(blobs.encode_tensor(t.reshape(-1).view(np.uint32), "float32", "huffman")) for t in state.values()
    )
    assert index_bytes < 200


def test_specified_bytes() -> None:
    """A small file, byte by byte as FORMAT.md has it, written by hand."""
    blob = bytes([0b0001_0110]) + b"\x03\x02" + bytes([0b10_01_0000]) + b"\x00" + b"\x00\x38"
    index = b"\x01" + b"\x00\x01w" + b"\x01\x01\x08" + varint(len(blob)) + zlib.crc32(blob).to_bytes(4, "little")
    by_hand = sealed(index, blob, coder=0)
    assert np.array_equal(decode(by_hand)["w"].bits.view(np.float32), [0, 0, 0.5, 0, 0.5, 0, 0, 0])


@pytest.mark.parametrize("coder", coders.CODERS)
@pytest.mark.parametrize("damage", range(3))
def test_every_byte_is_guarded(coder: str, damage: int) -> None:
    """Whichever byte of a file changes, reading fails with a FormatError; nothing else, and no silence."""
    random = np.random.default_rng(damage)
    sparse = np.where(random.random(300) < 0.1, random.integers(1, 9, 300), 0).astype(np.float32)
    whole = encode({"a.w": sparse, "a.v": sparse, "b": np.arange(5)}, coder)
    for i in range(len(whole)):
        changed = bytearray(whole)
        changed[i] ^= (1, 128, 255)[damage]
        with pytest.raises(FormatError):
            decode(bytes(changed))


def test_every_truncation_is_named() -> None:
    """A file cut anywhere is TruncatedFile, but for the empty one, which is no .dcz file at all."""
    whole = encode({"a": np.arange(6), "b": np.eye(3)})
    for length in range(1, len(whole)):
        with pytest.raises(TruncatedFile):
            decode(whole[:length])
    with pytest.raises(NotADczFile):
        decode(b"")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(coders.CODERS), st.data())
def test_sealed_damage_is_safe(coder: str, data: st.DataObject) -> None:
    """Damage behind matching checksums gives a FormatError or a tensor of the right size."""
    tensor = data.draw(bit_tensors())
    blob = bytearray(blobs.encode_tensor(tensor.bits.reshape(-1), tensor.dtype, coder))
    for _ in range(data.draw(st.integers(1, 4))):
        if blob:
            blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(0, len(blob)))] if data.draw(st.booleans()) else blob
    try:
        decoded, _ = blobs.decode_tensor(bytes(blob), tensor.dtype, tensor.bits.size, coder, "w")
    except MalformedFile:
        return
    assert decoded.shape == (tensor.bits.size,)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_sealed_garbage_index_is_safe(index: bytes) -> None:
    """An index of random bytes behind a right checksum gives a FormatError."""
    if index[:1] in {b"", b"\x00"}:
        index = b"\x02" + index
    with pytest.raises(FormatError):
        decode(sealed(index))


def test_alien_and_newer_files() -> None:
    """Other formats and later versions are told apart from damage."""
    with pytest.raises(NotADczFile, match="PK"):
        decode(b"PK\x03\x04" + bytes(100))
    with pytest.raises(UnsupportedVersion, match="version 7"):
        decode(format.MAGIC + b"\x07" + bytes(100))


def test_checksums_are_checked() -> None:
    """A changed header and a changed blob are both called damage, the latter with the tensor's name."""
    whole = bytearray(encode({"fc1": np.arange(100)}))
    whole[-1] ^= 1
    with pytest.raises(ChecksumMismatch, match="fc1"):
        decode(bytes(whole))
    whole[12] ^= 1
    with pytest.raises(ChecksumMismatch, match="header"):
        decode(bytes(whole))


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        (sealed(b"\x00") + b"x", MalformedFile, "1 bytes follow the last tensor"),
        (sealed(b"\x00", coder=9), MalformedFile, "coder 9"),
        (sealed(b"\x05"), MalformedFile, "number of tensors"),
        (sealed(b"\x00\x00"), MalformedFile, "follow the last tensor of the index"),
        (sealed(b"\x02" + record(b"a", FLOAT32, (0,), b"") * 2), MalformedFile, "two tensors are called 'a'"),
        (sealed(b"\x01" + record(b"a", FLOAT32, (0,), b"", shared=1)), MalformedFile, "shared part"),
        (sealed(b"\x01" + record(b"\xff", FLOAT32, (0,), b"")), MalformedFile, "not UTF-8"),
        (sealed(b"\x01" + record(b"a", b"\xc8", (0,), b"")), MalformedFile, "unknown dtype 200"),
        (sealed(b"\x01\x00\x01a\x00\x00"), MalformedFile, "refers to tensor 0"),
        (sealed(b"\x01" + record(b"a", FLOAT32, (1,) * 65, b"")), MalformedFile, "number of dimensions"),
        (sealed(b"\x01" + record(b"a", FLOAT32, (1 << 40, 1 << 40), b"")), MalformedFile, "impossible shape"),
        (sealed(b"\x01" + record(b"a", FLOAT32, (1 << 62, 0), b"")), MalformedFile, "impossible shape"),
        (sealed(b"\x01" + record(b"a", FLOAT32, (8,), b"abc")), TruncatedFile, "speaks of"),
        (one(b"\x00", shape=(0,)), MalformedFile, "without elements"),
        (one(b""), MalformedFile, "the method needs 1 bytes"),
        (one(b"\x03"), MalformedFile, "method 0x03"),
        (one(b"\x80"), MalformedFile, "method 0x80"),
        (one(b"\x20"), MalformedFile, "method 0x20"),
        (one(b"\x40"), MalformedFile, "method 0x40"),
        (one(b"\x08"), MalformedFile, "method 0x08"),
        (one(b"\x10", dtype=b"\x0b"), MalformedFile, "method 0x10"),
        (one(b"\x24", coder=0), MalformedFile, "method 0x24"),
        (one(b"\x00" + bytes(31)), MalformedFile, "needs 32 bytes"),
        (one(b"\x00" + bytes(33)), MalformedFile, "1 bytes follow the last value"),
        (one(b"\x01\x81\x00\x00\x80?\x00\x00\x00\x00"), MalformedFile, "zero is stored"),
        (one(b"\x01\x01", shape=(3,)), MalformedFile, "padding of the bitmap"),
        (one(b"\x02\x00\x00"), MalformedFile, "escape value is 0"),
        (one(b"\x02\x80\x80\x04\x00"), MalformedFile, "escape value is 65536"),
        (one(b"\x02\x01\x09"), MalformedFile, "number of gaps is 9"),
        (one(b"\x02\x03\x03" + bytes([0b11_11_10_00])), MalformedFile, "element 9 of 8"),
        (one(b"\x02\x03\x01" + bytes([0b11_000000])), MalformedFile, "end in an escape"),
        (one(b"\x04\xff\xff\x04"), MalformedFile, "size of the codebook"),
        (one(b"\x04\x01" + b"\x00\x00\x80?" * 2 + b"\x00"), MalformedFile, "not ascending"),
        (one(b"\x05\xff\x00" + bytes(4)), MalformedFile, "has a zero"),
        (one(b"\x00\x02", shape=(1,), dtype=b"\x05"), MalformedFile, "neither 0 nor 1"),
    ],
)
def test_lies(file: bytes, error: type[FormatError], message: str) -> None:
    """Each rule of FORMAT.md that a sealed file can break has its own message."""
    with pytest.raises(error, match=message):
        decode(file)


def repeated(times: int) -> bytes:
    """Records of tensors that all equal the first."""
    names = (str(i).encode() for i in range(times))
    return b"".join(b"\x00" + varint(len(name)) + name + b"\x00\x00" for name in names)


def test_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """Few bytes that decode to an exabyte are TooLarge at once; so are many tensors that each would fit."""
    blob = b"\x04\x00\x00\x00\x80?"
    bomb = one(blob, shape=(1 << 58,))
    with pytest.raises(TooLarge, match=str(4 << 58)):
        decode(bomb)
    crowd = sealed(b"\x81\x20" + record(b"w", FLOAT32, (1 << 30,), blob) + repeated(4096), blob)
    (tmp_path / "crowd.dcz").write_bytes(crowd)
    for reader in (deepcompression.load, deepcompression.verify, deepcompression.inspect):
        with pytest.raises(TooLarge, match=str(4097 << 32)):
            reader(tmp_path / "crowd.dcz")
    two = encode({"a": np.ones(100), "b": np.ones(100)})
    with pytest.raises(TooLarge, match="1600 bytes, allowed are 1599"):
        decode(two, max_bytes=1599)
    assert set(decode(two, max_bytes=1600)) == {"a", "b"}


def test_cursor_is_left_where_a_table_ends() -> None:
    """A long alphabet's table is read without touching what follows it."""
    counts = np.random.default_rng(0).integers(1, 1000, 65_536)
    lengths = coders.code_lengths(counts)
    cursor = Cursor(coders.write_lengths(lengths) + b"rest", "w")
    assert np.array_equal(coders.read_lengths(cursor, 65_536), lengths)
    assert cursor.left == 4
