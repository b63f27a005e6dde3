"""A recipe's models, judged before training: is each new at every call, and its state_dict all that it is?"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.execution.run import Run

if TYPE_CHECKING:
    from torch import nn


class _Untried(Exception):
    """Data, step or model raise: the trial, which comes next, tells it."""


def refuse_unfit(run: Run) -> None:
    """Refuses a model, or a teacher, whose tensors cannot be trained, stored and brought back.

    Raises:
        FactoryError: in one line, with the factory's name.
    """
    from deepcompression.training import soundness

    for key, one in _models(run).items():
        with _named(key, one):
            soundness.refuse_unfit(one.blank_model(), one.blank_model(draw=1))


def refuse_hidden_state(run: Run) -> None:
    """Refuses a model, or a teacher, that computes something else once its weights are in a new one.

    Raises:
        FactoryError: in one line, with the factory's name.
    """
    from deepcompression.training import soundness
    from deepcompression.training.randomness import kept

    problem = run.problem()
    with kept([], problem.validation, problem.step), contextlib.suppress(_Untried):
        forward = _forward(run)
        for key, one in _models(run).items():
            with _named(key, one), contextlib.suppress(_Untried):
                soundness.refuse_hidden_state(one.blank_model(), one.blank_model(draw=1), forward)


def _models(run: Run) -> dict[str, Run]:
    """The run by the recipe's key of its model; and one whose model is the teacher."""
    return {"model": run, **({"teacher": replace(run, model=run.teacher)} if run.teacher else {})}


@contextlib.contextmanager
def _named(key: str, run: Run) -> Iterator[None]:
    from deepcompression.errors import FactoryError, StructureError

    try:
        yield
    except (FactoryError, StructureError) as error:
        raise FactoryError(f"{key}.factory {run.model.factory}: {error}") from None


def _forward(run: Run) -> Callable[[nn.Module], Any]:
    """Loss and outputs of a model for a few samples of the validation split."""
    from deepcompression.training.problem import stepped
    from deepcompression.training.trial import FEW, few

    problem, compute = run.problem(), run.compute()
    try:
        batch = next(iter(few(problem.validation, FEW, compute, most=FEW)))
    except Exception as error:
        raise _Untried from error

    def forward(model: nn.Module) -> Any:
        try:
            return stepped(problem.step, compute.place(model), copy.deepcopy(batch))[:2]
        except Exception as error:
            raise _Untried from error

    return forward
