"""The random states that decide a training run: to seed them, to keep them, to bring them back."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds torch, numpy and Python: dropout, and whatever users' data sets draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def states(generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Every random state, as plain values and tensors that ``torch.load`` takes with ``weights_only``."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
        "generators": [generator.get_state() for generator in generators],
    }


def restore(saved: Mapping[str, Any], generators: Sequence[torch.Generator]) -> None:
    """Brings back what ``states`` returned."""
    torch.set_rng_state(saved["torch"].cpu())
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in saved["cuda"]])
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    for generator, state in zip(generators, saved["generators"], strict=True):
        generator.set_state(state.cpu())
