from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import arrays, bit_tensors

import deepcompression
from deepcompression import dtypes
from deepcompression import io as dcz
from deepcompression.errors import ChecksumMismatch, InputError, StorageError, TooLarge
from deepcompression.io import RawTensor

GOLDEN = Path(__file__).parent.parent / "golden"


def bits_of(array: np.ndarray) -> bytes:
    """The elements in C order and native byte order."""
    return array.astype(array.dtype.newbyteorder("=")).tobytes()


def golden_tensors() -> dict[str, Any]:
    names: dict[str, Any] = {"__file__": str(GOLDEN / "make_golden.py"), "__name__": "make_golden"}
    exec((GOLDEN / "make_golden.py").read_text(), names)
    tensors: dict[str, Any] = names["tensors"]()
    return tensors


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=8), arrays(), max_size=4), st.sampled_from(["packed", "huffman"]))
def test_arrays_come_back(tensors: dict[str, np.ndarray], coder: str) -> None:
    """Names, order, dtypes, shapes, bits of arrays of any layout survive; equal input gives equal bytes."""
    encoded = dcz.encode(tensors, coder)
    decoded = dcz.decode(encoded)
    assert list(decoded) == list(tensors)
    for name, array in tensors.items():
        assert decoded[name].dtype == array.dtype.name
        assert decoded[name].bits.shape == array.shape
        assert decoded[name].bits.tobytes() == bits_of(array)
    assert dcz.encode({name: array.copy() for name, array in tensors.items()}, coder) == encoded


@settings(deadline=None)
@given(bit_tensors())
def test_raw_tensors_come_back(tensor: RawTensor) -> None:
    """Types that numpy lacks keep their bits and their names."""
    decoded = dcz.decode(dcz.encode({"w": tensor}))["w"]
    assert decoded.dtype == tensor.dtype
    assert np.array_equal(decoded.bits, tensor.bits)


def test_save_and_load(tmp_path: Path) -> None:
    """The public pair: bytes written are bytes on disk, and the arrays are writable and the caller's own."""
    tensors = {"w": np.eye(4, dtype=np.float32), "same": np.eye(4, dtype=np.float32), "n": np.array(3)}
    size = deepcompression.save(tensors, tmp_path / "a.dcz")
    loaded = deepcompression.load(tmp_path / "a.dcz")
    assert size == (tmp_path / "a.dcz").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["a.dcz"]
    assert {name: array.dtype for name, array in loaded.items()} == {n: t.dtype for n, t in tensors.items()}
    loaded["same"] += 1
    assert np.array_equal(loaded["w"], tensors["w"])
    deepcompression.verify(tmp_path / "a.dcz")


def test_equal_tensors_are_stored_once() -> None:
    """A tied tensor costs its name; one of another dtype, shape or sign of zero is not equal."""
    weights = np.random.default_rng(0).normal(size=(30, 30))
    one = len(dcz.encode({"a": weights}))
    assert len(dcz.encode({"a": weights, "b": weights.copy()})) <= one + 6
    assert len(dcz.encode({"a": weights, "b": weights.reshape(900)})) > 2 * one - 30
    different = {"a": np.zeros(3, np.float32), "b": np.zeros(3, np.int32), "c": np.float32([0, 0, -0.0])}
    decoded = dcz.decode(dcz.encode(different))
    assert [decoded[name].dtype for name in "abc"] == ["float32", "int32", "float32"]
    assert np.signbit(decoded["c"].bits.view(np.float32)).tolist() == [False, False, True]


def test_widening_to_float32(tmp_path: Path) -> None:
    """Without raw=True, bfloat16 and float8 come back as float32 of the same value: checked against torch."""
    torch = pytest.importorskip("torch")
    for name in sorted(dtypes.FOREIGN):
        kind = np.uint16 if name == "bfloat16" else np.uint8
        bits = np.arange(np.iinfo(kind).max + 1).astype(kind)
        deepcompression.save({"w": RawTensor(bits, name)}, tmp_path / "w.dcz", coder="packed")
        ours = deepcompression.load(tmp_path / "w.dcz")["w"]
        theirs = torch.from_numpy(bits.copy()).view(getattr(torch, name)).to(torch.float32).numpy()
        assert ours.dtype == np.float32
        assert np.array_equal(ours, theirs, equal_nan=True)
        finite = ~np.isnan(theirs)
        assert np.array_equal(np.signbit(ours[finite]), np.signbit(theirs[finite]))


