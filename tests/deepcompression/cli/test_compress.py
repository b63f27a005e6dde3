"""`dcz compress` on files as people have them: what it says, what it writes, how it ends when stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deepcompression.cli import main

HUFFMAN = ("--coder", "huffman")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A checkpoint of two convolutions and a linear layer."""
    random = np.random.default_rng(0)
    shapes = {"conv1.weight": (8, 3, 7, 7), "conv2.weight": (32, 8, 3, 3), "fc.weight": (40, 64), "fc.bias": (40,)}
    state = {name: random.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    return tmp_path / "model.safetensors"


def dcz(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `dcz` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["dcz", *map(str, arguments)])
    try:
        main.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_compress_and_decode(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What was spared is listed with the reason; the outcome decodes, in the types that it had, metadata too."""
    small, again = model.with_name("small.dcz"), model.with_name("again.safetensors")
    assert dcz(monkeypatch, "compress", model, small, "--density", 0.25, "--bits", 2, *HUFFMAN) == 0
    said = capsys.readouterr().out
    assert "4 bits (takes 3 channels: the first layer): conv1.weight" in said
    assert "density 0.25, 2 bits: conv2.weight" in said
    assert "kept (a vector or a single number, as biases and normalisation are): fc.bias" in said
    assert "x smaller than" in said
    assert dcz(monkeypatch, "decode", small, again) == 0
    found, before = load_file(again), load_file(model)
    assert {name: one.dtype for name, one in found.items()} == {name: one.dtype for name, one in before.items()}
    assert np.count_nonzero(found["conv2.weight"]) == 32 * 8 * 9 // 4
    assert np.array_equal(found["fc.bias"], before["fc.bias"])


def test_plan_and_json(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--dry-run writes nothing; --json has each tensor."""
    assert dcz(monkeypatch, "compress", model, "--no-spare", "--keep", "fc.*", "--dry-run", "--json") == 0
    told = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert told["conv2.weight"]["treatment"] == "6 bits"
    assert told["fc.weight"]["treatment"] == "kept" and "keep fc.*" in told["fc.weight"]["why"]
    assert [path.name for path in model.parent.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--density", "0"), "density 0 is impossible; expected a fraction of the weights, above 0, up to 1"),
        (("--bits", "40"), "bits 40 is impossible; expected a whole number from 1 to 12"),
        (("--per", "rows"), "per 'rows' is not known; expected tensor, row or group:N"),
        (("--keep", "nothing*"), "keep 'nothing*' matches no tensor; there are"),
        (("--coder", "zip"), "coder is one of"),
        (("--key", "state_dict"), "--key and --merge-masks are for torch checkpoints"),
    ],
)
def test_bad_arguments_are_one_line(
    model: Path,
    options: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit code 2, one line, nothing written."""
    assert dcz(monkeypatch, "compress", model, model.with_name("x.dcz"), *options) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert [path.name for path in model.parent.iterdir()] == ["model.safetensors"]


def test_input_is_never_overwritten(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """OUT called like weights is refused; a link to IN is replaced, IN stays."""
    before = model.read_bytes()
    assert dcz(monkeypatch, "compress", model, model) == 2
    assert "would be overwritten" in capsys.readouterr().err
    link = model.with_name("link.dcz")
    link.symlink_to(model)
    assert dcz(monkeypatch, "compress", model, link, *HUFFMAN) == 0
    assert model.read_bytes() == before and not link.is_symlink()


def test_stopped_work_says_where_it_goes_on(tmp_path: Path) -> None:
    """Ctrl-C keeps what is finished and says so; nothing lies under the final name."""
    random = np.random.default_rng(0)
    save_file({f"{i}.weight": random.normal(size=(64, 64)) for i in range(300)}, tmp_path / "model.safetensors")
    command = [sys.executable, "-m", "deepcompression.cli", "compress", "model.safetensors", "x.dcz", "--bits", "2"]
    child = subprocess.Popen(
        [*command, *HUFFMAN], cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ, "TERM": "dumb"}
    )
    while not list(tmp_path.glob("x.dcz.unfinished/*.tensor")) and child.poll() is None:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "what is finished is kept in x.dcz.unfinished, and the same command goes on from there" in said
    assert "nothing was left behind" not in said
    assert not (tmp_path / "x.dcz").exists() and list(tmp_path.glob("x.dcz.unfinished/*.tensor"))
