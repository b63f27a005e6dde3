"""Where the files of a recipe lie: beside it, or below the project's root (installed: the current folder)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcompression.errors import RecipeError
from tasks.root import ROOT
from tasks.storage.places import is_url

OURS = "deepcompression.data:"  # whose arguments of these names are files and folders
FILES = re.compile(r"^(root|path|folder|table|classes|tokenizer)$")


def placed(recipe: Mapping[str, Any], beside: Path) -> dict[str, Any]:
    """The recipe with every file that lies in its own folder named whole; what lies elsewhere stays as it was written.

    Args:
        recipe: plain values, not validated, resolved or not.
        beside: the folder of its file.

    Raises:
        RecipeError: a path leads to two files.
    """
    places = {"python_path": _folders, "model": _model, "teacher": _model, "data": _data}
    changed = {key: place(key, recipe[key], beside) for key, place in places.items() if key in recipe}
    return {**recipe, **changed}


def located(key: str, path: str, beside: Path, *others: Path) -> str:
    """A path of the recipe's folder whole; one that leads elsewhere, or nowhere, as it is.

    Args:
        key: the recipe's, for messages.
        path: as it was written.
        beside: the recipe's folder.
        others: where it leads too, beside the project's root.

    Raises:
        RecipeError: it leads to a file there, and to another from the project's root.
    """
    if is_url(path) or path.startswith("hub:") or Path(path).is_absolute():
        return path
    own = beside / path
    elsewhere = [folder / path for folder in (ROOT, *others)]
    if not own.exists():
        return path
    for one in elsewhere:
        if one.exists() and one.resolve() != own.resolve():
            raise RecipeError(
                f"{key}: {path}: there is {own.resolve()} and {one.resolve()}; write the one that is meant whole"
            )
    return path if any(one.exists() for one in elsewhere) else str(own.resolve())


def _folders(key: str, value: Any, beside: Path) -> Any:
    return [_located(key, one, beside) for one in value] if isinstance(value, list) else value


def _model(key: str, value: Any, beside: Path) -> Any:
    weights = value.get("weights") if isinstance(value, Mapping) else None
    if not isinstance(weights, Mapping) or "path" not in weights:
        return value
    path = _located(f"{key}.weights.path", weights["path"], beside)
    return {**value, "weights": {**weights, "path": path}}


def _data(key: str, value: Any, beside: Path) -> Any:
    """The arguments of a data factory of the library, those that are files located."""
    kwargs = value.get("kwargs") if isinstance(value, Mapping) else None
    if not isinstance(kwargs, Mapping) or not str(value.get("factory")).startswith(OURS):
        return value
    found = {
        name: _located(f"{key}.kwargs.{name}", one, beside, Path.cwd()) if FILES.match(str(name)) else one
        for name, one in kwargs.items()
    }
    return {**value, "kwargs": found}


def _located(key: str, path: Any, beside: Path, *others: Path) -> Any:
    """A text that is a path; anything else, and what is still to be read from elsewhere, as it is."""
    return located(key, path, beside, *others) if isinstance(path, str) and "${" not in path else path
