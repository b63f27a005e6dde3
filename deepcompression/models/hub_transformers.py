"""Models of Hugging Face's transformers by the name of their class, untrained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcompression.errors import FactoryError, one_line
from deepcompression.models.hub_common import DEFAULT, Preparation, imported, snapshot

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Transformers:
    """Classes of Hugging Face's transformers, ``AutoModelFor...`` among them, built by a configuration.

    ``kwargs.config`` is a folder with config.json, a name in the local cache or at the hub, or a mapping with
    ``model_type``; all other arguments change values of it, such as ``num_labels``. No code of a repository is run.
    """

    def factory(self, name: str) -> Callable[..., Any] | None:
        """What builds the untrained model; None where there is none of that name."""
        library = imported("transformers")
        found = getattr(library, name, None)
        automatic = hasattr(found, "from_config")
        if found is None or not (automatic or hasattr(found, "config_class")):
            return None

        def make(config: str | Mapping[str, Any] | None = None, **changes: Any) -> Any:
            described = _config(library, found, name, config, changes)
            return found.from_config(described) if automatic else found(described)

        return make

    def names(self) -> Sequence[str]:
        """Names that it has."""
        return [name for name in dir(imported("transformers")) if "Model" in name or "For" in name]

    def weights(self, name: str, kwargs: Mapping[str, Any], which: str) -> Path:
        """The file, or folder, of a published checkpoint."""
        config = kwargs.get("config")
        if not isinstance(config, str):
            raise FactoryError(
                "goes with model.kwargs.config, a folder or a name at the hub; name the checkpoint's file"
            )
        if Path(config).is_dir():
            return Path(config)
        patterns = ["*.safetensors", "*.safetensors.index.json"]
        return snapshot(config, patterns, None if which == DEFAULT else which)

    def preparation(self, name: str, kwargs: Mapping[str, Any], which: str) -> Preparation:
        """How the published model takes pictures."""
        config = str(kwargs.get("config"))
        folder = Path(config) if Path(config).is_dir() else snapshot(config, ["preprocessor_config.json"], None)
        path = folder / "preprocessor_config.json"
        if not path.is_file():
            raise FactoryError(f"{folder}: has no preprocessor_config.json: name crop, mean, std")
        return _as_transformers_has_it(json.loads(path.read_text(encoding="utf-8")))


def _config(library: Any, model: Any, name: str, config: Any, changes: Mapping[str, Any]) -> Any:
    if isinstance(config, Mapping) and "model_type" in config:
        kind = dict(config)
        return library.AutoConfig.for_model(kind.pop("model_type"), **kind, **changes)
    if config is None or isinstance(config, Mapping):
        if hasattr(model, "from_config"):
            raise FactoryError(
                f"model.kwargs.config of transformers:{name}: expected a folder with config.json, a name at the hub, "
                "or a mapping with model_type"
            )
        return model.config_class(**(config or {}), **changes)
    try:
        return library.AutoConfig.from_pretrained(config, trust_remote_code=False, **changes)
    except (OSError, ValueError) as error:
        raise FactoryError(
            f"model.kwargs.config {config}: neither a folder with config.json nor a name that the local cache or the "
            f"hub has ({one_line(error)[:160]})"
        ) from None


def _as_transformers_has_it(given: Mapping[str, Any]) -> Preparation:
    """A preprocessor_config.json: sizes are numbers, or mappings with shortest_edge or height and width."""
    crop = given.get("crop_size") if given.get("do_center_crop") else None
    resize = given.get("size") if given.get("do_resize", True) else None
    word = {0: "nearest", 2: "bilinear", 3: "bicubic"}.get(int(given.get("resample", 2)), "bilinear")
    mean, std = given.get("image_mean", IMAGENET[0]), given.get("image_std", IMAGENET[1])
    if isinstance(resize, Mapping):
        short = resize.get("shortest_edge")
        resize = int(short) if short else (int(resize["height"]), int(resize["width"]))
    return Preparation(resize, _pair(crop) if crop else None, tuple(mean), tuple(std), word)


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, Mapping):
        return int(value["height"]), int(value["width"])
    several = list(value) if isinstance(value, Sequence) else [value]
    return int(several[0]), int(several[-1])
