"""The stage store: results under the digest of what made them, rolling checkpoints, leases. Near, or behind a URL."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deepcompression._atomic import storage_error, written
from deepcompression.errors import StorageError
from tasks.console import say
from tasks.root import ROOT
from tasks.secrets import hidden
from tasks.storage import lease as leases
from tasks.storage.places import Near, Place, inside, place_at

UNSENT = "unsent"
MIRROR_SECONDS = 1.0
TEXTS = ("notes", "report", "history")  # of an entry: what people read; the rest are digests, names of tensors, numbers
FRESH_SECONDS = 3600.0  # how exactly the time of last use is kept


def write_json(path: Path, value: Any) -> None:
    """``value``, without secrets, as indented JSON, atomically."""
    with written(path, parents=True) as file:
        file.write(_json(hidden(value)))


def as_json(value: Any) -> str:
    """``value`` as indented JSON; NaN and infinity, which JSON does not have, as null."""
    return json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 of ``parts`` as canonical JSON: equal parts, equal key, whatever their order."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """Content-addressed results at one place.

    ``keys/<key>.json``, written last, names ``objects/<sha256>``; ``partial/<key>/`` holds rolling checkpoints;
    ``leases/`` says who works on a key, until when; ``unsent/<run>/`` what a tracking server did not get. A far store
    keeps local copies of objects and checkpoints below ``artifacts/cache`` (or ``DEEPCOMPRESSION_CACHE``).

    Args:
        where: a folder, or an fsspec URL such as ``s3://bucket/store``.

    Raises:
        StorageError: the URL cannot be opened.
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self.place: Place = place_at(os.fspath(where))
        self.far = not isinstance(self.place, Near)
        self.root = _cache(self.place.where) if self.far else Path(self.place.where)

    def object_path(self, digest: str) -> Path:
        """Where the object with this SHA-256 lies on this machine; a far store's is fetched first.

        Raises:
            StorageError: the far store does not have it, or is away.
        """
        path = self.root / "objects" / inside(digest)
        if self.far and not path.exists():
            with contextlib.suppress(FileNotFoundError):
                self.place.fetch(f"objects/{digest}", path)
        return path

    def find(self, key: str) -> dict[str, Any] | None:
        """The entry of a finished stage, or None: absent, unreadable, or its object gone or of another size."""
        try:
            entry: dict[str, Any] = json.loads(self.place.read(f"keys/{key}.json"))
            if "/" in entry["object"] or ".." in entry["object"]:  # it becomes a file's name
                return None
            found = self.place.info(f"objects/{entry['object']}")
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return entry if found and found.size == entry.get("object_bytes") else None

    def intact(self, digest: str) -> bool:
        """Whether the object's bytes still have its digest; a bad one is removed, so that it is made again."""
        path = self.object_path(digest)
        try:
            good = file_digest(path) == digest
        except OSError:
            return False
        if not good:
            path.unlink(missing_ok=True)
            self.place.remove(f"objects/{digest}")
        return good

    def used(self, key: str, entry: Mapping[str, Any]) -> None:
        """Notes that a run uses an entry, so that it is not pruned for its age."""
        found = self.place.info(f"keys/{key}.json")
        if found and time.time() - found.modified > FRESH_SECONDS:
            with contextlib.suppress(StorageError):  # a store that may only be read is a store too
                self.place.write(f"keys/{key}.json", _json(entry))

    def put(self, path: Path) -> str:
        """Moves a finished file into the store; returns its SHA-256.

        Raises:
            StorageError: as ``written``; or the far store is away.
        """
        digest = file_digest(path)
        target = self.root / "objects" / digest
        if self.far:
            self.place.put(path, f"objects/{digest}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        except OSError as error:
            raise storage_error(target, error) from None
        return digest

    def commit(self, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the entry of a finished stage, last and atomically, and drops its rolling checkpoint."""
        size = (self.root / "objects" / entry["object"]).stat().st_size
        told = {name: hidden(entry[name]) for name in TEXTS if name in entry}
        whole = {**entry, **told, "key": key, "object_bytes": size}
        self.place.write(f"keys/{key}.json", _json(whole))
        shutil.rmtree(self.root / "partial" / key, ignore_errors=True)
        return whole

    @contextlib.contextmanager
    def working(self, key: str) -> Iterator[Path]:
        """The local folder in which a stage keeps what lets it go on after being killed; empty ones vanish.

        A far store gets a copy of every checkpoint within a second, so that another machine can go on.

        Raises:
            StorageError: the folder cannot be made.
        """
        folder = self.root / "partial" / key
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(folder, error) from None
        try:
            with _mirrored(self.place, folder, f"partial/{key}") if self.far else contextlib.nullcontext():
                yield folder
        finally:
            with contextlib.suppress(OSError):  # a stage that failed before its first epoch leaves nothing
                folder.rmdir()

    def lease(
        self, key: str, waiting: Callable[[str], None] | None = None, facts: Mapping[str, Any] | None = None
    ) -> contextlib.AbstractContextManager[None]:
        """Holds ``key`` while a block runs; see ``tasks.storage.lease.lease``."""
        return leases.lease(self.place, key, waiting, facts)


def publish(folder: Path, place: Place, name: str) -> None:
    """Copies a run's folder to ``name`` at a place; where that fails, says so: the folder itself is whole."""
    try:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and not path.name.startswith("."):
                place.put(path, f"{name}/{path.relative_to(folder).as_posix()}")
    except StorageError as error:
        say(f"[yellow]not copied:[/] {error}; all of it is in {folder}")


def _json(value: Any) -> bytes:
    return (as_json(value) + "\n").encode()


def finite(value: Any) -> Any:
    """``value`` with null for NaN and infinity, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(one) for key, one in value.items()}
    return [finite(one) for one in value] if isinstance(value, list | tuple) else value


def _cache(url: str) -> Path:
    folder = os.environ.get("DEEPCOMPRESSION_CACHE") or str(ROOT / "artifacts" / "cache")
    return Path(folder) / hashlib.sha256(url.encode()).hexdigest()[:12]


@contextlib.contextmanager
def _mirrored(place: Place, folder: Path, name: str) -> Iterator[None]:
    """Fetches what another machine left, then copies each file that changes, until the block ends or fails."""
    sent: dict[str, float] = {}
    for info in place.files(name):
        path = folder / info.name.rpartition("/")[2]
        if not path.exists() or path.stat().st_mtime < info.modified:
            with contextlib.suppress(FileNotFoundError):
                place.fetch(info.name, path)
                sent[path.name] = path.stat().st_mtime

    def copy() -> None:
        for path in folder.glob("[!.]*"):
            with contextlib.suppress(OSError, StorageError):  # renamed just now, or the store is away: next time
                changed = path.stat().st_mtime
                if path.suffix == ".pt" and sent.get(path.name) != changed:
                    place.put(path, f"{name}/{path.name}")
                    sent[path.name] = changed

    def loop() -> None:
        while not stop.wait(MIRROR_SECONDS):
            copy()

    stop = threading.Event()
    thread = threading.Thread(target=loop, daemon=True, name="checkpoint-mirror")
    thread.start()
    try:
        yield
    except BaseException:
        _join(stop, thread)
        copy()
        raise
    _join(stop, thread)
    place.clear(name)  # the stage is committed


def _join(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    thread.join()
