"""Which kind of file this is: told by what is in it, and by its name only where that tells nothing."""

from __future__ import annotations

import json
import zipfile
from enum import Enum
from pathlib import Path

from deepcompression.codec.foreign import LOOKED_AT, told
from deepcompression.codec.index import MAGIC
from deepcompression.codec.reader import opened
from deepcompression.errors import WeightsError

_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
_INDEX = ".index.json"
_MOST_INDEX = 100_000_000


class Kind(Enum):
    """A file that tensors can be read from."""

    SAFETENSORS = ".safetensors"
    DCZ = ".dcz"
    TORCH = "a file of torch.save"
    SAFETENSORS_SHARDS = "several .safetensors files"
    TORCH_SHARDS = "several files of torch.save"


def kind_of(path: Path) -> Kind:
    """What is at `path`: a file, a folder, or an index of several files.

    Raises:
        WeightsError: it is missing, or something that holds no weights for this library; says what it is.
    """
    if path.is_dir():
        return Kind.TORCH_SHARDS if torch_index(path) else Kind.SAFETENSORS_SHARDS
    head = head_of(path)
    if head.startswith(MAGIC):
        return Kind.DCZ
    if head.startswith(_ZIP):
        return _zipped(path)
    if _begins_safetensors(head, path.stat().st_size):
        return Kind.SAFETENSORS
    foreign = told(head)
    if foreign:
        raise WeightsError(f"{path}: is {foreign}")
    return _json(path, head) if head.lstrip()[:1] == b"{" else _named(path, head)


def is_dcz(path: Path) -> bool:
    """Whether there is a file at `path` that begins as a .dcz does."""
    return path.is_file() and head_of(path).startswith(MAGIC)


def torch_index(folder: Path) -> Path | None:
    """The index of a checkpoint in several files of torch, where a folder has that and nothing of safetensors."""
    if any(one.suffix.lower() == Kind.SAFETENSORS.value for one in folder.iterdir()):
        return None
    return next((one for one in sorted(folder.iterdir()) if one.name.endswith(f".bin{_INDEX}")), None)


def head_of(path: Path) -> bytes:
    """The first bytes of a file.

    Raises:
        WeightsError: it is missing, cannot be opened, or is a pipe or a device.
    """
    try:
        with opened(path) as file:
            return file.read(LOOKED_AT)
    except FileNotFoundError:
        raise WeightsError(f"{path}: no such file") from None
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from error


def _begins_safetensors(head: bytes, size: int) -> bool:
    """Whether a length that the file has room for comes first, then a mapping in JSON."""
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def _zipped(path: Path) -> Kind:
    """What torch.save, torch.jit.save, torch.export.save and numpy.savez write are all zip archives."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise WeightsError(f"{path}: is damaged: a zip archive without its end; copy or download it anew") from None
    ends = {name.rpartition("/")[2] for name in names}
    quoted = repr(str(path))
    if "constants.pkl" in ends and "data.pkl" in ends:
        raise WeightsError(
            f"{path}: is a TorchScript archive, whose code is never run; save its weights where you trust it: "
            f"torch.save(torch.jit.load({quoted}).state_dict(), 'weights.pt')"
        )
    if "data.pkl" in ends:
        return Kind.TORCH
    if ends & {"serialized_exported_program.json", "archive_format"} or path.suffix.lower() == ".pt2":
        raise WeightsError(
            f"{path}: is a program of torch.export; save its weights: "
            f"torch.save(torch.export.load({quoted}).state_dict, 'weights.pt')"
        )
    if names and all(name.endswith(".npy") for name in names):
        raise WeightsError(
            f"{path}: is an archive of numpy; save its arrays: "
            f"safetensors.numpy.save_file(dict(numpy.load({quoted})), 'weights.safetensors')"
        )
    raise WeightsError(f"{path}: is a zip archive, no checkpoint; unpack it first")


def _json(path: Path, head: bytes) -> Kind:
    """The index of a checkpoint in several files; or what servers say when they have no such file."""
    if path.name.lower().endswith(f"{Kind.SAFETENSORS.value}{_INDEX}"):
        return Kind.SAFETENSORS_SHARDS  # whose reader says what is wrong with it
    try:
        with opened(path) as file:
            content = json.loads(file.read(_MOST_INDEX))
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict) and isinstance(content.get("weight_map"), dict):
        shards = [str(one).lower() for one in content["weight_map"].values()]
        safe = all(one.endswith(Kind.SAFETENSORS.value) for one in shards)
        return Kind.SAFETENSORS_SHARDS if safe else Kind.TORCH_SHARDS
    begins = head[:60].decode("utf-8", "replace")
    raise WeightsError(f"{path}: is a text, not weights; it begins with {begins!r}")


def _named(path: Path, head: bytes) -> Kind:
    """A file that no beginning tells of is read as what it is called, for what its reader says is wrong with it."""
    suffix = path.suffix.lower()
    if suffix == Kind.SAFETENSORS.value and head[:1] != _PICKLE:
        return Kind.SAFETENSORS
    return Kind.DCZ if suffix == Kind.DCZ.value and head[:1] != _PICKLE else Kind.TORCH
