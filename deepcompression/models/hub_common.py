"""What the hubs of models have in common: their packages, their caches, how nets take pictures."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deepcompression.errors import FactoryError, WeightsError, one_line

log = logging.getLogger(__name__)
DEFAULT = "default"


@dataclass(frozen=True)
class Preparation:
    """How a net takes pictures: the shorter side resized, the middle cut out, values in [0, 1] shifted and scaled.

    ``resize`` is of the shorter side, or (height, width), or None; ``crop`` (height, width), or None.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    interpolation: str = "bilinear"


def imported(package: str) -> Any:
    """A library of models.

    Raises:
        FactoryError: not installed, or built for another torch; says what to do.
    """
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        missing = str(error.name or package).partition(".")[0]
        raise FactoryError(f"needs {missing}: pip install 'deep-compression[hub]'") from None
    except (
        Exception
    ) as error:  # its own code: of a torchvision that was built for another torch, an operator is missing
        raise FactoryError(f"{package} does not import here: {_why(error)}") from None


def _why(error: Exception) -> str:
    import torch

    words = f"{type(error).__name__}: {one_line(error)[:200]}"
    if "torchvision::" not in words:
        return words
    version = metadata.version("torchvision")
    return (
        f"torchvision {version} is built for another torch than the {torch.__version__} that is here ({words}); "
        "install torchvision from the index that torch is from, such as that of CPU builds: pip install --no-deps "
        "--force-reinstall torchvision --index-url ..."
    )


def unpublished(model: str, which: str, known: Sequence[str]) -> str:
    """That a hub has no such checkpoint, and which it has.

    Args:
        model: its name.
        which: the checkpoint that was asked for.
        known: those that there are.
    """
    return f"{model} has no published weights {which!r}; it has {', '.join(known) or 'none'}"


def of_torch(url: str) -> Path:
    """A file of torch's cache, fetched into it where it lacks there."""
    import torch

    name = Path(urlsplit(url).path).name
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if path.is_file():
        return path
    log.warning("model.weights: fetching %s, once (kept in %s) ...", name, path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = re.search(r"-([a-f0-9]{8,})\.", name)
    try:
        torch.hub.download_url_to_file(url, str(path), found[1] if found else None, progress=False)
    except Exception as error:  # network, TLS, HTTP, a file of another digest
        raise WeightsError(
            f"{name} is not in {path.parent} and cannot be fetched ({one_line(error)[:120]}); put it there, or name "
            "another file"
        ) from None
    return path


def of_hugging_face(repository: str, names: Sequence[str]) -> Path:
    """A file of Hugging Face's cache, the first of several names that there is."""
    folder = snapshot(repository, names, None)
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise WeightsError(f"{repository}: has none of {', '.join(names)}")
    return found


def snapshot(repository: str, patterns: Sequence[str], revision: str | None) -> Path:
    """The folder of a repository in Hugging Face's cache, fetched into it where that lacks it.

    Args:
        repository: owner/name.
        patterns: of the files that are wanted.
        revision: a branch, tag or commit; None: the main one.

    Raises:
        WeightsError: neither there nor to be had.
    """
    hub = imported("huggingface_hub")
    asked = {"allow_patterns": list(patterns), "revision": revision}
    try:
        folder = Path(hub.snapshot_download(repository, local_files_only=True, **asked))
        if any(one for pattern in patterns for one in folder.glob(pattern)):
            return folder
    except Exception:  # not in the cache: the hub is asked
        folder = Path(hub.constants.HF_HUB_CACHE)
    log.warning("model: fetching %s of %s, once (kept in %s) ...", ", ".join(patterns), repository, folder)
    try:
        return Path(hub.snapshot_download(repository, **asked))
    except Exception as error:  # network, no such repository, offline by its own variable
        raise WeightsError(
            f"{repository} is no folder, not in the cache {hub.constants.HF_HUB_CACHE}, and cannot be fetched "
            f"({type(error).__name__}: {one_line(error)[:120]}); name a folder"
        ) from None
