"""Sentences, and their embeddings by a dense model, which a compressed one is to keep: what minilm.yaml names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcompression import factory
from deepcompression.data import Splits, text
from deepcompression.formats.checkpoint import read_state

SPLITS = ("train", "validation", "test")


def embedded(path: str, folder: str, length: int = 64, test: int | float = 0.3) -> Splits:
    """Batches of ``input_ids``, ``attention_mask`` and, as ``labels``, the dense model's embeddings (n, width) float32.

    Args:
        path: JSON lines with a field ``text``; a file, or a folder with train.jsonl and test.jsonl.
        folder: of the model: config.json, tokenizer.json, weights.
        length: tokens of a sentence; longer ones are cut.
        test: sentences of the test split, where the file is one.
    """
    splits = text(path, folder, length=length, test=test)
    model = factory.build("transformers:AutoModel", {"config": folder})
    wanted = set(model.state_dict())
    model.load_state_dict({name: one for name, one in read_state(folder).items() if name in wanted})
    given = {which: getattr(splits, which) for which in SPLITS}
    return replace(splits, **{which: _answered(model.eval(), one) if one else None for which, one in given.items()})


def step(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """1 - cosine, the embeddings of a batch, and the dense model's."""
    outputs = pooled(model, batch)
    return 1 - functional.cosine_similarity(outputs, batch["labels"]).mean(), outputs, batch["labels"]


class Cosine:
    """The cosine of each sentence's embedding with the dense model's, -1 to 1."""

    name = "cosine"
    higher_is_better = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scores (n,)."""
        return functional.cosine_similarity(outputs, targets)


def cosine() -> Cosine:
    """The metric."""
    return Cosine()


def pooled(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean of a sentence's tokens, of length 1: (n, width)."""
    tokens = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    counted = batch["attention_mask"].unsqueeze(-1).to(tokens.dtype)
    return functional.normalize((tokens * counted).sum(1) / counted.sum(1).clamp(min=1), dim=1)


def _answered(model: nn.Module, columns: Mapping[str, Tensor]) -> dict[str, Any]:
    with torch.no_grad():
        parts = [
            pooled(model, {"input_ids": ids, "attention_mask": mask})
            for ids, mask in zip(*(columns[name].split(32) for name in ("input_ids", "attention_mask")), strict=True)
        ]
    return {**columns, "labels": torch.cat(parts)}
