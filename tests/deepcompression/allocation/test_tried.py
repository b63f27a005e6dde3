"""What allocations do to outputs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepcompression.allocation.tried import outputs_moved


def test_outputs_move_by_what_stands_in_place_of_parameters() -> None:
    """In squares, over all batches, of all that is given; the model is as it was, and in eval mode meanwhile."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Dropout(0.9)).train()
    weight = model[0].weight.detach().clone()
    batches = [torch.randn(5, 3), torch.randn(2, 3)]
    forward = lambda net, batch: {"a": net(batch), "b": [net(batch) * 2], "n": batch.long()}  # noqa: E731
    tried = [{"0.weight": weight}, {"0.weight": 1.1 * weight}, {}, {"0.weight": 0 * weight}]
    assert outputs_moved(model, batches, forward, tried) == pytest.approx([0, 0.01, 0, 1], rel=1e-5)
    assert model.training and torch.equal(model[0].weight, weight)
    assert outputs_moved(model, [torch.zeros(1, 3)], forward, tried) == [0, 0, 0, 0]
