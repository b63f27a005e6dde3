"""Whole runs on real data, against a real Prefect server and a real MLflow store."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ask, once
from mlflow import MlflowClient

import deepcompression
from deepcompression import torch as files
from deepcompression.data import digits
from deepcompression.errors import (
    AimMissed,
    DivergedError,
    FactoryError,
    InputError,
    InvariantError,
    StructureError,
    WeightsError,
)
from deepcompression.models.paper import digits_net
from flows.compress import compress
from flows.summary import spread_of
from tasks.report import states
from tasks.report.words import closing
from tasks.storage.store import write_json

pytestmark = pytest.mark.usefixtures("prefect_server")
Tiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def finished(mlflow_template: Path, prefect_server: str) -> dict[str, Any]:
    """One finished run of the shipped digits recipe with fewer epochs: its summary, and the recipe."""

    def make(folder: Path) -> dict[str, Any]:
        (folder / "mlflow.db").write_bytes(mlflow_template.read_bytes())
        overrides = {
            "train.epochs": 15,
            "stages.prune.gradual.epochs": 12,
            "stages.finetune.epochs": 4,
            "stages.quantize.train.epochs": 2,
            "export": ["onnx"] if find_spec("onnxruntime") else [],
            "store": str(folder / "store"),
            "runs": str(folder / "runs"),
            "tracking.uri": f"sqlite:///{folder / 'mlflow.db'}",
        }
        return {"summary": compress("conf/digits.yaml", overrides), "overrides": overrides}

    found: dict[str, Any] = once("digits-run", make)
    return found


def test_summary_tells_the_file_as_it_is(finished: dict[str, Any]) -> None:
    """Bytes are those on disk, the ratio is theirs, the result is good, and the stages are all there."""
    summary = finished["summary"]
    assert summary["summary_version"] == 1 and summary["name"] == "digits" and summary["seed"] == 0
    assert summary["file_bytes"] == Path(summary["file"]).stat().st_size
    assert summary["dense_bytes"] == 4 * sum(p.numel() for p in digits_net().parameters())
    assert summary["ratio"] == pytest.approx(summary["dense_bytes"] / summary["file_bytes"]) and summary["ratio"] > 15
    assert [row["stage"] for row in summary["stages"]] == [
        "baseline",
        "prune",
        "finetune",
        "share",
        "quantize",
        "encode",
    ]
    sizes = [row["size_bytes"] for row in summary["stages"]]
    # Fine-tuning keeps the structure: a bias that compresses a little better or worse is all that may change.
    assert sizes[2] == pytest.approx(sizes[1], rel=0.01) and sizes[-1] == summary["file_bytes"]
    del sizes[2]
    assert sizes == sorted(sizes, reverse=True)
    for end in ("baseline", "final"):
        assert summary[end]["total"] == 360 and summary[end]["error"] < 0.12
        assert summary[end]["correct"] == round(summary[end]["accuracy"] * 360)
    assert json.loads((Path(summary["folder"]) / "summary.json").read_text()) == summary


@pytest.mark.skipif(not find_spec("onnxruntime"), reason="needs the extra onnx")
def test_an_export_lies_in_the_folder_and_in_mlflow(finished: dict[str, Any]) -> None:
    """What the summary says of the file for another runtime is so, and MLflow has the file and its bytes."""
    summary = finished["summary"]
    (one,) = summary["exports"]
    file = Path(summary["folder"]) / "exports" / "model.onnx"
    assert one["target"] == "onnx" and one["file"] == str(file) and one["max_difference"] < 1e-4
    assert one["bytes"] == file.stat().st_size < one["float_bytes"] / 4
    client = MlflowClient(finished["overrides"]["tracking.uri"])
    metrics = client.get_run(summary["mlflow_run_id"]).data.metrics
    assert metrics["export/onnx/bytes"] == one["bytes"] and metrics["export/onnx/latency_ms"] == one["latency_ms"] > 0
    assert one["latency_how"].startswith("median, batch 1, 1 thread, 7 rounds") and one["warnings"] == []
    assert one["loss"] == pytest.approx(summary["final"]["loss"], rel=1e-3)
    assert f"latency: {one['latency_how']}" in (Path(summary["folder"]) / "report.html").read_text()
    assert [found.path for found in client.list_artifacts(summary["mlflow_run_id"], "exports")] == [
        "exports/model.onnx"
    ]


@pytest.mark.skipif(not find_spec("onnxruntime"), reason="needs the extra onnx")
def test_a_finished_run_is_exported_again(finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who wants a file for another runtime later needs no second run: same file, and summary and report have it,
    beside what another process exported meanwhile.
    """
    from flows import exports

    folder = Path(finished["summary"]["folder"])
    before = json.loads((folder / "summary.json").read_text())
    (folder / "exports" / "model.onnx").unlink()
    write_json(folder / "summary.json", {**before, "exports": []})
    meanwhile, export = {"target": "c", "error": "not this one"}, exports.exports_of

    def exported(*given: Any) -> Any:
        write_json(folder / "summary.json", {**before, "exports": [meanwhile]})
        return export(*given)

    monkeypatch.setattr(exports, "exports_of", exported)
    again = exports.export_run(str(folder), ["onnx"], None)
    assert again == json.loads((folder / "summary.json").read_text())
    timed = {"latency_ms", "dense_latency_ms", "times_as_fast"}
    assert min(again["exports"][1].pop(name) for name in timed) > 0  # which are no other time the same
    (wanted,) = ({name: one for name, one in row.items() if name not in timed} for row in before["exports"])
    assert again == {**before, "exports": [meanwhile, wanted]}
    assert again["exports"][1]["bytes"] == (folder / "exports" / "model.onnx").stat().st_size
    assert again["exports"][1]["correct"] == finished["summary"]["final"]["correct"]
    write_json(folder / "summary.json", before)


