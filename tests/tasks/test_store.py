from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepcompression.errors import StorageError
from tasks import store as stores
from tasks.store import Store, key_of, write_json


def _put(store: Store, content: bytes, key: str = "k") -> str:
    part = store.partial(key) / "part"
    part.write_bytes(content)
    digest = store.put(part)
    store.commit(key, {"object": digest})
    return digest


def test_key_depends_on_content_not_on_order() -> None:
    """Equal parts give equal keys; any other value another key."""
    assert key_of({"a": 1, "b": [1.5, None]}) == key_of({"b": [1.5, None], "a": 1})
    assert key_of({"a": 1}) != key_of({"a": 2})


def test_finished_stage_is_found_and_its_partial_gone(tmp_path: Path) -> None:
    """An entry names an object under its own digest; the rolling checkpoint goes with the commit."""
    store = Store(tmp_path)
    digest = _put(store, b"weights")
    entry = store.find("k")
    assert entry is not None and entry["object"] == digest and entry["object_bytes"] == 7
    assert store.object_path(digest).read_bytes() == b"weights"
    assert not store.partial("k", make=False).exists()


def test_missing_short_or_damaged_objects_are_misses(tmp_path: Path) -> None:
    """A key whose object is gone, of another size, or of other bytes is no hit."""
    store = Store(tmp_path)
    path = store.object_path(_put(store, b"weights"))
    path.write_bytes(b"weight")
    assert store.find("k") is None
    path.write_bytes(b"Weights")
    entry = store.find("k")
    assert entry is not None and not store.intact(entry["object"]) and not path.exists()
    assert store.find("k") is None


def test_unreadable_entry_is_a_miss(tmp_path: Path) -> None:
    """A torn or alien key file never stops a run."""
    store = Store(tmp_path)
    (tmp_path / "keys").mkdir()
    for text in ("", "{", "[]", "null", '{"object": 3}'):
        (tmp_path / "keys" / "k.json").write_text(text)
        assert store.find("k") is None


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    """A file where the store's folder should be is no traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Store(tmp_path / "file").partial("k")


def _hold(root: str, marker: str) -> None:
    with Store(root).lease("k"):
        Path(marker).write_text("held")
        time.sleep(1.5)
        Path(marker).write_text("done")


def test_lease_makes_a_second_process_wait(tmp_path: Path) -> None:
    """Two processes never work on one key at once; the second goes on when the first has ended."""
    marker = tmp_path / "marker"
    other = multiprocessing.get_context("spawn").Process(target=_hold, args=(str(tmp_path), str(marker)))
    other.start()
    while not marker.exists():
        time.sleep(0.05)
    told: list[str] = []
    with Store(tmp_path).lease("k", told.append):
        assert marker.read_text() == "done"
    other.join()
    assert len(told) == 1 and str(other.pid) in told[0]
    assert not (tmp_path / "leases" / "k.json").exists()


def test_lease_of_a_killed_process_is_taken_over_at_once(tmp_path: Path) -> None:
    """SIGKILL leaves a lease behind; the next start does not wait for its expiry."""
    code = f"""
import os, signal
from tasks.store import Store
with Store({str(tmp_path)!r}).lease("k"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert (tmp_path / "leases" / "k.json").exists()
    started = time.monotonic()
    with Store(tmp_path).lease("k"):
        assert time.monotonic() - started < stores.LEASE_SECONDS / 2


def test_expired_lease_of_another_host_is_taken_over(tmp_path: Path) -> None:
    """A machine that went away holds a key no longer than its last heartbeat allows."""
    path = tmp_path / "leases" / "k.json"
    write_json(path, {"host": "elsewhere", "pid": 1, "started": 0, "token": "t", "expires": time.time() + 0.8})
    with Store(tmp_path).lease("k"):
        assert time.time() > json.loads(path.read_text())["expires"] - stores.LEASE_SECONDS
        assert json.loads(path.read_text())["host"] != "elsewhere"
