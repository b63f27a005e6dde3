"""Files that appear whole or not at all, and what the operating system refuses in one clear line."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from deepcompression.errors import StorageError

REASONS = {
    errno.ENOSPC: "the disk is full; free some space and try again",
    errno.EDQUOT: "the disk quota is used up; free some space and try again",
    errno.EACCES: "permission denied; choose another folder",
    errno.EPERM: "permission denied; choose another folder",
    errno.EROFS: "the file system is read-only; choose another folder",
}


@contextlib.contextmanager
def written(path: str | os.PathLike[str], *, parents: bool = False) -> Iterator[BinaryIO]:
    """A binary file that is written beside ``path``, synced, and renamed to it when the block ends without an error.

    Args:
        path: what is there stays there until the new file is whole.
        parents: whether missing folders are made.

    Raises:
        StorageError: disk full, no permission, no such folder, ``path`` is a device or a pipe; the message names it.
    """
    target = Path(path)
    part = target.parent / f".{target.name[:40]}.{os.urandom(8).hex()}.part"
    try:
        if parents:
            target.parent.mkdir(parents=True, exist_ok=True)
        _raise_for_devices(target)
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)
    except OSError as error:
        raise storage_error(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def refuse_devices(path: str | os.PathLike[str]) -> None:
    """Raises StorageError where ``written`` could not put a file in place of what ``path`` is, before any work."""
    try:
        _raise_for_devices(Path(path))
    except OSError as error:
        raise storage_error(path, error) from error


@contextlib.contextmanager
def folder_written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder that is filled beside ``path`` and renamed to it when the block ends without an error.

    Args:
        path: of the folder; missing ones above it are made. A folder that is there stays until the new one is whole.

    Raises:
        StorageError: disk full, no permission, ``path`` is a file; the message names it.
    """
    target = Path(path)
    part = target.parent / f".{target.name[:40]}.{os.urandom(8).hex()}.part"
    old = part.with_suffix(".old")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        part.mkdir()
        yield part
        if target.exists():
            target.replace(old)
        part.replace(target)
    except OSError as error:
        if old.exists() and not target.exists():
            old.replace(target)
        raise storage_error(target, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _raise_for_devices(target: Path) -> None:
    """Raise where ``target`` is there and nothing that a new file may replace: /dev/null stays what it is."""
    with contextlib.suppress(FileNotFoundError):
        kind = target.lstat().st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(kind) and not stat.S_ISLNK(kind):
            raise OSError(errno.EINVAL, "it is no ordinary file")


def storage_error(path: str | os.PathLike[str], error: OSError) -> StorageError:
    """The operating system's refusal to write ``path``, in one line."""
    reason = REASONS.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"{os.fspath(path)}: cannot be written: {reason}")
