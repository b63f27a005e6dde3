"""A bench of a finished run: what is measured, what is left, and what is refused."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import save_file

from deepcompression.errors import DataError, RecipeError
from deepcompression.export import c
from flows import history, process
from flows.bench import bench as module
from flows.bench import ways
from flows.bench.bench import Asked, bench
from flows.bench.fresh import footprint_of
from flows.bench.leave import leave
from flows.bench.show import show
from flows.runs import Finished, finished
from flows.verbs import bench as verb
from tasks.console import console
from tasks.tracking.client import client_of

FIGURES = {"median_ms", "p10_ms", "p99_ms", "iqr_ms", "cpu_ms", "per_second", "to_dense", "calls", "rounds"}


@pytest.fixture
def done(tiny_run: dict[str, Any], tmp_path: Path) -> Finished:
    """A copy of the session's run, with an MLflow database of its own: what is left there changes no other test."""
    recipe = tiny_run["recipe"]
    folder = tmp_path / Path(tiny_run["summary"]["folder"]).name
    shutil.copytree(tiny_run["summary"]["folder"], folder)
    shutil.copy(recipe["tracking"]["uri"].removeprefix("sqlite:///"), tmp_path / "mlflow.db")
    stored = yaml.safe_load((folder / "recipe.yaml").read_text())
    stored["tracking"]["uri"] = f"sqlite:///{tmp_path}/mlflow.db"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(stored))
    return finished(history.find(str(folder), ""))


