"""timm's models by name, untrained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcompression.errors import FactoryError
from deepcompression.models.hub_common import DEFAULT, Preparation, imported, of_hugging_face, of_torch, unpublished


class Timm:
    """Models that timm lists; a name may have a tag: ``mobilenetv2_100.ra_in1k``."""

    def factory(self, name: str) -> Callable[..., Any] | None:
        """What builds the untrained model; None where there is none of that name."""
        timm = imported("timm")
        if not timm.is_model(name):
            return None

        def make(**kwargs: Any) -> Any:
            if kwargs.get("pretrained"):
                raise FactoryError(
                    f"model.kwargs of timm:{name}: weights are named beside the factory: "
                    "model: {factory: ..., weights: {path: hub:default}}"
                )
            return timm.create_model(name, **kwargs)

        return make

    def names(self) -> Sequence[str]:
        """Names that it has."""
        return list(imported("timm").list_models())

    def weights(self, name: str, kwargs: Mapping[str, Any], which: str) -> Path:
        """The file, or folder, of a published checkpoint."""
        entry = self._entry(name, which)
        if entry.hf_hub_id:
            names = [entry.hf_hub_filename] if entry.hf_hub_filename else ["model.safetensors", "pytorch_model.bin"]
            return of_hugging_face(str(entry.hf_hub_id), names)
        if entry.url:
            return of_torch(str(entry.url))
        raise FactoryError(f"timm publishes no weights of {name}")

    def preparation(self, name: str, kwargs: Mapping[str, Any], which: str) -> Preparation:
        """How the published model takes pictures."""
        entry = self._entry(name, which)
        _, height, width = entry.input_size
        whole = entry.crop_mode == "squash"
        resize = (height, width) if whole else math.floor(min(height, width) / entry.crop_pct)
        word = entry.interpolation if entry.interpolation != "random" else "bilinear"
        return Preparation(resize, (height, width), tuple(entry.mean), tuple(entry.std), word)

    def _entry(self, name: str, which: str) -> Any:
        timm = imported("timm")
        entry = timm.get_pretrained_cfg(name if which == DEFAULT else f"{name.partition('.')[0]}.{which}")
        if entry is None:
            known = timm.list_pretrained(f"{name.partition('.')[0]}.*")
            raise FactoryError(unpublished(f"timm:{name}", which, [one.partition(".")[2] for one in known]))
        return entry
