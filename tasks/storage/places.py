"""Folders that are near or far: one small interface over the local file system and every fsspec URL (s3://, ...).

Whatever is written appears whole or not at all: near by a temporary name and a rename, far by one PUT (above 100 MB a
multipart upload, which appears whole too).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from deepcompression._atomic import storage_error, written
from deepcompression.errors import StorageError, one_line
from tasks.secrets import masked

log = logging.getLogger(__name__)
DRIVE = re.compile(r"[A-Za-z]:[/\\]")  # how a whole path of Windows begins


@dataclass(frozen=True)
class Info:
    """A file: its name below its place, with ``/`` between folders; bytes; seconds since 1970."""

    name: str
    size: int
    modified: float


class Place(Protocol):
    """A folder."""

    where: str

    def read(self, name: str) -> bytes:
        """All bytes; FileNotFoundError where there is no such file."""

    def write(self, name: str, content: bytes) -> None:
        """Writes or replaces a file. Raises StorageError."""

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file that must not exist; False where it does. Of several at once exactly one gets True."""

    def remove(self, name: str) -> None:
        """Removes a file; nothing happens where there is none."""

    def clear(self, folder: str) -> None:
        """Removes a folder with all that is below it; nothing happens where there is none."""

    def info(self, name: str) -> Info | None:
        """Size and time of a file, or None."""

    def files(self, folder: str) -> list[Info]:
        """All files below a folder, at any depth; none where there is no such folder."""

    def fetch(self, name: str, path: Path) -> None:
        """Copies a file to a local path, atomically; FileNotFoundError where there is no such file."""

    def put(self, path: Path, name: str) -> None:
        """Copies a local file to here, atomically. Raises StorageError."""


def is_url(where: str | os.PathLike[str]) -> bool:
    """Whether fsspec is to open it; everything else is a local path."""
    text = os.fspath(where)
    return "://" in text and not DRIVE.match(text)


def local_path(where: str) -> str:
    """``file:///folder`` as ``/folder``, ``file:///C:/folder`` as ``C:/folder``; everything else as it is."""
    if not where.startswith("file:///"):
        return where
    path = where.removeprefix("file://")
    return path[1:] if DRIVE.match(path[1:]) else path


@lru_cache
def place_at(where: str) -> Place:
    """The place that a path or URL names.

    Raises:
        StorageError: the URL's protocol is unknown, or needs a package that is not installed.
    """
    where = local_path(where)
    return Far(where) if is_url(where) else Near(where)


def inside(name: str) -> str:
    """``name`` itself, if it leads to something below a place.

    Raises:
        StorageError: it is absolute, or has ``..`` or what no file's name has.
    """
    if name.startswith("/") or ".." in name.split("/") or "\\" in name or "\0" in name:
        raise StorageError(f"{name[:200]!r}: a name that leads out of its folder; expected one below it")
    return name


def _is_inside(name: str, where: str) -> bool:
    """Whether a listing's name may be used: in a shared folder names are anybody's. One that may not is told of."""
    try:
        return bool(inside(name))
    except StorageError as error:
        log.warning("%s: %s; left out", where, error)
        return False


class Near:
    """A folder of this machine."""

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self.where = os.fspath(where)
        self.root = Path(where)

    def read(self, name: str) -> bytes:
        return self._path(name).read_bytes()

    def write(self, name: str, content: bytes) -> None:
        with written(self._path(name), parents=True) as file:
            file.write(content)

    def create(self, name: str, content: bytes) -> bool:
        path = self._path(name)
        part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("xb") as file:  # never through a link that waits under this name
                file.write(content)
            with contextlib.suppress(FileExistsError):
                os.link(part, path)  # fails where the file exists: the atomic step, whole content included
                return True
        except OSError as error:
            raise storage_error(path, error) from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
        return False

    def remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            self._path(name).unlink(missing_ok=True)

    def clear(self, folder: str) -> None:
        shutil.rmtree(self._path(folder), ignore_errors=True)

    def info(self, name: str) -> Info | None:
        try:
            found = self._path(name).stat()
        except OSError:
            return None
        return Info(name, found.st_size, found.st_mtime)

    def files(self, folder: str) -> list[Info]:
        paths = (path for path in self._path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
        names = (path.relative_to(self.root).as_posix() for path in paths)
        found = (self.info(name) for name in names if _is_inside(name, self.where))
        return [one for one in found if one is not None]

    def fetch(self, name: str, path: Path) -> None:
        with self._path(name).open("rb") as source, written(path, parents=True) as file:
            shutil.copyfileobj(source, file)

    def put(self, path: Path, name: str) -> None:
        Near(path.parent).fetch(path.name, self._path(name))

    def _path(self, name: str) -> Path:
        return self.root / inside(name)


class Far:
    """A folder behind a URL. What its file system throws becomes one StorageError that names the URL."""

    def __init__(self, where: str) -> None:
        import fsspec

        self.where = where.rstrip("/")
        with self._told(self.where):
            # Listings change under us: other machines write there too.
            self.system, self.root = fsspec.url_to_fs(self.where, use_listings_cache=False)

    def read(self, name: str) -> bytes:
        with self._told(name):
            content: bytes = self.system.cat_file(self._path(name))
        return content

    def write(self, name: str, content: bytes) -> None:
        with self._told(name, writes=True):
            self.system.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        try:
            with self._told(name, writes=True):
                self.system.pipe_file(self._path(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self._told(name):
            self.system.rm_file(self._path(name))

    def clear(self, folder: str) -> None:
        for info in self.files(folder):
            self.remove(info.name)

    def info(self, name: str) -> Info | None:
        try:
            with self._told(name):
                return _info(name, self.system.info(self._path(name)))
        except FileNotFoundError:
            return None

    def files(self, folder: str) -> list[Info]:
        try:
            with self._told(folder):
                found = self.system.find(self._path(folder), detail=True)
        except FileNotFoundError:
            return []
        cut = len(self.root.rstrip("/")) + 1
        names = {path[cut:]: one for path, one in found.items() if one.get("type") == "file"}
        return [_info(name, one) for name, one in names.items() if _is_inside(name, self.where)]

    def fetch(self, name: str, path: Path) -> None:
        part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._told(name):
                self.system.get_file(self._path(name), str(part))
            part.replace(path)
        except OSError as error:
            raise error if isinstance(error, FileNotFoundError) else storage_error(path, error) from None
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def put(self, path: Path, name: str) -> None:
        with self._told(name, writes=True):
            self.system.put_file(str(path), self._path(name))

    def _path(self, name: str) -> str:
        return f"{self.root.rstrip('/')}/{inside(name)}"

    @contextlib.contextmanager
    def _told(self, name: str, writes: bool = False) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except Exception as error:  # every file system has its own
            if isinstance(error, FileExistsError if writes else FileNotFoundError):
                raise
            reason = masked(one_line(error))[:200] or type(error).__name__
            raise StorageError(
                f"{masked(self.where)}: {name}: {reason}; is the URL right, is the service up?"
            ) from error


def _info(name: str, found: dict[str, Any]) -> Info:
    modified = found.get("LastModified") or found.get("mtime") or found.get("created") or time.time()
    seconds = modified.timestamp() if hasattr(modified, "timestamp") else float(modified)
    return Info(name, int(found.get("size") or 0), seconds)
