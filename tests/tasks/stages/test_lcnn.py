"""The stages lcnn and sparsify, without Prefect: a net in two parts trains on, and becomes a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet_runs import quiet_run

from deepcompression.errors import StructureError
from deepcompression.torch import load_into
from tasks.execution.check import check
from tasks.execution.execute import execute
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Model, Training
from tasks.stages import baseline, settings_of, work_of

CODE = """
import torch
from torch import nn
def data():
    x = torch.randn(96, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    pair = (x, x.mean((2, 3)).argmax(1))
    return pair, pair, pair
def net():
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)]
    return nn.Sequential(*layers)
"""
TWO = {"epochs": 2, "lr": 0.01, "batch_size": 16}
LCNN = {"stage": "lcnn", "size": {"2": 3}, "nonzero": 2}
PRUNED = {"stage": "prune", "density": {"2.lookup": 0.1, "2.dictionary": 0.9}}
STAGES = [LCNN, {"stage": "finetune", **TWO}, PRUNED, {"stage": "sparsify", "zeros": {"5": 0.7, "2.lookup": 0.4}}]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run on a small net, told to nobody."""
    with quiet_run(tmp_path, monkeypatch, "tsl_mine", CODE, Model(factory="tsl_mine:net")) as made:
        yield made


def stages(rows: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """Labels and keys."""
    return [(f"{row['stage']}-{place}", settings_of(row["stage"])(**row)) for place, row in enumerate(rows)]


def test_a_net_with_dictionaries_trains_and_is_pruned_and_becomes_a_file(run: Run) -> None:
    """Later stages name its parts before these are there; lookups stay zero while it trains; what is true of tensors
    that are gone is forgotten; what was found is logged; the file gives the same in a model of the user's code.
    """
    check(run, stages(STAGES))
    reference: Reference = execute(run, "b", 0, baseline.Settings(train=Training(**TWO)), None, baseline.work)[0]
    made = []
    for place, (label, settings) in enumerate(stages([*STAGES, {"stage": "encode"}]), 1):
        reference = execute(run, label, place, settings, reference, work_of(settings.stage))[0]
        made.append(reference)
    first, tuned, pruned, sparse, coded = made
    lookup = run.state(first)["2.lookup.weight"]
    assert lookup.shape == (8, 3, 3, 3) and int(lookup.count_nonzero()) <= 2 * 72
    assert bool((run.state(tuned)["2.lookup.weight"][lookup == 0] == 0).all())
    assert int(run.state(pruned)["2.lookup.weight"].count_nonzero()) < 30
    assert 0.5 < first.numbers["density"] < tuned.numbers["density"] + 1e-9 < 0.9
    told = {name: value for values, _ in run.tracker.told for name, value in values.items()}  # type: ignore[attr-defined]
    assert 0.3 < told["lcnn-0/operations"] < 0.8 and told["sparsify-3/zeros/5"] == pytest.approx(0.7, abs=0.1)
    assert [edit["kind"] for edit in sparse.edits] == ["dictionary", "threshold", "threshold"]
    model = load_into(run.blank_model(), run.store.object_path(coded.object)).eval()
    x = run.splits().test[0]
    assert torch.equal(model(x), run.model_with(sparse).eval()(x))


def test_what_does_not_go_is_told_before_anything_trains(run: Run) -> None:
    """A layer that is pruned already, one that is not there any more, numbers that mean nothing."""
    for rows, words in [
        (
            [{"stage": "quantize", "weights": {}}, LCNN],
            r"stage lcnn-1: 2.weight: is grid\(8, 0\) already, which a dict",
        ),
        ([LCNN, {"stage": "prune", "density": {"2": 0.5}}], "stage prune-1: pattern '2'"),
        ([{**LCNN, "size": {"2": 9}}], r"stage lcnn-0: lcnn: 2: size 9: expected 1 to 8"),
        ([{"stage": "sparsify", "zeros": {"5": 0.0}}], "stage sparsify-0: sparsify: no layer has values to make zero"),
    ]:
        with pytest.raises(StructureError, match=words):
            check(run, stages(rows))
