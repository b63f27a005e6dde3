"""The file around the blobs: every way in which a header can lie has a test and a named error here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forged import one, record, sealed, varint
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import bit_tensors

import deepcompression
from deepcompression.codec import decoder
from deepcompression.codec import index as format
from deepcompression.codec import reader as reader_
from deepcompression.codec.dtypes import RawTensor
from deepcompression.codec.file import decode, encode
from deepcompression.codec.index import CODERS, Entry
from deepcompression.errors import (
    ChecksumMismatch,
    FormatError,
    InputError,
    MalformedFile,
    NotADczFile,
    TooLarge,
    TruncatedFile,
    UnsupportedVersion,
)

EMPTY = record(b"a", "float32", (0,), b"")

entries = st.lists(
    st.tuples(
        st.text(max_size=6),
        st.sampled_from(["float32", "bool", "float8_e8m0fnu"]),
        st.lists(st.integers(0, 300), max_size=4).map(tuple),
        st.integers(0, 1 << 40),
        st.integers(0, (1 << 32) - 1),
    ),
    max_size=6,
    unique_by=lambda entry: entry[0],
)


@given(entries, st.sampled_from(CODERS), st.data())
def test_header_round_trip(about: list, coder: str, data: st.DataObject) -> None:
    """Names (with shared beginnings or not), types, shapes, sizes, checksums and references come back."""
    written: list[Entry] = []
    for name, dtype, shape, size, crc in about:
        stored = [i for i, entry in enumerate(written) if entry.same_as is None]
        same = data.draw(st.sampled_from([None, *stored]))
        first = written[same] if same is not None else Entry(name, dtype, shape, None, 0, size, crc)
        offset = written[-1].offset + written[-1].size if written else 0
        sizes = (first.size, first.crc) if same is None else (0, 0)
        written.append(Entry(name, first.dtype, first.shape, same, offset, *sizes))
    header = format.write_header(written, coder)
    total = len(header) + sum(entry.size for entry in written)
    assert format.read_prefix(header[:14], total) == len(header) - 14
    index = format.read_index(header[:14], header[14:], total)
    assert (index.coder, index.header_bytes) == (coder, len(header))
    for read, entry in zip(index.entries, written, strict=True):
        assert read == entry._replace(offset=entry.offset + len(header))


def test_header_is_small() -> None:
    """Names, shapes and checksums of a LeNet-5 stay below the 200 bytes that a 3 KB file can bear."""
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}
    about = [Entry(f"{name}.weight", "float32", shape, None, 0, 3000, 7) for name, shape in shapes.items()]
    about += [Entry(f"{name}.bias", "float32", shape[:1], None, 0, 300, 7) for name, shape in shapes.items()]
    assert len(format.write_header(about, "huffman")) < 200


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("change", [1, 128, 255])
def test_every_byte_is_guarded(coder: str, change: int) -> None:
    """Whichever byte of a file changes, reading fails with a FormatError; nothing else, and no silence."""
    random = np.random.default_rng(change)
    sparse = np.where(random.random(300) < 0.1, random.integers(1, 9, 300), 0).astype(np.float32)
    whole = encode({"a.w": sparse, "a.v": sparse, "b": np.arange(5)}, coder)
    for i in range(len(whole)):
        changed = bytearray(whole)
        changed[i] ^= change
        with pytest.raises(FormatError):
            decode(bytes(changed))


@pytest.mark.parametrize("coder", CODERS)
def test_every_truncation_is_named(coder: str) -> None:
    """A file cut anywhere is TruncatedFile, but for the empty one, which is no .dcz file at all."""
    whole = encode({"a": np.arange(6), "b": np.eye(30)}, coder)
    for length in range(1, len(whole)):
        with pytest.raises(TruncatedFile):
            decode(whole[:length])
    with pytest.raises(NotADczFile):
        decode(b"")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_sealed_garbage_index_is_safe(index: bytes) -> None:
    """An index of random bytes behind a right checksum gives a FormatError."""
    if index[:1] in {b"", b"\x00"}:
        index = b"\x02" + index
    with pytest.raises(FormatError):
        decode(sealed(index))


@settings(max_examples=100, deadline=None)
@given(bit_tensors(), st.binary(max_size=40))
def test_sealed_garbage_blob_is_safe(tensor: RawTensor, blob: bytes) -> None:
    """A blob of random bytes behind right checksums gives a FormatError, or a tensor as declared."""
    try:
        decoded = decode(one(blob, tensor.bits.shape, tensor.dtype))["w"]
    except MalformedFile:
        return
    assert (decoded.dtype, decoded.bits.shape) == (tensor.dtype, tensor.bits.shape)


def test_alien_and_other_versions() -> None:
    """Other formats, the version before this one and later ones are told apart from damage."""
    with pytest.raises(NotADczFile, match="PK"):
        decode(b"PK\x03\x04" + bytes(100))
    for version in (0, 3, 7, 255):
        with pytest.raises(UnsupportedVersion, match=f"version {version} is not known"):
            decode(sealed(b"\x00", version=version))
        with pytest.raises(UnsupportedVersion):
            decode(format.MAGIC + bytes([version]))


def test_checksums_are_checked() -> None:
    """A changed header and a changed blob are both called damage, the latter with the tensor's name."""
    whole = bytearray(encode({"fc1": np.arange(100)}))
    whole[-1] ^= 1
    with pytest.raises(ChecksumMismatch, match="fc1"):
        decode(bytes(whole))
    whole[12] ^= 1
    with pytest.raises(ChecksumMismatch, match="header"):
        decode(bytes(whole))


