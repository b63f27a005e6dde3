"""Hints and attention transfer against their formulas, which layers they mean, and what a student learns by them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trainings import fit, trained

from deepcompression.distillation.attention import Attention, distance
from deepcompression.distillation.hints import Hints, Regressor, _missed
from deepcompression.distillation.layers import Features, pairs_of
from deepcompression.distillation.logits import Distillation
from deepcompression.errors import StructureError
from deepcompression.network.trace import resting
from deepcompression.training.method import Method, Now
from deepcompression.training.problem import Problem
from deepcompression.training.session import attach

ADAM = {"factory": "torch.optim:Adam", "kwargs": {"lr": 0.01}}


class Net(nn.Module):
    """Two convolutions, the second with a stride, and a head."""

    def __init__(self, width: int, stride: int = 2) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, width, 3, padding=1), nn.Conv2d(width, width, 3, stride, padding=1)
        self.head = nn.Linear(width, 3)

    def forward(self, images: Tensor) -> Tensor:
        found = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(found.mean((2, 3)))


def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 1, 8, 8, generator=generator), torch.randint(0, 3, (96,), generator=generator)
    return Problem((x, y), (x, y), batch_size=32)


def given(*shapes: tuple[int, ...]) -> Features:
    generator = torch.Generator().manual_seed(0)
    return Features(*(torch.randn(shape, generator=generator) for shape in shapes))


def test_maps_are_the_papers() -> None:
    """Sums over channels to a power, unit vectors, mean squared difference: in numpy and float64."""
    features = given((4, 3, 5, 5), (4, 7, 5, 5))
    maps = []
    for values in features:
        strength = (np.abs(values.double().numpy()) ** 2).sum(1).reshape(4, -1)
        maps.append(strength / np.linalg.norm(strength, axis=1, keepdims=True))
    wanted = np.square(maps[0] - maps[1]).mean()
    assert float(distance(features, 2.0)) == pytest.approx(wanted, rel=1e-5)
    assert float(distance(Features(features[0], 5 * features[0]), 2.0)) == pytest.approx(0, abs=1e-12)
    units = given((4, 9), (4, 9))
    ones = [np.abs(one.double().numpy()) / np.linalg.norm(one.double().numpy(), axis=1)[:, None] for one in units]
    assert float(distance(units, 1.0)) == pytest.approx(np.square(ones[0] - ones[1]).mean(), rel=1e-5)


@pytest.mark.parametrize("places", [(6,), (6, 4), (6, 4, 2)])
def test_maps_of_unlike_sizes_are_interpolated(places: tuple[int, ...]) -> None:
    """Whichever is larger; a map that says the same at half the resolution is not far."""
    small = given((2, 3, *places), (2, 3, *places)).student.abs() + 1
    large = small
    for axis in range(2, small.ndim):
        large = large.repeat_interleave(2, axis)
    for pair in (Features(small, large), Features(large, small)):
        assert float(distance(pair, 2.0)) == pytest.approx(0, abs=1e-10)
    assert float(distance(Features(large.flip(2), small), 2.0)) > 1e-5


@pytest.mark.parametrize(
    ("own", "other", "kernel"),
    [
        ((2, 3, 8, 8), (2, 5, 8, 8), (1, 1)),
        ((2, 3, 8, 6), (2, 5, 4, 4), (5, 3)),
        ((2, 3, 4, 4), (2, 5, 8, 8), (1, 1)),
        ((2, 3, 32, 32), (2, 5, 4, 4), (1, 1)),
        ((2, 3, 9), (2, 4, 7), (3,)),
        ((2, 3, 4, 4, 4), (2, 4, 4, 4, 4), (1, 1, 1)),
        ((2, 3), (2, 4), None),
    ],
)
def test_a_regressor_has_the_papers_kernel(own: Any, other: Any, kernel: Any) -> None:
    """Places of the student less those of the teacher and one; where that is no kernel, places are averaged first."""
    features = given(own, other)
    regressor = Regressor(features)
    found, wanted = regressor(features)
    assert found.shape == wanted.shape and getattr(regressor.layer, "kernel_size", None) == kernel
    if kernel is None or max(kernel) > 1 or own[2:] == other[2:]:
        assert torch.equal(wanted, features.teacher)


def test_the_loss_of_hints_is_half_the_mean_square_of_what_is_missed() -> None:
    """And its gradient reaches the student up to the guided layer, and the regressor; not the teacher."""
    torch.manual_seed(0)
    student, teacher, images = Net(3), Net(5), torch.randn(4, 1, 8, 8)
    hints = Hints({"second": "second"}, weight=3.0)
    with attach(student, [hints], 10, samples=[images], teacher=teacher) as session:
        loss = session.loss(student(images).sum() * 0, images, None)
        (regressor,) = hints._regressors
        with torch.no_grad():
            seen = [net.second(torch.relu(net.first(images))) for net in (student, teacher)]
            wanted = 1.5 * (regressor.layer(seen[0]) - seen[1]).square().sum() / seen[1].square().sum()
        assert float(loss.detach()) == pytest.approx(float(wanted), rel=1e-5)
        loss.backward()
        assert bool(student.first.weight.grad.any()) and bool(regressor.layer.weight.grad.any())
        assert not student.head.weight.grad.any() and teacher.first.weight.grad is None
        assert {id(one) for group in session.parameters() for one in group["params"]} >= {id(regressor.layer.weight)}
    assert not student.second._forward_hooks and not teacher.second._forward_hooks


def test_a_weight_of_hints_means_the_same_at_every_magnitude() -> None:
    """A regressor that gives the same part of what the teacher gives is as far off; zeros divide nothing by zero."""
    torch.manual_seed(0)
    given, other = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 2, 2)
    assert float(_missed(1000 * other, 1000 * given)) == pytest.approx(float(_missed(other, given)))
    assert float(_missed(torch.zeros_like(given), given)) == pytest.approx(0.5)
    assert float(_missed(torch.full((2, 3), 2.0), torch.zeros(2, 3))) == 2.0


def test_in_two_stages_hints_come_alone_and_then_not_at_all() -> None:
    """The labels' loss counts nothing before, the hints nothing afterwards."""
    torch.manual_seed(0)
    student, teacher, images = Net(3), Net(3), torch.randn(4, 1, 8, 8)
    hints = Hints(["second"], weight=1.0, until=0.5)
    with attach(student, [hints], 10, samples=[images], teacher=teacher) as session:
        for step in range(10):
            hints.before_step(student, Now(step, 10))
            outputs = student(images)
            loss = session.loss(outputs.sum() * 0 + 7, images, outputs)
            assert (float(loss.detach()) < 7) if step < 5 else float(loss.detach()) == 7
        assert set(hints.figures(student)) == {"loss"} and hints.figures(student) == {} and hints.settled == 0.5


