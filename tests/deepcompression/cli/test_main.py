from __future__ import annotations

import fcntl
import gzip
import io
import json
import os
import pickle
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import deepcompression
from deepcompression.cli import main, show, terminal
from deepcompression.codec.dtypes import RawTensor
from deepcompression.formats.safetensors import TensorFile, read, write

FOREIGN = ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2", "float64", "bool", "uint8", "int64"]
PARTS = {"bytes", "values", "positions", "codebook", "table"}
COLUMNS = [column.title for column in show.COLUMNS]


def dcz(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `dcz` in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["dcz", *map(str, arguments)])
    try:
        main.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def process(*arguments: object, before: str = "pass", **environment: str) -> subprocess.Popen[str]:
    """Start `dcz` in a process of its own, behind the statements `before`."""
    code = f"import sys; {before}; from deepcompression.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DEEPCOMPRESSION_THREADS": "1", **environment},
    )


# Compiling for the first time may take longer than a bar waits, and what is looked at is not the bar.
PATIENT = "from deepcompression.cli import main, terminal; terminal.PATIENCE = 600; raise SystemExit(main.main())"


def on_terminal(columns: int, *arguments: object, **environment: str) -> str:
    """What `dcz` prints on a terminal of so many columns, escape sequences and all."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    clean = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen(
        [sys.executable, "-c", PATIENT, *map(str, arguments)],
        stdout=theirs,
        stderr=theirs,
        env={**clean, "TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    printed = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        printed += part
    assert child.wait() == 0
    os.close(ours)
    return printed.decode()


def controls(text: str) -> set[str]:
    """The control characters in a text, line ends aside."""
    return {c for c in text if unicodedata.category(c) == "Cc" and c != "\n"}


@pytest.fixture(autouse=True)
def _no_word_on_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a fresh clone some test of this process is the first to compile; what is said of it has a test of its own."""
    monkeypatch.setattr(main, "compiled", lambda: (0.0, False))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A .safetensors file of a pruned, shared matrix, float16 and a scalar."""
    path = tmp_path / "in.safetensors"
    weights = np.where(np.arange(1500) % 11 == 0, np.arange(1500) % 5, 0).astype(np.float32).reshape(15, 100)
    save_file({"fc.weight": weights, "fc.bias": np.ones(15, np.float16), "steps": np.array(7)}, path)
    return path


@pytest.fixture
def packed(source: Path, tmp_path: Path) -> Path:
    """The same tensors as .dcz."""
    deepcompression.save(read(source), tmp_path / "good.dcz")
    return tmp_path / "good.dcz"


@pytest.fixture
def flagged(tmp_path: Path) -> Path:
    """A .dcz with a tensor whose flags and codes are one arithmetic code, and one that equals it."""
    random = np.random.default_rng(0)
    weights = (random.integers(1, 8, 20_000) * (random.random(20_000) < 0.1)).astype(np.float32).reshape(100, 200)
    deepcompression.save({"w": weights, "tied": weights}, tmp_path / "flagged.dcz", coder="adaptive")
    return tmp_path / "flagged.dcz"


# ---------------------------------------------------------------- there and back


@pytest.mark.parametrize("coder", deepcompression.codec.file.CODERS)
def test_there_and_back(source: Path, monkeypatch: pytest.MonkeyPatch, coder: str) -> None:
    """encode, verify and decode give the same names, dtypes, shapes and values to safetensors' own reader."""
    packed, back = source.with_name("a.dcz"), source.with_name("back.safetensors")
    assert dcz(monkeypatch, "encode", source, packed, "--coder", coder, "--threads", 2) == 0
    assert dcz(monkeypatch, "verify", packed) == 0
    assert dcz(monkeypatch, "decode", packed, back) == 0
    before, after = load_file(source), load_file(back)
    assert before.keys() == after.keys()
    for name in before:
        assert before[name].dtype == after[name].dtype
        assert np.array_equal(before[name], after[name])
    assert packed.stat().st_size < source.stat().st_size / 10
    assert deepcompression.inspect(packed)["coder"] == coder


