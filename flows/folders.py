"""Where a run's results go."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcompression._atomic import storage_error, written
from flows.recipe.schema import Recipe
from tasks.root import ROOT
from tasks.storage.places import is_url
from tasks.storage.store import Store

LOCAL_RUNS = ROOT / "artifacts" / "runs"


def new_folder(parsed: Recipe, stored: Mapping[str, Any]) -> Path:
    """A run's own folder, near even where ``runs`` is a URL: it is copied there when the run ends.

    Raises:
        StorageError: it cannot be made.
    """
    import yaml

    stamp = time.strftime("%Y%m%d-%H%M%S")
    runs = LOCAL_RUNS if is_url(parsed.runs) else below_root(parsed.runs)
    folder = runs / f"{parsed.name}-{stamp}-{secrets.token_hex(2)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise storage_error(folder, error) from None
    with written(folder / "recipe.yaml") as file:
        file.write(yaml.safe_dump(dict(stored), sort_keys=False, allow_unicode=True).encode())
    return folder


def store_of(parsed: Recipe) -> Store:
    """The store that a recipe names."""
    return Store(where(parsed.store))


def where(path: str) -> str:
    """A URL as it is; a path below the project's root."""
    return path if is_url(path) else str(below_root(path))


def below_root(path: str) -> Path:
    """Relative paths are taken from the repository's root, wherever the command was typed."""
    return ROOT / path
