"""Checkpoints in several .safetensors files, and what may be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from deepcompression.errors import InputError
from deepcompression.formats.shards import Shards

ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards with an index."""
    save_file({"a": np.arange(4.0)}, tmp_path / ONE, {"format": "pt"})
    save_file({"b": np.arange(6.0).reshape(2, 3), "c": np.array(1)}, tmp_path / TWO)
    index = {"metadata": {"total_size": 88}, "weight_map": {"a": ONE, "b": TWO, "c": TWO}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_all_tensors_of_all_shards(folder: Path) -> None:
    """By the index, by its folder, and by a folder without an index."""
    for path in (folder, folder / "model.safetensors.index.json"):
        found = Shards(path)
        assert sorted(found) == ["a", "b", "c"] and found.about["b"][:2] == ("float64", (2, 3))
        assert found["b"].bits.view(np.float64).tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found.metadata == {"format": "pt"} and len(found.paths) == 3
    (folder / "model.safetensors.index.json").unlink()
    assert sorted(Shards(folder)) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("weight_map", "words"),
    [
        ({"a": ONE, "b": TWO, "c": "model-3.safetensors"}, "the shard model-3.safetensors is missing"),
        ({"a": ONE, "b": ONE, "c": TWO}, "b is not in model-00001"),
        ({"a": ONE, "b": TWO, "c": TWO, "d": TWO}, "d is not in model-00002"),
        ({"a": ONE, "b": TWO}, "c is in model-00002-of-00002.safetensors, but not in the index"),
        ({"a": "../secret.safetensors"}, "not a file beside the index"),
        ({}, "expected a weight_map"),
        ({"a": 3}, "expected a weight_map"),
        ("text", "expected a weight_map"),
    ],
)
def test_index_that_lies(folder: Path, weight_map: object, words: str) -> None:
    """Files and index must tell the same; no file outside the folder is opened."""
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError, match=words):
        Shards(folder)


def test_folders_that_are_no_checkpoint(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing there, a name in two files, an index that is no JSON, two indices."""
    with pytest.raises(InputError, match=r"a folder without \.safetensors files"):
        Shards(tmp_path_factory.mktemp("empty"))
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(InputError, match="it is no JSON"):
        Shards(folder)
    (folder / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(InputError, match="has 2 indices"):
        Shards(folder)
    for path in folder.glob("*.json"):
        path.unlink()
    save_file({"a": np.arange(4.0)}, folder / "again.safetensors")
    with pytest.raises(InputError, match=r"a is in again\.safetensors and in model-00001"):
        Shards(folder)
