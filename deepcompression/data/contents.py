"""A digest of what many files hold, each read once: it is kept by name, size and time of change in the user's cache."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
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
    kept = cache("digests", "\n".join(map(str, files)))
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
        keep(kept, found)
    return digest.hexdigest()


def cache(kind: str, name: str) -> Path:
    """A file of the user's cache, of a kind, for whatever a name stands for."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return folder / "deep-compression" / kind / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.json"


def keep(path: Path, found: object) -> None:
    """Writes JSON into the cache; a warning says where that fails."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written(path) as file:
            file.write(json.dumps(found).encode())
    except (OSError, StorageError) as error:
        log.warning("data: %s cannot be written (%s): what it keeps is found anew at the next start", path, error)


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