@pytest.mark.parametrize("method", [Hints(["first", "second"]), Attention(["first", "second"], weight=100.0)])
def test_a_student_comes_nearer_to_its_teacher(method: Method) -> None:
    """Trained beside the labels; figures fall, the teacher is not changed, and nothing of it stays in the student."""
    torch.manual_seed(0)
    student, teacher = Net(4), Net(6)
    before, names = copy.deepcopy(teacher.state_dict()), set(student.state_dict())
    done = trained(student, problem(), [method], teacher=teacher, epochs=6, optimizer=ADAM)
    losses = [row[f"{method.name}/loss"] for row in done.fit.history]
    assert losses[-1] < 0.7 * losses[0] and set(student.state_dict()) == names
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_one_forward_of_the_teacher_serves_all_methods() -> None:
    """Three that ask it cost what one does, and each batch is asked anew."""
    torch.manual_seed(0)
    student, teacher, calls = Net(4), Net(6), []
    teacher.register_forward_hook(lambda module, given, output: calls.append(len(given[0])))
    methods = [Distillation(), Hints(["second"]), Attention(["first"])]
    fit(student, problem(), methods, teacher=teacher, epochs=2, optimizer=ADAM)
    assert calls[2:] == [32] * 6  # behind the trials of hints and attention


def test_tokens_may_come_first() -> None:
    """With axis -1 channels are last: maps and regressors are over tokens."""
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3))
    tokens, other = torch.randn(4, 5, 6), copy.deepcopy(net)
    hints = Hints(["0"], axis=-1)
    with attach(net, [hints, Attention(["0"], axis=-1)], 2, samples=[tokens], teacher=other) as session:
        assert hints._regressors[0].layer.weight.shape == (8, 8, 1)
        assert session.loss(net(tokens).sum(), tokens, None).isfinite()


