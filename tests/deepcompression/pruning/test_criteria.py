"""Criteria by name: one table, and no name that silently means another."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import nn

from deepcompression import factory
from deepcompression.errors import StructureError
from deepcompression.pruning import criteria
from deepcompression.pruning.criteria import CRITERIA, maker
from deepcompression.training.context import context_of
from deepcompression.training.device import Compute
from deepcompression.training.problem import Problem
from tasks.execution.pruned_by import Criterion
from tasks.execution.scores import score_of
from tasks.execution.sources import _imported_here


def _bench() -> Any:
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    problem = Problem((x, torch.zeros(8, dtype=torch.long)), None)
    return SimpleNamespace(context=lambda: context_of(problem, Compute()))


def test_every_name_is_one_of_recipes_and_makes_a_score() -> None:
    """The table is the list that recipes accept; each name's maker is there and is part of pruning's code."""
    assert get_args(Criterion) == tuple(CRITERIA)
    for name in CRITERIA:
        score = score_of(_bench(), SimpleNamespace(criterion=name, score=None), nn.Linear(3, 2))
        assert (score is None) == (name == "magnitude")
        assert score is None or score("weight", torch.ones(2, 3)).shape == (2, 3)
    named = set(_imported_here(criteria.__name__, Path(criteria.__file__)))
    assert named >= {spec.partition(":")[0] for spec in CRITERIA.values() if spec}


@pytest.mark.parametrize("name", ["wand", "Wanda", "", "hessian", None])
def test_an_unknown_name_is_refused_with_the_known_ones(name: Any) -> None:
    """No misspelt criterion is taken for wanda."""
    with pytest.raises(StructureError, match=r"criterion .* is not known; expected one of magnitude, wanda"):
        score_of(_bench(), SimpleNamespace(criterion=name, score=None))


def test_a_further_criterion_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the table names is called with a context, whether it measures anything or not."""
    monkeypatch.setitem(criteria.CRITERIA, "count", "builtins:max")
    assert maker("count") is factory.load("builtins:max")
