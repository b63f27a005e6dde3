"""One layer reconstructed, beside brute force and exact least squares."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from deepcompression.reconstruction.calls import Call
from deepcompression.reconstruction.layer import Made, Wanted, inputs_of, reconstructed
from deepcompression.reconstruction.moments import Moments, add
from deepcompression.reconstruction.sweep import Quadratic, factor, swept
from deepcompression.reconstruction.values import Coded, fitted
from deepcompression.structure.shared import Shared

SLIGHT = 1e-9  # damping that leaves least squares what it is


def _made(outputs: int = 3, inputs: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Weights (out, n), and inputs (places, n) that depend on each other, with means of their own."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(inputs, inputs, generator=generator)
    value = torch.randn(200, inputs, generator=generator) @ mixed + torch.randn(inputs, generator=generator)
    return torch.randn(outputs, inputs, generator=generator, dtype=torch.float64), value


def _moments(value: Tensor, outputs: int, dense: Tensor | None = None) -> Moments:
    return add(None, Call("weight", value, (outputs, value.shape[1])), dense)


def _error(weights: Tensor, made: Made, value: Tensor) -> float:
    """Of the outputs, each with its constant."""
    x = value.double()
    return float((x @ weights.T - x @ made.weights.T - made.shift).square().sum())


def test_pruning_one_weight_is_the_surgeons_update() -> None:
    """What is left is the least squares solution without it, and what goes is what costs least (OBS, exact)."""
    weights, value = _made(1)
    made = reconstructed(weights, _moments(value, 1), Wanted(density=0.8, damping=SLIGHT, order="natural"))
    x = (value - value.mean(0)).double()
    wanted = x @ weights[0]
    gone = int((made.weights[0] == 0).nonzero())
    kept = [place for place in range(5) if place != gone]
    solution = torch.linalg.lstsq(x[:, kept], wanted[:, None]).solution[:, 0]
    assert torch.allclose(made.weights[0, kept[gone:]], solution[gone:], atol=1e-4)
    inverse = torch.linalg.inv(x.T @ x)
    costs = weights[0].square() / inverse.diagonal()
    root = factor((x.T @ x)[None])
    first = float(weights[0, 0] ** 2 / root[0, 0, 0] ** 2)
    assert first == pytest.approx(float(costs[0]), rel=1e-6)


def test_two_levels_come_near_the_best_of_all_roundings() -> None:
    """On tiny layers, beside every assignment of the same values; rounding to the nearest is worse on average."""
    worse, plain = [], []
    for seed in range(12):
        weights, value = _made(1, 8, seed)
        x = (value - value.mean(0)).double()
        hessian = (x.T @ x)[None] / len(x)
        levels = torch.tensor([-0.8, 0.8], dtype=torch.float64)
        problem = Quadratic(weights[None], hessian, torch.ones(1, 1, dtype=torch.float64), weights[None] != 9)

        def nearest(wanted: Tensor, _: Tensor, __: int, levels: Tensor = levels) -> Tensor:
            return levels[(wanted[..., None] - levels).abs().argmin(-1)]

        made = swept(problem, factor(hessian), nearest, lambda values, costs, block: torch.ones_like(values).bool())
        best = min(problem.error(torch.stack(one)[None, None]) for one in itertools.product(levels, repeat=8))
        worse.append(problem.error(made) / best)
        plain.append(problem.error(nearest(weights[None], weights, 0)) / best)
    assert sum(worse) / 12 < 1.9 < sum(plain) / 12


@pytest.mark.parametrize("part", [Shared(), Shared(0), Shared(0, 4), Shared(0, 16)])
def test_fitted_centroids_are_the_least_squares_solution(part: Shared) -> None:
    """Of given codes, whatever has a codebook: exact, to rounding."""
    weights, value = _made(4, 8)
    generator = torch.Generator().manual_seed(1)
    size = 32 if part.axis is None else part.group or 8
    books = torch.arange(32).div(size, rounding_mode="floor").reshape(1, 4, 8)
    codes = torch.randint(3, (1, 4, 8), generator=generator)
    count = int(books.max()) + 1
    coded = Coded(torch.ones(1, 4, 8, dtype=torch.float64), books * 3 + codes, torch.rand(3 * count).double())
    x = value.double()
    problem = Quadratic(
        weights[None], (x.T @ x)[None], torch.ones(1, 4, dtype=torch.float64), torch.ones(1, 4, 8, dtype=torch.bool)
    )
    design = torch.zeros(4, 200, 3 * count, dtype=torch.float64)
    for row, column in itertools.product(range(4), range(8)):
        design[row, :, coded.index[0, row, column]] += x[:, column]
    exact = torch.linalg.lstsq(design.reshape(800, -1), (x @ weights.T).T.reshape(-1, 1), driver="gelsd").solution
    known = torch.bincount(coded.index.reshape(-1), minlength=3 * count) > 0
    assert torch.allclose(fitted(problem, coded).unknown[known], exact[known, 0], atol=1e-6)


@pytest.mark.parametrize(
    "wanted",
    [
        Wanted(bits=3),
        Wanted(bits=3, method="linear"),
        Wanted(bits=3, method="linear", part=Shared(0)),
        Wanted(bits=2, part=Shared(0, 8)),
        Wanted(bits=3, part=Shared(0, 32)),
        Wanted(bits=3, density=0.5),
        Wanted(bits=3, density=0.5, method="linear"),
        Wanted(density=0.5),
        Wanted(bits=6, rate=0.01),
        Wanted(bits=6, rate=0.01, method="linear", part=Shared(0)),
    ],
)
def test_errors_are_smaller_than_without_making_up(wanted: Wanted) -> None:
    """For every way and part: beside the same weights on inputs that know nothing of each other."""
    weights, value = _made(12, 16)
    weights[0, 3] = 0
    made = reconstructed(weights, _moments(value, 12), wanted)
    independent = _moments(value, 12)
    independent.second = torch.diag_embed(torch.ones(1, 16, dtype=torch.float64)) * independent.count
    independent.cross = independent.second.clone()
    alone = reconstructed(weights, independent, wanted, centred=False)
    assert made.weights[0, 3] == 0
    assert _error(weights, made, value) < 0.8 * _error(weights, alone, value)
    if wanted.density is not None:
        assert 0 < int((made.weights != 0).sum()) <= round(0.5 * weights.numel())
    for book in made.weights.reshape(-1, (wanted.part.group or 16) if wanted.part.axis is not None else 192):
        assert wanted.bits is None or len(book[book != 0].unique()) <= 2**wanted.bits


def test_what_earlier_layers_changed_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are found for the inputs that come now, towards the outputs of those that came before."""
    weights, value = _made(4, 6)
    monkeypatch.setattr("deepcompression.reconstruction.layer.FEW", 1e9)
    broken = value + 0.5 * value.roll(1, 1)
    moments = _moments(broken, 4, value)
    made = reconstructed(weights, moments, Wanted(bits=8, part=Shared(0), damping=SLIGHT))
    x, wanted = broken.double(), value.double() @ weights.T
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(len(x), 1)], 1), wanted).solution
    assert torch.allclose(made.weights, best[:-1].T, atol=0.02)
    assert torch.allclose(made.shift, best[-1], atol=0.05)