def test_limits_of_a_file() -> None:
    """Reader and writer know the same most tensors and longest index; the reader stops before it reads them."""
    with pytest.raises(TooLarge, match="1048577 tensors, at most 1048576 are read"):
        decode(sealed(varint((1 << 20) + 1) + bytes(4 << 20)))
    with pytest.raises(InputError, match=r"1,048,577 tensors are too many: a \.dcz file has at most 1,048,576"):
        format.check_count((1 << 20) + 1)
    with pytest.raises(TooLarge, match="the index has 268435457 bytes"):
        format.read_prefix(format.MAGIC + b"\1\1" + ((1 << 28) + 1).to_bytes(4, "little") + bytes(4), 1 << 40)


def test_a_great_many_empty_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """They cost the index and little more: no memory is asked for, no thread is started, no blob is read for each."""
    file = sealed(varint(20_000) + b"".join(record(b"%x" % i, "float32", (0,), b"") for i in range(20_000)))
    calls = {"memory": 0, "tensors": 0}

    def counted(key: str, result: Any) -> Any:
        calls[key] += 1
        return result

    monkeypatch.setattr(reader_, "available_memory", lambda: counted("memory", 1 << 30))
    monkeypatch.setattr(decoder, "decode_tensor", lambda *_: counted("tensors", None))
    assert len(decode(file)) == 20_000
    assert calls == {"memory": 1, "tensors": 0}


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        (sealed(b""), MalformedFile, "the number of tensors needs 1 bytes"),
        (sealed(b"\x00") + b"x", MalformedFile, "1 bytes follow the last tensor"),
        (sealed(b"\x00", coder=4), MalformedFile, "coder 4"),
        (sealed(b"\x00", coder=255), MalformedFile, "coder 255"),
        (sealed(b"\x05"), MalformedFile, "number of tensors is 5"),
        (sealed(b"\x80\x00"), MalformedFile, "shortest form"),
        # names
        (sealed(b"\x02" + EMPTY * 2), MalformedFile, "two tensors are called 'a'"),
        (sealed(b"\x02" + EMPTY + record(b"", "float32", (0,), b"", shared=1)), MalformedFile, "two tensors"),
        (sealed(b"\x01" + record(b"a", "float32", (0,), b"", shared=1)), MalformedFile, "shared part is 1"),
        (sealed(b"\x02" + EMPTY + record(b"b", "float32", (0,), b"", shared=2)), MalformedFile, "shared part is 2"),
        (sealed(b"\x01\x00\x09abc"), MalformedFile, "a name needs 9 bytes"),
        (sealed(b"\x01\x00" + varint(1 << 63)), MalformedFile, "a name needs"),
        (sealed(b"\x01" + record(b"\xff", "float32", (0,), b"")), MalformedFile, "not UTF-8"),
        (sealed(b"\x01" + record(b"\x80" * 10, "float32", (0,), b"")), MalformedFile, "not UTF-8"),
        (sealed(b"\x01" + record(b"\xff" + b"\xbf" * 9, "float32", (0,), b"")), MalformedFile, "not UTF-8"),
        (sealed(b"\x01" + record(b"\xed\xa0\x80", "float32", (0,), b"")), MalformedFile, "not UTF-8"),
        # types and references
        (sealed(b"\x01\x00\x01a"), MalformedFile, "a dtype needs"),
        (sealed(b"\x01" + record(b"a", 200, (0,), b"")), MalformedFile, "unknown dtype 200"),
        (sealed(b"\x01" + record(b"a", 14, (0,), b"")), MalformedFile, "unknown dtype 14"),
        (sealed(b"\x01\x00\x01a\x00\x00"), MalformedFile, "refers to tensor 0"),
        (sealed(b"\x02" + EMPTY + b"\x00\x01b\x00\x01"), MalformedFile, "refers to tensor 1"),
        (sealed(b"\x02" + EMPTY + b"\x00\x01b\x00\x02"), MalformedFile, "refers to tensor 2"),
        (sealed(b"\x03" + EMPTY + b"\x00\x01b\x00\x00" + b"\x00\x01c\x00\x01"), MalformedFile, "refers to tensor 1"),
        # shapes
        (sealed(b"\x01" + record(b"a", "float32", (1,) * 65, b"")), MalformedFile, "number of dimensions is 65"),
        (sealed(b"\x01" + record(b"a", "float32", (1 << 40, 1 << 40), b"")), MalformedFile, "impossible shape"),
        (sealed(b"\x01" + record(b"a", "float32", (1 << 62, 0), b"")), MalformedFile, "impossible shape"),
        (sealed(b"\x01" + record(b"a", "uint8", (0, (1 << 62) + 1), b"")), MalformedFile, "impossible shape"),
        (sealed(b"\x01" + record(b"a", "float32", (1 << 61,), b"")), MalformedFile, "impossible shape"),
        (sealed(b"\x01\x00\x01a\x01\x02\x01"), MalformedFile, "a dimension needs"),
        # blobs
        (sealed(b"\x01\x00\x01a\x01\x00\x05\x01\x02\x03"), MalformedFile, "a checksum needs 4 bytes"),
        (sealed(b"\x01" + record(b"a", "float32", (8,), b"abc")), TruncatedFile, "speaks of"),
        (sealed(b"\x01" + record(b"a", "float32", (8,), b"", size=1 << 63)), TruncatedFile, "speaks of"),
        (one(b"\x00", shape=(0,)), MalformedFile, "w: 1 bytes follow an empty tensor"),
        (one(b"", shape=()), MalformedFile, "w: the form needs 1 bytes"),
        # extensions
        (one(b"", shape=(0,), behind=b"\x01\x00"), MalformedFile, "needs extension 1"),
        (one(b"", shape=(0,), behind=b"\x06\x03abc\x07\x00"), MalformedFile, "needs extension 7"),
        (one(b"", shape=(0,), behind=b"\x02\x00\x02\x00"), MalformedFile, "extension 2 follows 2"),
        (one(b"", shape=(0,), behind=b"\x06\x00\x02\x00"), MalformedFile, "extension 2 follows 6"),
        (one(b"", shape=(0,), behind=b"\x02\x03abc"), MalformedFile, "header: metadata: a key needs 97 bytes"),
        (one(b"", shape=(0,), behind=b"\x00"), MalformedFile, "an extension's length needs"),
        (one(b"", shape=(0,), behind=b"\x00\x03ab"), MalformedFile, "an extension needs 3 bytes"),
    ],
)
def test_lies(file: bytes, error: type[FormatError], message: str) -> None:
    """Each rule of FORMAT.md that a sealed header can break has its own message."""
    with pytest.raises(error, match=message):
        decode(file)