def test_names_are_read_alone(tmp_path: Path) -> None:
    """load(names=) reads those blobs only: damage in another tensor goes unnoticed."""
    path = tmp_path / "a.dcz"
    deepcompression.save({"a": np.arange(50.0), "b": np.arange(60.0), "c": np.arange(50.0)}, path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    assert list(deepcompression.load(path, names=["c", "a"])) == ["a", "c"]
    assert np.array_equal(deepcompression.load(path, names="c")["c"], np.arange(50.0))
    with pytest.raises(ChecksumMismatch, match=r"a\.dcz: b"):
        deepcompression.load(path)
    with pytest.raises(ChecksumMismatch):
        deepcompression.verify(path)
    with pytest.raises(InputError, match="no tensor is called 'aa'; there are a"):
        deepcompression.load(path, names=["aa"])


def test_max_bytes_counts_what_is_asked_for(tmp_path: Path) -> None:
    """The limit covers the named tensors, equal ones included, and float32 where types are widened."""
    path = tmp_path / "a.dcz"
    deepcompression.save({"a": np.ones(10), "b": np.ones(10), "h": RawTensor(np.ones(10, np.uint16), "bfloat16")}, path)
    assert set(deepcompression.load(path, names=["a"], max_bytes=80)) == {"a"}
    with pytest.raises(TooLarge, match="160 bytes"):
        deepcompression.load(path, names=["a", "b"], max_bytes=159)
    with pytest.raises(TooLarge, match="40 bytes"):
        deepcompression.load(path, names=["h"], max_bytes=39)
    with pytest.raises(TooLarge):
        deepcompression.verify(path, max_bytes=79)
    with pytest.raises(TooLarge):
        deepcompression.inspect(path, max_bytes=79)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": [1.0, 2.0]}, "w: expected a numpy array or RawTensor, got builtins.list"),
        ({3: np.ones(2)}, "names are text"),
        ({"\ud800": np.ones(2)}, "not valid Unicode"),
        ({"w": np.array(["a"])}, "w: dtype <U1"),
        ({"w": np.array([None])}, "w: dtype object"),
        ({"w": np.ones(2, np.complex128)}, "w: dtype complex128"),
    ],
)
def test_what_cannot_be_stored(tensors: dict[str, Any], message: str) -> None:
    """Anything but storable arrays with text names is refused by name, before a byte is written."""
    with pytest.raises(InputError, match=message):
        dcz.encode(tensors)


def test_raw_tensor_is_checked() -> None:
    """Bits of the wrong width, unknown types and bools of 2 are refused when the value is made."""
    with pytest.raises(InputError, match="uint16, not uint8"):
        RawTensor(np.zeros(2, np.uint8), "bfloat16")
    with pytest.raises(InputError, match="'float128' cannot be stored"):
        RawTensor(np.zeros(2, np.uint8), "float128")
    with pytest.raises(InputError, match="0 or 1"):
        RawTensor(np.full(2, 2, np.uint8), "bool")


def test_unknown_coder() -> None:
    """The coder is one of two."""
    with pytest.raises(InputError, match="packed, huffman, not 'zip'"):
        dcz.encode({}, "zip")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    """What cannot be opened is the user's error, with the path."""
    for path in (tmp_path, tmp_path / "nope.dcz"):
        with pytest.raises(InputError, match=str(path)):
            deepcompression.load(path)


