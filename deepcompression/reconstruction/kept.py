"""Layers that are done, in files, so that what was killed goes on with the next one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote

import torch

from deepcompression._atomic import written
from deepcompression.reconstruction.reconstruct import Done, Layer


@dataclass(frozen=True)
class KeptLayers:
    """The files of a folder: ``advance`` is told of each layer as it is done, or was; ``suffix`` ends their names."""

    folder: Path
    advance: Callable[[str], object]
    suffix: str = ".pt"

    def earlier(self, name: str) -> Done | None:
        """What was done to a layer, if it was."""
        path = self._path(name)
        if not path.exists():
            return None
        made = torch.load(path, weights_only=True)
        self.advance(f"{name}, done before")
        return Done(Layer(**made["layer"]), made["state"])

    def done(self, one: Done) -> None:
        """Keeps a layer."""
        with written(self._path(one.layer.name)) as file:
            torch.save({"layer": asdict(one.layer), "state": one.state}, file)
        self.advance(f"{one.layer.name}  error {one.layer.error:.2%}")

    def _path(self, name: str) -> Path:
        return self.folder / f"{quote(name, safe='')}{self.suffix}"