@pytest.mark.parametrize("kind", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_types_that_numpy_lacks_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Files of torch and of its safetensors come back to it bit for bit, bfloat16 and float8 among them."""
    torch = pytest.importorskip("torch")
    from safetensors import torch as theirs

    tensors = {name: torch.arange(6).reshape(2, 3).to(getattr(torch, name)) for name in FOREIGN}
    tensors |= {"nan": torch.tensor([float("nan"), -0.0]), "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5)}
    if kind == ".safetensors":
        theirs.save_file(tensors, tmp_path / "a.safetensors")
    else:
        tensors["turned"] = torch.arange(12.0).reshape(3, 4).T
        torch.save(tensors, tmp_path / f"a{kind}")
    assert dcz(monkeypatch, "encode", tmp_path / f"a{kind}", tmp_path / "a.dcz") == 0
    assert dcz(monkeypatch, "decode", tmp_path / "a.dcz", tmp_path / f"b{kind}") == 0
    path = tmp_path / f"b{kind}"
    back = theirs.load_file(path) if kind == ".safetensors" else torch.load(path, weights_only=True)
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        plain = tensor.contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(back[name].reshape(-1).view(torch.uint8), plain)


def test_encode_says_what_it_did(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line has both sizes; a file that became larger is not called smaller."""
    target = source.with_name("a.dcz")
    assert dcz(monkeypatch, "encode", source, target) == 0
    after, before = target.stat().st_size, source.stat().st_size
    expected = f"{target}: {after:,} bytes, {before / after:.2f}x smaller than {source} ({before:,} bytes)\n"
    assert capsys.readouterr() == (expected, "")
    main._say_encoded("a", 120, "b", 100)
    assert "120 bytes, 1.20x larger than b" in capsys.readouterr().out


def test_a_checkpoint_counts_what_is_encoded_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The optimizer's state beside the weights is no gain of the encoding, with --key or without, by any coder."""
    torch = pytest.importorskip("torch")
    weights = {"w": torch.arange(5000, dtype=torch.float32)}
    torch.save({"state_dict": weights, "optimizer": {"m": torch.zeros(50_000)}}, tmp_path / "all.pt")
    assert dcz(monkeypatch, "encode", tmp_path / "all.pt", tmp_path / "a.dcz", "--key", "state_dict") == 0
    assert f"smaller than the tensors of {tmp_path / 'all.pt'} (20,000 bytes)" in capsys.readouterr().out
    assert dcz(monkeypatch, "encode", tmp_path / "all.pt", "--key", "state_dict", "--coder", "all", "--dry-run") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "x " in line]
    assert rows and all(abs(20_000 / int(row[1].replace(",", "")) - float(row[2].rstrip("x"))) < 0.01 for row in rows)


def test_dry_run_writes_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--dry-run needs no target, leaves none behind, and foretells the size to the byte."""
    before = sorted(source.parent.iterdir())
    assert dcz(monkeypatch, "encode", source, source.with_name("a.dcz"), "--dry-run", "--coder", "adaptive") == 0
    assert dcz(monkeypatch, "encode", source, "--dry-run", "--coder", "adaptive") == 0
    out = capsys.readouterr().out
    assert sorted(source.parent.iterdir()) == before
    size = deepcompression.save(read(source), source.with_name("a.dcz"), coder="adaptive")
    assert out.count(f": {size:,} bytes would be written, ") == 2


def test_coders_are_compared(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--coder all --dry-run is a table of what each coder gives, to the byte."""
    assert dcz(monkeypatch, "encode", source, "--coder", "all", "--dry-run") == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines()[2:]}
    assert list(rows) == list(deepcompression.codec.file.CODERS)
    for coder, (size, ratio, _) in rows.items():
        actual = len(deepcompression.codec.file.encode(read(source), coder))
        assert (size, ratio) == (f"{actual:,}", f"{source.stat().st_size / actual:.2f}x")


@pytest.mark.parametrize("kind", [".safetensors", ".pt"])
def test_some_tensors_alone(packed: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """--name, repeated, takes these tensors and no others."""
    target = packed.with_name(f"some{kind}")
    if kind == ".pt":
        torch = pytest.importorskip("torch")
    assert dcz(monkeypatch, "decode", packed, target, "--name", "steps", "--name", "fc.bias") == 0
    back = torch.load(target, weights_only=True) if kind == ".pt" else load_file(target)
    assert back.keys() == {"steps", "fc.bias"}
    assert int(back["steps"]) == 7


def test_verify_says_what_is_sound(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line counts tensors and bytes, decoded and in the file."""
    assert dcz(monkeypatch, "verify", packed) == 0
    size = packed.stat().st_size
    assert capsys.readouterr() == (f"{packed}: sound: 3 tensors, 6,038 bytes in a file of {size}\n", "")


# ---------------------------------------------------------------- torch's checkpoints


def test_nested_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--key finds a state_dict inside; without it the error names option and key; a wrong one, what is known."""
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 3, "state_dict": {"w": torch.eye(4)}}, "a.pt")
    assert dcz(monkeypatch, "encode", "a.pt", "a.dcz", "--key", "state_dict") == 0
    assert np.array_equal(deepcompression.load("a.dcz")["w"], np.eye(4))
    capsys.readouterr()
    assert dcz(monkeypatch, "encode", "a.pt", "b.dcz") == 2
    assert "set --key, perhaps to state_dict" in capsys.readouterr().err
    assert dcz(monkeypatch, "encode", "a.pt", "b.dcz", "--key", "model") == 2
    assert "no key 'model'; the file has epoch, state_dict" in capsys.readouterr().err
    assert not Path("b.dcz").exists()