@pytest.mark.skipif(not shutil.which("cc"), reason="there is no C compiler here")
def test_the_program_in_c_sees_the_same_digits(finished: dict[str, Any], tmp_path: Path) -> None:
    """Each of the 360 digits of the test split has the class that PyTorch gives it with the decoded file."""
    from deepcompression.export import c

    net, samples = files.load_into(digits_net(), finished["summary"]["file"]).eval(), digits().test[0]
    made = c.export(net, [samples[:4]], tmp_path / "c")
    session = c.load(tmp_path / "c", 1)
    assert session is not None and made.bytes < 1.1 * finished["summary"]["file_bytes"] + 1000
    assert session.classes(samples.numpy()) == net(samples).argmax(1).tolist() and len(samples) == 360


def test_what_stages_left_alone_is_told(finished: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Vectors that prune and share leave stand in summary and report; density of all weights beside that of layers."""
    from flows.table import show

    summary = finished["summary"]
    rows = {row["stage"]: row for row in summary["stages"]}
    sizes = [one.numel() for one in digits_net().parameters()]
    vectors = sum(one.numel() for one in digits_net().parameters() if one.ndim == 1)
    for stage in ("prune", "share"):
        (left,) = rows[stage]["left_alone"]
        assert (left["tensor"], left["elements"], left["bytes"]) == ("4 vectors", vectors, 4 * vectors)
        assert "only when named" in left["reason"]
    assert rows["baseline"]["left_alone"] == rows["encode"]["left_alone"] == []
    found = rows["prune"]["model_density"] * sum(sizes)
    assert found == pytest.approx(rows["prune"]["density"] * (sum(sizes) - vectors) + vectors, abs=vectors)
    page = (Path(summary["folder"]) / "report.html").read_text()
    assert "4 vectors" in page and "density of all weights" in page
    run = MlflowClient(tracking_uri=finished["overrides"]["tracking.uri"]).get_run(summary["mlflow_run_id"])
    assert "model_density" not in " ".join(run.data.metrics)
    show(summary)
    assert max(map(len, capsys.readouterr().out.partition("└")[0].splitlines())) <= 80


def test_the_file_alone_has_the_measured_accuracy(finished: dict[str, Any]) -> None:
    """Loaded by hand into a new model, the file makes exactly the errors that the summary tells."""
    from deepcompression.data.small_images import digits

    summary = finished["summary"]
    model = files.load_into(digits_net(), summary["file"]).eval()
    images, labels = digits().test
    with torch.no_grad():
        assert int((model(images).argmax(1) == labels).sum()) == summary["final"]["correct"]


def test_file_and_dense_model_are_compared_on_the_same_samples(
    finished: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The paired comparison agrees with the errors, and stands in summary, MLflow, its note, and the closing words."""
    from flows.table import show

    summary = finished["summary"]
    found, errors = summary["comparison"], summary["baseline"]["correct"] - summary["final"]["correct"]
    assert (found["split"], found["total"]) == ("test", 360) and found["broken"] - found["mended"] == errors
    assert found["difference"] == pytest.approx(errors / 360) and found["low"] < errors / 360 < found["high"]
    run = MlflowClient(tracking_uri=finished["overrides"]["tracking.uri"]).get_run(summary["mlflow_run_id"])
    assert run.data.metrics["test_difference"] == pytest.approx(found["difference"])
    told = found["sentence"].partition("; ")[2]
    assert told in run.data.tags["mlflow.note.content"]
    show(summary)
    assert f"compared with the dense model: {found['sentence']}" in capsys.readouterr().out


def test_mlflow_has_every_stage_and_the_artifacts(finished: dict[str, Any]) -> None:
    """Read back from MLflow: a value a stage under its name and as steps, params, results, tags, files."""
    summary, uri = finished["summary"], finished["overrides"]["tracking.uri"]
    client = MlflowClient(tracking_uri=uri)
    run = client.get_run(summary["mlflow_run_id"])
    assert run.info.status == "FINISHED"
    for number, row in enumerate(summary["stages"]):
        assert run.data.metrics[f"size_bytes/{row['stage']}"] == row["size_bytes"]
        assert run.data.metrics[f"val_accuracy/{row['stage']}"] == pytest.approx(row["val_metric"])
        for name in ("size_bytes", "val_accuracy", "compression_ratio", "density", "bits_per_weight"):
            assert client.get_metric_history(run.info.run_id, f"stages/{name}")[number].step == number
    assert len(client.get_metric_history(run.info.run_id, "finetune/loss")) == 4
    _check_tables(Path(summary["folder"]))
    results = {name for name in run.data.metrics if "/" not in name}
    assert results == {"file_bytes", "ratio", "test_accuracy", "test_difference"} and len(run.data.metrics) < 50
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name == "digits" and dataset.dataset.digest == summary["data_digest"][:8]
    assert run.info.run_name.startswith(Path(summary["folder"]).name[-4:])
    assert run.data.metrics["file_bytes"] == summary["file_bytes"]
    assert run.data.metrics["test_accuracy"] == pytest.approx(summary["final"]["accuracy"])
    assert run.data.params["prune.density.default"] == "0.15" and run.data.params["train.epochs"] == "15"
    assert run.data.tags["prefect.flow_run_id"] == summary["prefect_flow_run_id"]
    listed = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert {"model.dcz", "recipe.yaml", "summary.json", "figures", "stages.json", "history.json"} <= listed


def _check_tables(folder: Path) -> None:
    """What is no metric of MLflow stands in two tables, as its pages show them."""
    stages, epochs = (json.loads((folder / f"{name}.json").read_text()) for name in ("stages", "history"))
    rows = {row[0]: dict(zip(stages["columns"], row, strict=True)) for row in stages["data"]}
    assert rows["prune"]["new_zeros"] > 40_000 and rows["finetune"]["new_zeros"] == 0
    assert {"stage", "epoch", "lr", "loss"} <= set(epochs["columns"]) and len(epochs["data"]) > 20


def test_prefect_has_the_tasks_and_the_artifacts(finished: dict[str, Any]) -> None:
    """On the server stand one completed task a stage, the stage table and the key figures."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, FlowRunFilter, FlowRunFilterId

    run_id = finished["summary"]["prefect_flow_run_id"]
    with get_client(sync_client=True) as client:
        flow_filter = FlowRunFilter(id=FlowRunFilterId(any_=[run_id]))
        tasks = client.read_task_runs(flow_run_filter=flow_filter)
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]))
        )
        flow_run = client.read_flow_run(run_id)
    assert flow_run.state.is_completed() and flow_run.state.message == closing(finished["summary"])
    assert {"seed 0", f"{finished['summary']['ratio']:.1f}x"} <= set(flow_run.tags)
    _check_chain(tasks)
    _check_words(tasks, finished["summary"])
    assert {"stages", "result"} <= {one.key for one in artifacts} and "file://" not in str([a.data for a in artifacts])
    table = json.loads(next(one.data for one in artifacts if one.key == "stages"))
    assert list(table[0]) == ["stage", "size", "ratio", "density", "validation accuracy", "time"]
    assert table[1]["density"].endswith(" %") and table[1]["ratio"].endswith("×")
    told = next(one.data for one in artifacts if one.key == "result")
    assert f"sample by sample: {finished['summary']['comparison']['sentence']} (" in told
    # Task runs reach the server by way of events, which may be a moment late.
    assert {task.name for task in tasks} <= {
        *(r["stage"] for r in finished["summary"]["stages"]),
        "verify",
        "difference",
        "export-onnx",
    }


def _check_words(tasks: list[Any], summary: dict[str, Any]) -> None:
    """Each task's state says what it came to, with numbers."""
    told = {one.name: str(one.state.message) for one in tasks if one.state and one.state.is_completed()}
    assert all(re.search(r"\d", one) for one in told.values()), told
    if "verify" in told:
        assert told["verify"] == states.verified(summary["baseline"], summary["final"])
    if "export-onnx" in told:
        assert f"{summary['exports'][0]['bytes']:,} bytes" in told["export-onnx"]


def _check_chain(tasks: list[Any]) -> None:
    """No task depends on more than one other: each stage on that before it, what comes after verify on that."""
    inputs = {
        one.name: {str(ref.id) for refs in one.task_inputs.values() for ref in refs if hasattr(ref, "id")}
        for one in tasks
    }
    names = {str(one.id): one.name for one in tasks}
    found = {name: {names.get(one, "") for one in refs} for name, refs in inputs.items()}
    assert all(len(refs) <= 1 for refs in found.values()), found
    if {"verify", "difference", "encode"} <= set(found):
        assert found["difference"] == {"verify"} and found["verify"] == {"encode"}


def test_the_log_of_the_prefect_run_says_what_the_terminal_says(finished: dict[str, Any]) -> None:
    """A line a stage at INFO, without markup."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    told = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[finished["summary"]["prefect_flow_run_id"]]))
    for _ in range(40):  # they are sent in batches
        with get_client(sync_client=True) as client:
            lines = {one.message: one.level for one in client.read_logs(told)}
        if any(line.startswith("encode") for line in lines):
            break
        time.sleep(0.25)
    (line,) = (one for one in lines if one.startswith("prune "))
    assert "val_accuracy" in line and "KB" in line and "[" not in line and lines[line] == 20


def test_run_folder_holds_recipe_and_picture(finished: dict[str, Any]) -> None:
    """The folder has the resolved recipe with every default, and an SVG of where the bytes went."""
    folder = Path(finished["summary"]["folder"])
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert recipe["train"]["optimizer"]["factory"] == "torch.optim:AdamW" and recipe["train"]["epochs"] == 15
    assert (folder / "figures" / "bytes.svg").read_text().startswith("<?xml")


def test_changed_late_stage_reuses_the_early_ones(finished: dict[str, Any], tmp_path: Path) -> None:
    """A run's recipe.yaml is itself a recipe; with other bits it trains nothing anew, and differs from share on."""
    stored = str(Path(finished["summary"]["folder"]) / "recipe.yaml")
    again = compress(stored, {"stages.share.bits": 3, "runs": str(tmp_path / "runs")})
    cached = {row["stage"]: row["cached"] for row in again["stages"]}
    assert cached == {
        "baseline": True, "prune": True, "finetune": True, "share": False, "quantize": False, "encode": False,
    }  # fmt: skip
    assert again["file_bytes"] < finished["summary"]["file_bytes"]


@pytest.mark.slow
def test_seed_counts_only_where_it_is_drawn(finished: dict[str, Any], tiny: Tiny) -> None:
    """A checkpoint (here a .dcz) that is only pruned, shared and encoded is done once for all seeds."""
    model = {"factory": "deepcompression.models:digits_net", "weights": {"path": finished["summary"]["file"]}}
    stages = [{"stage": "prune", "density": 0.05}, {"stage": "share", "bits": 2}]
    first, second = (compress(tiny(model=model, stages=stages, seed=seed)) for seed in (0, 1))
    assert not any(row["cached"] for row in first["stages"]) and all(row["cached"] for row in second["stages"])
    assert first["baseline"]["correct"] == finished["summary"]["final"]["correct"]


@pytest.mark.slow
def test_damaged_object_in_the_store_is_made_again(tiny: Tiny, tmp_path: Path) -> None:
    """A flipped byte in the store costs a stage's time, never a wrong result."""
    recipe = tiny(train={"epochs": 1}, stages=[{"stage": "prune", "density": 0.3}])
    first = compress(recipe)
    victim = max((tmp_path / "store" / "objects").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(bytes(content))
    second = compress(recipe)
    assert Path(second["file"]).read_bytes() == Path(first["file"]).read_bytes()
    assert not all(row["cached"] for row in second["stages"])


def test_rounds_alternate_and_each_is_logged(tiny: Tiny) -> None:
    """`rounds: 2` prunes and fine-tunes twice; both show in the summary and as steps in MLflow."""
    stages = [
        {"stage": "prune", "density": 0.25, "rounds": 2},
        {"stage": "finetune", "epochs": 1, "dropout": {"drop": "fc1"}},
    ]
    recipe = tiny(stages=stages)
    summary = compress(recipe)
    assert [row["stage"] for row in summary["stages"]] == [
        "baseline",
        "prune",
        "finetune",
        "prune-2",
        "finetune-2",
        "encode",
    ]
    densities = [row["density"] for row in summary["stages"]]
    assert densities[1] == pytest.approx(0.5, abs=0.01) and densities[3] == pytest.approx(0.25, abs=0.01)
    client = MlflowClient(tracking_uri=recipe["tracking"]["uri"])
    history = client.get_metric_history(summary["mlflow_run_id"], "size_bytes/prune")
    assert [one.step for one in history] == [1, 3]


def test_spread_over_seeds_against_numpy() -> None:
    """Mean, worst (the largest error, the smallest ratio) and sample standard deviation."""
    import numpy as np

    def end(error: float) -> dict[str, Any]:
        return {"metric": 1 - error, "accuracy": 1 - error, "error": error, "correct": 1, "higher_is_better": True}

    runs = [
        {"file_bytes": b, "ratio": 1000 / b, "baseline": end(e), "final": end(2 * e)}
        for b, e in [(10, 0.1), (20, 0.2), (40, 0.15)]
    ]
    spread = spread_of(runs)
    assert spread["ratio"]["worst"] == 25 and spread["file_bytes"]["worst"] == 40
    assert spread["final"]["error"]["worst"] == pytest.approx(0.4)
    assert spread["baseline"]["error"]["spread"] == pytest.approx(np.std([0.1, 0.2, 0.15], ddof=1))


@pytest.mark.parametrize(
    ("changes", "error", "part"),
    [
        ({"stages": [{"stage": "prune", "density": {"fc9": 0.1}}]}, StructureError, "fc9"),
        (
            {
                "model": {"factory": "torch.nn:Embedding", "kwargs": {"num_embeddings": 4, "embedding_dim": 3}},
                "stages": [{"stage": "prune", "density": 0.1}],
            },
            StructureError,
            "stage prune: default selects nothing",
        ),
        ({"stages": [{"stage": "finetune", "dropout": {"fc1": "fc1"}}]}, StructureError, "no dropout module"),
        ({"model": {"factory": "no_such_package:net"}}, FactoryError, "no_such_package"),
        ({"model": {"factory": "builtins:dict"}}, FactoryError, "torch.nn.Module"),
        ({"data": {"factory": "builtins:dict"}}, FactoryError, "three splits"),
        ({"metric": {"factory": "builtins:dict"}}, FactoryError, "'name'"),
        ({"stages": [{"stage": "no_such_package:stage"}]}, FactoryError, "no_such_package"),
        ({"train": {"optimizer": {"factory": "torch.optim:NoSuch"}}}, FactoryError, "NoSuch"),
        (
            {"stages": [{"stage": "quantize", "train": {"schedule": {"factory": "torch.optim:NoSuch"}}}]},
            FactoryError,
            "NoSuch",
        ),
        (
            {"model": {"factory": "deepcompression.models:digits_net", "weights": {"path": "/no/such/file.pt"}}},
            WeightsError,
            "no such file",
        ),
        ({"train": {"epochs": 2, "lr": 1e9}}, DivergedError, "lower lr"),
    ],
)
def test_wrong_names_are_told_in_one_line(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], error: type[Exception], part: str
) -> None:
    """What a recipe names wrongly is told by name, ends the MLflow run as failed, and leaves no object behind."""
    recipe = tiny(**changes)
    with pytest.raises(error, match=part) as caught:
        compress(recipe)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("store/objects/*")) and not list(tmp_path.glob("**/*.part"))
    client = MlflowClient(tracking_uri=recipe["tracking"]["uri"])
    runs = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert [run.info.status for run in runs] == ["FAILED"]