def test_wide_layers_have_moments_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of inputs of which there are too many, those within a block make up for each other; a last block is shorter."""
    monkeypatch.setattr("deepcompression.reconstruction.moments.WIDEST", 6)
    weights, value = _made(4, 16)
    moments = _moments(value, 4)
    assert moments.second.shape == (3, 6, 6)
    made = reconstructed(weights, moments, Wanted(bits=4, density=0.75))
    assert made.weights.shape == (4, 16) and int((made.weights != 0).sum()) == 48
    assert made.error < 0.1


def test_moments_of_few_places_count_less_between_inputs() -> None:
    """With one place for eight inputs their products say nothing: the Hessian is nearly diagonal."""
    _, value = _made(1, 8)
    few, many = (inputs_of(_moments(value[:count], 1), 0.01, centred=False) for count in (1, 200))

    def off(one: Tensor) -> float:
        return float((one - torch.diag_embed(one.diagonal(dim1=1, dim2=2))).norm() / one.norm())

    assert off(few.hessian) < 0.8 * off(few.plain) and off(many.hessian) > 0.9 * off(many.plain)


def test_important_outputs_are_kept_better() -> None:
    """Where values are shared, they fit the outputs that matter."""
    weights, value = _made(8, 6)
    importance = torch.ones(8, dtype=torch.float64)
    importance[2] = 100
    errors = []
    for one in (None, importance):
        made = reconstructed(weights, _moments(value, 8), Wanted(bits=2), one)
        x = value.double()
        errors.append(float((x @ (weights - made.weights)[2] - made.shift[2]).square().sum()))
    assert errors[1] < 0.7 * errors[0]


def test_inputs_that_tell_nothing_of_each_other_are_rounded_at_once() -> None:
    """As of tables: the same as when the walk over columns looks for what makes up for them, and finds nothing."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(1, 6, 9, generator=generator, dtype=torch.float64)
    worth = torch.rand(1, 9, generator=generator, dtype=torch.float64) + 0.1
    whole = torch.ones_like(target, dtype=torch.bool)
    problem = Quadratic(target, torch.diag_embed(worth), torch.ones(1, 6, dtype=torch.float64), whole)
    near = problem.hessian + 1e-12 * torch.ones(9, 9, dtype=torch.float64)
    assert problem.apart and not Quadratic(target, near, problem.importance, whole).apart
    made = [
        swept(
            Quadratic(target, hessian, problem.importance, whole),
            factor(hessian),
            lambda values, costs, column: (values * 2).round() / 2,
            lambda values, costs, block: whole[:, :, block],
        )
        for hessian in (problem.hessian, near)
    ]
    assert torch.equal(*made) and torch.equal(made[0], (target * 2).round() / 2)