@pytest.mark.parametrize(("number", "message"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "denied")])
def test_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    """A full disk or a refused write is a StorageError; the old file stays, and no part file does."""
    path = tmp_path / "a.dcz"
    deepcompression.save({"a": np.ones(3)}, path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match=message):
        deepcompression.save({"a": np.zeros(3)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a write leaves no half file."""

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        deepcompression.save({"a": np.zeros(3)}, tmp_path / "a.dcz")
    assert not list(tmp_path.iterdir())


def test_inspect_accounts_for_every_byte(tmp_path: Path) -> None:
    """Header and tensors add up to the file, and density, distinct and the bound are those of the values."""
    path = tmp_path / "a.dcz"
    weights = np.zeros((20, 50), np.float32)
    weights.reshape(-1)[::10] = np.tile(np.float32([1, 2, 3, 4]), 25)
    size = deepcompression.save({"w": weights, "tied": weights, "b": np.arange(4.0)}, path)
    report = json.loads(json.dumps(deepcompression.inspect(path)))
    w, tied, b = report["tensors"]
    assert report["file_bytes"] == size == report["header_bytes"] + w["bytes"] + b["bytes"]
    for tensor in report["tensors"]:
        assert tensor["bytes"] == sum(tensor[part] for part in ("values", "positions", "codebook", "table"))
    assert (w["density"], w["distinct"], w["shape"], w["dtype"]) == (0.1, 4, [20, 50], "float32")
    assert w["entropy_bytes"] == pytest.approx((100 * 2 + 1000 * 0.4689956) / 8, rel=1e-6)
    assert (tied["same_as"], tied["bytes"], tied["density"]) == ("w", 0, 0.1)
    assert report["dense_bytes"] == 4000 + 4 * 4  # equal ones once, float64 at four bytes
    assert report["ratio"] == report["dense_bytes"] / size
    assert (report["format_version"], report["coder"]) == (0, "huffman")


def test_near_the_entropy(tmp_path: Path) -> None:
    """A large pruned and shared layer is stored within three per cent of its order-0 bound."""
    random = np.random.default_rng(0)
    book = random.normal(size=32).astype(np.float32)
    weights = np.where(random.random(400_000) < 0.08, book[np.minimum(random.geometric(0.15, 400_000) - 1, 31)], 0)
    deepcompression.save({"w": weights.astype(np.float32)}, tmp_path / "a.dcz")
    (report,) = deepcompression.inspect(tmp_path / "a.dcz")["tensors"]
    assert report["bytes"] < 1.03 * report["entropy_bytes"]


@pytest.mark.parametrize("coder", ["packed", "huffman", "adaptive"])
def test_golden_files(coder: str) -> None:
    """The golden file of each coder decodes to what it was made of, and is written again byte for byte.

    Of deflated planes the bytes are the machine's zlib's: tensors that have them are compared by what they decode to.
    """
    golden = (GOLDEN / f"v1-{coder}.dcz").read_bytes()
    tensors = golden_tensors()
    decoded = dcz.decode(golden)
    assert list(decoded) == list(tensors)
    for name, tensor in tensors.items():
        bits = tensor.bits if isinstance(tensor, RawTensor) else tensor
        assert decoded[name].bits.tobytes() == bits.tobytes()
    written = dcz.encode(tensors, coder)
    then, now = (_blobs(file) for file in (golden, written))
    assert {name for name in then if then[name] != now[name]} <= {"deflated.bias", "position_ids"}


def _blobs(file: bytes) -> dict[str, bytes]:
    length = int.from_bytes(file[6:10], "little")
    index = dcz.format.read_index(file[:14], file[14 : 14 + length], len(file))
    return {entry.name: file[entry.offset : entry.offset + entry.size] for entry in index.entries}


def test_golden_files_hold_every_method() -> None:
    """No layout of the format is without a golden file."""
    found = set()
    for path in GOLDEN.glob("v1-*.dcz"):
        file = path.read_bytes()
        tensors = dcz.decode(file)
        for name, blob in _blobs(file).items():
            if not blob:
                continue
            layout, coder = dcz.blobs.layout(blob, tensors[name].dtype, tensors[name].bits.size)
            found |= {*layout.split("+"), coder}
    positions, kinds = (
        {"dense", "bitmap", "gaps", "flags"},
        {"raw", "deflated", "codebook", "codebooks", "grid", "grids"},
    )
    assert positions | kinds | {"masks", "packed", "huffman", "adaptive"} <= found


def test_narrowing_is_exact() -> None:
    """Signalling NaNs, subnormals and ties come back as they were whatever type they are stored in."""
    cases: list[tuple[str, np.ndarray]] = [
        ("float32", np.uint32([0x7F800001, 0xFF800001, 0x7FC00000, 0x7F810000, 1, 0x80000000])),
        ("float64", np.uint64([0x7FF0000000000001, 0x7FF8000000000000, 1, 0x8000000000000000])),
        ("float32", np.float32([65504, 65520, 2**-24, 2**-25, -0.0]).view(np.uint32)),
        ("float64", np.array([1e300, 2**-149, 2**-1074, 1 + 2**-23]).view(np.uint64)),
    ]
    for dtype, bits in cases:
        for part in [bits, *(bits[i : i + 1] for i in range(bits.size))]:
            decoded = dcz.decode(dcz.encode({"w": RawTensor(part, dtype)}))["w"]
            assert decoded.bits.tolist() == part.tolist()


@pytest.mark.parametrize("reader", [deepcompression.load, deepcompression.verify, deepcompression.inspect])
def test_errors_name_the_file(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    """Every reader says which file is at fault, in one line."""
    path = tmp_path / "alien.dcz"
    path.write_bytes(b"\x93NUMPY" + bytes(100))
    with pytest.raises(InputError, match=r"alien\.dcz: not a \.dcz file") as caught:
        reader(path)
    assert "\n" not in str(caught.value)
