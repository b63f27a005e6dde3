"""torchvision's models by name, untrained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any

from deepcompression.errors import FactoryError
from deepcompression.models.hub_common import DEFAULT, Preparation, imported, of_torch, unpublished


class Torchvision:
    """Models that ``torchvision.models`` lists, of pictures: classes, boxes, masks."""

    def factory(self, name: str) -> Callable[..., Any] | None:
        """What builds the untrained model; None where there is none of that name."""
        models = imported("torchvision").models
        if name not in models.list_models():
            return None
        builder = models.get_model_builder(name)
        untrained = dict.fromkeys(("weights", *(["weights_backbone"] if _takes(builder, "weights_backbone") else [])))

        def make(**kwargs: Any) -> Any:
            if kwargs.get("weights") or kwargs.get("pretrained"):
                raise FactoryError(
                    f"model.kwargs of torchvision:{name}: weights are named beside the factory: "
                    "model: {factory: ..., weights: {path: hub:default}}"
                )
            return builder(**{**untrained, **kwargs})

        return make

    def names(self) -> Sequence[str]:
        """Names that it has."""
        return list(imported("torchvision").models.list_models())

    def weights(self, name: str, kwargs: Mapping[str, Any], which: str) -> Path:
        """The file, or folder, of a published checkpoint."""
        return of_torch(str(self._entry(name, which).url))

    def preparation(self, name: str, kwargs: Mapping[str, Any], which: str) -> Preparation:
        """How the published model takes pictures."""
        given = self._entry(name, which).transforms()
        try:
            mean, std, word = tuple(given.mean), tuple(given.std), str(given.interpolation.value)
        except AttributeError:
            raise FactoryError(
                f"torchvision:{name} says nothing of how it takes pictures; name crop, mean, std"
            ) from None
        crop = getattr(given, "crop_size", None)
        return Preparation(int(given.resize_size[0]), (crop[0], crop[-1]) if crop else None, mean, std, word)

    def _entry(self, name: str, which: str) -> Any:
        models = imported("torchvision").models
        known = models.get_model_weights(name)
        try:
            return known[which.upper() if which == DEFAULT else which]
        except KeyError:
            raise FactoryError(unpublished(f"torchvision:{name}", which, [one.name for one in known])) from None


def _takes(call: Callable[..., Any], name: str) -> bool:
    return name in signature(call).parameters
