"""Weights on grids by the stage `quantize`: pruned before, trained on with their scales fixed, in a small file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from quiet_runs import SMALL, quiet_run

import deepcompression
from deepcompression.errors import StructureError
from deepcompression.network.parametrized import is_held
from deepcompression.structure.hold import hold_structure
from tasks.execution.check import check
from tasks.execution.execute import execute
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Model, Training
from tasks.stages import baseline, encode, settings_of, work_of
from tasks.stages.quantize import Settings

TWO = {"epochs": 2, "lr": 0.01, "batch_size": 16}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run on a small net, told to nobody."""
    with quiet_run(tmp_path, monkeypatch, "tsl_mine", SMALL, Model(factory="tsl_mine:net")) as made:
        yield made


def made(run: Run, label: str, keys: dict[str, Any], source: Reference) -> Reference:
    """The result of a stage with these keys."""
    settings = settings_of(keys["stage"])(**keys)
    return execute(run, label, 1, settings, source, work_of(keys["stage"]))[0]


def dense(run: Run) -> Reference:
    """The dense model of a run."""
    return execute(run, "baseline", 0, baseline.Settings(train=Training(**TWO)), None, baseline.work)[0]


def scales(run: Run, reference: Reference) -> torch.Tensor:
    """Those with which the second layer is held."""
    model = run.model_with(reference)
    hold_structure(model, {"2.weight": reference.structure["2.weight"]})
    layer: Any = model[2]  # type: ignore[index]
    assert is_held(layer, "weight")
    return next(part.scale for part in layer.parametrizations.weight if hasattr(part, "scale"))


@pytest.mark.parametrize("per", ["tensor", "channel", {"group": 32}], ids=str)
def test_pruned_weights_on_grids_train_on_and_become_a_small_file(run: Run, per: Any) -> None:
    """Zeros stay zero and scales stay what they are in a fine-tuning; the file has 4 bits a weight, not 32."""
    pruned = made(run, "prune", {"stage": "prune", "density": {"2": 0.5}}, dense(run))
    keys = {"stage": "quantize", "weights": {"bits": {"2": 4}, "per": per}, "correct": ["weights"], "rest": "float16"}
    ready = made(run, "quantize", keys | {"rest": "float32"}, pruned)
    tuned = made(run, "finetune", {"stage": "finetune", **TWO}, ready)
    before, after = (run.state(one)["2.weight"] for one in (ready, tuned))
    assert not torch.equal(before, after) and not bool(after[run.state(pruned)["2.weight"] == 0].any())
    assert torch.equal(scales(run, ready), scales(run, tuned))
    rounded = made(run, "rest", keys | {"weights": None, "correct": []}, tuned)
    assert torch.equal(run.state(rounded)["2.weight"], after)  # on its grid already: not rounded with the rest
    entry = run.store.find(rounded.key)
    assert entry is not None and all(row["done"] for row in entry["report"]["covered"])
    packed = execute(run, "encode", 4, encode.Settings(stage="encode", coder="adaptive"), tuned, encode.work)[0]
    file = run.store.object_path(packed.object)
    assert np.array_equal(deepcompression.load(file)["2.weight"], after.numpy())
    row = next(one for one in deepcompression.inspect(file)["tensors"] if one["name"] == "2.weight")
    assert row["bytes"] < 64 * 64 * 4 / 8 + 64 * 2 * 4


def test_each_tensor_is_told(run: Run) -> None:
    """Done, or left alone and why; and what was corrected in it."""
    reference = made(
        run, "quantize", {"stage": "quantize", "weights": {"bits": {"2": 3}}, "correct": ["weights"]}, dense(run)
    )
    entry = run.store.find(reference.key)
    assert entry is not None
    rows = {row["tensor"]: (row["done"], row["reason"]) for row in entry["report"]["covered"]}
    assert rows["2.weight"] == (True, "") and rows["0.weight"] == (False, "named by no pattern")
    (method,) = entry["report"]["methods"]
    (layer,) = method["layers"]
    assert layer["corrected"] == "variance, and mean" and layer["bits"] == 3 and layer["sqnr"] > 8


def test_channels_are_equalized_before(run: Run) -> None:
    """What the model computes stays; weights on a grid already are left, and told."""
    source = dense(run)
    even = made(run, "even", {"stage": "quantize", "equalize": True}, source)
    entry = run.store.find(even.key)
    assert entry is not None and set(entry["report"]["equalized"]) >= {"0.weight", "2.weight"}
    assert even.numbers["val_loss"] == pytest.approx(source.numbers["val_loss"], rel=1e-5)
    assert not torch.equal(run.state(even)["2.weight"], run.state(source)["2.weight"])
    first = made(run, "first", {"stage": "quantize", "weights": {"bits": {"2": 4}}}, source)
    kept = made(run, "second", {"stage": "quantize", "equalize": True}, first)
    assert torch.equal(run.state(kept)["2.weight"], run.state(first)["2.weight"])
    entry = run.store.find(kept.key)
    assert entry is not None and entry["report"]["methods"][0]["left"]["2.weight"] == "is grid(4, 0) already"


def test_what_cannot_be_is_told_before_anything_trains(run: Run) -> None:
    """By keys, by the model, and by what an earlier stage will have made of it."""
    with pytest.raises(ValidationError, match=r"correct: \[weights\] goes with weights"):
        Settings(stage="quantize", correct=["weights"])
    share, linear = (
        ("share", settings_of("share")(stage="share", bits=3)),
        {"stage": "quantize", "weights": {"bits": 4}},
    )
    with pytest.raises(
        StructureError, match=r"stage quantize: 0.weight: shares values, which a scale for each channel"
    ):
        check(run, [share, ("quantize", Settings(**linear))])
    trained = settings_of("train")(stage="train", methods=[{"share": {"bits": {"2": 3}}}])
    with pytest.raises(StructureError, match=r"stage quantize: 2.weight: shares values"):
        check(run, [("train", trained), ("quantize", Settings(**linear))])
    twice = [("quantize", Settings(**linear)), ("quantize-2", Settings(stage="quantize", weights={"bits": 3}))]
    with pytest.raises(
        StructureError, match=r"stage quantize-2: 0.weight: is grid\(4, 0\) already, which grid\(3, 0\)"
    ):
        check(run, twice)
    assert not Settings(**linear).rounds_values and Settings(**linear, rest="int8").rounds_values
