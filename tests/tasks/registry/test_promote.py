from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ask, free_port
from mlflow import MlflowClient
from torch import nn

from deepcompression.errors import ChecksumMismatch, DataError
from deepcompression.torch import load_into, save
from tasks.execution.example import example_of
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Data, Hold, Model
from tasks.registry import models
from tasks.registry.models import Champion, Measured, Registry
from tasks.registry.promote import Case, Gate, judged_aims, metric_loss, promote
from tasks.report import states
from tasks.tracking.runs import Tracker
from tasks.verdict import Aim

OPEN = {
    "model": "digits", "inputs": None, "max_metric_loss": None, "min_ratio": None, "smaller_than_champion": False,
    "max_metric_loss_to_champion": None,
}  # fmt: skip
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # mlflow looks for uvicorn there
DENSE = {"val_metric": 0.99, "val_correct": 990, "val_total": 1000, "dense_bytes": 212_008}


def measured(**changes: Any) -> Measured:
    return replace(Measured("r", "a" * 64, 5000, 42.0, "accuracy", 0.989, 989, 1000, "data"), **changes)


def judged(
    candidate: Measured, champion: Measured | None = None, dense: Any = DENSE, higher: bool = True, **config: Any
) -> list[Gate]:
    return Case({**OPEN, **config}, dense, candidate, higher).judge(Champion(3, champion) if champion else None)


def only(gates: list[Gate]) -> Gate:
    assert len(gates) == 1
    return gates[0]


Finished = Callable[..., tuple[Run, Reference, Reference, str]]


