"""Weights that share values by channels or groups, in the words of a recipe, and trained on with their codebooks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from quiet_runs import SMALL, quiet_run
from torch import nn

from deepcompression.errors import StructureError
from deepcompression.structure.constraints import constraint
from tasks.execution.execute import execute
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Model, Training
from tasks.stages import baseline, settings_of, work_of
from tasks.stages.share import Settings

TWO = {"epochs": 2, "lr": 0.01, "batch_size": 16}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run on a small net, told to nobody."""
    with quiet_run(tmp_path, monkeypatch, "tss_mine", SMALL, Model(factory="tss_mine:net")) as made:
        yield made


def made(run: Run, label: str, keys: dict[str, Any], source: Reference) -> Reference:
    """The result of a stage with these keys."""
    return execute(run, label, 1, settings_of(keys["stage"])(**keys), source, work_of(keys["stage"]))[0]


def test_codebooks_of_channels_are_trained_and_rounded(run: Run) -> None:
    """Pruned, shared by channel, centroids trained and rounded: zeros stay, no channel gets more values than bits."""
    dense = execute(run, "baseline", 0, baseline.Settings(train=Training(**TWO)), None, baseline.work)[0]
    pruned = made(run, "prune", {"stage": "prune", "density": {"2": 0.5}}, dense)
    shared = made(run, "share", {"stage": "share", "bits": {"2": 2}, "per": "channel"}, pruned)
    assert shared.structure["2.weight"] == ("zeros", "shared(0)") and shared.shared == ["2.weight"]
    keys = {"stage": "quantize", "train": TWO, "codebook": "float16"}
    tuned = made(run, "quantize", keys, shared)
    before, after = (run.state(one)["2.weight"] for one in (shared, tuned))
    assert not torch.equal(before, after) and torch.equal(before == 0, after == 0)
    assert torch.equal(after, after.half().float())
    assert all(len(row[row != 0].unique()) <= 4 for row in after) and len(after.unique()) > 100
    constraint("shared(0)").check("2.weight", before, after)


@pytest.mark.parametrize("per", ["channel", {"group": 32}, {"channels": 4}])
@pytest.mark.parametrize("keys", [{"rate": 0.1}, {"train": {}}], ids=["rate", "train"])
def test_a_rate_and_training_have_one_codebook(per: Any, keys: dict[str, Any]) -> None:
    """Refused with the key that does not go with them."""
    with pytest.raises(ValidationError, match=r"per: .* goes without rate and train, which draw one codebook"):
        Settings(stage="share", per=per, **keys)


@pytest.mark.parametrize(
    "keys",
    [{"stage": "slim"}, {"stage": "prune", "granularity": "filter", "density": 0.5, "criterion": "l1", "remove": True}],
    ids=["slim", "prune"],
)
@pytest.mark.parametrize("word", ["shared(0, 32)", "grid(4, 0, 32)"])
def test_groups_are_not_torn_by_a_new_order_of_channels(keys: dict[str, Any], word: str) -> None:
    """Codebooks and scales of groups are lost where channels change places or go; those of whole channels are not."""
    stage = settings_of(keys["stage"])(**keys)
    model = nn.Sequential(nn.Linear(64, 4))
    stage.follows(model, {"0.weight": ("zeros", word.replace(", 32", ""))})
    with pytest.raises(StructureError, match=r"0\.weight: is .*, 32\), and its groups would be torn by"):
        stage.follows(model, {"0.weight": ("zeros", word)})


def test_what_does_not_fit_is_told_before_anything_trains() -> None:
    """Groups that divide no channel, and codebooks that would drive apart what shares values already."""
    model = nn.Sequential(nn.Linear(6, 4))
    groups, channel = (Settings(stage="share", per=per) for per in ({"group": 4}, "channel"))
    with pytest.raises(StructureError, match=r"0\.weight: groups of 4 do not divide its 6 elements of a channel"):
        groups.leaves(model)
    assert channel.leaves(model) == {"0.weight": ("zeros", "shared(0)")}
    channel.follows(model, {"0.weight": ("zeros",)})
    with pytest.raises(StructureError, match=r"0\.weight: shares values already"):
        channel.follows(model, {"0.weight": ("zeros", "shared")})
