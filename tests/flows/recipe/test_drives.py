"""Paths of Windows, read on any system: a drive's letter is neither a scheme nor a module."""

from __future__ import annotations

from pathlib import Path, PureWindowsPath
from typing import Any

import pytest
import yaml

from deepcompression import factory
from deepcompression.errors import FactoryError, RecipeError
from flows.new import _template
from flows.recipe import load as recipes
from flows.recipe import merge, places
from flows.recipe.stored import own_names
from tasks.execution.specs import specs_in
from tasks.storage.places import is_url, local_path
from tasks.tracking import client

WHOLE = ["C:\\Users\\me\\net.pt", "C:/x y/z.yaml", "d:\\data", "C://sloppy/net.pt"]


@pytest.mark.parametrize("path", WHOLE)
def test_a_path_with_a_drive_is_no_url_and_names_no_code(path: str, tmp_path: Path) -> None:
    """Not where runs and stores lie, not beside a recipe, not among the callables of a recipe's arguments."""
    assert not is_url(path) and local_path(path) == path
    assert list(specs_in({"kwargs": {"root": path, "keys": [path], path: 1}})) == []
    assert places.located("model.weights.path", path, tmp_path) == path
    assert merge.path_of(path).name and merge.folder_of(path) is not None
    with pytest.raises(RecipeError, match=r"^recipe .*cannot be read: No such file"):
        recipes.load(path)


def test_urls_stay_urls() -> None:
    """A scheme has two letters at least; file:///C:/ is a folder of that drive."""
    assert is_url("s3://bucket/store") and is_url("simplecache::s3://bucket") and is_url("file:///home/me")
    assert local_path("file:///home/me/store") == "/home/me/store"
    assert local_path("file:///C:/Users/me/store") == "C:/Users/me/store"


@pytest.mark.parametrize("path", WHOLE)
def test_paths_are_read_as_they_are_written(path: str, tiny: Any) -> None:
    """In YAML, by single quotes, and behind key= on a command line; store and runs keep theirs."""
    assert merge.parse_overrides([f"model.weights.path={path}"]) == {"model.weights.path": path}
    assert yaml.safe_load(f"path: '{path}'") == {"path": path}
    parsed = recipes.load({**tiny(), "store": path, "runs": path}, {"model.weights": {"path": path}})
    assert parsed.model.weights is not None
    assert (parsed.store, parsed.runs, parsed.model.weights.path) == (path, path, path) and path in own_names(parsed)


@pytest.mark.parametrize("path", ["C:\\Users\\me\\net.py:Net", "C:/x y/net.py:Net", "C:\\net", "C:/net"])
def test_a_factory_that_is_a_path_says_what_it_should_be(path: str, tiny: Any) -> None:
    """The letter is no module that does not import."""
    with pytest.raises(FactoryError, match=r"is a path; expected package\.module:callable"):
        factory.load(path)
    with pytest.raises(RecipeError, match=r"model\.factory: expected package\.module:callable, got"):
        recipes.load({**tiny(), "model": {"factory": path}})


def test_a_database_on_a_drive_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one is of the project's root, which has a drive itself."""
    monkeypatch.setattr(client, "ROOT", PureWindowsPath("D:\\project"))
    assert client.resolve_uri("sqlite:///C:/Users/me/mlflow.db") == "sqlite:///C:\\Users\\me\\mlflow.db"
    assert client.resolve_uri("sqlite:///artifacts/mlflow.db") == "sqlite:///D:\\project\\artifacts\\mlflow.db"


def test_what_new_writes_names_a_checkpoint_with_backslashes() -> None:
    """In double quotes of YAML a backslash begins an escape, and so does that of a path."""
    from json import dumps

    given: dict[str, Any] = dict.fromkeys(
        ["name", "what", "command", "path", "module", "augment", "named", "named_bits", "step"], "x"
    )
    given |= {"has_validation": True, "metric": "accuracy", "samples": 10, "points": 2.0, "validation": 0.15}
    given |= {"epochs": 1, "batch": 1, "density": 0.1, "bits": 2, "weights": dumps(WHOLE[0])}
    text = _template("recipe.yaml.j2").render({**given, "augment": "", "named": "", "named_bits": ""})
    assert yaml.safe_load(text)["model"]["weights"] == {"path": WHOLE[0]}
