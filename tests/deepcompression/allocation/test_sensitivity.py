"""Sensitivity against what pruning or sharing by hand, and evaluating, gives."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch
from torch import Tensor, nn

from deepcompression.allocation.sensitivity import (
    BitsPoint,
    DensityPoint,
    Sensitivity,
    TensorSensitivity,
    borrowed,
    restored,
    sensitivity,
)
from deepcompression.errors import FactoryError, StructureError
from deepcompression.network.names import prunable
from deepcompression.network.state import bits_of, plain_state
from deepcompression.pruning.prune import prune
from deepcompression.sharing.share import share
from deepcompression.training.evaluate import evaluate
from deepcompression.training.problem import Problem


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3))


def problem() -> Problem:
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    split = (x, x[:, :3].argmax(1))
    return Problem(split, split)


def by_hand(model: nn.Module, changed: dict[str, Tensor], data: Problem) -> tuple[float, float]:
    other = net()
    other.load_state_dict({**plain_state(model), **changed})
    found = evaluate(other, data.validation, data.step, data.metric)
    return found.metric, found.loss


def test_every_point_is_the_one_tensor_changed_and_nothing_else():
    """Metric and loss equal those of a second model, loaded with the state pruned or shared by hand."""
    model, data = net(), problem()
    found = sensitivity(model, data, ["0.weight", "2.weight"], densities=[0.5, 0.1], bits=[1, 3])
    assert (found.base.metric, found.base.loss) == by_hand(model, {}, data)
    assert [one.name for one in found.tensors] == ["0.weight", "2.weight"] and found.samples == 64
    for one in found.tensors:
        state = {one.name: plain_state(model)[one.name]}
        assert [point.density for point in one.by_density] == [0.5, 0.1] and one.density == 1.0
        for point in one.by_density:
            pruned = prune(state, {one.name: point.density}).state
            assert (point.metric, point.loss) == by_hand(model, pruned, data)
        assert [point.bits for point in one.by_bits] == [3, 1]
        for place in one.by_bits:
            shared = share(state, {one.name: place.bits}, init="optimal").state
            assert (place.metric, place.loss) == by_hand(model, shared, data)


def test_the_model_is_left_as_it_was_even_after_an_error():
    """Every bit, also where the metric fails halfway."""
    model, data = net().train(), problem()
    with torch.no_grad():
        model[0].weight[0, 0] = -0.0
    before = {name: bits_of(tensor).clone() for name, tensor in model.state_dict().items()}
    calls = []

    def metric(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("broken")
        return outputs.argmax(1) == targets

    sensitivity(model, data, ["0.weight"], densities=[0.1], bits=[1])
    assert model.training
    with pytest.raises(FactoryError, match="broken"):
        sensitivity(model, Problem(data.train, data.validation, metric=metric), ["0.weight"])
    assert all(torch.equal(bits_of(tensor), before[name]) for name, tensor in model.state_dict().items())


def test_the_default_densities_fall_from_the_present_one_to_a_small_part_of_it():
    """Only below what is left; no two with the same number of weights; an all-zero tensor is skipped."""
    model = net()
    with torch.no_grad():
        model[2].weight[:10] = 0
        model[4].weight[:] = 0
    found = sensitivity(model, problem(), prunable(model), bits=[])
    assert [one.name for one in found.tensors] == ["0.weight", "2.weight"]
    half = found.tensors[1]
    counts = [round(point.density * half.weights) for point in half.by_density]
    assert half.density == 0.5 and counts == sorted(set(counts), reverse=True)
    assert counts[0] == round(200 * 0.003**0.1) and counts[-1] == 1
    given = sensitivity(model, problem(), ["2.weight"], densities=[0.9, 0.5, 0.2], bits=[])
    assert [point.density for point in given.tensors[0].by_density] == [0.2]


def test_what_changes_no_weight_costs_no_evaluation():
    """A tensor of few values that is shared by as many has the base's result; the callback counts every point."""
    model, data = net(), problem()
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.sign())
    evaluations, told = [], []

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        evaluations.extend([1] * (len(batch[0]) > 2))  # one and two samples are run to see what memory they take
        return data.step(module, batch)

    found = sensitivity(
        model,
        Problem(data.train, data.validation, step),
        ["0.weight"],
        densities=[0.5],
        bits=[2, 1, 1],
        progress=lambda *now: told.append(now),
    )
    assert len(evaluations) == 2 and told == [(1, 3, "0.weight"), (2, 3, "0.weight"), (3, 3, "0.weight")]
    assert {(point.metric, point.loss) for point in found.tensors[0].by_bits} == {(found.base.metric, found.base.loss)}


