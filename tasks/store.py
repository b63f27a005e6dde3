"""All of ``artifacts/``: results under the digest of what made them, leases, rolling checkpoints, whole files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from deepcompression.atomic import storage_error, written
from deepcompression.errors import StorageError

LEASE_SECONDS = 60.0
POLL_SECONDS = 0.5


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, atomically."""
    with written(path, parents=True) as file:
        file.write((json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 of ``parts`` as canonical JSON: equal parts, equal key, whatever their order."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """Content-addressed results below one folder.

    ``keys/<key>.json``, written last, names ``objects/<sha256>``; ``partial/<key>/`` holds rolling checkpoints;
    ``leases/<key>.json`` says who works on a key, until when.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)

    def object_path(self, digest: str) -> Path:
        """Where the object with this SHA-256 lies (or would lie)."""
        return self.root / "objects" / digest

    def find(self, key: str) -> dict[str, Any] | None:
        """The entry of a finished stage, or None: absent, unreadable, or its object gone or of another size."""
        try:
            entry: dict[str, Any] = json.loads((self.root / "keys" / f"{key}.json").read_text(encoding="utf-8"))
            size = self.object_path(entry["object"]).stat().st_size
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return entry if size == entry.get("object_bytes") else None

    def intact(self, digest: str) -> bool:
        """Whether the object's bytes still have its digest; a bad one is removed, so that it is made again."""
        path = self.object_path(digest)
        try:
            good = file_digest(path) == digest
        except OSError:
            return False
        if not good:
            path.unlink(missing_ok=True)
        return good

    def put(self, path: Path) -> str:
        """Moves a finished file into the store; returns its SHA-256.

        Raises:
            StorageError: as ``written``.
        """
        digest = file_digest(path)
        target = self.object_path(digest)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
        except OSError as error:
            raise storage_error(target, error) from None
        return digest

    def commit(self, key: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Writes the entry of a finished stage, last and atomically, and drops its rolling checkpoint."""
        size = self.object_path(entry["object"]).stat().st_size
        whole = {**entry, "key": key, "object_bytes": size}
        write_json(self.root / "keys" / f"{key}.json", whole)
        shutil.rmtree(self.partial(key, make=False), ignore_errors=True)
        return whole

    def partial(self, key: str, make: bool = True) -> Path:
        """The folder in which a stage keeps what lets it go on after being killed."""
        folder = self.root / "partial" / key
        if make:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise storage_error(folder, error) from None
        return folder

    @contextlib.contextmanager
    def lease(self, key: str, waiting: Any = None) -> Iterator[None]:
        """Holds ``key`` while a stage works on it; waits while another live process holds it.

        A lease ends by release, by expiry (no heartbeat for 60 s), or at once when its process, on this machine,
        is gone.

        Args:
            key: the stage's key.
            waiting: called once with the holder's description when there is somebody to wait for.
        """
        path = self.root / "leases" / f"{key}.json"
        mine = {**_whoami(), "token": uuid.uuid4().hex}
        told = False
        while not _claim(path, mine):
            if waiting and not told:
                told = True
                waiting(_holder(path))
            time.sleep(POLL_SECONDS)
        stop = threading.Event()
        beat = threading.Thread(target=_heartbeat, args=(path, mine, stop), daemon=True, name="lease-heartbeat")
        beat.start()
        try:
            yield
        finally:
            stop.set()
            beat.join()
            if (_read_lease(path) or {}).get("token") == mine["token"]:
                path.unlink(missing_ok=True)


def _whoami() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}


def _claim(path: Path, mine: Mapping[str, Any]) -> bool:
    """Creates the lease file if nobody alive holds it. A dead one is renamed away first: only one taker succeeds."""
    lease = _read_lease(path)
    if lease is not None and _alive(lease):
        return False
    if path.exists():
        grave = path.with_name(f"{path.name}.{mine['token']}.dead")
        with contextlib.suppress(OSError):
            path.rename(grave)
            buried = _read_lease(grave)
            if buried is not None and _alive(buried):  # somebody claimed it between the look and the rename
                with contextlib.suppress(OSError):
                    os.link(grave, path)
            grave.unlink(missing_ok=True)
    part = path.with_name(f".{path.name}.{mine['token']}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps({**mine, "expires": time.time() + LEASE_SECONDS}), encoding="utf-8")
        os.link(part, path)  # fails where the lease exists: the atomic step, whole content included
    except FileExistsError:
        return False
    except OSError as error:
        raise storage_error(path, error) from None
    finally:
        part.unlink(missing_ok=True)
    return True


def _heartbeat(path: Path, mine: Mapping[str, Any], stop: threading.Event) -> None:
    while not stop.wait(LEASE_SECONDS / 4):
        if (_read_lease(path) or {}).get("token") != mine["token"]:
            return
        with contextlib.suppress(StorageError):
            write_json(path, {**mine, "expires": time.time() + LEASE_SECONDS})


def _alive(lease: Mapping[str, Any]) -> bool:
    try:
        if lease["host"] == socket.gethostname():
            process = psutil.Process(lease["pid"])
            return abs(process.create_time() - lease["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        return bool(lease["expires"] > time.time())
    except psutil.NoSuchProcess:
        return False
    except (KeyError, TypeError):
        return False


def _read_lease(path: Path) -> dict[str, Any] | None:
    try:
        lease = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return lease if isinstance(lease, dict) else None


def _holder(path: Path) -> str:
    lease = _read_lease(path) or {}
    return f"process {lease.get('pid', '?')} on {lease.get('host', '?')}"