def test_patterns_go_together_in_the_order_of_each_model() -> None:
    """A net with twice the blocks is not guessed at."""
    nets = [nn.Sequential(*(nn.Sequential(nn.Linear(2, 2)) for _ in range(count))) for count in (2, 2, 4)]
    assert pairs_of(nets[0], nets[1], {"*.0": "*.0"}, "hints") == [("0.0", "0.0"), ("1.0", "1.0")]
    with pytest.raises(StructureError, match=r"^hints: \*\.0 means 2 layers of the student, \*\.0 4 of the teacher"):
        pairs_of(nets[0], nets[2], ["*.0"], "hints")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Hints([]), "hints: no layers are named"),
        (Hints(["secnd"]), "hints: the student has no layer 'secnd'; expected one such as second"),
        (Attention({"second": "third"}), "attention: the teacher has no layer 'third'"),
        (Attention(["spare"]), "attention: layer spare of the student was not called"),
        (Attention(["pair"]), "attention: layer pair of the student gave tuple"),
        (Attention({"head": "second"}), r"attention: head gives \(2, 3\), the teacher's second \(2, 4, 4, 4\)"),
        (Hints({"head": "second"}), r"hints: head gives \(2, 3\), the teacher's second"),
        (Hints(["second"], weight=0), "hints: expected a weight above 0, got 0"),
        (Hints(["second"], until=1.0), "hints: until is a part of the training between 0 and 1"),
        (Attention(["second"], power=-1), "attention: expected weight and power above 0"),
    ],
)
def test_what_does_not_go_together_is_one_line_before_anything_trains(method: Method, words: str) -> None:
    """And leaves no hook behind."""

    class Odd(Net):
        def __init__(self) -> None:
            super().__init__(4)
            self.spare, self.pair = nn.Linear(2, 2), Twice()

        def forward(self, images: Tensor) -> Tensor:
            return super().forward(self.pair(images)[0])

    student, teacher, images = Odd(), Odd(), torch.randn(2, 1, 8, 8)
    with pytest.raises(StructureError, match=rf"^{words}"):
        attach(student, [method], 10, samples=[images], teacher=teacher)
    assert not any(one._forward_hooks for net in (student, teacher) for one in net.modules())


class Twice(nn.Module):
    """Gives a tuple."""

    def forward(self, one: Tensor) -> tuple[Tensor, Tensor]:
        return one, one


def test_a_teacher_of_whom_only_outputs_are_known_has_no_layers() -> None:
    """A function was given where a module is needed."""
    with pytest.raises(
        StructureError, match=r"hints needs a teacher's layers; give attach\(\) or train\(\) teacher= a"
    ):
        attach(Net(2), [Hints(["first"])], 1, samples=[torch.randn(2, 1, 8, 8)], teacher=lambda batch: batch)


def test_a_net_whose_batchnorm_would_move_is_tried_at_rest() -> None:
    """Finding shapes changes neither statistics nor random state."""
    net, images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)), torch.randn(2, 1, 8, 8)
    before, state = copy.deepcopy(net.state_dict()), torch.random.get_rng_state()
    with attach(net, [Hints(["0"])], 1, samples=[images], teacher=copy.deepcopy(net)):
        assert net.training
    assert all(torch.equal(before[name], one) for name, one in net.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    with resting(net):
        assert not net.training
