"""Models, data, steps and metrics as people bring them: each runs with the right numbers, or one line refuses it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deepcompression.errors import InputError
from deepcompression.network.state import plain_state
from deepcompression.quantization.precision import round_precision
from deepcompression.training.evaluate import evaluate
from deepcompression.training.loop import train
from deepcompression.training.plan import Plan
from deepcompression.training.problem import Accuracy, cross_entropy_step
from flows.recipe import load as recipes
from tasks.execution.run import Run
from tasks.execution.sources import imports_of

CASES = Path(__file__).resolve().parents[1] / "cases"


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of their code, importable."""
    monkeypatch.syspath_prepend(str(CASES))


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., Run]:
    """The run of a case, after all that is looked at before anything trains; without a flow."""
    from flows.checked import planned
    from flows.runs import run_of
    from tasks.execution.check import check
    from tasks.tracking.runs import Tracker

    def check_case(name: str, **overrides: Any) -> Run:
        places = {"store": str(tmp_path / "store"), "runs": str(tmp_path / "runs"), "device": "cpu"}
        parsed = recipes.load({**yaml.safe_load((CASES / f"{name}.yaml").read_text()), **places}, overrides)
        run = run_of(parsed, 0, tmp_path, Tracker(str(tmp_path), "sqlite:///none.db", "cases"))
        check(run, planned(run, parsed), test=parsed.test)
        return run

    return check_case


REFUSED = {
    "dict-outputs": r"metric accuracy: expected logits \(n, classes\).* got Out\{loss: .*, logits: .*\}",
    "extra-state": r"mine.models:Extra: get_extra_state returns a dict, and files hold tensors alone",
    "meter-vector": r"metric meter: compute\(\) must return one number, got float32 \(2,\)",
    "nograd_step": r"step mine.more:nograd_step: the loss has no gradient",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_one_line_before_anything_trains(
    checked: Callable[..., Run], tmp_path: Path, name: str
) -> None:
    """A step, a metric or a model of another kind is refused in a line that says what to return; nothing was made."""
    with pytest.raises(InputError, match=REFUSED[name]) as refusal:
        checked(name)
    assert "\n" not in str(refusal.value) and not (tmp_path / "store").exists()


RUNS = ["dict-split", "iterable", "list_loss_step", "name-first", "namedtuple", "numpy-pairs", "seq-int-keys"]


def _trained(run: Run, epochs: int) -> torch.nn.Module:
    model = run.blank_model()
    train(model, run.problem(64), Plan(epochs, {"factory": "torch.optim:AdamW", "kwargs": {"lr": 2e-3}}))
    return model


@pytest.mark.parametrize("name", RUNS)
def test_what_works_is_measured_right(checked: Callable[..., Run], mine: None, name: str) -> None:
    """Whatever the batches look like, it trains, and the metric is the share of the samples that are right."""
    from mine.data import plain

    run = checked(name)
    model, problem = _trained(run, 2), run.problem()
    found = evaluate(model, problem.validation, problem.step, problem.metric)
    samples, targets = plain()[1]
    correct = int((model.eval()(samples).argmax(1) == targets).sum())
    assert found.correct == correct > 40 and found.total == len(targets) == 300


@pytest.mark.parametrize("metric", ["batch_acc", "accuracy"])
def test_the_mean_is_over_samples(mine: None, metric: str) -> None:
    """Time first, lists, constants, names first, a smaller last batch: metric and loss are means over samples."""
    from mine import data, models, steps
    from torch.utils.data import DataLoader, TensorDataset

    samples, targets = data.plain()[1]

    def first(value: Callable[[int], Any]) -> DataLoader[Any]:
        def collate(batch: Any) -> Any:
            return value(len(batch)), torch.stack([one[0] for one in batch]), torch.stack([one[1] for one in batch])

        return DataLoader(TensorDataset(samples, targets), 96, collate_fn=collate)

    kinds = {
        "time": (data.time_first()[1], models.Rnn(first=False), cross_entropy_step),
        "images": (data.list_of_images()[1], models.mlp(), steps.list_step),
        "constant": (first(lambda count: torch.ones(10)), models.mlp(), steps.tuple3_step),
        "scalar": (first(lambda count: torch.tensor(1.0)), models.mlp(), steps.tuple3_step),
        "number": (first(lambda count: 7), models.mlp(), steps.tuple3_step),
        "nothing": (first(lambda count: None), models.mlp(), steps.tuple3_step),
        "names": (first(lambda count: ["a.png"] * 3), models.mlp(), steps.tuple3_step),
        "nodes": (first(lambda count: torch.ones(5000 // count, 3)), models.mlp(), steps.tuple3_step),
    }
    for kind, (split, model, step) in kinds.items():
        found = evaluate(model, split, step, steps.BatchAcc() if metric == "batch_acc" else Accuracy())
        right, loss = 0, 0.0
        with torch.no_grad():
            for batch in split:
                mean, outputs, wanted = step(model.eval(), batch)
                right += int((outputs.argmax(1) == wanted).sum())
                loss += float(mean) * len(wanted)
        assert (found.total, found.metric, found.loss) == (
            300,
            pytest.approx(right / 300),
            pytest.approx(loss / 300),
        ), kind


def test_another_loader_is_another_result(checked: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """A sampler, a batch size, a collate_fn: each makes another key, so that nothing of one is taken for another."""
    from tasks.execution import check

    keys = []
    monkeypatch.setattr(check, "callables", lambda run: keys.append(run.data_identity().digest) or [])
    for kwargs in ({}, {"balanced": True}, {"batch": 500}, {"flipped": True}, {}):
        checked("loader-kwargs", **{"data.kwargs": kwargs})
    assert keys[0] == keys[4] and len(set(keys)) == 4


def test_code_beside_a_factorys_module_is_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules in a flat folder that the model's and the data's module import are part of what made a result."""
    monkeypatch.syspath_prepend(str(CASES / "flat-code"))
    assert {"net", "blocks"} <= set(imports_of("net").files) and {"loader", "pre"} <= set(imports_of("loader").files)
    for name in ("net", "blocks", "loader", "pre"):
        sys.modules.pop(name, None)


def test_small_variances_stay_above_zero(checked: Callable[..., Run]) -> None:
    """`rest: int8` keeps what is used by ratio, and the accuracy with it."""
    run = checked("int8-bn")
    model, problem = _trained(run, 3), run.problem()
    before = evaluate(model, problem.validation, problem.step, problem.metric).correct
    rounded = round_precision(plain_state(model), rest="int8")
    model.load_state_dict(rounded.state)
    after = evaluate(model, problem.validation, problem.step, problem.metric).correct
    assert (rounded.state["bn.running_var"] > 0).all() and "bn.running_var" in rounded.instead
    assert before is not None and after is not None and after >= before - 3 > 30
