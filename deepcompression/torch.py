"""Between ``.dcz`` files and torch; and two verbs for a training loop of your own, ``hold`` and ``bake``."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from deepcompression.formats.state_dict import encode, load, save
from deepcompression.network.load import load_state
from deepcompression.structure.hold import bake, hold

__all__ = ["bake", "encode", "hold", "load", "load_into", "load_state", "save"]


def load_into(model: nn.Module, path: str | Path) -> nn.Module:
    """Loads a ``.dcz`` file into ``model`` (every tensor must fit) and returns it.

    A model on the meta device gets memory on the CPU first.

    Raises:
        FormatError: as ``load``.
        WeightsError: as ``load_state``.
    """
    load_state(model, load(path), where=str(path))
    return model
