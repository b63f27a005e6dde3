"""Trainings in one line, for tests: ``loop.train`` with what most of them need."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from deepcompression.network.state import plain_state
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.sharing.reassign import TrainedSharing
from deepcompression.structure.constraints import structured
from deepcompression.training.dropout import DropoutCorrection
from deepcompression.training.loop import Trained, train
from deepcompression.training.method import Method, Now
from deepcompression.training.plan import Fit, Plan
from deepcompression.training.problem import Problem


@dataclass(frozen=True)
class Done:
    """A training's state, the layers of its first method's report, its loop and all of it."""

    state: dict[str, Tensor]
    layers: Sequence[Any]
    fit: Fit
    trained: Trained


class Watch(Method):
    """Calls ``on_step(step, steps)`` before each step; the best state counts from ``settled`` on."""

    name = "watch"

    def __init__(self, on_step: Callable[[int, int], None] | None = None, settled: float = 0.0) -> None:
        self._on_step, self._settled = on_step, settled

    @property
    def settled(self) -> float:
        return self._settled

    def before_step(self, model: nn.Module, now: Now) -> None:
        if self._on_step is not None:
            self._on_step(now.step, now.steps)


def trained(model: nn.Module, problem: Problem, methods: Sequence[Method] = (), **given: Any) -> Trained:
    """``train`` with the plan's keys among its own."""
    plan = {one.name: given.pop(one.name) for one in fields(Plan) if one.name in given}
    return train(model, problem, Plan(**plan), methods, **given)


def fit(model: nn.Module, problem: Problem, methods: Sequence[Method] = (), **given: Any) -> Fit:
    """What the loop did."""
    return trained(model, problem, methods, **given).fit


def finetune(
    model: nn.Module,
    problem: Problem,
    *,
    zeros: Sequence[str] = (),
    shared: Sequence[str] = (),
    dropout: Mapping[str, str] | None = None,
    **given: Any,
) -> Trained:
    """Training with structure held, and dropout corrected."""
    methods = [DropoutCorrection(dropout)] if dropout else []
    return trained(model, problem, methods, structure=structured(zeros, shared), **given)


def prune_gradually(
    model: nn.Module,
    problem: Problem,
    density: Mapping[str, float],
    *,
    zeros: Sequence[str] = (),
    shared: Sequence[str] = (),
    dropout: Mapping[str, str] | None = None,
    **given: Any,
) -> Done:
    """Training while the density falls."""
    own = {name: given.pop(name) for name in ("scope", "start", "ramp", "score", "criterion") if name in given}
    return _done(model, problem, GradualPruning(density, **own), structured(zeros, shared), dropout, given)


def share_training(
    model: nn.Module,
    problem: Problem,
    bits: Mapping[str, int],
    *,
    rate: Any = 0.0,
    zeros: Sequence[str] = (),
    shared: Sequence[str] = (),
    **given: Any,
) -> Done:
    """Training while weights take few values."""
    return _done(model, problem, TrainedSharing(bits, rate), structured(zeros, shared), None, given)


def _done(model: nn.Module, problem: Problem, method: Method, structure: Any, dropout: Any, given: Any) -> Done:
    methods = [method, *([DropoutCorrection(dropout)] if dropout else [])]
    made = trained(model, problem, methods, structure=structure, **given)
    return Done(plain_state(model), made.accounts[0][1].report["layers"], made.fit, made)
