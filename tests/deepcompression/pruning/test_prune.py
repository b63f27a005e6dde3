"""Magnitude pruning against sorting, and gradual pruning against its schedule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trainings import prune_gradually

from deepcompression.errors import StructureError
from deepcompression.network.state import bits_of
from deepcompression.pruning.prune import prune
from deepcompression.training.problem import Problem, cross_entropy_step

SGD = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.05}}


def weights(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def problem(seed: int = 0) -> Problem:
    """Three classes that a small net can learn."""
    x = weights(seed, 96, 6)
    y = x[:, :3].argmax(1)
    return Problem((x, y), (x, y), batch_size=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("density", [0.01, 0.08, 0.5, 1.0])
def test_exactly_the_largest_magnitudes_stay(density: float, dtype: torch.dtype):
    """Density is exact, and numpy's stable sort agrees on which weights stay."""
    before = (weights(0, 30, 7) * 4).to(dtype)
    pruned = prune({"w": before, "b": torch.zeros(3)}, {"w": density})
    count = max(round(density * 210), 1)
    order = np.argsort(-before.double().abs().numpy().reshape(-1), kind="stable")[:count]
    expected = torch.zeros(210, dtype=dtype)
    expected[order.copy()] = before.reshape(-1)[order.copy()]
    assert torch.equal(pruned.state["w"].reshape(-1), expected)
    assert pruned.layers[0].nonzero == count
    lowest = expected[expected != 0].abs().min()
    assert pruned.layers[0].threshold == float(lowest)


def test_ties_are_broken_by_position():
    """Constant weights must reach the density too, always with the same choice."""
    pruned = prune({"w": torch.ones(2, 5)}, {"w": 0.3})
    assert pruned.state["w"].reshape(-1).tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_zeros_stay_zero_and_count_in_the_density():
    """Density is of the whole tensor: pruning again changes nothing, a larger density revives none."""
    once = prune({"w": weights(0, 100)}, {"w": 0.2}).state
    assert torch.equal(prune(once, {"w": 0.2}).state["w"], once["w"])
    again = prune(once, {"w": 0.9})
    assert torch.equal(again.state["w"], once["w"])
    assert (again.layers[0].nonzero_before, again.layers[0].nonzero, again.layers[0].density) == (20, 20, 0.2)


def test_quality_is_a_threshold_in_standard_deviations_of_the_non_zero_weights():
    """Han et al. 2015: threshold = quality parameter x standard deviation of the layer's weights."""
    before = weights(0, 1000)
    before[:500] = 0
    alive = before[500:]
    kept = prune({"w": before}, quality={"w": 1.5}).state["w"]
    assert torch.equal(kept != 0, (before != 0) & (before.abs() >= 1.5 * alive.numpy().std()))


def test_global_scope_ranks_all_tensors_together_but_starves_none():
    """One ranking over all weights would empty a layer of small ones."""
    state = {"large": weights(0, 900) + 10, "small": weights(1, 100) / 1000}
    made = prune(state, dict.fromkeys(state, 0.1), scope="global")
    assert sum(layer.nonzero for layer in made.layers) == 100
    assert [layer.nonzero for layer in made.layers] == [99, 1]
    with pytest.raises(StructureError, match="small: pruning would empty"):
        prune(state, dict.fromkeys(state, 0.002), scope="global")


def test_a_score_of_ones_own_decides():
    """Any importance can replace magnitude; it is told the tensor's name."""
    names = []

    def smallest(name: str, weight: Tensor) -> Tensor:
        names.append(name)
        return -weight.abs()

    kept = prune({"w": torch.tensor([3.0, 1.0, 2.0])}, {"w": 0.34}, score=smallest).state["w"]
    assert kept.tolist() == [0, 1, 0]
    assert names == ["w"]


def test_a_padding_row_is_never_pruned_and_a_zero_one_takes_no_others_place():
    """The padding row of an embedding is no weight that could be unimportant."""
    before = weights(0, 5, 4)
    before[1] /= 1000
    kept = prune({"w": before}, {"w": 0.3}, padding={"w": 1}).state["w"]
    assert torch.equal(kept[1], before[1])
    assert int((kept != 0).sum()) == 6
    before[1] = 0
    assert int((prune({"w": before}, {"w": 0.3}, padding={"w": 1}).state["w"] != 0).sum()) == 6


def test_a_tied_tensor_is_pruned_under_all_of_its_names():
    """Loading the state must not bring pruned weights back through the other name."""
    tied = weights(0, 10)
    state = prune({"a": tied, "b": tied}, {"a": 0.5}).state
    assert state["a"] is state["b"]
    assert int((state["b"] != 0).sum()) == 5
    assert tied.all()


def test_the_input_is_not_changed_and_negative_zero_becomes_zero():
    """A stage is a pure function; -0.0 would be stored as a weight."""
    before = torch.tensor([-0.0, 1.0, 2.0, 3.0])
    after = prune({"w": before}, {"w": 1.0}).state["w"]
    assert bits_of(after)[0] == 0
    assert bits_of(before)[0] != 0


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"density": {"w": 0.0}}, "w: density 0.0 is impossible"),
        ({"density": {"w": 1.5}}, "w: density 1.5 is impossible"),
        ({"density": {"w": float("nan")}}, "w: density nan is impossible"),
        ({"quality": {"w": -1.0}}, "w: quality -1.0 is impossible"),
        ({"quality": {"w": 100.0}}, "w: pruning would empty the layer"),
        ({"density": {"w": 0.5}, "quality": {"w": 1.0}}, "exactly one"),
        ({"density": {}}, "exactly one"),
        ({"density": {"nan": 0.5}}, "nan: 1 values are NaN"),
        ({"density": {"x": 0.5}}, "x: no floating-point tensor"),
        ({"density": {"w": 0.5, "v": 0.4}, "scope": "global"}, "one density for all"),
        ({"density": {"w": 0.5}, "scope": "channel"}, "scope 'channel'"),
        ({"density": {"w": 0.5}, "score": lambda name, weight: weight[:1]}, r"w: .*\(4,\), got \(1,\)"),
        (
            {"density": {"w": 0.5}, "score": lambda name, weight: weight * torch.nan},
            "w: the score of 4 weights is NaN",
        ),
    ],
)
def test_what_is_impossible_is_refused_by_name(arguments: dict, rule: str):
    """No layer is emptied silently, and every message names the tensor or the argument."""
    state = {"w": weights(0, 4), "v": weights(1, 4), "nan": torch.tensor([1.0, torch.nan])}
    with pytest.raises(StructureError, match=rule):
        prune(state, arguments.pop("density", None), **arguments)