def test_names_are_bounded_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that repeat a long one before them cannot take more memory than FORMAT.md allows."""
    long = record(b"a" * 1000, "float32", (0,), b"")
    for times, sound in ((9, True), (10, False)):
        index = (
            varint(times)
            + long
            + b"".join(record(bytes([97 + i]), "float32", (0,), b"", shared=1000) for i in range(times - 1))
        )
        monkeypatch.setattr(format, "MOST_NAME_BYTES", 9 * 1000 + 8)
        if sound:
            assert len(decode(sealed(index))) == 9
            continue
        with pytest.raises(MalformedFile, match="the names have more than 9008 bytes"):
            decode(sealed(index))


def test_unknown_even_extensions_are_skipped() -> None:
    """Records that a later writer adds for readers that know them do not keep this one from the tensors."""
    behind = b"\x00\x00" + b"\x06\x03abc" + varint(1 << 40) + b"\x01x"
    assert decode(one(b"", shape=(3, 0), behind=behind))["w"].bits.shape == (3, 0)


def test_impossible_shapes_end_at_the_bound() -> None:
    """A shape of 2**62 bytes is a shape, if it has no elements; one of 64 dimensions too."""
    assert decode(one(b"", shape=(0, 1 << 62), dtype="uint8"))["w"].bits.shape == (0, 1 << 62)
    assert decode(one(b"\x00\x00\x07", shape=(1,) * 64, dtype="uint8"))["w"].bits.shape == (1,) * 64


def repeated(times: int) -> bytes:
    """Records of tensors that all equal the first."""
    names = (str(i).encode() for i in range(times))
    return b"".join(b"\x00" + varint(len(name)) + name + b"\x00\x00" for name in names)


def test_bomb_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """Few bytes that decode to an exabyte are TooLarge at once; so are many tensors that each would fit."""
    blob = b"\x04\x00\x00\x00\x00\x80?"
    (tmp_path / "one.dcz").write_bytes(one(blob, shape=(1 << 58,)))
    readers = (deepcompression.load, deepcompression.verify, deepcompression.inspect)
    for reader in (*readers, lambda path: deepcompression.File(path)["w"]):
        with pytest.raises(TooLarge, match=str(4 << 58)):
            reader(tmp_path / "one.dcz")
    crowd = sealed(b"\x81\x20" + record(b"w", "float32", (1 << 30,), blob) + repeated(4096), blob)
    (tmp_path / "crowd.dcz").write_bytes(crowd)
    with pytest.raises(TooLarge, match=str(4097 << 32)):
        deepcompression.load(tmp_path / "crowd.dcz")
    two = encode({"a": np.ones(100), "b": np.ones(100)})
    with pytest.raises(TooLarge, match="1600 bytes, allowed are 1599"):
        decode(two, max_bytes=1599)
    assert set(decode(two, max_bytes=1600)) == {"a", "b"}


def test_arithmetic_code_of_too_many_columns() -> None:
    """A row so long that the decoder's counters would take more than the tensor is refused, in a mask too."""
    columns = (1 << 22) + 1
    flags = bytes([3]) + varint(columns) + b"\x00\x00\x01"
    with pytest.raises(MalformedFile, match="4194305 columns, at most 4194304"):
        decode(one(flags + b"\x00", (columns,), "uint8"))
    mask = bytes([0x20]) + varint(columns) + b"\x00\x02\x01\x55" + b"\x00"
    with pytest.raises(MalformedFile, match="a mask of kind 2 for 4194305 flags"):
        decode(one(mask, (columns,), "uint8"))
    ones = np.ones(columns, np.uint8)
    ones[::7] = 0
    assert np.array_equal(decode(encode({"w": ones}, "adaptive"))["w"].bits, ones)
