"""The dense model: trained here, or read from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.execution.bench import Bench, Product
from tasks.execution.settings import Stage, Training, Weights
from tasks.storage.store import file_digest

if TYPE_CHECKING:
    from torch import nn

    from tasks.execution.run import Run


class Settings(Stage):
    """How the dense model is trained, or the checkpoint that it is read from: the recipe's ``train``, or its
    ``model.weights``."""

    train: Training | None = None
    weights: Weights | None = None

    @property
    def draws(self) -> bool:
        """A checkpoint is what it is."""
        return self.weights is None

    def edits(self) -> Mapping[str, str]:
        """Weights that the model computes are folded; a ``.dcz`` has its own."""
        from deepcompression.formats.checkpoint import edits_of

        own = edits_of(self.weights.path) if self.weights else []
        return {"fold": "a parametrized layer", **{str(edit["kind"]): "model.weights" for edit in own}}

    def fits(self, run: Run, model: nn.Module) -> None:
        """The checkpoint is read, and is the model's."""
        if self.weights and Path(self.weights.path).exists():
            read(run, self.weights)

    def also(self) -> Mapping[str, str] | None:
        """The checkpoint's digest."""
        return {"weights": _digest(self.weights.path)} if self.weights else None


def work(bench: Bench, settings: Settings) -> Product:
    """The dense model."""
    if settings.weights:
        return _load(bench, settings.weights)
    return _train(bench, settings.train or Training())


def _train(bench: Bench, train: Training) -> Product:
    from deepcompression.network.edits.fold import fold_all
    from deepcompression.network.state import plain_state

    model = bench.run.blank_model()
    done = bench.train(model, train).fit
    edits = fold_all(model)
    return Product(
        plain_state(model),
        edits=edits,
        history=done.history,
        report={"best_epoch": done.best_epoch},
        notes=_told(edits),
    )


def _load(bench: Bench, weights: Weights) -> Product:
    from deepcompression.network.edits.fold import fold_all
    from deepcompression.network.names import select
    from deepcompression.network.state import plain_state
    from deepcompression.structure import hold as holding
    from deepcompression.structure.constraints import structured

    hold = bench.run.hold
    model, edits, renamed = read(bench.run, weights)
    folded = fold_all(model)
    held = holding.hold(
        model,
        None if hold.zeros is None else select(model, hold.zeros),
        shared=select(model, hold.shared),
    )
    holding.bake(model)
    names = ", ".join(held.zeros) or "no tensor"
    return Product(
        plain_state(model),
        structure=structured(held.zeros, held.shared),
        edits=[*edits, *folded],
        notes=[
            f"read from {weights.path}; zeros held in {names}; sharing in {', '.join(held.shared) or 'none'}",
            *renamed,
            *_told(folded),
        ],
    )


def read(run: Run, weights: Weights) -> tuple[nn.Module, list[Mapping[str, Any]], list[str]]:
    """The model with a checkpoint's weights, the edits that the file has, and what is to be told of names."""
    from deepcompression.formats import checkpoint
    from deepcompression.network import load as files

    edits = checkpoint.edits_of(weights.path)
    model = run.edited_model(edits)
    own = files.own_tensors(model)
    found = checkpoint.read_state(weights.path, key=weights.key, strip=weights.strip, ignore=weights.ignore, own=own)
    state = files.unwrapped(model, found)
    files.load_state(model, state, where=f"model.weights {weights.path}")
    return model, list(edits), _renamed(found, state)


def _renamed(read: Mapping[str, object], state: Mapping[str, object]) -> list[str]:
    """What a person should know of names that were not the file's."""
    pairs = [(old, new) for old, new in zip(read, state, strict=True) if old != new]
    return (
        [f"{len(pairs)} names without what wraps models put into them: {pairs[0][0]} is {pairs[0][1]}"] if pairs else []
    )


def _told(edits: Sequence[Mapping[str, str]]) -> list[str]:
    """What a person should know of tensors that are no longer computed."""
    return [
        f"{edit['tensor']} was computed by the model's own parametrization; it is a parameter from here on"
        for edit in edits
    ]


def _digest(path: str) -> str:
    """Of the file, or of all files of a checkpoint in several."""
    from deepcompression.errors import InputError, WeightsError
    from deepcompression.formats.shards import paths_of

    try:
        found = [file_digest(one) for one in paths_of(Path(path))]
    except InputError as error:
        raise WeightsError(f"model.weights.path {error}") from None
    except OSError as error:
        raise WeightsError(f"model.weights.path {path}: cannot be read: {error.strerror or error}") from None
    return found[0] if len(found) == 1 else " ".join(found)
