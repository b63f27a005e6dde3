"""What a dense model says of each sample, in place of labels: accuracy is then how often another says the same."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from deepcompression import factory
from deepcompression.data.contents import cache, digest_of_files, keep
from deepcompression.data.splits import Splits, as_splits
from deepcompression.errors import DataError, FactoryError
from deepcompression.formats.checkpoint import read_state
from deepcompression.formats.shards import paths_of
from deepcompression.models.hub import PUBLISHED, weights_of

BATCH = 32
SPLITS = ("train", "validation", "test")


class Answered(Dataset[tuple[Any, int]]):
    """Samples of a data set, each with a class of its own."""

    def __init__(self, samples: Any, labels: Sequence[int], digest: str) -> None:
        self.samples, self.labels, self.digest = samples, tuple(labels), digest

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.samples[index][0], self.labels[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """Several samples, which a DataLoader asks for at once."""
        several = getattr(self.samples, "__getitems__", lambda these: [self.samples[one] for one in these])(indices)
        return [(sample[0], self.labels[index]) for sample, index in zip(several, indices, strict=True)]


def answers(data: Mapping[str, Any], model: Mapping[str, Any]) -> Splits:
    """The samples of other data, whose targets are the classes that a dense model gives them.

    So pictures need no labels, and ``accuracy`` is agreement with the dense model, whose own is 1. Answers are kept in
    the user's cache, so that the model runs once.

    Args:
        data: ``factory`` and ``kwargs`` of data sets with a ``digest`` of their own, such as ``images``; of one whose
            pictures have no classes, all may lie in one folder.
        model: ``factory``, ``kwargs`` and ``weights`` (``path``, and ``key``, ``strip``, ``ignore``): as a recipe's
            ``model``, for instance ``"${model}"``.

    Raises:
        DataError: data of another form.
        FactoryError, WeightsError: as of the model and its weights.
    """
    made = as_splits(factory.build(data["factory"], data.get("kwargs") or {}), data["factory"])
    given = {which: getattr(made, which) for which in SPLITS}
    for which, split in given.items():
        if split is not None and not isinstance(getattr(split, "digest", None), str):
            raise DataError(
                f"data.kwargs.data: answers takes data sets with a digest, such as images, got {which} without"
            )
    path = _weights(model)
    kwargs = json.dumps(dict(model.get("kwargs") or {}), sort_keys=True)
    of = f"{model['factory']} {kwargs} {digest_of_files(paths_of(path))}"
    train, validation, test = (_answered(split, of, model, path) if split else None for split in given.values())
    return Splits(train, validation, test, made.classes)


def _weights(model: Mapping[str, Any]) -> Path:
    path = str((model.get("weights") or {}).get("path") or "")
    if not path:
        raise FactoryError("data.kwargs.model: expected weights, with a path: the dense model must be there")
    kwargs = model.get("kwargs") or {}
    return weights_of(model["factory"], kwargs, path) if path.startswith(PUBLISHED) else Path(path)


def _answered(split: Any, of: str, model: Mapping[str, Any], path: Path) -> Answered:
    digest = f"{split.digest} answered by {of}"
    kept = cache("answers", digest)
    try:
        labels = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        labels = None
    if not isinstance(labels, list) or len(labels) != len(split):
        labels = _asked(_dense(model, path), split)
        keep(kept, labels)
    return Answered(split, labels, digest)


def _dense(model: Mapping[str, Any], path: Path) -> nn.Module:
    made: nn.Module = factory.build(model["factory"], model.get("kwargs") or {})
    given = model["weights"]
    state = read_state(path, key=given.get("key"), strip=given.get("strip") or [], ignore=given.get("ignore") or [])
    made.load_state_dict(state)
    return made.eval()


def _asked(model: nn.Module, split: Any) -> list[int]:
    labels: list[int] = []
    with torch.no_grad():
        for samples, _ in DataLoader(split, BATCH):
            logits: Tensor = model(samples.to(memory_format=torch.channels_last))
            labels += logits.argmax(1).tolist()
    return labels