def test_masks_of_torchs_pruning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs of weight and mask are kept as they are, with a word about it; --merge-masks makes one pruned weight."""
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    mask = torch.tensor([1.0, 0.0, 1.0])
    torch.save({"fc.weight_orig": torch.ones(3), "fc.weight_mask": mask}, "a.pt")
    assert dcz(monkeypatch, "encode", "a.pt", "a.dcz") == 0
    assert set(deepcompression.load("a.dcz")) == {"fc.weight_orig", "fc.weight_mask"}
    err = capsys.readouterr().err
    assert "--merge-masks" in err and err.count("\n") == 1
    assert dcz(monkeypatch, "encode", "a.pt", "a.dcz", "--merge-masks") == 0
    assert deepcompression.load("a.dcz")["fc.weight"].tolist() == [1, 0, 1]
    assert capsys.readouterr().err == ""


class _Evil:
    """A pickle that would make a file when it is loaded."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize("kind", ["pickle", "torch", "damaged"])
def test_code_in_a_checkpoint_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """A pickle with code is refused and nothing of it runs; a damaged checkpoint is one line too."""
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    if kind == "torch":
        torch.save({"w": torch.ones(1), "x": _Evil()}, "a.pt")
    else:
        Path("a.pt").write_bytes(pickle.dumps(_Evil()) if kind == "pickle" else b"PK\3\4 and no more")
    assert dcz(monkeypatch, "encode", "a.pt", "a.dcz") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(("dcz: weights a.pt: ", "dcz: a.pt: ")) and err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == ["a.pt"]


@pytest.mark.parametrize("verb", ["encode", "decode"])
def test_without_torch(packed: Path, verb: str) -> None:
    """Where torch is not installed, its checkpoints are one line that says what to install, and exit code 1."""
    packed.with_name("a.pt").write_bytes(b"\x80\x02")
    paths = (packed.with_name("a.pt"), packed.with_name("b.dcz"))
    arguments = paths if verb == "encode" else (packed, packed.with_name("b.pt"))
    child = process(verb, *arguments, before="sys.modules['torch'] = None")
    out, err = child.communicate()
    assert (child.returncode, out) == (1, "")
    assert "pip install torch" in err and err.count("\n") == 1
    assert not packed.with_name("b.dcz").exists() and not packed.with_name("b.pt").exists()


def test_torch_cannot_write(packed: Path) -> None:
    """A checkpoint that does not fit on the disk is one line, exit code 1, and nothing is left."""
    pytest.importorskip("torch")
    before = sorted(packed.parent.iterdir())
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))"
    child = process("decode", packed, packed.with_name("a.pt"), before=limit)
    out, err = child.communicate()
    assert (child.returncode, out) == (1, "")
    assert "a.pt: cannot be written" in err and err.count("\n") == 1
    assert sorted(packed.parent.iterdir()) == before


# ---------------------------------------------------------------- inspect


