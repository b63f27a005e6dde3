"""What budget mode needs of a model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from deepcompression.network import state
from tasks import budget


def test_a_layer_that_is_zero_throughout_keeps_its_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialisation leaves such ones: nothing is pruned in them, so that no density says how many units to keep."""
    model = nn.Sequential(nn.Linear(4, 60), nn.ReLU(), nn.Linear(60, 50), nn.ReLU(), nn.Linear(50, 2))
    nn.init.zeros_(model[2].weight)
    run: Any = SimpleNamespace(model_with=lambda _: model, state=lambda _: state.plain_state(model))
    monkeypatch.setattr(budget, "outputs", lambda _, one: one(torch.ones(1, 4)))
    assert budget.units_to_keep(run, None, {"0.weight": 0.0625, "4.weight": 0.0625}) == {"0": 45}  # type: ignore[arg-type]
