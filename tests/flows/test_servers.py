from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from flows.servers import alone_on_fresh, running_prefect
from tasks.machine.process import whoami

URL = "http://127.0.0.1:4200/api"


def _note(folder: Path, **changes: Any) -> None:
    (folder / "servers.json").write_text(json.dumps({**whoami(), "prefect_api_url": URL, **changes}))


def test_the_server_of_a_live_process_is_found(tmp_path: Path) -> None:
    """What `make servers` notes is believed of a process that lives, and of no other."""
    assert running_prefect(tmp_path) is None
    _note(tmp_path)
    assert running_prefect(tmp_path) == URL
    _note(tmp_path, ticks=whoami()["ticks"] - 100)
    assert running_prefect(tmp_path) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"pid": -1}, {"pid": 0}, {"pid": "1"}, {"pid": 10**30}, {"ticks": None}, {"here": "elsewhere"},
        {"prefect_api_url": "http://example.org/api"}, {"prefect_api_url": 1}, {"prefect_api_url": None},
    ],
)  # fmt: skip
def test_a_note_that_no_server_of_ours_wrote_is_ignored(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Neither a traceback nor a server elsewhere comes of it."""
    _note(tmp_path, **changes)
    assert running_prefect(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 5000, b"\xff", b"{}" + b" " * 10**6])
def test_a_note_that_is_none_is_ignored(tmp_path: Path, content: bytes) -> None:
    """Whatever bytes stand there."""
    (tmp_path / "servers.json").write_bytes(content)
    assert running_prefect(tmp_path) is None


def test_a_fresh_database_is_made_by_one_server_at_a_time(tmp_path: Path) -> None:
    """Two runs at once in a new clone would die of each other's migration; one that is there is shared at once."""
    database = tmp_path / "prefect.db"
    url, other = f"sqlite+aiosqlite:///{database}", FileLock(f"{database}.lock", timeout=0)
    with alone_on_fresh(url):
        with pytest.raises(Timeout):
            other.acquire()
        database.touch()
    with alone_on_fresh(url):
        other.acquire()
        other.release()
    with alone_on_fresh("postgresql+asyncpg://host/prefect"), alone_on_fresh(f"sqlite:///{tmp_path}/none/prefect.db"):
        pass
