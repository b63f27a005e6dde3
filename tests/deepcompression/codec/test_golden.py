"""Files that were written once and stay readable for ever."""

from __future__ import annotations

import zlib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from deepcompression import _numba
from deepcompression.codec import decoder
from deepcompression.codec.bitstream import Cursor
from deepcompression.codec.dtypes import RawTensor, raw_of
from deepcompression.codec.file import File, encode, inspect, load
from deepcompression.codec.head import layout, read_head
from deepcompression.codec.index import DTYPES, Entry, read_index

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CODERS = ("packed", "huffman", "adaptive")
BETTER = {"context.column"}  # has a codebook for each column


@pytest.fixture(scope="module")
def made() -> ModuleType:
    """The script that wrote the files."""
    spec = spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tensors(made: ModuleType) -> dict[str, RawTensor]:
    """What the files were made of, as bits."""
    found: dict[str, Any] = made.tensors()
    return {name: raw_of(name, tensor) for name, tensor in found.items()}


def blobs_of(path: Path) -> dict[str, tuple[Entry, bytes]]:
    """What a file's index says of each tensor, and its blob."""
    file = path.read_bytes()
    length = int.from_bytes(file[6:10], "little")
    index = read_index(file[:14], file[14 : 14 + length], len(file))
    return {entry.name: (entry, file[entry.offset : entry.offset + entry.size]) for entry in index.entries}


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("coder", CODERS)
def test_decodes_to_what_it_was_made_of(
    coder: str, numba: bool, tensors: dict[str, RawTensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden file of each coder gives the tensors that it was made of, by numba and by numpy alone."""
    if not numba:
        monkeypatch.setattr(_numba, "kernels", lambda *_: None)
    decoded = load(GOLDEN / f"v1-{coder}.dcz", raw=True)
    assert list(decoded) == list(tensors)
    for name, tensor in tensors.items():
        assert decoded[name].dtype == tensor.dtype, name
        assert np.array_equal(decoded[name].bits, tensor.bits), name


@pytest.mark.parametrize("numba", [True, False])
@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("v2-*.dcz")))
def test_version_2(name: str, numba: bool, made: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """What version 2 added decodes to what it was made of, by numba and by numpy alone; the file says its version."""
    if not numba:
        monkeypatch.setattr(_numba, "kernels", lambda *_: None)
    decoded = load(GOLDEN / f"{name}.dcz", raw=True)
    expected: dict[str, Any] = getattr(made, name.split("-")[1])()
    assert list(decoded) == list(expected)
    for one, tensor in expected.items():
        assert np.array_equal(decoded[one].bits, raw_of(one, tensor).bits), one
    assert inspect(GOLDEN / f"{name}.dcz")["format_version"] == 2


@pytest.mark.parametrize("coder", CODERS)
def test_is_written_again_byte_for_byte(
    coder: str, made: ModuleType, tensors: dict[str, RawTensor], tmp_path: Path
) -> None:
    """Today's writer makes the blobs of each golden file, byte for byte, where zlib is the one of that day, or smaller
    ones, of what it has learnt better forms for; by arithmetic code, ones of as many bytes at most."""
    if made.ZLIB != zlib.ZLIB_RUNTIME_VERSION:
        pytest.skip(f"the files were written with zlib {made.ZLIB}, here is {zlib.ZLIB_RUNTIME_VERSION}")
    path = tmp_path / "today.dcz"
    path.write_bytes(encode(tensors, coder))
    then = {name: blob for name, (_, blob) in blobs_of(GOLDEN / f"v1-{coder}.dcz").items()}
    today = {name: blob for name, (_, blob) in blobs_of(path).items()}
    assert {name for name in then if len(today[name]) < len(then[name])} == BETTER
    assert all(len(today[name]) <= len(then[name]) for name in then)
    assert coder == "adaptive" or {name for name in then if today[name] != then[name]} == BETTER


def test_edits(made: ModuleType) -> None:
    """A file with edits gives its tensors to who needs no edits, and these, in order, to who does; byte for byte."""
    path, expected = GOLDEN / "v1-edits.dcz", made.edited()
    decoded = load(path)
    assert list(decoded) == list(expected)
    for name, tensor in expected.items():
        assert decoded[name].dtype == tensor.dtype, name
        assert np.array_equal(decoded[name], tensor), name
    with File(path) as file:
        assert file.edits == [{**edit, "since": "0.2.0"} for edit in made.EDITS]
        again = encode(expected, "packed", metadata=file.metadata, edits=file.edits)
    assert again == encode(expected, "packed", metadata={"format": "pt"}, edits=made.EDITS) == path.read_bytes()


def test_every_method_has_a_golden_file() -> None:
    """No layout, type, kind of stream, of book, of mask or of array is without a golden file."""
    found: set[str] = set()
    for path in GOLDEN.glob("v1-*.dcz"):
        for entry, blob in blobs_of(path).values():
            found.add("equal" if entry.same_as is not None else entry.dtype)
            if blob:
                found.update(methods(entry, blob))
    every = set(DTYPES) | {"equal", "dense", "bitmap", "gaps", "flags", "raw", "deflated", "narrowed", "chunks"}
    every |= {"codebook", "codebooks", "grid", "grids", "mask 0", "mask 1", "mask 2", "packed", "huffman", "tuples"}
    every |= {"adaptive codes", "adaptive chunks", "neighbours 0", "neighbours 1", "neighbours 2", "deflated book"}
    every |= {"by row", "by group", *(f"context {v}" for v in range(4))}
    assert every <= found, every - found


def test_every_form_of_version_2_has_a_golden_file() -> None:
    """No part of version 2 is without a golden file: channels, -0.0, each kind of tile, each coding of a plane."""
    found: set[str] = set()
    for path in GOLDEN.glob("v2-*.dcz"):
        for entry, blob in blobs_of(path).values():
            head, _ = read_head(Cursor(blob, "w"), entry.dtype, entry.elements)
            kinds = layout(blob, entry.dtype, entry.elements)[0].split("+")
            found.update(kinds)
            found |= {f"plane {plane.coding} {plane.context}" for plane in head.planes}
            if head.tiles is not None:
                found |= {f"{kinds[0]} {kinds[2]}", f"{kinds[1]} {kinds[2]}", f"codes {head.code_context}"}
                found.add("turned" if head.tiles.height > 1 else "in rows")
            if head.book is not None and head.book.groups.channels > 1:
                found.add("low bits by channel" if head.low else "")
                found |= {"channels", "parts of channels" if head.book.groups.count(entry.elements) > 64 else "whole"}
            if head.book is not None and head.book.negative_zero:
                found.add("-0.0 sparse" if head.book.skips_zero else "-0.0 dense")
    every = {"channels", "parts of channels", "whole", "-0.0 sparse", "-0.0 dense", "turned", "in rows", "planes"}
    every |= {f"{where} blocks" for where in ("bitmap", "gaps", "flags", "planes", "codebook", "grid", "grids")}
    every |= {f"{where} patterns" for where in ("bitmap", "flags", "planes", "codebook", "grid")}
    every |= {
        "low bits by channel",
        "plane 0 0",
        "plane 1 0",
        "plane 2 0",
        "plane 3 0",
        "plane 3 3",
        "codes 0",
        "codes 3",
    }
    assert every <= found, every - found


def methods(entry: Entry, blob: bytes) -> set[str]:
    """The names of what a blob makes use of."""
    head, _ = read_head(Cursor(blob, "w"), entry.dtype, entry.elements)
    found = {*layout(blob, entry.dtype, entry.elements)[0].split("+")}
    if head.kept > head.chunk:
        found.add("adaptive chunks" if head.arithmetic else "chunks")
    if head.stored not in ("", entry.dtype):
        found.add("narrowed")
    if head.adaptive:
        found |= {"adaptive codes", f"context {head.context >> 2}"}
    if head.positions == decoder.FLAGS:
        found.add(f"neighbours {head.context & 3}")
    if head.book is not None and head.book.groups:
        found.add("by row" if entry.elements // head.book.groups.size == entry.shape[0] else "by group")
    for stream in (head.position_stream, head.code_stream):
        if stream is not None and stream.k > 1:
            found.add("packed" if stream.lengths is None else "huffman")
            if stream.tuple_size > 1:
                found.add("tuples")
    return found | read_parts(entry, blob)


def read_parts(entry: Entry, blob: bytes) -> set[str]:
    """The kinds of masks, and whether the book is deflated."""
    found: set[str] = set()

    class Watched(Cursor):
        def take(self, count: int, what: str) -> memoryview:
            taken = super().take(count, what)
            if what == "a mask" and count == 1 and len(found & {"mask 0", "mask 1", "mask 2"}) < 3:
                found.add(f"mask {taken[0]}")
            if what == "deflated values":
                found.add("deflated book")
            return taken

    read_head(Watched(blob, "w"), entry.dtype, entry.elements)
    return found
