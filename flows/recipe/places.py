"""Where the files of a recipe lie: beside it, or below the project's root (installed: the current folder)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from deepcompression.errors import RecipeError
from flows.recipe.schema import Recipe
from tasks.execution.settings import Data, Model
from tasks.root import ROOT

AnyModel = TypeVar("AnyModel", bound=Model)
OURS = "deepcompression.data:"  # whose arguments of these names are files and folders
FILES = re.compile(r"^(root|path|folder|table|classes|tokenizer)$")


def placed(recipe: Recipe, beside: Path | None) -> Recipe:
    """The recipe with every file that lies in its own folder named whole; what lies elsewhere stays as it was written.

    Args:
        recipe: validated.
        beside: the folder of its file; None of one that has none.

    Raises:
        RecipeError: a path leads to two files.
    """
    if beside is None:
        return recipe
    changes = {
        "python_path": [located("python_path", one, beside) for one in recipe.python_path],
        "model": _model("model", recipe.model, beside),
        "data": _data(recipe.data, beside),
        "teacher": _model("teacher", recipe.teacher, beside) if recipe.teacher else None,
    }
    changed = {key: value for key, value in changes.items() if value != getattr(recipe, key)}
    return recipe.model_copy(update=changed) if changed else recipe


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
    if "://" in path or path.startswith("hub:") or Path(path).is_absolute():
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


def _model(key: str, model: AnyModel, beside: Path) -> AnyModel:
    if model.weights is None:
        return model
    path = located(f"{key}.weights.path", model.weights.path, beside)
    return model.model_copy(update={"weights": model.weights.model_copy(update={"path": path})})


def _data(data: Data, beside: Path) -> Data:
    return data.model_copy(update={"kwargs": _files(data.kwargs, beside)}) if data.factory.startswith(OURS) else data


def _files(kwargs: Mapping[str, Any], beside: Path) -> dict[str, Any]:
    """The arguments of a data factory of the library, those that are files located."""
    return {
        key: located(f"data.kwargs.{key}", value, beside, Path.cwd())
        if isinstance(value, str) and FILES.match(key)
        else value
        for key, value in kwargs.items()
    }