@pytest.fixture
def database(tmp_path: Path, mlflow_template: Path) -> str:
    path = tmp_path / "mlflow.db"
    path.write_bytes(mlflow_template.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture
def finished(tmp_path: Path, database: str) -> Finished:
    """A run whose stages are done, as far as promotion looks at it: references, a file, an open MLflow run."""

    def make(
        name: str = "run", kept: float = 0.1, correct: int = 989, uri: str = database, **changes: Any
    ) -> tuple[Run, Reference, Reference, str]:
        folder = tmp_path / name
        folder.mkdir()
        tracker = Tracker(str(folder), uri, "tests")
        tracker.start(name, {"recipe.digest": "digest of the recipe"})
        settings: dict[str, Any] = {
            "model": Model(factory="deepcompression.models:digits_net"),
            "data": Data(factory="deepcompression.data:digits", validation=0.15),
            "step": None, "metric": None, "python_path": (), **changes,
        }  # fmt: skip
        run = Run(
            name=name, seed=0, folder=str(folder), store_folder=str(tmp_path / "store"), hold=Hold(), device="cpu",
            precision="float32", channels_last=False, threads=1, tracker=tracker, **settings,
        )  # fmt: skip
        run.ready()
        file = folder / "model.dcz"
        save(pruned(run.blank_model(), kept).state_dict(), file)
        numbers = {"val_metric": correct / 1000, "val_correct": correct, "val_total": 1000}
        return run, Reference("k", "o", numbers=DENSE), Reference("k", "o", numbers=numbers), str(file)

    return make


def pruned(model: nn.Module, kept: float) -> nn.Module:
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight[weight.abs() < weight.abs().quantile(1 - kept)] = 0
    return model


def go(parts: tuple[Run, Reference, Reference, str], **config: Any) -> dict[str, Any]:
    run, dense, encoded, file = parts
    state = promote.fn(run, "promote", {**OPEN, **config}, dense, encoded, file)
    assert state.message == states.promoted(state.data)
    return state.data  # type: ignore[no-any-return]


def test_aims_are_judged_without_a_registry(finished: Finished) -> None:
    """As the gates of the same names are, with the same words; a file that misses one is not promoted."""
    run, dense, encoded, file = finished("first", kept=0.2)
    loss, ratio = judged_aims(run, {"max_metric_loss": 100.0, "min_ratio": 1000.0}, dense, encoded, file)
    assert (loss["aim"], loss["kept"], ratio["aim"], ratio["kept"]) == ("max_metric_loss", True, "min_ratio", False)
    assert "at least 1000x wanted" in ratio["text"]
    assert judged_aims(run, {"max_metric_loss": None, "min_ratio": 0.5}, dense, encoded, file)[0]["kept"]
    promotion = promote.fn(run, "promote", dict(OPEN), dense, encoded, file, [Aim(**ratio)]).data
    assert not promotion["promoted"] and [gate["gate"] for gate in promotion["gates"]] == ["aims"]


@pytest.fixture
def unproved(monkeypatch: pytest.MonkeyPatch) -> None:
    """No fresh process loads the packaged model: that takes seconds, and other tests have it."""
    monkeypatch.setattr(models, "_probe", lambda folder: None)


@contextlib.contextmanager
def served(command: list[str], url: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    """A server in a session of its own, until it answers; its whole process group is ended afterwards."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env={**os.environ, "PATH": PATH, **environment},
            cwd=log.parent,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=2):
                break
            time.sleep(0.1)
        yield
    finally:
        for end in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, end)
                process.wait(10)


def test_accuracy_is_judged_in_percentage_points_from_counts() -> None:
    """One error more in 1,000 is 0.1 points exactly: the limit itself passes, twice as much fails by 0.1."""
    assert metric_loss(DENSE, vars(measured()), True) == (0.1, " points")
    assert only(judged(measured(), max_metric_loss=0.1)).passed
    gate = only(judged(measured(val_correct=988), max_metric_loss=0.1))
    assert not gate.passed and gate.wanted == 0.1 and gate.got == 0.2 and gate.by == pytest.approx(0.1)
    assert gate.text == (
        "validation accuracy is 0.2 points worse than the dense model's; at most 0.1 points worse allowed, 0.1 too many"
    )


def test_other_metrics_are_judged_in_their_own_unit_and_direction() -> None:
    """Of a metric that is an error, more is worse; no percentage is made of it; a better file always passes."""
    dense = {"val_metric": 2.0, "val_correct": None, "val_total": 10}
    worse = measured(metric="mse", val_metric=2.5, val_correct=None)
    gate = only(judged(worse, dense=dense, higher=False, max_metric_loss=0.25))
    assert not gate.passed and (gate.got, gate.by) == (0.5, 0.25)
    assert only(judged(worse, dense=dense, higher=True, max_metric_loss=0)).passed


def test_not_a_number_passes_no_gate() -> None:
    """A metric that is NaN is never good enough, and the result stays JSON."""
    dense = {"val_metric": 2.0, "val_correct": None, "val_total": 10}
    gate = only(judged(measured(val_metric=math.nan, val_correct=None), dense=dense, max_metric_loss=100))
    assert not gate.passed and gate.got is None and gate.by is None


def test_a_file_that_misses_its_budget_does_not_become_the_champion() -> None:
    """The budget is a gate too, and judged with the absolute ones, before and without any champion."""
    aim = Aim("metric_loss", False, 1.0, 12.67, "12.67 points lost on validation, 1 allowed")
    gates = Case({**OPEN, "min_ratio": 10.0}, DENSE, measured(), True, [aim]).absolute()
    assert [(one.gate, one.passed) for one in gates] == [("budget", False), ("min_ratio", True)]
    assert gates[0].text == aim.text


def test_ratio_and_size_say_how_much_is_missing() -> None:
    """The ratio's limit itself passes; a file of the champion's size does not, by one byte."""
    assert only(judged(measured(), min_ratio=42)).passed
    assert only(judged(measured(), min_ratio=50)).by == 8
    other = measured(sha256="b" * 64)
    equal = only(judged(measured(), other, smaller_than_champion=True))
    assert not equal.passed and equal.by == 1 and "champion version 3 has 5,000" in equal.text
    assert only(judged(measured(file_bytes=4000), other, smaller_than_champion=True)).by == 999


def test_gates_against_the_champion_pass_where_there_is_none() -> None:
    """The first version has nothing to beat, and says so."""
    gates = judged(measured(), smaller_than_champion=True, max_metric_loss_to_champion=0)
    assert all(gate.passed and "no champion yet" in gate.text for gate in gates) and len(gates) == 2


def test_a_champion_that_cannot_be_compared_with_fails_the_gate() -> None:
    """Other data, another metric, or a version of unknown origin is said, with what to do, instead of compared."""
    config = {"smaller_than_champion": True, "max_metric_loss_to_champion": 1.0}
    both = judged(measured(), measured(sha256="b", data_digest="other", run="r2"), **config)
    assert [gate.passed for gate in both] == [False, False]
    assert (
        both[0].text.startswith("champion version 3 (r2) was measured on other data")
        and "another promote.model" in both[0].text
    )
    size, metric = judged(measured(file_bytes=1), measured(sha256="b", metric="f1"), **config)
    assert size.passed and not metric.passed and "f1" in metric.text
    unknown = Case({**OPEN, **config}, DENSE, measured(), True).judge(Champion(1, None))
    assert not any(gate.passed for gate in unknown) and "not registered by a run" in unknown[0].text


def test_metric_against_the_champion() -> None:
    """A file may be worse than the champion by so much and no more."""
    other = measured(sha256="b", val_correct=992)
    assert only(judged(measured(), other, max_metric_loss_to_champion=0.3)).passed
    gate = only(judged(measured(), other, max_metric_loss_to_champion=0.2))
    assert not gate.passed and "that of champion version 3" in gate.text


def test_tags_keep_what_is_compared() -> None:
    """What is written into a version's tags is read back equal; alien tags are nothing, not an error."""
    for one in (measured(), measured(val_correct=None, val_total=None, val_metric=1 / 3)):
        assert Measured.of_tags(one.tags()) == one
    assert Measured.of_tags({"run": "r"}) is None and Measured.of_tags({**measured().tags(), "ratio": "x"}) is None


@pytest.mark.usefixtures("unproved")
def test_promoted_file_is_a_model_that_mlflow_loads(
    finished: Finished, database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version with tags and the alias, no pickle in it, answering as the file does; the run goes on unharmed."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    parts = finished()
    run, _, _, file = parts
    result = go(parts, max_metric_loss=0.1, min_ratio=5, smaller_than_champion=True)
    assert result["promoted"] and result["version"] == 1 and result["champion"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result and len(result["gates"]) == 3
    client = MlflowClient(tracking_uri=database)
    version = client.get_model_version_by_alias("digits", "champion")
    assert (
        version.tags["recipe_digest"] == "digest of the recipe"
        and version.tags["data_digest"] == run.data_identity().digest
    )
    assert version.run_id == run.tracker.run_id and version.tags["file_bytes"] == str(Path(file).stat().st_size)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    model = mlflow.pyfunc.load_model("models:/digits@champion")
    batch = run.splits().validation[0][:5]
    with torch.inference_mode():
        wanted = load_into(run.blank_model(), file).eval()(batch).numpy()
    np.testing.assert_allclose(model.predict(batch.numpy(), {"raw": True}), wanted, rtol=1e-5, atol=1e-6)
    chances = torch.from_numpy(wanted).softmax(1)
    for row, answer in zip(chances, model.predict(batch.numpy()), strict=True):
        assert answer["class"] == str(int(row.argmax())) and answer["probability"] == pytest.approx(
            float(row.max()), abs=1e-5
        )
        assert [answer["probabilities"][str(place)] for place in range(10)] == pytest.approx(row.tolist(), abs=1e-5)
    assert model.unwrap_python_model().classes == run.splits().classes == tuple("0123456789")
    [spec] = model.metadata.signature.inputs.inputs
    assert spec.shape == (-1, 1, 8, 8) and spec.type == np.float32
    logged = client.get_logged_model(model.metadata.model_id)
    place = Path(logged.artifact_location.removeprefix("file://"))
    names = [path.name for path in place.rglob("*")]
    assert "model.dcz" in names and not [name for name in names if name.endswith((".pkl", ".pickle", ".pyc"))]
    required = [line.partition("==") for line in (place / "requirements.txt").read_text().split()]
    assert [name for name, *_ in required] == ["mlflow", "numpy", "torch"] and all(pin for *_, pin in required)
    assert not (tmp_path / "mlruns").exists()
    open_run = client.get_run(str(run.tracker.run_id))
    assert open_run.info.status == "RUNNING" and open_run.data.tags["promotion"] == "digits version 1"
    assert [one.model_id for one in open_run.outputs.model_outputs] == [logged.model_id]
    assert len(client.search_runs([open_run.info.experiment_id])) == 1 and mlflow.active_run() is None
    run.tracker.finish()
    assert client.get_run(str(run.tracker.run_id)).info.status == "FINISHED"
    assert models.champion_file(database, "digits", tmp_path / "got").read_bytes() == Path(file).read_bytes()
    changed = load_into(run.blank_model(), file)  # another good file of the same network, put in its place
    with torch.no_grad():
        next(iter(changed.parameters())).mul_(2)
    save(changed.state_dict(), next(place.rglob("model.dcz")))
    for load in (
        lambda: mlflow.pyfunc.load_model("models:/digits@champion"),
        lambda: models.champion_file(database, "digits", tmp_path / "got"),
    ):
        with pytest.raises(ChecksumMismatch, match=f"registered with {version.tags['sha256']}"):
            load()


def failed(result: dict[str, Any]) -> list[str]:
    assert not result["promoted"] and result["version"] is None
    return [gate["gate"] for gate in result["gates"] if not gate["passed"]]


def versions(uri: str) -> list[int]:
    return sorted(int(one.version) for one in MlflowClient(uri, uri).search_model_versions("name='digits'"))


def champion(uri: str) -> int | None:
    found = Registry(uri, "digits").champion()
    return found.version if found else None


@pytest.mark.usefixtures("unproved")
def test_only_what_passes_is_registered(finished: Finished, database: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A gate that fails registers nothing and is told; a better file takes the alias; the same file comes once."""
    assert failed(go(finished("first", kept=0.2), min_ratio=1000)) == ["min_ratio"] and versions(database) == []
    assert "digits not promoted, min_ratio: the file is" in capfd.readouterr().err
    assert go(finished("second", kept=0.2))["version"] == 1
    worse = go(finished("third", kept=0.3), smaller_than_champion=True, max_metric_loss=0.1)
    assert failed(worse) == ["smaller_than_champion"] and worse["champion"]["run"] == "second"
    better = go(finished("fourth", kept=0.1), smaller_than_champion=True)
    assert better["version"] == 2 and better["champion"]["version"] == 1
    assert failed(go(finished("fifth", kept=0.1))) == ["new_file"]
    assert versions(database) == [1, 2] and champion(database) == 2


@pytest.mark.usefixtures("unproved")
def test_other_data_is_not_compared(finished: Finished, database: str) -> None:
    """A champion measured on another split stays, whatever the new file's numbers are."""
    go(finished("first", kept=0.2))
    data = Data(factory="deepcompression.data:digits", validation=0.2)
    result = go(finished("second", kept=0.1, data=data), smaller_than_champion=True)
    assert failed(result) == ["smaller_than_champion"] and "other data" in result["gates"][0]["text"]
    assert champion(database) == 1


@pytest.mark.usefixtures("unproved")
@pytest.mark.parametrize(("others", "wins"), [(0.1, False), (0.3, True)])
def test_gates_hold_against_the_champion_that_is_replaced(
    finished: Finished, database: str, monkeypatch: pytest.MonkeyPatch, others: float, wins: bool
) -> None:
    """Another run promotes while this one registers: the gates are judged again, against what stands there now."""
    original = Registry.register

    def register(self: Registry, *arguments: Any) -> int:
        monkeypatch.setattr(Registry, "register", original)
        assert go(finished("other", kept=others))["promoted"]
        return original(self, *arguments)

    monkeypatch.setattr(Registry, "register", register)
    result = go(finished("mine", kept=0.2), smaller_than_champion=True)
    assert result["champion"]["run"] == "other" and result["promoted"] == wins
    if wins:
        assert champion(database) == result["version"] == 2
    else:
        assert failed(result) == ["smaller_than_champion"] and champion(database) == 1 and versions(database) == [1]


@pytest.mark.parametrize("breaks", ["champion", "upload", "register", "crown"])
@pytest.mark.usefixtures("unproved")
def test_a_registry_that_breaks_sinks_nothing(
    finished: Finished, database: str, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    """Whatever the registry throws, whenever, is a failed gate with its reason, and moves no alias."""

    def broken(*_: Any) -> None:
        raise OSError("connection reset")

    monkeypatch.setattr(Registry, breaks, broken)
    result = go(finished())
    monkeypatch.undo()
    assert failed(result) == ["registry"] and "connection reset" in result["gates"][-1]["text"]
    assert champion(database) is None


def test_a_server_that_is_away_costs_seconds(finished: Finished) -> None:
    """With nobody at the address nothing is promoted, and no password is shown."""
    parts, started = finished(uri=f"http://me:hunter2@127.0.0.1:{free_port()}"), time.monotonic()
    result = go(parts)
    assert failed(result) == ["registry"] and "hunter2" not in json.dumps(result)
    assert time.monotonic() - started < 15


NET = """
import json
from pathlib import Path

import torch
from conftest import ask, free_port
from sklearn.datasets import load_digits
from torch import nn

from . import layers


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = json.loads((Path(__file__).parent / "scale.json").read_text())
        self.one, self.two = layers.make(width), nn.Linear(3, width)

    def forward(self, points, flags):
        both = self.one(points) + self.two(flags.float())
        return {"sum": both * self.scale, "parts": both[:, :2], "nothing": None}


class Samples(torch.utils.data.Dataset):
    digest = "samples"

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"flags": torch.tensor([index, 1, 2]), "points": torch.arange(4.0) * index, "id": str(index)}


def splits():
    return Samples(), Samples(), Samples()
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A user's package outside of this repository, with samples that are mappings."""
    package = tmp_path / "project" / "promoted_mine"
    package.mkdir(parents=True)
    (package / "net.py").write_text(NET)
    (package / "layers.py").write_text("import torch.nn as nn\ndef make(width): return nn.Linear(4, width)\n")
    (package / "scale.json").write_text("2")
    (package / "weights.pt").write_bytes(b"not code")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield {
        "model": Model(factory="promoted_mine.net:Net", kwargs={"width": 5}),
        "data": Data(factory="promoted_mine.net:splits"),
        "python_path": (str(package.parent),),
    }
    for name in [name for name in sys.modules if name.partition(".")[0] == "promoted_mine"]:
        del sys.modules[name]


def test_a_users_package_travels_with_the_model(finished: Finished, database: str, mine: dict[str, Any]) -> None:
    """Named inputs of their own types, code of the recipe's python_path, pinned requirements; mappings come out."""
    import mlflow

    parts = finished(**mine)
    assert go(parts, inputs=["points", "flags"])["promoted"]
    client = MlflowClient(database, database)
    place = Path(client.get_model_version_by_alias("digits", "champion").source.removeprefix("file://"))
    assert {path.name for path in (place / "code" / "promoted_mine").iterdir()} == {"net.py", "layers.py", "scale.json"}
    assert "scikit-learn==" in (place / "requirements.txt").read_text()
    model = mlflow.pyfunc.load_model(str(place))
    assert [(one.name, one.shape, one.type) for one in model.metadata.signature.inputs.inputs] == [
        ("points", (-1, 4), np.float32), ("flags", (-1, 3), np.int64),
    ]  # fmt: skip
    points, flags = torch.rand(3, 4), torch.ones(3, 3, dtype=torch.int64)
    answer = model.predict({"flags": flags.numpy(), "points": points.numpy()})
    with torch.inference_mode():
        wanted = load_into(parts[0].blank_model(), parts[3]).eval()(points, flags)
    assert set(answer) == {"sum", "parts"}
    np.testing.assert_allclose(answer["sum"], wanted["sum"].numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_model_that_does_not_load_by_itself_is_not_registered(
    finished: Finished, database: str, mine: dict[str, Any]
) -> None:
    """A factory that reads what does not travel is found out in a fresh process, before anything is registered."""
    net = Path(mine["python_path"][0]) / "promoted_mine" / "net.py"
    (net.parent / "scale.bin").write_text("2")
    net.write_text(NET.replace("scale.json", "scale.bin"))
    result = go(finished(**mine), inputs=["points", "flags"])
    assert failed(result) == ["model"] and "scale.bin" in result["gates"][0]["text"] and versions(database) == []


@pytest.mark.parametrize("inputs", [None, ["points", "weights"], ["id"]])
def test_wrong_inputs_are_told_with_what_there_is(finished: Finished, mine: dict[str, Any], inputs: Any) -> None:
    """Samples that are mappings need names of tensors in them."""
    with pytest.raises(DataError, match=r"promote\.inputs: samples are mappings of the tensors flags, points;"):
        example_of(finished(**mine)[0], inputs)


def test_names_for_samples_that_have_none_are_refused(finished: Finished) -> None:
    """A pair of tensors has one input, without a name."""
    run = finished()[0]
    assert example_of(run, None).shape == (2, 1, 8, 8)
    with pytest.raises(DataError, match="samples are of type Tensor"):
        example_of(run, ["images"])


@pytest.mark.slow
def test_champion_of_a_server_is_served(finished: Finished, tmp_path: Path, mlflow_template: Path) -> None:
    """Promotion over HTTP, and `mlflow models serve` of the champion answers as the torch model does."""
    (tmp_path / "server.db").write_bytes(mlflow_template.read_bytes())
    uri, port = f"http://127.0.0.1:{free_port()}", free_port()
    server = [
        sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", uri.rpartition(":")[2],
        "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", str(tmp_path / "kept"),
    ]  # fmt: skip
    serve = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/digits@champion", "--env-manager", "local",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    with served(server, f"{uri}/health", {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}, tmp_path / "server.log"):
        parts = finished(uri=uri)
        assert go(parts)["version"] == 1
        batch = parts[0].splits().validation[0][:3]
        got = models.champion_file(uri, "digits", tmp_path / "got")
        assert got.read_bytes() == Path(parts[3]).read_bytes()
        with served(serve, f"http://127.0.0.1:{port}/ping", {"MLFLOW_TRACKING_URI": uri}, tmp_path / "serve.log"):
            address = f"http://127.0.0.1:{port}/invocations"
            named = ask(address, {"inputs": batch.tolist()})
            answer = ask(address, {"inputs": batch.tolist(), "params": {"raw": True}})
    with torch.inference_mode():
        wanted = load_into(parts[0].blank_model(), parts[3]).eval()(batch).numpy()
    np.testing.assert_allclose(np.array(answer["predictions"]), wanted, rtol=1e-5, atol=1e-5)
    assert [one["class"] for one in named["predictions"]] == [str(place) for place in wanted.argmax(1)]
    assert failed(go(parts)) == ["registry"]


def test_an_event_tells_prefect(finished: Finished, prefect_server: str) -> None:
    """What was not promoted is an event of the model, related to its flow run, with the gates as payload."""
    from prefect import flow
    from prefect.events.worker import EventsWorker
    from prefect.runtime import flow_run

    parts = finished()

    @flow
    def promoting() -> str:
        run, dense, encoded, file = parts
        promote(run, "promote", {**OPEN, "min_ratio": 1000.0}, dense, encoded, file)
        return str(flow_run.id)

    identity = promoting()
    EventsWorker.instance().wait_until_empty()
    # Other tests' events of the same name arrive in the same server, when they please.
    model = "deep-compression.model.digits"
    named = {"event": {"name": ["deep-compression.not-promoted"]}, "resource": {"id": [model]}}
    wanted = {"filter": {**named, "related": {"id": [f"prefect.flow-run.{identity}"]}}}
    deadline, found = time.monotonic() + 20, []
    while not found and time.monotonic() < deadline:
        found = ask(f"{prefect_server}/events/filter", wanted)["events"]
        time.sleep(0.1)
    assert len(found) == 1
    assert found[0]["resource"]["prefect.resource.id"] == model
    assert f"prefect.flow-run.{identity}" in [one["prefect.resource.id"] for one in found[0]["related"]]
    assert found[0]["payload"]["gates"][0]["gate"] == "min_ratio" and found[0]["payload"]["run"] == "run"