def test_checkpoint_with_code_in_it_is_not_run(tiny: Tiny, tmp_path: Path) -> None:
    """A pickle that would run a command is refused, unrun."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"w": Evil()}, tmp_path / "evil.pt")
    model = {"factory": "deepcompression.models:digits_net", "weights": {"path": str(tmp_path / "evil.pt")}}
    with pytest.raises(WeightsError, match="contains code"):
        compress(tiny(model=model))
    assert not (tmp_path / "ran").exists()


STAGES_OF_MY_OWN = '''
def clip(model, problem, *, seed, limit):
    """Clips; keeps zeros."""
    for parameter in model.parameters():
        parameter.data.clamp_(-limit, limit)

def wake(model, problem, *, seed):
    """Breaks what pruning made."""
    for parameter in model.parameters():
        parameter.data.add_(1.0)
'''


def test_stage_of_ones_own_runs_and_is_checked(tiny: Tiny, tmp_path: Path) -> None:
    """A callable is a stage; one that wakes pruned weights stops the run with the tensor's name."""
    (tmp_path / "my_stages.py").write_text(STAGES_OF_MY_OWN)
    path = [str(tmp_path)]
    good = [{"stage": "prune", "density": 0.3}, {"stage": "my_stages:clip", "limit": 0.05}]
    summary = compress(tiny(stages=good, python_path=path))
    assert summary["stages"][2]["stage"] == "my_stages.clip"
    assert max(abs(w).max() for w in deepcompression.load(summary["file"]).values()) <= 0.05
    bad = [{"stage": "prune", "density": 0.3}, {"stage": "my_stages:wake"}]
    with pytest.raises(InvariantError, match=r"weight.*no longer zero"):
        compress(tiny(stages=bad, python_path=path))


