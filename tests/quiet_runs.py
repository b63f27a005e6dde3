"""Runs on a user's own module, told to nobody: what tests of stages need where Prefect and MLflow are not the point."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.execution import run as runs
from tasks.execution.run import Run
from tasks.execution.settings import Data, Hold, Model
from tasks.execution.sources import factory_digest

# A module with data of three classes, and a small net for them.
SMALL = """
import torch
from torch import nn
def data():
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    pair = (x, x[:, :3].argmax(1))
    return pair, pair, pair
def net():
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
"""


class Heard:
    """What a tracker is told."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, float], int]] = []

    def metrics(self, values: dict[str, float], step: int = 0) -> None:
        self.told.append((values, step))

    def curve(self, prefix: str, history: Any) -> None: ...


@contextlib.contextmanager
def quiet_run(folder: Path, patch: pytest.MonkeyPatch, name: str, code: str, model: Model) -> Iterator[Run]:
    """A run in ``folder``; the module ``name`` with this ``code`` lies there, and its ``data`` gives the splits."""
    (folder / f"{name}.py").write_text(code)
    sys.modules.pop(name, None)  # another test's, which this process read before
    patch.syspath_prepend(str(folder))
    caches = (runs._made, runs._identity, runs._identified, factory_digest)
    for cache in caches:
        cache.cache_clear()
    yield Run(
        name="r", seed=0, folder=str(folder), store_folder=str(folder / "store"), model=model,
        data=Data(factory=f"{name}:data"), step=None, metric=None, hold=Hold(), device="cpu", precision="float32",
        channels_last=False, threads=None, python_path=(), tracker=Heard(),  # type: ignore[arg-type]
    )  # fmt: skip
    for cache in caches:
        cache.cache_clear()
