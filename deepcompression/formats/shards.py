"""Checkpoints in several .safetensors files: an index with a map of weights, or a folder of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepcompression.codec.dtypes import RawTensor
from deepcompression.codec.reader import opened
from deepcompression.errors import InputError
from deepcompression.formats.kinds import Kind, kind_of, torch_index
from deepcompression.formats.safetensors import TensorFile

INDEX = ".safetensors.index.json"
_MOST_INDEX = 100_000_000


def files_of(path: Path) -> list[Path]:
    """The files, in order, of a checkpoint of torch whose index, or whose folder, `path` is.

    Raises:
        InputError: the index is not valid, or a file is missing.
    """
    index = torch_index(path) if path.is_dir() else path
    if index is None:
        raise InputError(f"{path}: a folder without an index; name the checkpoint's file")
    found = [index.parent / name for name in sorted(set(_weight_map(index).values()))]
    for file in found:
        if not file.is_file():
            raise InputError(f"{path}: the shard {file.name} is missing; all files of the checkpoint are needed")
    return found


def paths_of(path: Path) -> list[Path]:
    """All files that decide what a checkpoint at `path`, a file, a folder or an index, holds.

    Raises:
        InputError: as `Shards`, `files_of`, `kind_of`.
    """
    kind = kind_of(path)
    if kind is Kind.SAFETENSORS_SHARDS:
        return Shards(path).paths
    if kind is Kind.TORCH_SHARDS:
        return [*files_of(path), path if path.is_file() else torch_index(path) or path]
    return [path]


class Shards(Mapping[str, RawTensor]):
    """Tensors of several files as of one: read one at a time, shard by shard; `metadata` has the texts of all."""

    def __init__(self, path: Path) -> None:
        """Read and check the headers of the files that `path`, an index or a folder, tells of.

        Raises:
            InputError: a file is missing or not valid, or the index and the files contradict each other.
        """
        self.path = path
        index = _index_in(path) if path.is_dir() else path
        wanted = None if index is None else _weight_map(index)
        folder = path if path.is_dir() else path.parent
        names = _shards_in(folder) if wanted is None else sorted(set(wanted.values()))
        self.files = [self._opened(folder / name) for name in names]
        self.places = self._placed()
        if wanted is not None:
            self._check_map(wanted)
        self.paths = [file.path for file in self.files] + ([] if index is None else [index])
        self.about = {name: file.about[name] for name, file in self.places.items()}
        self.metadata = {key: text for file in self.files for key, text in file.metadata.items()}
        self.nbytes = sum(file.nbytes for file in self.files)

    def _opened(self, path: Path) -> TensorFile:
        if not path.is_file():
            raise InputError(f"{self.path}: the shard {path.name} is missing; all files of the checkpoint are needed")
        return TensorFile(path)

    def _placed(self) -> dict[str, TensorFile]:
        places: dict[str, TensorFile] = {}
        for file in self.files:
            for name in file:
                other = places.setdefault(name, file)
                if other is not file:
                    raise InputError(f"{self.path}: {name} is in {other.path.name} and in {file.path.name}")
        return places

    def _check_map(self, wanted: Mapping[str, str]) -> None:
        for name, shard in wanted.items():
            if name not in self.places or self.places[name].path.name != shard:
                raise InputError(f"{self.path}: {name} is not in {shard}, where the index has it")
        beside = next((name for name in self.places if name not in wanted), None)
        if beside is not None:
            raise InputError(f"{self.path}: {beside} is in {self.places[beside].path.name}, but not in the index")

    def __getitem__(self, name: str) -> RawTensor:
        return self.places[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def _index_in(folder: Path) -> Path | None:
    found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(INDEX))
    if len(found) > 1:
        raise InputError(f"{folder}: has {len(found)} indices ({found[0].name}, {found[1].name}); name the one meant")
    return found[0] if found else None


def _shards_in(folder: Path) -> list[str]:
    found = sorted(path.name for path in folder.iterdir() if path.suffix.lower() == ".safetensors")
    if not found:
        raise InputError(f"{folder}: a folder without .safetensors files; name the checkpoint's file")
    return found


def _weight_map(index: Path) -> dict[str, str]:
    """Which file has which tensor; files lie beside the index."""
    try:
        with opened(index) as file:
            content: Any = json.loads(file.read(_MOST_INDEX))
    except OSError as error:
        raise InputError(f"{index}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        raise InputError(f"{index}: not a valid index: it is no JSON") from None
    found = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(shard, str) for shard in found.values()):
        raise InputError(f"{index}: not a valid index: expected a weight_map of tensors to files")
    outside = next((shard for shard in found.values() if Path(shard).name != shard), None)
    if outside is not None:
        raise InputError(f"{index}: the shard {outside[:80]!r} is not a file beside the index")
    return found