class Four:
    """An exported file that takes four samples and no other number."""

    fixed_batch = 4

    def __call__(self, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        assert inputs[0].shape == (4, 1, 8, 8) and inputs[0].dtype == np.float32
        return [inputs[0].reshape(4, -1)[:, :10]]


@pytest.fixture
def exported(done: Finished, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the run's folder: a file that runs, one whose package is missing, and a program that would be started."""

    def fail(path: Path, threads: int) -> None:
        raise ImportError("No module named 'torchless'")

    targets = {
        "four": SimpleNamespace(FILE="four.bin", load=lambda path, threads: Four()),
        "broken": SimpleNamespace(FILE="broken", load=fail),
        "c": SimpleNamespace(FILE="c", load=fail, UNTIMED=c.UNTIMED),
    }
    monkeypatch.setattr(ways, "TARGETS", dict.fromkeys(targets, ""))
    monkeypatch.setattr(ways, "target_of", lambda name: targets[name])
    for name in ("broken", "c"):
        (done.folder / "exports" / name).mkdir(parents=True)
    (done.folder / "exports" / "four.bin").write_bytes(bytes(1234))


@pytest.mark.slow
def test_every_way_beside_the_dense_net_and_what_a_run_then_has(
    done: Finished, exported: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The verb: all ways measured or with their reason, JSON alone on stdout, file, picture, report and MLflow."""
    told = {"resident": 3_000, "running": 4_000, "peak": 5_000, "process": 6_000}
    monkeypatch.setattr(module, "footprint_of", lambda *asked: told)
    monkeypatch.setattr(process, "_settings", lambda verbose: None)
    monkeypatch.setattr(console, "quiet", console.quiet)  # as it was, afterwards
    verb.bench(run=str(done.folder), batch=[4, 1, 4], rounds=2, watts=15.0, quiet=True, as_json=True)
    result = json.loads(capsys.readouterr().out)
    leave(done, result)  # again: it takes the place of the first
    rows = {row["way"]: row for row in result["ways"]}
    assert next(iter(rows)) == "dense" and result["batches"] == [1, 4] and result["samples"]["shapes"] == [[1, 8, 8]]
    for name in ("dense", "int8-dynamic", "int8-static", "decoded", "codes"):
        assert rows[name]["why"] is None and rows[name]["memory"] == told, rows[name]
        assert all(set(one) == FIGURES and one["median_ms"] > 0 for one in rows[name]["batches"].values())
    assert rows["dense"]["batches"]["1"]["to_dense"] == 1.0 and list(rows["decoded"]["batches"]) == ["1", "4"]
    assert rows["dense"]["bytes"] > rows["int8-dynamic"]["bytes"] > rows["decoded"]["bytes"] == done.file.stat().st_size
    assert rows["int8-static"]["of"] == "dense" and 0 < rows["int8-static"]["difference"] < 5
    assert rows["four"]["of"] == "decoded" and rows["four"]["difference"] > 0 and "difference" not in rows["decoded"]
    assert "of 4 layers from codes" in rows["codes"]["note"] and rows["codes"]["difference"] < 1e-3
    assert "--compile" in rows["compiled"]["why"]
    assert rows["broken"]["why"] == "ImportError: No module named 'torchless'"
    assert rows["c"]["why"].startswith("not timed: its program would be started anew for each call")
    assert rows["four"]["bytes"] == 1234 and list(rows["four"]["batches"]) == ["4"]
    assert result["flops"]["dense"]["macs"] == result["flops"]["dense"]["nonzero"] == result["flops"]["final"]["macs"]
    assert 0.2 < result["flops"]["final"]["nonzero"] / result["flops"]["final"]["macs"] < 0.4
    if "why" in result["energy"]:
        spent = rows["decoded"]["energy"]
        assert spent["assumed"] and spent["mj"] == pytest.approx(15 * rows["decoded"]["batches"]["1"]["median_ms"])
    assert json.loads((done.folder / "bench.json").read_text()) == result
    assert "<svg" in (done.folder / "figures" / "latency.svg").read_text()
    page = (done.folder / "report.html").read_text()
    assert page.count('id="bench-table"') == page.count("int8-static</td>") == 1 and "fc1" in page
    _check_mlflow(done, rows)


def _check_mlflow(done: Finished, rows: dict[str, Any]) -> None:
    metrics = client_of(done.run.tracker.uri).get_run(done.run.tracker.run_id).data.metrics
    assert metrics["latency_ms"] == metrics["bench/decoded/latency_ms"] == rows["decoded"]["batches"]["1"]["median_ms"]
    assert "bench/four/latency_ms" not in metrics and not any("bench/broken" in name for name in metrics)
    assert metrics["flops"] > 0 and metrics["stages/val_accuracy"] > 0


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own(done: Finished, tmp_path: Path) -> None:
    """A process that loads the way and runs it says what it has grown by; one that fails says why, in one line."""
    save_file({"0": torch.rand(1, 1, 8, 8)}, tmp_path / "sample.safetensors")
    found = footprint_of(done.folder, "decoded", 1, tmp_path / "sample.safetensors")
    assert 0 <= found["resident"] <= found["peak"] < 100_000_000 < found["process"], found
    shutil.rmtree(done.folder)
    found = footprint_of(done.folder, "decoded", 1, tmp_path / "sample.safetensors")
    assert re.match(r"exit code 1: .*RecipeError: run .*: no folder of that name", found["why"]), found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": (0, 8)}, "bench: --batch 0: expected 1 or more"),
        ({"threads": -1}, "bench: --threads -1: expected 1 or more"),
        ({"rounds": -2}, "bench: --rounds -2: expected 1 or more"),
        ({"rounds": 0}, "bench: --rounds 0: expected 1 or more"),
        ({"seconds": 0.0}, "bench: --seconds 0: expected more than 0"),
        ({"watts": float("nan")}, "bench: --watts nan: expected more than 0"),
    ],
)
def test_impossible_wishes(changes: dict[str, Any], words: str) -> None:
    """Told in one line, before anything is loaded."""
    with pytest.raises(RecipeError) as told:
        Asked(**changes)
    assert str(told.value) == words


def test_inputs_that_no_sample_has(done: Finished) -> None:
    """The option is named, not a key of the recipe."""
    with pytest.raises(DataError, match=r"^bench --input: samples are of type Tensor; expected"):
        bench(done, Asked(inputs=("ids",)))


def test_outputs_are_compared_however_they_are_nested() -> None:
    """A way that gives other answers must show; tensors of PyTorch's beside arrays of another runtime's."""
    one = {"a": torch.tensor([1.0, 2.0]), "b": (torch.tensor([3]), "words")}
    assert module.difference([np.array([1, 2.5]), np.array([3])], one) == 0.5
    assert module.difference([np.array([1.0, 2.0])], one) is None
    assert math.isnan(module.difference(torch.tensor([1.0, math.nan]), torch.ones(2)) or 0.0)


def _made() -> dict[str, Any]:
    """A bench that nobody measured, with figures as wide as they become."""
    one = dict.fromkeys(FIGURES, 1234.5) | {"to_dense": 0.05, "per_second": 1_234_567.0}
    row = {"what": "", "why": None, "bytes": 123_456_789, "weights_bytes": None, "note": "", "batches": {"1": one}}
    memory = {"resident": 123_456_789, "peak": 987_654_321}
    counts = {"macs": 2_000_000, "nonzero": 200_000, "flops": 4_000_000, "layers": [], "left_out": {"lstm": "Odd"}}
    return {
        "run": "lenet-300-100-smallest-20261126-121445-989f",
        "batches": [1],
        "samples": {"repeated": True},
        "flops": {"dense": counts, "final": counts},
        "energy": {"why": "not measurable here: no counter"},
        "machine": {"cpu": "X", "average": None, "threads": 2, "cores": 4, "own": 1.0, "others": 2.0, "busy": True},
        "ways": [
            {**row, "way": "int8-dynamic", "memory": memory, "energy": {"mj": 3.0, "by": "15 W", "assumed": True}},
            {
                **row,
                "way": "decoded",
                "of": "dense",
                "difference": 0.25,
                "memory": {"why": "exit code 1"},
                "batches": {"1": {**one, "p99_ms": None}},
            },
            {"way": "codes", "what": "", "why": "not [yet]"},
        ],
    }


def test_the_table_has_80_columns_and_says_what_is_no_measurement() -> None:
    """Whatever the figures are, no cell is cut; reasons, assumptions and a busy machine stand below."""
    file = io.StringIO()
    show(_made(), Console(file=file, width=80, highlight=False))
    text = file.getvalue()
    table = text[: text.index("codes:")].splitlines()
    assert all(len(line) <= 80 for line in table) and "…" not in text
    assert "123 MB" in text and "1,234" in text and "20.00x" in text and "1.2M" in text
    assert "largest difference of an output to dense: decoded 0.25" in text
    for line in ("codes: not [yet]", "decoded: memory: exit code 1", "energy: not measurable here: no counter"):
        assert f"\n{line}\n" in text
    assert "energy in mJ a sample (NOT MEASURED, 15 W): int8-dynamic 3.00" in text
    assert "of which 200 k (10.0%) with a weight that is not zero" in text
    assert "multiplications not counted: lstm (Odd)" in text and "THE MACHINE WAS BUSY" in text
