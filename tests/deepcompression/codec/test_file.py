from __future__ import annotations

import errno
import gc
import json
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forged import small_chunks
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import arrays, bit_tensors

import deepcompression
from deepcompression.codec import arithmetic, decoder, dtypes, head
from deepcompression.codec import file as dcz
from deepcompression.codec import reader as reader_
from deepcompression.codec.dtypes import RawTensor
from deepcompression.codec.file import CODERS
from deepcompression.errors import ChecksumMismatch, InputError, StorageError, TooLarge, TruncatedFile
from deepcompression.formats import safetensors


def bits_of(array: np.ndarray) -> bytes:
    """The elements in C order and native byte order."""
    return array.astype(array.dtype.newbyteorder("=")).tobytes()


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=8), arrays(), max_size=4), st.sampled_from(CODERS))
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
    assert set(deepcompression.load(path, names=["h"], raw=True, max_bytes=20)) == {"h"}
    for look in (deepcompression.verify, deepcompression.inspect):
        look(path, max_bytes=180)
        with pytest.raises(TooLarge, match="180 bytes, allowed are 179"):
            look(path, max_bytes=179)


def many(path: Path) -> Path:
    """A file of a few hundred bytes with a hundred tensors of ten kilobytes that are all one."""
    deepcompression.save(dict.fromkeys(map(str, range(100)), np.ones(2_500, np.float32)), path, coder="packed")
    assert path.stat().st_size < 2_000
    return path


