"""Distillation against its formula, and what a student learns from it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from trainings import fit

from deepcompression.distillation.logits import Distillation, divergence
from deepcompression.errors import FactoryError
from deepcompression.training.evaluate import evaluate
from deepcompression.training.problem import Problem

ADAM = {"factory": "torch.optim:Adam", "kwargs": {"lr": 0.01}}


def test_the_divergence_is_hintons():
    """Temperature squared times the mean KL of the softened distributions, in numpy and float64."""
    random = np.random.default_rng(0)
    student, teacher, t = random.normal(size=(5, 4)), random.normal(size=(5, 4)), 3.0

    def soft(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits / t)
        return powers / powers.sum(1, keepdims=True)

    p, q = soft(teacher), soft(student)
    wanted = t**2 * (p * np.log(p / q)).sum(1).mean()
    found = divergence(torch.tensor(student), torch.tensor(teacher), t)
    assert float(found) == pytest.approx(wanted, rel=1e-5)
    assert float(divergence(torch.tensor(teacher), torch.tensor(teacher), t)) == pytest.approx(0, abs=1e-6)


def problem(labels: torch.Tensor | None = None) -> tuple[Problem, torch.Tensor]:
    x = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
    right = x[:, :3].argmax(1)
    y = right if labels is None else labels
    return Problem((x, y), (x, right), batch_size=32), right


def test_a_student_learns_from_the_teacher_alone():
    """With weight 1 labels do not count: from random labels the student still learns what the teacher knows."""
    plain, _ = problem()
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 3), nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    fit(teacher, plain, epochs=20, optimizer=ADAM)
    before = copy.deepcopy(teacher.state_dict())
    noisy, _ = problem(torch.randint(0, 3, (256,), generator=torch.Generator().manual_seed(1)))
    fit(student, noisy, [Distillation(weight=1.0)], teacher=teacher, epochs=30, optimizer=ADAM)
    result = evaluate(student, plain.validation, plain.step, plain.metric)
    assert result.metric > 0.85
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())


def test_validation_is_by_labels_alone():
    """The teacher's part is of training only: losses on validation compare with those of any other stage."""
    plain, _ = problem()
    torch.manual_seed(0)
    teacher, student = nn.Linear(6, 3), nn.Linear(6, 3)
    fitted = fit(student, plain, [Distillation(weight=0.9)], teacher=teacher, epochs=1, optimizer=ADAM)
    assert fitted.history[0]["val_loss"] == pytest.approx(
        evaluate(student, plain.validation, plain.step, plain.metric).loss, rel=1e-6
    )


def test_a_weight_of_zero_changes_nothing():
    """With weight 0 training is what it was without a teacher, to the bit."""
    plain, _ = problem()
    students = []
    for methods in ([], [Distillation(weight=0.0)]):
        torch.manual_seed(0)
        students.append(nn.Linear(6, 3))
        fit(students[-1], plain, methods, teacher=nn.Linear(6, 3), epochs=2, optimizer=ADAM)
    assert torch.equal(students[0].weight, students[1].weight)


def test_other_shapes_are_refused():
    """A teacher of other classes, or outputs that are no logits, are named."""
    with pytest.raises(FactoryError, match=r"logits.*\(2, 3\).*\(2, 4\)"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 4), 1.0)
    with pytest.raises(FactoryError, match="logits"):
        divergence(torch.zeros(2), torch.zeros(2), 1.0)