def test_verification_notices_a_flipped_weight(finished: dict[str, Any], tmp_path: Path) -> None:
    """The fresh process really compares: a reference that differs in one bit is told by name."""
    state = files.load(finished["summary"]["file"])
    state["fc2.bias"].view(torch.int32)[3] ^= 1
    from safetensors.torch import save_file

    save_file(state, tmp_path / "reference.safetensors")
    request = {
        "file": finished["summary"]["file"],
        "reference": str(tmp_path / "reference.safetensors"),
        "baseline": str(tmp_path / "reference.safetensors"),
        "model": {"factory": "deepcompression.models:digits_net", "kwargs": {}},
        "data": {"factory": "deepcompression.data:digits", "kwargs": {}},
        "step": None,
        "metric": None,
        "compute": {"device": "cpu", "precision": "float32", "channels_last": False},
        "threads": 1,
        "python_path": [],
    }
    done = subprocess.run(
        [sys.executable, "-m", "deepcompression.measure.verification"],
        input=json.dumps(request), capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert (answer["identical"], answer["differs"]) == (False, "fc2.bias")


@pytest.mark.slow
def test_a_run_that_gates_refuse_ends_as_not_promoted(tiny: Tiny) -> None:
    """Losing against the champion alone is no failure: the state has a name of its own, the summary says which gate."""
    stages = [{"stage": "prune", "density": 0.5}]
    recipe = tiny(train={"epochs": 1}, stages=stages, promote={"model": "m", "min_ratio": 1})
    for expected in (True, False):  # the second time the champion is this very file: nothing was refused
        state = compress(recipe, return_state=True)
        assert state.name == "Completed" and state.result()["promotion"]["promoted"] is expected
    promote = {"model": "m", "smaller_than_champion": True}
    state = compress({**recipe, "stages": [{"stage": "encode"}], "promote": promote}, return_state=True)
    assert (state.name, state.type.value) == ("NotPromoted", "COMPLETED")
    summary = state.result()
    failed = [one["gate"] for one in summary["promotion"]["gates"] if not one["passed"]]
    assert failed == ["smaller_than_champion"] and summary["verdict"] is None
    assert Path(summary["file"]).is_file() and summary["promotion"]["version"] is None


@pytest.mark.slow
def test_seeds_that_miss_their_aim_are_runs_of_their_own_that_end_as_aim_missed(
    tiny: Tiny, prefect_server: str
) -> None:
    """Failed and named, with an event, in Prefect, whose retries leave it alone; failed and tagged in MLflow.

    The error has the summary, and file and report are there; of several seeds all are run, one child run each, with
    different files and with statistics over them; one miss is enough.
    """
    from prefect.events.worker import EventsWorker

    promote = {"model": "m", "min_ratio": 1000}
    recipe = tiny(train={"epochs": 1}, stages=[{"stage": "prune", "density": 0.5}], promote=promote, seeds=[0, 1])
    state = compress.with_options(retries=2)(recipe, return_state=True)
    assert (state.name, state.type.value) == ("AimMissed", "FAILED")
    with pytest.raises(AimMissed, match=r"aim missed: seed 0: the file is .* smaller than the dense model; at least"):
        state.result()
    summary = state.result(raise_on_failure=False).summary
    assert len(summary["runs"]) == 2 and not summary["verdict"]["kept"]
    folder = Path(summary["folder"])
    assert json.loads((folder / "summary.json").read_text())["verdict"] == summary["verdict"]
    page = (folder / "report.html").read_text()
    assert (
        all(f"../{Path(run['folder']).name}/report.html" in page for run in summary["runs"]) and "✗ Aim missed" in page
    )
    one, two = summary["runs"]
    assert (one["seed"], two["seed"]) == (0, 1) and Path(one["file"]).read_bytes() != Path(two["file"]).read_bytes()
    assert summary["file_bytes"]["mean"] == (one["file_bytes"] + two["file_bytes"]) / 2
    assert summary["final"]["error"]["worst"] == max(one["final"]["error"], two["final"]["error"])
    client = MlflowClient(tracking_uri=recipe["tracking"]["uri"])
    parent = client.get_run(summary["mlflow_run_id"])
    children = [client.get_run(run["mlflow_run_id"]) for run in summary["runs"]]
    assert all(child.data.tags["mlflow.parentRunId"] == parent.info.run_id for child in children)
    assert parent.data.metrics["file_bytes"] == summary["file_bytes"]["mean"]
    for one in (summary, *summary["runs"]):
        run = client.get_run(one["mlflow_run_id"])
        assert run.info.status == "FAILED" and run.data.tags["verdict"].startswith("aim missed: ")
    first = summary["runs"][0]
    assert Path(first["file"]).is_file() and "Aim missed" in (Path(first["folder"]) / "report.html").read_text()
    EventsWorker.instance().wait_until_empty()
    related = {"id": [f"prefect.flow-run.{first['prefect_flow_run_id']}"]}
    wanted = {"filter": {"event": {"name": ["deep-compression.aim-missed"]}, "related": related}}
    deadline, found = time.monotonic() + 20, []
    while len(found) < 2 and time.monotonic() < deadline:
        found = ask(f"{prefect_server}/events/filter", wanted)["events"]
        time.sleep(0.1)
    assert {one["payload"]["run"] for one in found} == {Path(one["folder"]).name for one in summary["runs"]}
    assert found[0]["resource"]["prefect.resource.id"] == "deep-compression.recipe.tiny"


def test_a_secret_is_not_stored_with_a_promoted_model(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow keeps a model's arguments as they are: a recipe that would put a secret there is refused at once."""
    monkeypatch.setenv("MY_KEY", "s3cr3t")
    model = {"factory": "deepcompression.models:digits_net", "kwargs": {"key": "${oc.env:MY_KEY}"}}
    with pytest.raises(InputError) as told:
        compress(tiny(model=model, promote={"model": "m"}))
    assert "s3cr3t" not in str(told.value)


def test_spread_of_what_is_not_a_number_is_none_of_it() -> None:
    """A seed whose metric is NaN spoils mean and worst of the metric, and stops nothing."""
    end = {"metric": math.nan, "higher_is_better": True}
    spread = spread_of([{"file_bytes": 10, "ratio": 2.0, "baseline": end, "final": {**end, "metric": 0.5}}] * 2)
    assert math.isnan(spread["baseline"]["metric"]["worst"]) and spread["final"]["metric"]["mean"] == 0.5
