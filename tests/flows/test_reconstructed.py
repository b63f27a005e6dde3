"""Budget mode without training: which files are made, and when it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from deepcompression.allocation import budget as library
from deepcompression.errors import RecipeError, StructureError
from flows import budget as flow_budget
from flows import reconstructed
from flows.candidates import Search
from flows.compress import compress
from flows.recipe import load as recipes
from flows.recipe import schema
from tasks import budget as task_budget
from tasks.execution.run import Reference

DENSE = 1_000_000
Tiny = Callable[..., dict[str, Any]]


class Calls:
    """Tasks that come to what a test says: seconds, and what is lost at a ratio."""

    def __init__(self, lost: Callable[[float], float], seconds: float = 10.0, off: Any = 1.0) -> None:
        self.lost, self.seconds = lost, seconds
        self.off = off if callable(off) else lambda size: off
        self.integers: float | None = 4.2  # times that integers of 8 bits are smaller; None: they are refused
        self.labels: list[str] = []
        self.limits: list[float | None] = []
        self.made = {"quantize": DENSE}

    def __call__(self, task: Any, run: Any, label: str, number: Any, settings: Any, source: Reference) -> Reference:
        self.labels.append(label)
        self.limits.append(task.timeout_seconds)
        size = {"share": DENSE // 4, "reconstruct": DENSE}.get(settings.stage, source.numbers["size_bytes"])
        if settings.stage == "reconstruct":
            size = round(settings.target.bytes * self.off(settings.target.bytes))
        if settings.stage == "quantize" and settings.weights:
            if self.integers is None:
                raise StructureError("on no grid")
            size = round(DENSE / self.integers)
        loss = 0.9 - self.lost(DENSE / size) / 100 if settings.stage != "quantize" else 0.9
        return Reference(label, label, numbers={
            "val_metric": loss, "val_loss": 0.5, "val_correct": None, "val_total": 100, "size_bytes": size,
            "dense_bytes": DENSE, "worked_seconds": self.seconds if settings.stage == "reconstruct" else 1.0,
        })  # fmt: skip


@pytest.fixture
def search(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Search]:
    monkeypatch.setattr(task_budget, "layers", lambda run, dense: 50)

    def make(call: Any, train: Any = None, weights: str | None = "w.pt", **plan: Any) -> Search:
        budget = schema.Budget.model_validate({"metric_loss": 0.01, **plan})
        metric = SimpleNamespace(name="auc", higher_is_better=True)
        run: Any = SimpleNamespace(name="mine", metric_object=lambda: metric, model=SimpleNamespace(weights=weights))
        numbers = {"val_metric": 0.9, "val_loss": 0.5, "val_correct": None, "val_total": 100, "dense_bytes": DENSE}
        dense = Reference("dense", "dense", numbers={**numbers, "size_bytes": DENSE, "worked_seconds": 5.0})
        limits = library.Budget(budget.metric_loss, None, 0.0) if budget.metric_loss else library.Budget(None, 100_000)
        return Search(run, budget, train, limits, dense, call, 0, 5.0)

    return make


def curve(ratio: float) -> float:
    """Points that are lost: one at ten times smaller."""
    return math.exp(44 * (1 / 10 - 1 / ratio))


def test_it_goes_down_to_what_may_be_lost(search: Callable[..., Search]) -> None:
    """A nearly lossless file first, then smaller and smaller ones, and back, until nothing is left to gain."""
    now = search(Calls(curve))
    reason = reconstructed.search(now, lambda _: None)
    assert now.call.labels[:5] == ["share-1", "quantize-1", "encode-1", "quantize", "importance"]  # type: ignore[attr-defined]
    best = library.best_of(now.budget, [step.result for step in now.every])
    assert reason == "what is kept and what is not are too near to gain anything"
    assert 9 < DENSE / now.every[best].result.file_bytes <= 10 and len(now.quick) < 9
    chain = [one.key for one in flow_budget._chain(now, best)]
    assert chain == ["dense", "quantize", f"reconstruct-{best + 1}", f"encode-{best + 1}"]
    assert [one["number"] for one in flow_budget._outcome(now, best, "reason")["steps"]] == [
        *range(1, len(now.every) + 1)
    ]


def test_a_first_file_that_loses_too_much_tells_nothing_of_the_others(search: Callable[..., Search]) -> None:
    """Weights shared at 8 bits without samples may lose more than many times fewer bytes that are chosen on samples."""
    now = search(Calls(lambda ratio: 2.0 if 2 < ratio < 4.5 else curve(ratio)))
    reconstructed.search(now, lambda _: None)
    assert [step.result.kept for step in now.quick[:3]] == [False, False, True]  # the third is rounded alone
    assert DENSE / now.quick[3].result.file_bytes == pytest.approx(6, rel=1e-3)
    assert max(DENSE / one.result.file_bytes for one in now.quick if one.result.kept) > 9


def test_integers_come_before_floats_of_half_the_bits(search: Callable[..., Search]) -> None:
    """Where sharing loses too much, the first file that keeps is four times smaller, not little; refused, the next."""
    call = Calls(lambda ratio: 2.0 if ratio == 4 else curve(ratio))
    now = search(call)
    reconstructed.search(now, lambda _: None)
    first = next(step for step in now.quick if step.result.kept)
    assert first.note == "nothing pruned, weights are integers of 8 bits"
    assert DENSE / first.result.file_bytes == pytest.approx(4.2, rel=1e-3)
    call.integers, now = None, search(call)
    reconstructed.search(now, lambda _: None)
    assert [step.note for step in now.quick[:2]] == [reconstructed.FIRST[0].note, reconstructed.FIRST[2].note]


def test_bytes_that_are_given_are_come_to(search: Callable[..., Search]) -> None:
    """The stage comes to a size, or nearly: then less is asked for, a few times."""
    now = search(Calls(curve), metric_loss=None, ratio=10)
    assert reconstructed.search(now, lambda _: None) == "a file has 100,000 bytes of 100,000"
    assert [step.result.file_bytes for step in now.quick] == [100_000] and now.quick[0].result.kept
    for off, made in ((1.02, 2), (1.0 / 0.9, 2), (None, 3)):
        now = search(Calls(curve, off=off or (lambda size: 120_000 / size)), metric_loss=None, ratio=10)
        reconstructed.search(now, lambda _: None)
        assert len(now.quick) == made and now.quick[-1].result.kept == (off is not None)


def test_a_time_limit_decides_how_thoroughly_and_how_often(search: Callable[..., Search]) -> None:
    """Samples and passes fit into the time, no file is begun that does not, and every stage is cut off at its end."""
    now = search(Calls(curve, seconds=60), time_limit=5)
    assert "and the next file takes" in reconstructed.search(now, lambda _: None)
    limits = [one for one in now.call.limits if one is not None]  # type: ignore[attr-defined]
    assert now.spent < 300 and limits == sorted(limits, reverse=True) and limits[0] < 300
    assert now.call.limits[:3] == [None] * 3  # type: ignore[attr-defined]
    ways = [reconstructed._way(search(None, time_limit=9), 1.0, left) for left in (1e5, 200.0, 30.0, 5.0, 1.0)]
    assert [one.samples if one else None for one in ways] == [128, 128, 32, 8, None]


def test_what_was_made_stays_where_a_stage_is_cut_off_or_fails(search: Callable[..., Search]) -> None:
    """The reason is told, and the search ends with what it has."""

    def failing(error: Exception) -> Calls:
        def call(ratio: float) -> float:
            if ratio > 5:
                raise error
            return 0.0

        return Calls(call)

    now = search(failing(TimeoutError()), time_limit=5)
    assert reconstructed.search(now, lambda _: None) == "5.0 minutes of 5 minutes are spent: reconstruct-2 was cut off"
    assert now.left == 0
    assert len(now.every) == 1 and now.every[0].result.kept
    now = search(failing(StructureError("out of reach")))
    assert reconstructed.search(now, lambda _: None) == "reconstruct-2 came to nothing (out of reach)"


def test_it_is_for_given_weights_alone(search: Callable[..., Search]) -> None:
    """Where nothing trains; where steps are trained, if time is short and there are weights to begin with."""
    train = schema.Training()
    assert reconstructed.reconstructs(search(None)) and reconstructed.reconstructs(search(None, train, time_limit=5))
    assert not reconstructed.reconstructs(search(None, train))
    assert not reconstructed.reconstructs(search(None, train, None, time_limit=5))


def test_nothing_trains_only_from_weights(tiny: Tiny) -> None:
    """Without a checkpoint there would be no dense model."""
    with pytest.raises(RecipeError, match=r"train: null goes with model\.weights"):
        recipes.load(tiny(train=None, stages=[], budget={"ratio": 8}))


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_a_whole_run_without_training(tiny: Tiny, tmp_path: Path) -> None:
    """From a checkpoint to a file of the bytes that are asked for, its stages those of the file that is taken."""
    from deepcompression.models import digits_net

    torch.manual_seed(0)
    torch.save(digits_net().state_dict(), tmp_path / "w.pt")
    model = {"factory": "deepcompression.models:digits_net", "weights": {"path": str(tmp_path / "w.pt")}}
    summary = cast(
        dict[str, Any], compress(tiny(model=model, train=None, stages=[], budget={"ratio": 8, "time_limit": 4}))
    )
    assert summary["budget"]["kept"] and summary["ratio"] >= 8
    chosen, labels = summary["budget"]["chosen"], [one["stage"] for one in summary["stages"]]
    assert labels == ["baseline", "quantize", f"reconstruct-{chosen}", f"encode-{chosen}"]
