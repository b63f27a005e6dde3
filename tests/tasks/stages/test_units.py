"""The stage prune with whole inputs, heads and residual blocks, without Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
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
    x = torch.randn(96, 5, 8, generator=torch.Generator().manual_seed(0))
    pair = (x, x.mean(1)[:, :3].argmax(1))
    return pair, pair, pair
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)
    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).view(*x.shape[:2], 3, -1, 2).permute(2, 0, 3, 1, 4).unbind(0)
        found = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(found)
        return x + self.narrow(self.wide(x).relu())
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks, self.head = nn.Sequential(*(Block() for _ in range(3))), nn.Linear(8, 3)
    def forward(self, x):
        return self.head(self.blocks(x).mean(1))
def net():
    return Net()
"""
TWO = {"epochs": 2, "lr": 0.01, "batch_size": 16}
PRUNE: dict[str, Any] = {"stage": "prune", "criterion": "l1", "remove": True}
LAYER = {"stage": "prune", "granularity": "layer", "remove": True}
CHANNEL, HEAD = {**PRUNE, "granularity": "channel"}, {**PRUNE, "granularity": "head"}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run on a small transformer, told to nobody."""
    with quiet_run(tmp_path, monkeypatch, "tsu_mine", CODE, Model(factory="tsu_mine:net")) as made:
        yield made


def test_heads_inputs_and_blocks_go_and_a_new_model_becomes_the_thin_one(run: Run) -> None:
    """One after the other, trained between; each thin model was seen to give what the masked one gives."""
    rows: list[dict[str, Any]] = [
        {**HEAD, "density": {"blocks.0.qkv": 0.5}},
        {**CHANNEL, "density": {"*.narrow": 0.5}},
        {"stage": "finetune", **TWO},
        {**LAYER, "density": 0.67},
        {"stage": "encode"},
    ]
    stages = [(f"{row['stage']}-{place}", settings_of(row["stage"])(**row)) for place, row in enumerate(rows)]
    check(run, stages)
    reference: Reference = execute(run, "b", 0, baseline.Settings(train=Training(**TWO)), None, baseline.work)[0]
    made = []
    for place, (label, settings) in enumerate(stages, 1):
        reference = execute(run, label, place, settings, reference, work_of(settings.stage))[0]
        made.append(reference)
    entries = [run.store.find(one.key) or {} for one in made]
    assert all(entries[place]["report"]["gap"] < 1e-5 for place in (0, 1, 3))
    state = run.state(made[1])
    assert state["blocks.0.qkv.weight"].shape == (12, 8) and state["blocks.1.qkv.weight"].shape == (24, 8)
    assert {one: state[f"blocks.{one}.wide.weight"].shape[0] for one in (0, 1, 2)} == {0: 8, 1: 8, 2: 8}
    kinds = [edit["kind"] for edit in made[3].edits]
    assert kinds == ["resize", "resize", "bypass"]
    gone = made[3].edits[-1]["module"]
    assert f"{gone}.qkv.weight" not in run.state(made[3]) and f"{gone}.edit" in run.state(made[3])
    assert made[3].numbers["model_density"] < made[1].numbers["model_density"]
    told = {name for values, _ in run.tracker.told for name in values}  # type: ignore[attr-defined]
    assert "prune-3/macs" in told
    model = load_into(run.blank_model(), run.store.object_path(made[4].object)).eval()
    x = run.splits().test[0]
    assert torch.equal(model(x), run.model_with(made[3]).eval()(x))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({**LAYER, "remove": False, "density": 0.5}, "granularity: layer goes with remove: true; a block is there, or"),
        ({**LAYER, "density": {"blocks.0": 0.5}}, "granularity: layer goes with one density of all blocks, flops or"),
        ({**LAYER, "density": 0.5, "criterion": "l1"}, "granularity: layer goes by the loss alone: leave gradual"),
        ({**LAYER}, "expected exactly one of density, flops and parameters"),
        (
            {**CHANNEL, "density": 0.5, "criterion": "apoz"},
            "channel goes with criterion: one of fpgm, l1, l2, fpgm-mix",
        ),
        ({**HEAD, "density": 0.5, "gradual": {}}, "granularity: head goes without gradual; while training"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], words: str) -> None:
    """With what goes instead."""
    with pytest.raises(ValidationError, match=words):
        settings_of("prune")(**keys)


def test_what_the_model_cannot_lose_is_told_before_anything_trains(run: Run) -> None:
    """No heads, no such inputs, no block to leave out, a cost out of reach."""
    model = run.blank_model()
    for keys, words in [
        (
            {**HEAD, "density": {"*.wide": 0.5}},
            r"blocks.0.wide.weight: its channels cannot be removed: it makes no heads",
        ),
        ({**CHANNEL, "density": {"blocks.0.wide": 0.5}}, "what it takes in is the model's input, or made by what must"),
        ({**LAYER, "density": 0.9}, "density 0.9 of 3 residual blocks leaves none out; lower it"),
        ({**LAYER, "flops": 0.1}, "flops: 0.1 is out of reach: with one of 3 residual blocks 0.3.* of the mult"),
        (
            {**LAYER, "parameters": 0.1},
            "parameters: 0.1 is out of reach: with one of 3 residual blocks 0.3.* of the par",
        ),
    ]:
        with pytest.raises(StructureError, match=words):
            settings_of("prune")(**keys).fits(run, model)
    with pytest.raises(
        StructureError, match="the model has 0 residual blocks of one shape, a module each that takes a"
    ):
        settings_of("prune")(**LAYER, density=0.5).fits(
            run, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(40, 3))
        )
