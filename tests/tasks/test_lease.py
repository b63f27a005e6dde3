from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks import lease as leases
from tasks.lease import lease
from tasks.places import Place, place_at


@pytest.fixture(params=["near", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """Leases on a folder, and on S3 by conditional writes."""
    return place_at(str(tmp_path) if request.param == "near" else f"{request.getfixturevalue('s3')}/leases")


def _hold(root: str, marker: str) -> None:
    with lease(place_at(root), "k"):
        Path(marker).write_text("held")
        time.sleep(1.5)
        Path(marker).write_text("done")


def test_lease_makes_a_second_process_wait(place: Place, tmp_path: Path) -> None:
    """Two processes never work on one key at once; the second goes on when the first has ended."""
    marker = tmp_path / "marker"
    other = multiprocessing.get_context("spawn").Process(target=_hold, args=(place.where, str(marker)))
    other.start()
    while not marker.exists():
        time.sleep(0.05)
    told: list[str] = []
    with lease(place, "k", told.append):
        assert marker.read_text() == "done"
    other.join()
    assert len(told) == 1 and str(other.pid) in told[0]
    assert leases.leases(place) == []


def test_lease_of_a_killed_process_is_taken_over_at_once(place: Place) -> None:
    """SIGKILL leaves a lease behind; the next start does not wait for its expiry."""
    code = f"""
import os, signal
from tasks.lease import lease
from tasks.places import place_at
with lease(place_at({place.where!r}), "k"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert [one.alive for one in leases.leases(place, "k")] == [False]
    started = time.monotonic()
    with lease(place, "k"):
        assert time.monotonic() - started < leases.LEASE_SECONDS / 2
        assert [one.facts["pid"] for one in leases.leases(place, "k")] == [os.getpid()]


def test_expired_lease_of_another_host_is_taken_over(place: Place) -> None:
    """A machine that went away holds a key no longer than its last heartbeat allows, and no shorter."""
    expires = time.time() + 1.5
    elsewhere = {"host": "elsewhere", "space": "", "pid": 1, "started": 0, "token": "t", "expires": expires}
    place.write("leases/k.7.json", json.dumps(elsewhere).encode())
    with lease(place, "k"):
        assert time.time() > expires


def test_a_torn_lease_blocks_nobody(place: Place) -> None:
    """A lease file that nobody can read is nobody's."""
    place.write("leases/k.0.json", b"{")
    with lease(place, "k"):
        assert [one.number for one in leases.leases(place, "k")] == [0]


def test_never_two_holders(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that want one key, dead lease included, one at a time holds it."""
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.02)
    dead = {"host": "elsewhere", "space": "", "pid": 1, "started": 0, "token": "t", "expires": 0}
    place.write("leases/k.3.json", json.dumps(dead).encode())
    inside, most, rounds = [], [], 6

    def work() -> None:
        with lease(place, "k"):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    threads = [threading.Thread(target=work) for _ in range(rounds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert most == [1] * rounds


def test_heartbeat_renews_and_facts_are_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder on another machine stays alive as long as it beats; others can read what it does."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.8)
    with lease(place, "k", facts={"run": "r"}):
        first = leases.leases(place)[0].facts
        time.sleep(1.2)
        later = leases.leases(place)[0].facts
        assert first["run"] == "r" and first["expires"] < time.time() < later["expires"] + 0.5
        assert later["expires"] > first["expires"]
