"""What allocations do to outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import nn

from deepcompression.allocation.integer_program import Assignment, Choices, candidates, neighbours, uniform
from deepcompression.allocation.tried import divergence, mean_losses, taken, tried


def test_losses_are_with_what_stands_in_place_of_parameters() -> None:
    """Means by samples; the model is as it was, and in eval mode meanwhile."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Dropout(0.9)).train()
    weight = model[0].weight.detach().clone()
    losses = [(lambda net: net(torch.ones(1, 3)).sum(), 30), (lambda net: net(torch.zeros(1, 3)).sum(), 10)]
    tried = [{"0.weight": weight}, {"0.weight": 2 * weight}, {}, {"0.weight": 0 * weight}]
    whole = 0.75 * float(weight.sum())
    assert mean_losses(model, losses, tried) == pytest.approx([whole, 2 * whole, whole, 0], rel=1e-5)
    assert model.training and torch.equal(model[0].weight, weight)


def test_the_divergence_is_that_of_softmax() -> None:
    """0 of the same logits, also where these are shifted; by hand of others."""
    dense, other = torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[5.0, 5.0], [math.log(3), 0.0]])
    found = [float(divergence(lambda _, batch: batch, one, dense, nn.Identity())) for one in (dense, other)]
    assert found == pytest.approx([0, (math.log(0.5 / 0.75) + math.log(0.5 / 0.25)) / 2 / 2], abs=1e-6)


def some(wrong: float = 1.0) -> list[Choices]:
    """Six tensors alike in cost, unlike in what bits lose; all predictions but one right."""
    weight = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    losses = [[one * 4.0**-bits for bits in (2, 4, 8)] for one in weight]
    losses[5] = [wrong * one for one in losses[5]]
    return [Choices(f"t{n}", (2, 4, 8), (2.0, 4.0, 8.0), tuple(one)) for n, one in enumerate(losses)]


def truly(allocations: Sequence[Assignment]) -> list[float]:
    """What allocations lose where the prediction of each tensor is right."""
    right = {one.name: one for one in some()}
    return [sum(right[n].losses[right[n].at(bits)] for n, bits in one.bits.items()) for one in allocations]


def test_neighbours_take_from_one_and_give_to_others() -> None:
    """Of the tensors that lose least by a step, within the limit."""
    start = uniform(some(), 4)
    found = neighbours(some(), start, start.cost, most=2)
    assert [[name for name, bits in one.bits.items() if bits < 4] for one in found] == [["t0"], ["t1"]]
    assert all(one.cost <= start.cost for one in found)
    assert not neighbours(some(), uniform(some(), 2), 100)


def test_a_prediction_that_is_wrong_is_found_out() -> None:
    """What it takes for harmless is not: others are tried, and theirs; never worse than the same bits everywhere."""
    limit = uniform(some(), 4).cost + 2
    predicted = candidates(some(1e-4), limit)[0]
    found = tried(some(1e-4), limit, truly)
    least, best = min(loss for _, loss in found), taken(found)
    assert taken([(predicted, 1.0), (best, 0.6)]) is predicted  # which may be chance
    assert found[0][0] == predicted and predicted.bits["t5"] == 2
    assert best.bits["t5"] > 2 and best.cost <= limit
    assert least <= truly([uniform(some(), 4)])[0] < truly([predicted])[0]
    assert len({tuple(one.bits.values()) for one, _ in found}) == len(found)
