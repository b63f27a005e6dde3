from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from strategies import NUMPY_DTYPES, bit_tensors

import deepcompression
from deepcompression.codec.dtypes import RawTensor
from deepcompression.errors import InputError
from deepcompression.formats.safetensors import TensorFile, read, write, write_each

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def file_of(path: Path, header: object, data: bytes = bytes(8), length: int | None = None) -> Path:
    """A .safetensors file with this header, right or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tensors=st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=8), bit_tensors(), max_size=4))
def test_round_trip(tmp_path: Path, tensors: dict[str, RawTensor]) -> None:
    """Every type, shape and name comes back from what is written, bit for bit."""
    tensors.pop("__metadata__", None)
    write(tensors, tmp_path / "a.safetensors")
    back = read(tmp_path / "a.safetensors")
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].bits.shape) == (tensor.dtype, tensor.bits.shape)
        assert back[name].bits.tobytes() == tensor.bits.tobytes()


def test_agrees_with_safetensors(tmp_path: Path) -> None:
    """The library that defines the format reads what is written here, and writes what is read here."""
    arrays = {f"{name} é": np.arange(6).reshape(2, 3).astype(name) for name in NUMPY_DTYPES}
    write({name: RawTensor(a.view(f"u{a.itemsize}"), a.dtype.name) for name, a in arrays.items()}, tmp_path / "ours")
    save_file(arrays, tmp_path / "theirs", metadata={"format": "np"})
    for name, array in load_file(tmp_path / "ours").items():
        assert array.dtype == arrays[name].dtype
        assert np.array_equal(array, arrays[name])
    for name, raw in read(tmp_path / "theirs").items():
        assert raw.dtype == arrays[name].dtype.name
        assert raw.bits.tobytes() == arrays[name].tobytes()


def test_tensors_are_aligned(tmp_path: Path) -> None:
    """Wide types come first and the header is padded, so that every tensor may be mapped."""
    write({str(i): RawTensor(np.zeros(3, f"u{i}"), f"uint{8 * i}") for i in (1, 2, 4, 8)}, tmp_path / "a")
    file = TensorFile(tmp_path / "a")
    start = (tmp_path / "a").stat().st_size - file.nbytes
    assert start % 8 == 0
    assert [at % int(name) for name, (_, _, at) in file.about.items()] == [0, 0, 0, 0]


class Raws(dict[str, RawTensor]):
    """The tensors of a .dcz file as bits, decoded when asked for."""

    def __init__(self, file: deepcompression.File) -> None:
        self.file = file

    def __missing__(self, name: str) -> RawTensor:
        return self.file.raw(name)


class Watched(Mapping[str, RawTensor]):
    """Hands out tensors, and sees that the one before is gone by then."""

    def __init__(self, inner: Mapping[str, RawTensor]) -> None:
        self.inner = inner
        self.asked: list[str] = []
        self.given: list[weakref.ref[np.ndarray]] = []

    def __getitem__(self, name: str) -> RawTensor:
        gc.collect()
        assert not any(ref() is not None for ref in self.given)
        made = self.inner[name]
        self.asked.append(name)
        self.given.append(weakref.ref(made.bits))
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)


def test_streams_both_ways(tmp_path: Path) -> None:
    """From .safetensors to .dcz and back, tensors are asked for once each, and let go of."""
    tensors = {f"w{i}": RawTensor(np.arange(50, dtype=np.uint32) + i, "float32") for i in range(5)}
    write(tensors, tmp_path / "a.safetensors")
    source = Watched(TensorFile(tmp_path / "a.safetensors"))
    deepcompression.save(source, tmp_path / "a.dcz", threads=1)
    assert source.asked == list(tensors)
    with deepcompression.File(tmp_path / "a.dcz") as file:
        raw = Watched(Raws(file))
        write_each(((n, e.dtype, e.shape) for n, e in file.entries.items()), raw.__getitem__, tmp_path / "b")
    assert raw.asked == list(tensors)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "its header is no JSON"),
        (b"[" * 100_000, b"", "its header is no JSON"),
        (b"\xff\xfe", b"", "its header is no JSON"),
        ([], b"", "its header is no mapping"),
        ({"w": 3}, b"", "w: "),
        ({"w": {"dtype": "F32", "shape": [2]}}, bytes(8), "w: KeyError"),
        ({"w": {**ONE, "shape": ["x"]}}, bytes(8), "w: its shape or its offsets are no sizes"),
        ({"w": {**ONE, "shape": ["2"]}}, bytes(8), "w: its shape or its offsets are no sizes"),
        ({"w": {**ONE, "shape": [2.0]}}, bytes(8), "w: its shape or its offsets are no sizes"),
        ({"w": {**ONE, "shape": [True, 2]}}, bytes(8), "w: its shape or its offsets are no sizes"),
        ({"w": {**ONE, "shape": [1] * 65}}, bytes(8), "w: its shape or its offsets are no sizes"),
        ({"w": {**ONE, "shape": [0, 1 << 99]}}, bytes(8), "w: its shape or its offsets are no sizes"),
        ({"w": {**ONE, "data_offsets": ["0", "8"]}}, bytes(8), "w: its shape or its offsets are no sizes"),
        ({"w": {**ONE, "dtype": ["F32"]}}, bytes(8), "cannot be stored"),
        (
            b'{"w": {"dtype": "F32", "shape": [2], "shape": [2], "data_offsets": [0, 8]}}',
            bytes(8),
            "'shape' stands there twice",
        ),
        ({"w": ONE, "v": ONE}, bytes(8), "v: begins at 0, where the tensor before it ends at 8"),
        ({"w": {**ONE, "data_offsets": [4, 12]}}, bytes(12), "w: begins at 4"),
        ({"w": ONE}, bytes(9), "its tensors end at 8, its bytes at 9"),
        ({"w": {**ONE, "data_offsets": [0, 8, 9]}}, bytes(8), "w: ValueError"),
        ({"w": {**ONE, "dtype": "C64"}}, bytes(8), "w: dtype C64 cannot be stored"),
        ({"w": {**ONE, "dtype": "F4"}}, bytes(8), "w: dtype F4 cannot be stored"),
        ({"w": ONE}, bytes(7), r"w: no float32 \(2,\) at 0"),
        ({"w": {**ONE, "data_offsets": [0, 4]}}, bytes(8), "w: no float32"),
        ({"w": {**ONE, "data_offsets": [8, 0]}}, bytes(8), "w: no float32"),
        ({"w": {**ONE, "data_offsets": [-8, 0]}}, bytes(8), "w: its shape or its offsets are no sizes"),
        ({"w": {**ONE, "shape": [-1, -2]}}, bytes(8), "w: its shape or its offsets are no sizes"),
        ({"w": {**ONE, "shape": [1 << 40, 1 << 40]}}, bytes(8), "w: no float32"),
    ],
)
def test_lies(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    """A header that is no JSON, no mapping, or speaks of tensors that are not there is refused, with the path."""
    with pytest.raises(InputError, match=message) as caught:
        TensorFile(file_of(tmp_path / "a.safetensors", header, data))
    assert "a.safetensors" in str(caught.value)


@pytest.mark.parametrize("length", [100, 1 << 40, (1 << 64) - 1])
def test_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    """A header's length is bounded by the file before memory is taken for it; so is a file of less than eight bytes."""
    with pytest.raises(InputError, match="longer than the file"):
        TensorFile(file_of(tmp_path / "a", {"w": ONE}, length=length))
    (tmp_path / "b").write_bytes(b"\1\0")
    with pytest.raises(InputError, match="longer than the file"):
        TensorFile(tmp_path / "b")


def test_file_cut_while_it_is_read(tmp_path: Path) -> None:
    """A file that became shorter behind its header gives an error, not fewer elements."""
    path = file_of(tmp_path / "a", {"w": ONE})
    file = TensorFile(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="became shorter"):
        file["w"]


def test_missing_file_and_reserved_name(tmp_path: Path) -> None:
    """What is not there, and a tensor that safetensors could not tell from metadata, are the user's errors."""
    with pytest.raises(InputError, match="cannot be read"):
        TensorFile(tmp_path / "nope")
    with pytest.raises(InputError, match="__metadata__"):
        write({"__metadata__": RawTensor(np.zeros(1, np.uint8), "uint8")}, tmp_path / "a")
    assert not list(tmp_path.iterdir())