class Recorded:
    """Scores by magnitude, and remembers how dense the weight was each time."""

    def __init__(self) -> None:
        self.densities: list[float] = []

    def __call__(self, name: str, weight: Tensor) -> Tensor:
        self.densities.append(float((weight != 0).float().mean()))
        return weight.abs()


@pytest.mark.parametrize("ramp", [0.29, 0.5, 1.0])
def test_gradual_pruning_ends_at_its_density_and_never_revives_a_weight(ramp: float):
    """The best state is one with the final density, whatever fraction of an epoch the ramp ends in."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))
    seen = Recorded()
    made = prune_gradually(model, problem(), {"0.weight": 0.3}, epochs=10, ramp=ramp, optimizer=SGD, score=seen, seed=1)
    assert made.layers[0].nonzero == 18
    assert int((model[0].weight != 0).sum()) == 18
    assert int((model[2].weight == 0).sum()) == 0
    steps = seen.densities[1:]
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) > 5
    assert made.fit is not None and made.fit.best_epoch > int(10 * min(ramp, 0.9))


def test_gradual_pruning_of_a_shared_tensor_is_refused():
    """Codes are fixed once weights share."""
    with pytest.raises(StructureError, match=r"0\.weight: is shared already"):
        prune_gradually(
            nn.Sequential(nn.Linear(6, 3)),
            problem(),
            {"0.weight": 0.5},
            shared=["0.weight"],
            epochs=1,
            optimizer=SGD,
        )


def test_gradual_pruning_corrects_dropout_as_the_masks_change():
    """The paper's rate for the density of the moment; the model gets its own back."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Dropout(0.5), nn.Linear(10, 3))
    rates = []
    model[1].register_forward_hook(lambda module, *_: rates.append(module.p))
    prune_gradually(
        model, problem(), {"2.weight": 0.25}, epochs=4, ramp=0.5, dropout={"1": "2"}, optimizer=SGD, start=0.9
    )
    assert rates[-1] == pytest.approx(0.5 * (8 / 30) ** 0.5)
    assert rates[0] == pytest.approx(0.5 * 0.9**0.5)
    assert model[1].p == 0.5


def test_interrupted_gradual_pruning_ends_in_the_same_bytes(tmp_path: Path):
    """Masks, dropout rates and random states all come back, also after the ramp has ended."""

    class Stop(BaseException):
        pass

    def gradual(checkpoint: Path, stop_at: int | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 10), nn.Dropout(0.5), nn.Linear(10, 3))
        calls = 0

        def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            nonlocal calls
            calls += model.training
            if calls == stop_at:
                raise Stop
            return cross_entropy_step(model, batch)

        data = replace(problem(), step=step)
        return prune_gradually(
            model,
            data,
            {"2.weight": 0.3},
            epochs=6,
            ramp=0.5,
            dropout={"1": "2"},
            optimizer=SGD,
            checkpoint=checkpoint,
        ).state

    for stop in (15, 29):
        with pytest.raises(Stop):
            gradual(tmp_path / f"{stop}.pt", stop)
        whole, resumed = gradual(tmp_path / f"whole-{stop}.pt", None), gradual(tmp_path / f"{stop}.pt", None)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_gradual_pruning_reaches_convolutions_in_channels_last():
    """Moving a model to another memory format replaces its masks; the schedule must find the live ones."""
    from deepcompression.training.device import Compute

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 3))
    data = (torch.randn(64, 3, 4, 4), torch.randint(0, 3, (64,)))
    compute = Compute("cpu", "bfloat16", channels_last=True)
    optimizer = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.01}}
    problem = Problem(data, data, batch_size=16)
    density = {"0.weight": 0.25, "2.weight": 0.5}
    pruned = prune_gradually(net, problem, density, epochs=4, optimizer=optimizer, compute=compute)
    assert [layer.nonzero for layer in pruned.layers] == [54, 48]
    assert all(tensor.is_contiguous() for tensor in pruned.state.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("density", [0.001, 0.25, 0.9999, 1.0])
def test_counting_prunes_as_scores_do(dtype: torch.dtype, density: float) -> None:
    """Thresholds by counting keep the weights that ranked scores keep: with ties, denormals and zeros of both signs."""
    weight = torch.randn(60, 70, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[:8] = (weight[:8] * 4).round() / 4
    weight[8:16] *= 1e-41
    weight[16:20], weight[20:22] = 0.0, -0.0
    ours = prune({"w": weight}, {"w": density})
    ranked = prune({"w": weight}, {"w": density}, score=lambda _, one: one.abs())
    assert torch.equal(bits_of(ours.state["w"]), bits_of(ranked.state["w"]))
    assert ours.layers == ranked.layers
