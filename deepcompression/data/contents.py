"""A digest of what many files hold, each read once: it is kept by name, size and time of change in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from deepcompression._atomic import written
from deepcompression.errors import DataError, StorageError

log = logging.getLogger(__name__)


def digest_of_files(files: Sequence[Path], looked_at: Callable[[Path], None] = lambda path: None) -> str:
    """SHA-256, hexadecimal, over the contents of files, in their order.

    Args:
        files: what a data set reads.
        looked_at: is called with each file that was not read before; raises where it is none of those.

    Raises:
        DataError: a file cannot be read.
    """
    kept = _kept_at(files)
    known, found = _read(kept), dict[str, list[object]]()
    digest = hashlib.sha256()
    for path in files:
        facts = _facts(path)
        last = known.get(str(path), [])
        if last[:2] != facts:
            looked_at(path)
            last = [*facts, _content(path)]
        found[str(path)] = last
        digest.update(str(last[2]).encode())
    if found != known:
        _keep(kept, found)
    return digest.hexdigest()


def _kept_at(files: Sequence[Path]) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    named = hashlib.sha256("\n".join(map(str, files)).encode()).hexdigest()[:24]
    return cache / "deep-compression" / "digests" / f"{named}.json"


def _facts(path: Path) -> list[object]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"data: {path}: cannot be read: {error.strerror or error}") from None
    return [facts.st_size, facts.st_mtime_ns]


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"data: {path}: cannot be read: {error.strerror or error}") from None


def _read(path: Path) -> dict[str, list[object]]:
    """What is known of files; nothing where it cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(one, list) and len(one) == 3 for one in found.values())
    return found if whole else {}


def _keep(path: Path, found: Mapping[str, list[object]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as file:
            file.write(json.dumps(found).encode())
    except (OSError, StorageError) as error:
        log.warning("data: %s cannot be written (%s): all files are read again at the next start", path, error)