def test_a_tied_tensor_is_one_and_a_score_decides():
    """Under either name it is tried once, changed at both uses; the score is asked as by ``prune``."""
    model = net()
    model[4] = nn.Linear(20, 20)
    model[4].weight = model[2].weight
    asked = []

    def score(name: str, weight: Tensor) -> Tensor:
        asked.append(name)
        return -weight.abs()

    names = ["4.weight", "2.weight"]
    found = sensitivity(model, problem(), names, densities=[0.5], bits=[], score=score)
    assert [one.name for one in found.tensors] == ["2.weight"] and asked == ["2.weight"]
    with torch.no_grad():
        worst = prune({"w": model[2].weight.detach()}, {"w": 0.5}, score=score).state["w"]
        model[2].weight.copy_(worst)
    data = problem()
    assert evaluate(model, data.validation, data.step, data.metric).loss == found.tensors[0].by_density[0].loss


def test_fewer_samples_are_the_first_ones():
    """The base is the result on the beginning of the split; the number that was used is told."""
    model, data = net(), problem()
    found = sensitivity(model, data, ["0.weight"], densities=[0.5], bits=[], most_samples=10)
    part = tuple(one[:10] for one in data.validation)
    assert found.samples == 10 and found.base.loss == evaluate(model, part, data.step, data.metric).loss


def test_json_and_back():
    """What a report stores is what the search gets."""
    found = sensitivity(net(), problem(), ["0.weight"], densities=[0.5], bits=[2])
    back = restored(json.loads(json.dumps(asdict(found))))
    assert back == found and isinstance(back, Sensitivity)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"names": ["0.wieght"]}, r"0\.wieght: no floating-point parameter .* nearest are 0\.weight"),
        ({"densities": [1.5]}, "density 1.5 is impossible"),
        ({"bits": [17]}, r"0\.weight: bits 17 is impossible"),
    ],
)
def test_what_is_impossible_is_refused_by_name(arguments: dict, rule: str):
    """The message names the tensor or the number."""
    with pytest.raises(StructureError, match=rule):
        sensitivity(net(), problem(), **{"names": ["0.weight"], **arguments})


def test_null_in_json_is_what_was_not_a_number():
    """A loss or metric that was NaN comes back as NaN, so that it never looks like a good one."""
    plain = {
        "base": {"metric": None, "loss": 0.5},
        "samples": 10,
        "tensors": [
            {
                "name": "a",
                "weights": 4,
                "density": 1.0,
                "by_density": [{"density": 0.5, "metric": None, "loss": None}],
                "by_bits": [{"bits": 4, "metric": 0.5, "loss": None}],
            }
        ],
    }
    found = restored(plain)
    point, coarse = found.tensors[0].by_density[0], found.tensors[0].by_bits[0]
    assert all(math.isnan(one) for one in (found.base.metric, point.metric, point.loss, coarse.loss))
    assert found.base.loss == coarse.metric == 0.5


def test_tensors_that_were_not_tried_are_as_those_nearest_in_size() -> None:
    """At the same parts of their present weights; what is zero throughout is none."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 60), nn.Linear(60, 4), nn.Linear(4, 2))
    model[1].weight.data[:30] = 0
    model[3].weight.data[:] = 0
    small, large = (
        TensorSensitivity(name, size, 1.0, (DensityPoint(0.5, metric, 1.0),), (BitsPoint(4, metric, 2.0),))
        for name, size, metric in (("0.weight", 64, 0.9), ("x", 400, 0.7))
    )
    names = [f"{place}.weight" for place in range(4)]
    found = borrowed([small, large], model, names)
    assert [(one.name, one.weights, one.density) for one in found] == [("1.weight", 480, 0.5), ("2.weight", 240, 1.0)]
    assert [one.by_density[0] for one in found] == [DensityPoint(0.25, 0.7, 1.0), DensityPoint(0.5, 0.7, 1.0)]
    assert found[0].by_bits == large.by_bits
