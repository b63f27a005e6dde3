from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import deepcompression
from deepcompression import cli
from deepcompression.errors import InputError
from deepcompression.io import RawTensor
from deepcompression.tensorfile import read, write


def dcz(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `dcz` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["dcz", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.safetensors"
    weights = np.where(np.arange(6000) % 11 == 0, np.arange(6000) % 5, 0).astype(np.float32).reshape(60, 100)
    save_file({"fc.weight": weights, "fc.bias": np.ones(60, np.float16), "steps": np.array(7)}, path)
    return path


@pytest.mark.parametrize("coder", ["packed", "huffman"])
def test_there_and_back(source: Path, monkeypatch: pytest.MonkeyPatch, coder: str) -> None:
    """encode, verify and decode give the same names, dtypes, shapes and values to safetensors' own reader."""
    packed, back = source.with_name("a.dcz"), source.with_name("back.safetensors")
    assert dcz(monkeypatch, "encode", source, packed, "--coder", coder) == 0
    assert dcz(monkeypatch, "verify", packed) == 0
    assert dcz(monkeypatch, "decode", packed, back) == 0
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert np.array_equal(before[name], after[name])
    assert packed.stat().st_size < source.stat().st_size / 10
    assert deepcompression.inspect(packed)["coder"] == coder


def test_types_that_numpy_lacks_survive(tmp_path: Path) -> None:
    """bfloat16 and float8 written by torch's safetensors come back to it bit for bit."""
    torch = pytest.importorskip("torch")
    from safetensors import torch as theirs

    names = ["bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64", "bool", "uint16"]
    tensors = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in names}
    theirs.save_file(tensors, tmp_path / "a.safetensors")
    deepcompression.save(read(tmp_path / "a.safetensors"), tmp_path / "a.dcz")
    write(deepcompression.load(tmp_path / "a.dcz", raw=True), tmp_path / "b.safetensors")
    back = theirs.load_file(tmp_path / "b.safetensors")
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name].view(torch.uint8), tensor.view(torch.uint8))


def test_order_is_that_of_the_file(source: Path) -> None:
    """Tensors are read in the header's order, not in one that changes with the process."""
    content = source.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(read(source)) == [name for name in header if name != "__metadata__"]


def test_inspect_json(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints JSON alone, with the fields that other programs rely on."""
    dcz(monkeypatch, "encode", source, source.with_name("a.dcz"))
    capsys.readouterr()
    assert dcz(monkeypatch, "inspect", source.with_name("a.dcz"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert {"format_version", "file_bytes", "dense_bytes", "ratio", "coder", "tensors"} <= report.keys()
    fields = {
        "name",
        "dtype",
        "shape",
        "density",
        "distinct",
        "bytes",
        "values",
        "positions",
        "codebook",
        "table",
    }
    assert all(fields | {"entropy_bytes"} <= tensor.keys() for tensor in report["tensors"])


def test_inspect_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The table shows each tensor whatever it is called: brackets in a name are no markup."""
    deepcompression.save({"[red]w": np.eye(3), "tied": np.eye(3)}, tmp_path / "a.dcz")
    assert dcz(monkeypatch, "inspect", tmp_path / "a.dcz") == 0
    out = capsys.readouterr().out
    assert "[red]w" in out
    assert "same as [red]w" in out
    assert f"{(tmp_path / 'a.dcz').stat().st_size} bytes" in out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["verify", "nope.dcz"], 2),
        (["verify", "."], 2),
        (["verify", "in.safetensors"], 2),
        (["inspect", "cut.dcz", "--json"], 2),
        (["decode", "cut.dcz", "out.safetensors"], 2),
        (["decode", "good.dcz", "out.safetensors", "--max-bytes", "10"], 2),
        (["encode", "good.dcz", "out.dcz"], 2),
        (["encode", "nope.safetensors", "out.dcz"], 2),
        (["encode", "in.safetensors", "out.dcz", "--coder", "zip"], 2),
        (["decode", "reserved.dcz", "out.safetensors"], 2),
        (["encode", "in.safetensors", "no/such/folder/out.dcz"], 1),
        (["decode", "good.dcz", "no/such/folder/out.safetensors"], 1),
    ],
)
def test_bad_input(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
) -> None:
    """Wrong input is one line on stderr and exit code 2, a failed write 1; nothing is left behind."""
    monkeypatch.chdir(source.parent)
    deepcompression.save(read(source), "good.dcz")
    deepcompression.save({"__metadata__": np.ones(2)}, "reserved.dcz")
    Path("cut.dcz").write_bytes(Path("good.dcz").read_bytes()[:-5])
    before = sorted(source.parent.iterdir())
    assert dcz(monkeypatch, *arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dcz: ")
    assert err.count("\n") == 1
    assert sorted(source.parent.iterdir()) == before


def test_usage_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An unknown command is exit code 2 too, without a traceback."""
    assert dcz(monkeypatch, "frobnicate") == 2
    assert "frobnicate" in capsys.readouterr().err


def test_types_have_safetensors_names(tmp_path: Path) -> None:
    """A raw tensor's type is written under safetensors' name for it, so that others read it."""
    write({"w": RawTensor(np.zeros(2, np.uint8), "float8_e8m0fnu")}, tmp_path / "a.safetensors")
    assert b'"F8_E8M0"' in (tmp_path / "a.safetensors").read_bytes()


def test_unknown_type_is_refused(tmp_path: Path) -> None:
    """Types of less than a byte are refused with the tensor's name."""
    header = json.dumps({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    with pytest.raises(InputError, match="w: dtype F4 cannot be stored"):
        read(tmp_path / "a.safetensors")


def test_module_runs() -> None:
    """`python -m deepcompression.cli --help` works in a fresh process and lists the four verbs."""
    done = subprocess.run(
        [sys.executable, "-m", "deepcompression.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert all(verb in done.stdout for verb in ("encode", "decode", "verify", "inspect"))