def test_references_count_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred names of one tensor are a hundred tensors to every limit; half of the memory is for what is in it."""
    path = many(tmp_path / "a.dcz")
    monkeypatch.setattr(reader_, "available_memory", lambda: 40_000)
    for look in (deepcompression.load, lambda path, **most: dcz.decode(path.read_bytes(), **most)):
        with pytest.raises(TooLarge, match="1000000 bytes, allowed are 20000"):
            look(path)
        with pytest.raises(TooLarge, match="1000000 bytes, allowed are 999999"):
            look(path, max_bytes=999_999)
    for look in (deepcompression.verify, deepcompression.inspect):
        look(path)  # one at a time is in memory
        with pytest.raises(TooLarge, match="1000000 bytes, allowed are 999999"):
            look(path, max_bytes=999_999)
        monkeypatch.setattr(reader_, "available_memory", lambda: 19_998)
        with pytest.raises(TooLarge, match="10000 bytes, allowed are 9999"):
            look(path)
        monkeypatch.setattr(reader_, "available_memory", lambda: 40_000)


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    """What never ends, or waits for a writer, is refused at once; so are folders and links that lead round."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "round").symlink_to(tmp_path / "round")
    for path, why in (
        (tmp_path / "pipe", "it is no ordinary file"),
        (Path("/dev/zero"), "it is no ordinary file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "round", "Too many levels"),
    ):
        for look in (deepcompression.load, deepcompression.File, deepcompression.inspect, safetensors.TensorFile):
            with pytest.raises(InputError, match=f"{path.name}: cannot be read: {why}"):
                look(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": [1.0, 2.0]}, "w: expected a numpy array or RawTensor, got builtins.list"),
        ({3: np.ones(2)}, "names are text"),
        ({"\ud800": np.ones(2)}, "not valid Unicode"),
        ({"w": np.array(["a"])}, "w: dtype <U1"),
        ({"w": np.array([None])}, "w: dtype object"),
        ({"w": np.ones(2, np.complex128)}, "w: dtype complex128"),
        ({"w": np.ones(2, np.complex64)}, "w: dtype complex64 cannot be stored; known are float32"),
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
    """The coder is one of four."""
    with pytest.raises(InputError, match="packed, huffman, adaptive, auto, not 'zip'"):
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
    assert (report["format_version"], report["coder"]) == (1, "huffman")


def test_near_the_entropy(tmp_path: Path) -> None:
    """A large pruned and shared layer is stored within three per cent of its order-0 bound."""
    random = np.random.default_rng(0)
    book = random.normal(size=32).astype(np.float32)
    weights = np.where(random.random(400_000) < 0.08, book[np.minimum(random.geometric(0.15, 400_000) - 1, 31)], 0)
    deepcompression.save({"w": weights.astype(np.float32)}, tmp_path / "a.dcz")
    (report,) = deepcompression.inspect(tmp_path / "a.dcz")["tensors"]
    assert report["bytes"] < 1.03 * report["entropy_bytes"]


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


class Asked(Mapping[str, np.ndarray]):
    """Makes each tensor when it is asked for, once, and sees that the one before is gone by then."""

    def __init__(self, names: list[str]) -> None:
        self.names = names
        self.asked: list[str] = []
        self.given: list[weakref.ref[np.ndarray]] = []

    def __getitem__(self, name: str) -> np.ndarray:
        gc.collect()
        assert not any(ref() is not None for ref in self.given)
        made = np.arange(100.0) * (1 + len(self.asked))
        self.asked.append(name)
        self.given.append(weakref.ref(made))
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def test_one_tensor_at_a_time_is_saved(tmp_path: Path) -> None:
    """A mapping that makes tensors as it goes is asked for each once, and no tensor is held on to."""
    source = Asked(["a", "b", "c"])
    deepcompression.save(source, tmp_path / "a.dcz")
    assert source.asked == ["a", "b", "c"]
    assert np.array_equal(deepcompression.load(tmp_path / "a.dcz")["b"], np.arange(100.0) * 2)


@pytest.mark.parametrize("coder", CODERS)
def test_bytes_do_not_depend_on_threads(coder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written and read by one thread and by many are the same."""
    monkeypatch.setattr(head, "CHUNK", 500)
    monkeypatch.setattr(arithmetic, "MOST_ROWS_ELEMENTS", 500)
    random = np.random.default_rng(0)
    stored = random.random((3, 83, 61)) < 0.3
    tensors = {str(i): np.where(one, random.integers(1, 9, one.shape), 0) for i, one in enumerate(stored)}
    files = {threads: dcz.encode(tensors, coder, threads=threads) for threads in (1, 2, 7)}
    assert len(set(files.values())) == 1
    for threads in (1, 7):
        monkeypatch.setenv("DEEPCOMPRESSION_THREADS", str(threads))
        decoded = dcz.decode(files[1])
        assert all(np.array_equal(decoded[name].bits, tensor) for name, tensor in tensors.items())


def test_progress(tmp_path: Path) -> None:
    """Whoever watches hears of each tensor once, in order, with its bytes."""
    tensors = {"a": np.ones(10), "tied": np.ones(10), "b": np.ones((2, 3), np.float16)}
    heard: list[tuple[str, int]] = []
    deepcompression.save(tensors, tmp_path / "a.dcz", progress=lambda *one: heard.append(one))
    deepcompression.verify(tmp_path / "a.dcz", progress=lambda *one: heard.append(one))
    assert heard == [("a", 80), ("tied", 80), ("b", 12)] * 2


# ---------------------------------------------------------------- File


def saved(path: Path) -> dict[str, np.ndarray]:
    """Four tensors and the file that they are in."""
    random = np.random.default_rng(0)
    tensors = {
        "a": np.where(random.random((40, 50)) < 0.2, random.integers(1, 9, (40, 50)), 0).astype(np.float32),
        "b": random.normal(size=300),
        "c": np.arange(6).reshape(2, 3),
    }
    tensors["tied"] = tensors["a"].copy()
    deepcompression.save(tensors, path)
    return tensors


def test_file_is_a_mapping(tmp_path: Path) -> None:
    """A file has the names in their order, and each tensor as `load` gives it, anew each time."""
    tensors = saved(tmp_path / "a.dcz")
    with deepcompression.File(tmp_path / "a.dcz") as file:
        assert list(file) == list(tensors)
        assert len(file) == 4
        assert "b" in file
        assert "nope" not in file
        with pytest.raises(KeyError):
            file["nope"]
        for name, array in file.items():
            assert (array.dtype, array.shape) == (tensors[name].dtype, tensors[name].shape)
            assert np.array_equal(array, tensors[name])
        first = file["c"]
        first += 1
        assert np.array_equal(file["c"], tensors["c"])
        assert file.raw("tied").dtype == "float32"
        assert file.entries["c"].shape == (2, 3)
    assert np.array_equal(first, tensors["c"] + 1)  # arrays outlive the file
    with pytest.raises(ValueError, match="released"):
        file["a"]
    file.close()


def test_file_widens_as_load_does(tmp_path: Path) -> None:
    """Types that numpy lacks come back as float32, or as bits on request."""
    bits = np.array([[0x3F80, 0xC000]], np.uint16)
    deepcompression.save({"h": RawTensor(bits, "bfloat16")}, tmp_path / "a.dcz")
    with deepcompression.File(tmp_path / "a.dcz") as file:
        assert file["h"].tolist() == [[1.0, -2.0]]
        assert np.array_equal(file.raw("h").bits, bits)


def test_file_reads_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening decodes nothing, and damage is noticed in the tensor that it is in, with the path, every time."""
    tensors = saved(path := tmp_path / "a.dcz")
    content = bytearray(path.read_bytes())
    content[deepcompression.File(path).entries["b"].offset + 5] ^= 255
    path.write_bytes(content)
    decoded: list[str] = []
    decode = decoder.decode_tensor

    def watched(blob: Any, dtype: str, count: int, name: str, *rest: Any, **more: Any) -> Any:
        decoded.append(name)
        return decode(blob, dtype, count, name, *rest, **more)

    monkeypatch.setattr(decoder, "decode_tensor", watched)
    with pytest.raises(ChecksumMismatch, match=r"a\.dcz: b"), deepcompression.File(path) as file:
        assert decoded == []
        assert np.array_equal(file["tied"], tensors["a"])
        assert np.array_equal(file["c"], tensors["c"])
        assert decoded == ["a", "c"]
        for _ in range(2):
            with pytest.raises(ChecksumMismatch, match=r"a\.dcz: b"):
                file["b"]
        file["b"]  # closing the file while the error holds on to its pages does not hide the error


def test_file_is_shared_by_threads(tmp_path: Path) -> None:
    """Threads that read the same and different tensors of one open file get what is in it."""
    tensors = saved(tmp_path / "a.dcz")
    wrong: list[str] = []
    with deepcompression.File(tmp_path / "a.dcz") as file:

        def read(seed: int) -> None:
            for i in np.random.default_rng(seed).integers(0, 4, 50):
                name = list(tensors)[i]
                if not np.array_equal(file[name], tensors[name]):
                    wrong.append(name)

        threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_file_is_bounded_tensor_by_tensor(tmp_path: Path) -> None:
    """`max_bytes` is for one tensor at a time, since nothing is kept."""
    saved(tmp_path / "a.dcz")
    with deepcompression.File(tmp_path / "a.dcz", max_bytes=2400) as file:
        assert file["b"].nbytes == 2400
        with pytest.raises(TooLarge, match=r"a\.dcz: decodes to 8000 bytes, allowed are 2400"):
            file["tied"]


@pytest.mark.parametrize("coder", ["huffman", "adaptive"])
def test_large_tensors_are_read_chunk_by_chunk(tmp_path: Path, coder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob beyond a few megabytes is never in memory as a whole, its checksum is checked, and cutting it noticed."""
    small_chunks(monkeypatch.setattr, 500)
    monkeypatch.setattr(reader_, "_NEAR", 700)
    random = np.random.default_rng(0)
    tensors = {"w": random.normal(size=(83, 61)), "p": np.where(random.random((83, 61)) < 0.3, 1.5, 0)}
    deepcompression.save(tensors, path := tmp_path / "a.dcz", coder=coder)
    sizes: list[int] = []
    read_at = reader_.Opened.read_at

    def watched(self: Any, offset: int, size: int) -> bytes:
        sizes.append(size)
        return read_at(self, offset, size)

    monkeypatch.setattr(reader_.Opened, "read_at", watched)
    loaded = deepcompression.load(path)
    assert all(np.array_equal(loaded[name], tensors[name]) for name in tensors)
    assert max(sizes) < 500 * 8 + 200 < path.stat().st_size
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ChecksumMismatch, match="checksum"):
        deepcompression.load(path)


def test_file_that_cannot_be_opened(tmp_path: Path) -> None:
    """A missing, empty, alien or cut file is refused when it is opened, and let go of."""
    saved(path := tmp_path / "a.dcz")
    content = path.read_bytes()
    for size, error in ((0, InputError), (3, TruncatedFile), (40, TruncatedFile), (len(content) - 1, TruncatedFile)):
        path.write_bytes(content[:size])
        with pytest.raises(error, match=r"a\.dcz"):
            deepcompression.File(path)
    for missing in (tmp_path, tmp_path / "nope.dcz"):
        with pytest.raises(InputError, match="cannot be read"):
            deepcompression.File(missing)


# ---------------------------------------------------------------- memory

PEAK = """
import resource, sys
import numpy as np
from importlib import import_module
from deepcompression import _numba
from deepcompression.codec import file as io

def peak():  # Linux gives a new process the ru_maxrss of the one that started it
    try:
        with open("/proc/self/status") as file:
            return int(file.read().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

path, coder, kind, what = sys.argv[1:]
kernels = _numba.kernels
try:
    _numba.kernels = lambda *_: import_module("deepcompression.codec.kernels")
    io.decode(io.encode({"w": np.eye(30, dtype=np.float32)}, coder))  # numba and its machine code are no one's tensors
except ImportError:
    pass
_numba.kernels = kernels
if what == "load":
    before = peak()
    io.load(path)
else:
    random = np.random.default_rng(0)
    w = np.zeros((2000, 8000), np.float32) if kind == "shared" else random.standard_normal((2000, 8000), np.float32)
    if kind == "grids":
        w = np.rint(w) * random.random((2000, 1), np.float32)
        w[w == 0] = 0
    book = random.normal(size=32).astype(np.float32)
    for rows in np.split(w, 100) if kind == "shared" else []:
        stored = random.random(rows.shape, np.float32) < 0.1
        rows[stored] = book[np.minimum(random.geometric(0.15, int(stored.sum())) - 1, 31)]
    before = peak() - w.nbytes
    io.save({"w": w}, path, coder=coder)
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("kind", "coder"), [("shared", "huffman"), ("shared", "adaptive"), ("normal", "adaptive"), ("grids", "huffman")]
)
def test_peak_memory(tmp_path: Path, kind: str, coder: str) -> None:
    """A layer of 64 MB, compressible or not, is saved in twice its memory and 160 MB, loaded in it and 48 MB."""
    peaks, two = {}, {**os.environ, "DEEPCOMPRESSION_THREADS": "2"}
    for what in ("save", "load"):
        command = [sys.executable, "-c", PEAK, str(tmp_path / "a.dcz"), coder, kind, what]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=two)
        peaks[what] = int(done.stdout)
    assert peaks["save"] <= 2 * 64_000_000 + (160 << 20)
    assert peaks["load"] <= 64_000_000 + (48 << 20)