def test_inspect_json(flagged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--json prints JSON alone, with the fields that other programs rely on."""
    assert dcz(monkeypatch, "inspect", flagged, "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == ""
    fields = {
        "format_version",
        "file_bytes",
        "dense_bytes",
        "ratio",
        "coder",
        "header_bytes",
        "metadata",
        "edits",
        "tensors",
    }
    assert fields == report.keys()
    each = {"name", "dtype", "shape", "density", "distinct", "bytes", "values", "positions", "codebook", "table"}
    each |= {"entropy_bytes", "method", "coder", "same_as"}
    assert all(each <= tensor.keys() for tensor in report["tensors"])
    w = report["tensors"][0]
    assert w["method"].startswith("flags") and w["positions"] > 100 < w["values"]


def test_inspect_is_exact_on_large_tensors(tmp_path: Path) -> None:
    """Density, distinct values and entropy are exact where a tensor is larger than what is counted at a time."""
    random = np.random.default_rng(0)
    count = (2 << 20) + 5
    wide = random.normal(size=count).astype(np.float32) * (random.random(count) < 0.9)
    few = random.integers(0, 5, count).astype(np.uint16)
    tensors = {"wide": wide.astype(np.float32), "one": np.full(3, 7.0), "few": RawTensor(few, "bfloat16")}
    deepcompression.save(tensors, tmp_path / "a.dcz", coder="packed")
    reports = {one["name"]: one for one in deepcompression.inspect(tmp_path / "a.dcz")["tensors"]}
    for name, bits in {"wide": tensors["wide"].view(np.uint32), "few": few, "one": np.full(3, 7)}.items():
        counts = np.unique(bits, return_counts=True)[1]
        zeros = int((bits == 0).sum())
        entropy = float((counts * np.log2(bits.size / counts)).sum()) / 8
        assert reports[name]["density"] == 1 - zeros / bits.size
        assert reports[name]["distinct"] == len(counts) - (zeros > 0)
        assert reports[name]["entropy_bytes"] == pytest.approx(entropy, rel=1e-9, abs=1e-9)


def test_inspect_table(packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a pipe the table has every column, each tensor in one line, and totals that add up."""
    assert dcz(monkeypatch, "inspect", packed) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", lines[0]) == ["tensor", *COLUMNS]
    report = deepcompression.inspect(packed)
    assert [line.split()[0] for line in lines[2:5]] == [one["name"] for one in report["tensors"]]
    sums = [sum(one[part] for one in report["tensors"]) for part in ("bytes", *show.PARTS)]
    assert lines[6].split()[3:8] == [f"{n:,}" for n in sums]
    last = f"{packed}: format version 1, huffman, {report['file_bytes']:,} bytes ({report['header_bytes']:,} header), "
    assert lines[7] == f"{last}{report['dense_bytes']:,} dense, {report['ratio']:.2f}x"
    assert not any(line.endswith(" ") for line in lines)


def test_inspect_parts_one_code_for_flags_and_values(
    flagged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an arithmetic code both parts are told, which add up; equal tensors cost nothing."""
    assert dcz(monkeypatch, "inspect", flagged) == 0
    lines = capsys.readouterr().out.splitlines()
    w, tied = (re.split(r"  +", line)[1:] for line in lines[2:4])
    row = {title: int(cell.replace(",", "")) for title, cell in zip(COLUMNS, w, strict=True) if title in PARTS}
    assert row["positions"] > 0 < row["values"] and row["bytes"] == sum(row.values()) - row["bytes"]
    assert dict(zip(COLUMNS, tied, strict=True))["bytes"] == "0"
    assert lines[3].startswith("tied (same as w)")


def test_baselines(flagged: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--baselines compresses the tensors' own bytes, equal ones once, and says so in JSON too."""
    zstandard = pytest.importorskip("zstandard")
    assert dcz(monkeypatch, "inspect", flagged, "--baselines", "--json") == 0
    found = json.loads(capsys.readouterr().out)["baselines"]
    dense = deepcompression.load(flagged)["w"].tobytes()
    zstd = len(zstandard.ZstdCompressor(level=19).compress(dense))
    assert found == {
        "dense": 80_000,
        "gzip -9": len(gzip.compress(dense, 9)),
        "zstd -19": pytest.approx(zstd, abs=8),
        "dcz": flagged.stat().st_size,
    }
    assert dcz(monkeypatch, "inspect", flagged, "--baselines") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].split() == ["dcz", f"{found['dcz']:,}", f"{80_000 / found['dcz']:.2f}x"]


def test_baselines_without_zstd(
    packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no zstd is installed its line says how to get it, and JSON has null."""
    monkeypatch.setattr(show, "_zstd", lambda size: None)
    assert dcz(monkeypatch, "inspect", packed, "--baselines") == 0
    assert "pip install zstandard" in capsys.readouterr().out
    assert dcz(monkeypatch, "inspect", packed, "--baselines", "--json") == 0
    found = json.loads(capsys.readouterr().out)["baselines"]
    assert found["zstd -19"] is None and 0 < found["xz -9"] < found["dense"]


def test_zstd_takes_long(packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Beyond some size the user is told beforehand that it takes minutes."""
    monkeypatch.setattr(main, "SLOW_ZSTD", 1000)
    assert dcz(monkeypatch, "inspect", packed, "--baselines") == 0
    assert capsys.readouterr().err == "dcz: zstd -19 takes minutes for 6,038 bytes; Ctrl-C stops it\n"


def test_names_cannot_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control characters in a name are shown escaped, in tables, in errors and in JSON; brackets are no markup."""
    name = "[red]w\x1b]0;owned\x07\n\x9b2J"
    deepcompression.save({name: np.eye(3), "tied": np.eye(3)}, tmp_path / "a.dcz")
    assert dcz(monkeypatch, "inspect", tmp_path / "a.dcz") == 0
    assert dcz(monkeypatch, "inspect", tmp_path / "a.dcz", "--json") == 0
    assert dcz(monkeypatch, "decode", tmp_path / "a.dcz", tmp_path / "b.safetensors", "--name", "[red]w") == 2
    out, err = capsys.readouterr()
    assert not controls(out + err)
    assert re.split("  +", out.splitlines()[2])[:2] == [r"[red]w\x1b]0;owned\x07\n\x9b2J", "float64"]


@pytest.mark.parametrize("columns", [40, 80, 120, 300])
def test_terminal_widths(flagged: Path, columns: int) -> None:
    """No line is wider than the terminal; columns without room are named; the most telling ones are always there."""
    printed = re.sub(r"\x1b\[[0-9;]*m", "", on_terminal(columns, "inspect", flagged)).replace("\r\n", "\n")
    assert not controls(printed)
    lines = printed.splitlines()
    assert max(map(len, lines)) <= columns
    shown = re.split(r"  +", lines[0].rstrip())
    assert {"tensor", "bytes", "density"} <= set(shown)
    hidden = [column for column in COLUMNS if column not in shown]
    assert not hidden or f"no room for {', '.join(hidden)}:" in " ".join(printed.split())
    assert bool(hidden) == (columns < 150)


def test_no_color(flagged: Path) -> None:
    """NO_COLOR leaves no colour; progress of quick work leaves no trace on the terminal."""
    assert not re.search(r"\x1b\[[0-9;]*(3|4|9)\dm", on_terminal(80, "inspect", flagged, NO_COLOR="1"))
    assert "\x1b" not in on_terminal(80, "verify", flagged)


# ---------------------------------------------------------------- while it works


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal, work that takes long shows what it does in bytes, and clears it away."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    with terminal.Bar("encoding", 2000) as bar:
        bar("a", 500)
        deadline = time.monotonic() + 60
        while "0.5/2.0 kB" not in sys.stderr.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
        bar("b", 1500)
    shown = sys.stderr.getvalue()
    assert "0.5/2.0 kB" in shown and "2.0/2.0 kB" in shown
    assert shown.endswith("\x1b[2K")


def test_bar_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Where stderr is no terminal nothing is shown, however long it takes."""
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    with terminal.Bar("encoding", 10) as bar:
        time.sleep(0.05)
        bar("a", 10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Ctrl-C and SIGTERM end it soon, with one line at most, and leave nothing behind."""
    weights = np.random.default_rng(0).integers(0, 9, 100_000).astype(np.float32)
    save_file({"w": weights.reshape(100, 1000)}, tmp_path / "a.safetensors")
    arguments = "encode", tmp_path / "a.safetensors", tmp_path / "a.dcz", "--coder", "adaptive"
    child = process(*arguments, DEEPCOMPRESSION_NO_NUMBA="1")  # takes long
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*.part")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(number)
    out, err = child.communicate(timeout=200)
    said = "dcz: interrupted; nothing was left behind\n" if code == 130 else ""
    assert (child.returncode, out, err) == (code, "", said)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_reader_that_leaves(packed: Path) -> None:
    """`dcz inspect | head` ends without a word when head has seen enough."""
    child = process("inspect", packed)
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert child.stderr.read() == ""
    child.stderr.close()
    assert child.wait() == 1


@pytest.mark.slow
def test_compiling_is_told(source: Path, tmp_path: Path) -> None:
    """The first use, which compiles, says so on stderr, and afterwards how long it took; the second one is silent."""
    pytest.importorskip("numba")
    weights = np.random.default_rng(0).integers(0, 8, 300_000).astype(np.float32).reshape(300, 1000)
    save_file({"w": weights}, source)
    arguments = "encode", source, tmp_path / "a.dcz", "--coder", "adaptive"
    first = process(*arguments, NUMBA_CACHE_DIR=str(tmp_path / "cache")).communicate()[1]
    assert re.fullmatch(
        r"dcz: compiling, once \.\.\.\ndcz: the fast path was compiled in \d+\.\d s and kept for next time\n", first
    )
    assert process(*arguments, NUMBA_CACHE_DIR=str(tmp_path / "cache")).communicate()[1] == ""


# ---------------------------------------------------------------- metadata, and what has no end


def test_metadata_goes_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """encode keeps it, inspect shows it, decode writes it, also with --name; what cannot keep it says so."""
    kept = {"format": "pt", "long": "x" * 300, "lines\n": "a\nb"}
    source, file, back = tmp_path / "a.safetensors", tmp_path / "a.dcz", tmp_path / "b.safetensors"
    save_file({"w": np.ones(4, np.float32), "v": np.zeros(2)}, source, metadata=kept)
    assert dcz(monkeypatch, "encode", source, file) == 0
    assert dcz(monkeypatch, "encode", source, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.count(f"{file.stat().st_size:,} bytes") == 2
    for wanted in ((), ("--name", "v")):
        assert dcz(monkeypatch, "decode", file, back, *wanted) == 0
        assert TensorFile(back).metadata == kept
    assert dcz(monkeypatch, "inspect", file) == 0
    out, err = capsys.readouterr()
    assert (
        "metadata format: pt\n" in out
        and r"metadata lines\n: a\nb" in out
        and "... (300 characters)\n" in out
        and not err
    )
    assert dcz(monkeypatch, "inspect", file, "--json") == 0
    assert json.loads(capsys.readouterr().out)["metadata"] == kept
    pytest.importorskip("torch")
    assert dcz(monkeypatch, "decode", file, tmp_path / "b.pt") == 0
    said = "a torch file has no place for metadata (format, lines\\n, long): NOT kept; .safetensors keeps it"
    assert said in capsys.readouterr().err


def test_edits_go_both_ways(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """decode writes them into the metadata, from where encode takes them; inspect shows them; torch files lose them."""
    edits = [{"kind": "bypass", "module": f"größe {i}\n"} for i in range(25)]
    file, back, again = tmp_path / "a.dcz", tmp_path / "b.safetensors", tmp_path / "c.dcz"
    deepcompression.save({"w": np.ones(4)}, file, metadata={"format": "pt"}, edits=edits)
    assert dcz(monkeypatch, "decode", file, back) == 0
    assert TensorFile(back).metadata.keys() == {"format", "deepcompression.edits"}
    assert dcz(monkeypatch, "encode", back, again) == 0
    assert again.read_bytes() == file.read_bytes()
    capsys.readouterr()
    assert dcz(monkeypatch, "encode", back, "--dry-run") == 0
    assert f" {file.stat().st_size:,} bytes would" in capsys.readouterr().out
    assert dcz(monkeypatch, "inspect", file) == 0
    out = capsys.readouterr().out
    assert 'edit bypass: {"since": "0.2.0", "module": "gr' in out or 'edit bypass: {"module": "gr' in out
    assert "edits: 5 more, all in --json" in out
    assert dcz(monkeypatch, "inspect", file, "--json") == 0
    assert [one["module"] for one in json.loads(capsys.readouterr().out)["edits"]] == [one["module"] for one in edits]
    save_file({"w": np.ones(4)}, back, metadata={"deepcompression.edits": "[]"})
    assert dcz(monkeypatch, "encode", back, again) == 2
    assert "b.safetensors: metadata deepcompression.edits: edits: no list of edits" in capsys.readouterr().err
    pytest.importorskip("torch")
    assert dcz(monkeypatch, "decode", file, tmp_path / "b.pt") == 0
    assert "a torch file has no place for edits (25), without which" in capsys.readouterr().err


def test_inspect_of_very_many_and_very_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file with more tensors than anybody reads, or names longer than a page, does not flood the terminal."""
    monkeypatch.setattr(show, "_MOST_ROWS", 5)
    deepcompression.save({f"{i}{'x' * 5000}": np.zeros(0) for i in range(9)}, tmp_path / "a.dcz")
    assert dcz(monkeypatch, "inspect", tmp_path / "a.dcz") == 0
    out = capsys.readouterr().out
    assert "the first 5 of 9 tensors; --json has all" in out and len(out) < 8000
    assert dcz(monkeypatch, "inspect", tmp_path / "a.dcz", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["tensors"]) == 9
    assert dcz(monkeypatch, "decode", tmp_path / "a.dcz", tmp_path / "b.pt", "--name", "y" * 9000) == 2
    assert len(capsys.readouterr().err) < 2100


def test_metadata_that_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is left out, loudly; one that is not valid Unicode makes the file invalid."""
    save_file({"w": np.ones(4)}, tmp_path / "a.safetensors", metadata={"k": "x" * (1 << 20)})
    assert dcz(monkeypatch, "encode", tmp_path / "a.safetensors", tmp_path / "a.dcz") == 0
    said = "its metadata takes 1,048,581 bytes and is NOT kept: a .dcz file has at most 1,048,576"
    assert said in capsys.readouterr().err
    assert deepcompression.inspect(tmp_path / "a.dcz")["metadata"] == {}
    text = rb'{"__metadata__": {"a": "\ud800"}}'
    (tmp_path / "b.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    assert dcz(monkeypatch, "encode", tmp_path / "b.safetensors", tmp_path / "b.dcz") == 2
    assert "b.safetensors: metadata: 'a' is not valid Unicode" in capsys.readouterr().err


def test_decode_is_bounded_by_the_sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hundred names of one tensor are written a hundred times: --max-bytes, or the disk, refuses before a byte is."""
    file = tmp_path / "a.dcz"
    deepcompression.save(dict.fromkeys(map(str, range(100)), np.ones(2_500, np.float32)), file)
    for verb in (("decode", file, tmp_path / "a.safetensors"), ("verify", file), ("inspect", file)):
        assert dcz(monkeypatch, *verb, "--max-bytes", 999_999) == 2
        assert "a.dcz: decodes to 1000000 bytes, allowed are 999999; --max-bytes allows more" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)._replace(free=999_999)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    for name in ("a.safetensors", "a.pt"):
        assert dcz(monkeypatch, "decode", file, tmp_path / name) == 2
        err = capsys.readouterr().err
        assert f"a.dcz: decodes to 1000000 bytes, and {tmp_path} has 999999 left" in err and err.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["a.dcz"]


def test_small_checkpoint_of_huge_expanded_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pickle of a few bytes that shows one number 2^50 times is refused before the numbers are made."""
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.zeros(1).expand(1 << 50)}, tmp_path / "a.pt")
    assert dcz(monkeypatch, "encode", tmp_path / "a.pt", tmp_path / "a.dcz") == 2
    err = capsys.readouterr().err
    assert (
        f"a.pt: its expanded tensors take {1 << 52} bytes, allowed is half of the memory" in err
        and err.count("\n") == 1
    )


# ---------------------------------------------------------------- what is wrong


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["verify", "nope.dcz"], 2, "nope.dcz: cannot be read: No such file"),
        (["verify", "."], 2, "cannot be read: Is a directory"),
        (["verify", "pipe"], 2, "pipe: cannot be read: it is no ordinary file"),
        (["inspect", "/dev/zero"], 2, "/dev/zero: cannot be read: it is no ordinary file"),
        (["decode", "round", "out.safetensors"], 2, "round: cannot be read: Too many levels of symbolic links"),
        (["encode", "pipe.safetensors", "out.dcz"], 2, "pipe.safetensors: cannot be read: it is no ordinary file"),
        (["encode", "pipe.pt", "out.dcz"], 2, "pipe.pt: cannot be read: it is no ordinary file"),
        (["encode", "empty.pt", "out.dcz"], 2, "empty.pt: is empty; it was perhaps not copied"),
        (["encode", "in.safetensors", "pipe"], 1, "pipe: cannot be written: it is no ordinary file"),
        (["encode", "in.safetensors", "."], 1, "cannot be written: Is a directory"),
        (["decode", "good.dcz", "pipe.pt"], 1, "pipe.pt: cannot be written: it is no ordinary file"),
        (["verify", "in.safetensors"], 2, "not a .dcz file"),
        (["verify", "page.dcz"], 2, "page.dcz: not a .dcz file: it is a web page (HTML), not weights"),
        (["encode", "noname", "noname"], 2, "noname: would be overwritten by a .dcz file"),
        (["verify", "empty.dcz"], 2, "not a .dcz file"),
        (["verify", "damaged.dcz"], 2, "damaged.dcz: fc.bias: its checksum does not match"),
        (["verify", "good.dcz", "--max-bytes", "10"], 2, "--max-bytes allows more"),
        (["inspect", "cut.dcz", "--json"], 2, "cut.dcz: the file has"),
        (["inspect", "damaged.dcz"], 2, "checksum"),
        (["inspect", "good.dcz", "--max-bytes", "10"], 2, "allowed are 10"),
        (["inspect", "good.dcz", "--baselines", "--max-bytes", "10"], 2, "allowed are 10"),
        (["decode", "cut.dcz", "out.safetensors"], 2, "cut.dcz: the file has"),
        (["decode", "damaged.dcz", "out.safetensors"], 2, "damaged.dcz: fc.bias: its checksum"),
        (["decode", "damaged.dcz", "out.pt"], 2, "damaged.dcz: fc.bias: its checksum"),
        (["decode", "good.dcz", "out.safetensors", "--max-bytes", "10"], 2, "--max-bytes allows more"),
        (["decode", "good.dcz", "out.pt", "--max-bytes", "6037"], 2, "decodes to 6038 bytes"),
        (["decode", "good.dcz", "out.safetensors", "--name", "fc.wait"], 2, "'fc.wait'; there are fc.weight"),
        (["decode", "good.dcz", "out.npz"], 2, "out.npz: OUT ends in .safetensors"),
        (["decode", "reserved.dcz", "out.safetensors"], 2, "__metadata__"),
        (["decode", "good.dcz", "no/such/folder/out.safetensors"], 1, "cannot be written: No such file"),
        (["decode", "good.dcz", "no/such/folder/out.pt"], 1, "cannot be written: No such file"),
        (["encode", "good.dcz", "out.dcz"], 2, "good.dcz: is a .dcz file already"),
        (["encode", "nope.safetensors", "out.dcz"], 2, "nope.safetensors: no such file"),
        (["encode", "nope.pt", "out.dcz"], 2, "no such file"),
        (["encode", "in.safetensors", "out.dcz", "--coder", "zip"], 2, "packed, huffman, adaptive, auto, not 'zip'"),
        (["encode", "in.safetensors", "--dry-run", "--coder", "zip"], 2, "not 'zip'"),
        (["encode", "in.safetensors", "out.dcz", "--coder", "all"], 2, "choose packed, huffman, adaptive or auto"),
        (["encode", "in.safetensors"], 2, "OUT.dcz is missing"),
        (["encode", "in.safetensors", "out.safetensors"], 2, "would be overwritten by a .dcz file"),
        (["encode", "in.safetensors", "out.dcz", "--key", "model"], 2, "are for torch checkpoints"),
        (["encode", "in.safetensors", "out.dcz", "--threads", "0"], 2, "--threads"),
        (["encode", "in.safetensors", "no/such/folder/out.dcz"], 1, "cannot be written: No such file"),
        (["encode"], 2, "(dcz encode --help tells more)"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
    ],
)
def test_errors(
    packed: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    """Wrong input is one line on stderr and exit code 2, a failed write 1; nothing is left behind."""
    if any(argument.endswith(".pt") for argument in arguments):
        pytest.importorskip("torch")
    monkeypatch.chdir(packed.parent)
    deepcompression.save({"__metadata__": np.ones(2)}, "reserved.dcz")
    content = packed.read_bytes()
    Path("cut.dcz").write_bytes(content[:-5])
    Path("damaged.dcz").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    for empty in ("empty.dcz", "empty.pt"):
        Path(empty).write_bytes(b"")
    Path("page.dcz").write_bytes(b"<!doctype html><html>not found</html>")
    Path("noname").write_bytes(Path("in.safetensors").read_bytes())
    for pipe in ("pipe", "pipe.safetensors", "pipe.pt"):
        os.mkfifo(pipe)
    Path("round").symlink_to("round")
    before = sorted(Path().iterdir())
    assert dcz(monkeypatch, *arguments) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("dcz: ") and said in err
    assert err.count("\n") == 1
    assert sorted(Path().iterdir()) == before


def test_not_enough_memory(packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Memory that runs out is one line and exit code 1."""

    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(deepcompression.codec.file, "verify", full)
    assert dcz(monkeypatch, "verify", packed) == 1
    assert capsys.readouterr() == ("", "dcz: not enough memory\n")


# ---------------------------------------------------------------- help


def test_help_teaches(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every help fits 80 columns; the first one has an example of each verb; without a verb it is shown too."""
    assert dcz(monkeypatch, "--help") == 0
    about = capsys.readouterr().out
    assert all(f"dcz {verb} " in about for verb in ("encode", "decode", "verify", "inspect"))
    assert dcz(monkeypatch) == 2
    assert "dcz encode model.safetensors" in "".join(capsys.readouterr())
    for verb in ("encode", "decode", "verify", "inspect"):
        assert dcz(monkeypatch, verb, "-h") == 0
        about += capsys.readouterr().out
    assert max(map(len, about.splitlines())) <= 80


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--version names the package's version and the format's."""
    assert dcz(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"dcz {deepcompression.__version__}, format version 2\n"


def test_module_runs() -> None:
    """`python -m deepcompression.cli --help` works in a fresh process and lists the four verbs."""
    done = subprocess.run(
        [sys.executable, "-m", "deepcompression.cli", "--help"], capture_output=True, text=True, check=True
    )
    assert all(verb in done.stdout for verb in ("encode", "decode", "verify", "inspect"))


# ---------------------------------------------------------------- .safetensors


def test_order_is_that_of_the_file(source: Path) -> None:
    """Tensors are read in the header's order, not in one that changes with the process."""
    content = source.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert list(read(source)) == [name for name in header if name != "__metadata__"]


def test_types_have_safetensors_names(tmp_path: Path) -> None:
    """A raw tensor's type is written under safetensors' name for it, so that others read it."""
    write({"w": RawTensor(np.zeros(2, np.uint8), "float8_e8m0fnu")}, tmp_path / "a.safetensors")
    assert b'"F8_E8M0"' in (tmp_path / "a.safetensors").read_bytes()
