"""A recipe's model, step, metric and data, tried on a few samples before anything trains."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from tasks.execution.run import Run
from tasks.execution.settings import Distil, Training, parts

if TYPE_CHECKING:
    from deepcompression.training.trial import Plan

log = logging.getLogger(__name__)


def trial(run: Run, stages: Sequence[tuple[str, BaseModel]], *, test: bool = True) -> None:
    """Tries what every training of ``stages`` will do, and says which keys of theirs a DataLoader leaves unused.

    Args:
        run: the run.
        stages: labels and their keys of the recipe.
        test: whether the run will read the test split.

    Raises:
        FactoryError, DataError: what does not work, in one line, by the recipe's names.
    """
    from deepcompression.training import trial as library

    trainings = [(label, one) for label, settings in stages for one in _trainings(settings)]
    splits = run.splits()
    for label, keys in trainings:
        _tell_unused(label, keys, splits.train)
    plans = [_plan(label, keys) for label, keys in trainings]
    other = replace(run, model=run.teacher).blank_model if run.teacher else None
    with _by_name(run):
        if other and run.teacher and not run.teacher.weights:
            taught = _plan("teacher.train", run.teacher.train)
            library.attempt(run.problem(), None, other, [taught], compute=run.compute())
        tested = splits.test if test else None
        library.attempt(run.problem(), tested, run.blank_model, plans, compute=run.compute(), teacher=other)


def _trainings(settings: BaseModel) -> list[Any]:
    """The parts of a stage's keys that say in which batches they read the training split."""
    return [part for _, part in parts(settings) if "batch_size" in type(part).model_fields]


def _plan(label: str, keys: Any) -> Plan:
    from deepcompression.distillation.logits import divergence
    from deepcompression.training.problem import BATCH_SIZE
    from deepcompression.training.trial import Plan

    size = keys.batch_size or BATCH_SIZE
    if not isinstance(keys, Training):
        # BatchNorm's statistics alone, of which a few batches need not be the last
        return Plan(label, size, keys.drop_last or getattr(keys, "batches", None) is not None)
    learns = any(isinstance(part, Distil) for _, part in parts(keys))
    compare = partial(divergence, temperature=1.0) if learns else None
    return Plan(label, size, keys.drop_last, keys.optimizer_with_rate(), keys.plain_schedule(), keys.warmup, compare)


def _tell_unused(label: str, keys: Any, train: Any) -> None:
    from torch.utils.data import DataLoader

    if not isinstance(train, DataLoader):
        return
    own = f"batches of {train.batch_size}" if train.batch_size else "batches of its own"
    for key in ("batch_size", "drop_last"):
        if value := getattr(keys, key):
            log.warning(
                "%s: %s: %s has no effect, for data.factory returns a DataLoader, with %s (drop_last %s); "
                "remove the key, or set it there",
                label, key, str(value).lower(), own, str(bool(train.drop_last)).lower(),
            )  # fmt: skip


@contextlib.contextmanager
def _by_name(run: Run) -> Iterator[None]:
    """Errors say which of the recipe's factories they are about."""
    from deepcompression.errors import InputError

    try:
        yield
    except InputError as error:
        raise type(error)(f"tried before training: {_named(str(error), run)}") from error


def _named(message: str, run: Run) -> str:
    """``message`` with the recipe's factory beside the word that says whose fault it is."""
    specs = {"step": run.step, "data": run.data, "augment": run.data.augment}
    words = message.split(": ")
    place = next((at for at, word in enumerate(words[:3]) if word in specs), None)
    if place is not None and (spec := specs[words[place]]):
        called = {"data": "data.factory", "augment": "data.augment"}.get(words[place], words[place])
        words[place] = f"{called} {spec.factory}"
    return ": ".join(words)
