"""A recipe's model, step, metric and data, tried on a few samples before anything trains."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.execution.run import Run

if TYPE_CHECKING:
    from deepcompression.training.trial import Plan

log = logging.getLogger(__name__)


def trial(run: Run, stages: Sequence[tuple[str, Mapping[str, Any]]], *, test: bool = True) -> None:
    """Tries what every training of ``stages`` will do, and says which keys of theirs a DataLoader leaves unused.

    Args:
        run: the run.
        stages: labels and their keys of the recipe.
        test: whether the run will read the test split.

    Raises:
        FactoryError, DataError: what does not work, in one line, by the recipe's names.
    """
    from deepcompression.training import trial as library

    trainings = [(label, one) for label, config in stages for one in _trainings(config)]
    splits = run.splits()
    for label, config in trainings:
        _tell_unused(label, config, splits.train)
    plans = [_plan(label, config) for label, config in trainings]
    other = replace(run, model=run.teacher).blank_model if run.teacher else None
    with _by_name(run):
        if other and run.teacher and not run.teacher["weights"]:
            taught = _plan("teacher.train", run.teacher["train"])
            library.attempt(run.problem(), None, other, [taught], compute=run.compute())
        tested = splits.test if test else None
        library.attempt(run.problem(), tested, run.blank_model, plans, compute=run.compute(), teacher=other)


def _trainings(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The keys of each training in a stage's keys; a stage of the user's keeps its own counsel."""
    if ":" in str(config.get("stage", "")):
        return []
    inner = [one for one in config.values() if isinstance(one, Mapping)]
    return [one for one in (config, *inner) if "batch_size" in one]


def _plan(label: str, config: Mapping[str, Any]) -> Plan:
    from deepcompression.distillation.logits import divergence
    from deepcompression.training.problem import BATCH_SIZE
    from deepcompression.training.trial import Plan

    compare = partial(divergence, temperature=1.0) if config.get("distil") else None
    size, drop_last = config["batch_size"] or BATCH_SIZE, config.get("drop_last", False)
    if "optimizer" not in config:
        # BatchNorm's statistics alone, of which a few batches need not be the last
        return Plan(label, size, drop_last or config.get("batches") is not None)
    optimizer = {
        "factory": config["optimizer"]["factory"],
        "kwargs": {"lr": config["lr"], **config["optimizer"]["kwargs"]},
    }
    return Plan(label, size, drop_last, optimizer, config["schedule"], config["warmup"], compare)


def _tell_unused(label: str, config: Mapping[str, Any], train: Any) -> None:
    from torch.utils.data import DataLoader

    if not isinstance(train, DataLoader):
        return
    own = f"batches of {train.batch_size}" if train.batch_size else "batches of its own"
    for key in ("batch_size", "drop_last"):
        if config.get(key):
            log.warning(
                "%s: %s: %s has no effect, for data.factory returns a DataLoader, with %s (drop_last %s); "
                "remove the key, or set it there",
                label, key, str(config[key]).lower(), own, str(bool(train.drop_last)).lower(),
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
    specs = {"step": run.step, "data": run.data, "augment": run.data["augment"]}
    words = message.split(": ")
    place = next((at for at, word in enumerate(words[:3]) if word in specs), None)
    if place is not None and (spec := specs[words[place]]):
        called = {"data": "data.factory", "augment": "data.augment"}.get(words[place], words[place])
        words[place] = f"{called} {spec['factory']}"
    return ": ".join(words)
