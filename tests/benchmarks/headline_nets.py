"""The two nets of the headline figure: their tensors, what they are judged on, and how.

EfficientNet-Lite0 is judged by the Kullback-Leibler divergence of its softmax from the dense net's, and by how seldom
both give the same answer, on 272 pictures; MiniLM by 1 - the cosine of its embeddings with the dense net's, on 200
sentences. Intervals are of the bootstrap over pictures or sentences, 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import imagenet_sample
import minilm_sentences
import numpy as np
import torch
from bench_ptq import divergence
from torch import Tensor, nn

from deepcompression.torch import load

DRAWS = 10_000


@dataclass(frozen=True)
class Net:
    """A net with its own weights: ``make`` builds it untrained, ``state`` are its tensors, ``calibrate`` and ``test``,
    inputs; ``losses``: (dense net's outputs, others) -> figures of each input; ``recipe``: model and data, whose
    training data are the inputs to calibrate on."""

    name: str
    make: Callable[[], nn.Module]
    state: Mapping[str, Tensor]
    calibrate: Tensor
    test: Tensor
    losses: Callable[[Tensor, Tensor], dict[str, Tensor]]
    recipe: Mapping[str, Any]

    @property
    def dense_bytes(self) -> int:
        """What the tensors take."""
        return sum(one.numel() * one.element_size() for one in self.state.values())

    @property
    def matrices(self) -> list[str]:
        """Names of the weights that are made smaller; all others are vectors."""
        return [name for name, one in self.state.items() if one.ndim >= 2]

    def filled(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The net with other tensors."""
        made = self.make()
        made.load_state_dict({name: state[name] for name in made.state_dict()})
        return made.eval()

    def outputs(self, made: nn.Module) -> Tensor:
        """What a net gives for the test inputs."""
        pictures = self.test.ndim == 4
        made = made.to(memory_format=torch.channels_last) if pictures else made
        parts = self.test.contiguous(memory_format=torch.channels_last) if pictures else self.test
        with torch.no_grad():
            return torch.cat([made(part) for part in parts.split(16)])

    def stored(self) -> dict[str, Tensor]:
        """The tensors as files have them: vectors in float16."""
        return {
            name: one.half() if one.ndim < 2 and one.is_floating_point() else one.contiguous()
            for name, one in self.state.items()
        }

    def read(self, path: Path) -> Tensor:
        """What the net gives with the tensors of a .dcz."""
        return self.outputs(self.filled({name: one.to(self.state[name].dtype) for name, one in load(path).items()}))

    def half(self) -> dict[str, Tensor]:
        """The tensors with all vectors in float16, two bytes an element, as each rival gets them."""
        return {
            name: one.half().to(one.dtype) if one.ndim < 2 and one.is_floating_point() else one
            for name, one in self.state.items()
        }

    def vector_bytes(self) -> int:
        """What these take."""
        return sum(2 * one.numel() for one in self.state.values() if one.ndim < 2 and one.is_floating_point())


def interval(values: Tensor) -> list[float]:
    """The 95 % bootstrap interval of a mean."""
    numbers = values.double().numpy()
    drawn = np.random.default_rng(0).integers(0, len(numbers), (DRAWS, len(numbers)))
    return [float(one) for one in np.quantile(numbers[drawn].mean(1), [0.025, 0.975])]


def judged(losses: Mapping[str, Tensor]) -> dict[str, Any]:
    """Means of figures of each input, and their intervals."""
    found: dict[str, Any] = {}
    for key, one in losses.items():
        found |= {key: float(one.double().mean()), f"{key}_interval": interval(one)}
    return found


@cache
def efficientnet(folder: str) -> Net:
    """EfficientNet-Lite0 and the pictures of a folder (imagenet_sample.py)."""
    splits = imagenet_sample.data(folder)
    classes = splits.test[1]

    def losses(dense: Tensor, other: Tensor) -> dict[str, Tensor]:
        unlike = (other.argmax(1) != dense.argmax(1)).double()
        right = (other.argmax(1) == classes).double()
        return {"divergence": divergence(dense, other), "unlike": unlike, "right": right}

    state = torch.load(imagenet_sample.weights(), weights_only=True)
    recipe = {
        "model": {"factory": "imagenet_sample:model"},
        "data": {"factory": "imagenet_sample:data", "kwargs": {"folder": str(Path(folder).resolve())}},
    }
    return Net("EfficientNet-Lite0", imagenet_sample.model, state, splits.train[0], splits.test[0], losses, recipe)


@cache
def minilm() -> Net:
    """all-MiniLM-L6-v2 and sentences (minilm_sentences.py)."""
    from safetensors.torch import load_file

    def losses(dense: Tensor, other: Tensor) -> dict[str, Tensor]:
        return {"off": 1 - nn.functional.cosine_similarity(dense.double(), other.double())}

    splits = minilm_sentences.data()
    made = minilm_sentences.model().state_dict()
    state = {name: one for name, one in load_file(minilm_sentences.weights()).items() if name in made}
    recipe = {
        "model": {"factory": "minilm_sentences:model"},
        "data": {"factory": "minilm_sentences:data"},
        "step": "minilm_sentences:step",
    }
    return Net("MiniLM", minilm_sentences.model, state, splits.train[0], splits.test[0], losses, recipe)
