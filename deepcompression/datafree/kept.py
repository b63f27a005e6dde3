"""The folder of finished tensors beside a file that is being made: what a killed command leaves for the next one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcompression._atomic import refuse_devices, storage_error, written
from deepcompression.codec.parts import Part, read_part, write_part
from deepcompression.errors import InputError

SUFFIX = ".unfinished"
_ABOUT = "about.json"


@dataclass(frozen=True)
class Kept:
    """Finished tensors in a folder, by what they were made of and how."""

    folder: Path

    def path(self, key: str) -> Path:
        """The file of the tensor that `key` says all about."""
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.tensor"

    def find(self, key: str) -> Part | None:
        """The part of this key, if it was finished."""
        return read_part(self.path(key))

    def add(self, key: str, blob: bytes, dtype: str, shape: tuple[int, ...], about: Mapping[str, Any]) -> Part:
        """Keeps a finished tensor.

        Args:
            key: all that it was made of and how.
            blob: as all others, of `write_part`.
        """
        return write_part(blob, dtype, shape, self.path(key), about)


@contextlib.contextmanager
def kept_beside(path: Path, source: str) -> Iterator[Kept]:
    """The folder of finished tensors of the file `path`; gone when the block ends without an error.

    Args:
        path: of the file that is made.
        source: what the tensors are read from, whichever it was: those of another are deleted.

    Raises:
        InputError: another process is making `path`.
        StorageError: the folder cannot be written.
    """
    refuse_devices(path)
    folder = path.parent / f"{path.name}{SUFFIX}"
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise storage_error(path, error) from error
    with _alone(folder, path):
        try:
            _begin(folder, source)
            yield Kept(folder)
        except BaseException:
            if not any(folder.glob("*.tensor")):  # nothing to go on from
                shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _begin(folder: Path, source: str) -> None:
    for half in folder.glob(".*.part"):  # what a killed process was writing
        half.unlink()
    about = folder / _ABOUT
    told = json.dumps({"source": source})
    with contextlib.suppress(OSError):
        if about.read_text(encoding="utf-8") == told:
            return
    for part in folder.glob("*.tensor"):
        part.unlink()
    with written(about) as file:
        file.write(told.encode())


@contextlib.contextmanager
def _alone(folder: Path, path: Path) -> Iterator[None]:
    """Holds a lock that the system lets go of when the process ends, however it does."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover, no such locks
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InputError(f"{path}: another process is making it; wait for it, or choose another name") from None
    try:
        yield
    finally:
        os.close(descriptor)
