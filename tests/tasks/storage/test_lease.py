from __future__ import annotations

import json
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.machine import process
from tasks.storage import lease as leases
from tasks.storage.lease import lease
from tasks.storage.places import Place, place_at


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
from tasks.storage.lease import lease
from tasks.storage.places import place_at
with lease(place_at({place.where!r}), "k"):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False)
    assert [one.alive for one in leases.leases(place, "k")] == [False]
    started = time.monotonic()
    with lease(place, "k"):
        assert time.monotonic() - started < leases.LEASE_SECONDS / 2
        assert [one.facts["pid"] for one in leases.leases(place, "k")] == [os.getpid()]


def _elsewhere(place: Place, name: str, **facts: Any) -> dict[str, Any]:
    """Writes the lease of a holder of whom nothing but its file can be known from here."""
    written = {"host": socket.gethostname(), "here": "?", "pid": 1, "ticks": 0, "token": "t", **facts}
    place.write(f"leases/{name}.json", json.dumps(written).encode())
    return written


@pytest.mark.parametrize("ahead", [-300, 0, 300, 86400])
def test_a_silent_lease_of_another_machine_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: float
) -> None:
    """A machine that went away holds a key as long as it may be silent, whatever its clock said; no shorter."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.1)
    place = place_at(str(tmp_path))
    _elsewhere(place, "k.7", expires=time.time() + ahead)
    assert leases.leases(place)[0].alive
    started = time.monotonic()
    with lease(place, "k"):
        assert 0.6 < time.monotonic() - started < 5


def test_a_beating_lease_of_another_machine_is_never_taken_over(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same host name, with a process number of nobody here, its clock five minutes behind: it lives."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    got = threading.Event()

    def take() -> None:
        with lease(place, "k"):
            got.set()

    _elsewhere(place, "k.0", expires=0)
    waiter = threading.Thread(target=take, daemon=True)
    waiter.start()
    for beat in range(6):
        assert not got.wait(0.25)
        _elsewhere(place, "k.0", expires=time.time() - 300 + beat)
    assert leases.leases(place)[0].alive and not got.is_set()
    assert got.wait(10)
    waiter.join(10)


@pytest.mark.parametrize("silent", [300, 700])
def test_one_look_goes_by_the_clock_of_the_place(tmp_path: Path, silent: float) -> None:
    """Who looks once compares two times of one clock: silent for ten minutes is dead, for five is not."""
    place = place_at(str(tmp_path))
    _elsewhere(place, "k.0", expires=time.time() + 86400)
    os.utime(tmp_path / "leases/k.0.json", (time.time() - silent,) * 2)
    assert leases.leases(place)[0].alive == (silent < 600)
    assert not list(tmp_path.glob("leases/clock*"))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"null", b"\xff\xfe", b"[" * 5000, b'{"a":' * 5000, b" " * 100_000,
        b'{"pid": -1}', b'{"pid": 0}', b'{"pid": "1"}', b'{"pid": true}', b'{"pid": 1e999}', b'{"pid": NaN}',
    ],
)  # fmt: skip
def test_hostile_leases_cost_nothing(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever somebody writes there: no traceback, nobody is held up for longer than by a silent holder."""
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.2)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.05)
    place = place_at(str(tmp_path))
    for name in ("k.0", "k.\u00b2", "k.99999999999999999999", "k"):
        place.write(f"leases/{name}.json", content)
    assert all(one.alive for one in leases.leases(place))
    with lease(place, "k"):
        pass


@pytest.mark.parametrize("pid", [-1, 0, 2**31, 10**30, "1", None, True, 1.5, [], {"a": 1}])
@pytest.mark.parametrize("ticks", [0, -1, 10**400, float("nan"), "0", None])
def test_no_process_number_is_trusted(pid: Any, ticks: Any) -> None:
    """Facts that no process of this machine wrote never raise, and never name a process that lives."""
    assert process.lives({"here": process.here(), "pid": pid, "ticks": ticks}) is not True


def test_a_process_is_known_by_machine_boot_and_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """One's own is alive, a number that another process has by now is dead; of any other boot nothing is known."""
    ours = process.whoami()
    assert process.lives(ours) is True
    assert process.lives({**ours, "ticks": ours["ticks"] - 5}) is False
    assert process.lives({**ours, "pid": 2**31 - 1}) is False
    for part in ("_machine", "_boot", "_space"):
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(process, part, lambda: "other")
            process.here.cache_clear()
            assert process.lives(ours) is None and process.lives(process.whoami()) is True
        process.here.cache_clear()
    assert process.lives({name: ours[name] for name in ("host", "space", "pid", "started")}) is None  # older releases

    def denied(*_: object) -> None:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "Process", denied)
    assert process.lives(ours) is None


def test_a_torn_lease_blocks_nobody(place: Place) -> None:
    """A lease file that nobody can read is nobody's."""
    place.write("leases/k.0.json", b"{")
    with lease(place, "k"):
        assert [one.number for one in leases.leases(place, "k")] == [0]


def test_never_two_holders(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that want one key, dead lease included, one at a time holds it."""
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 0.5)
    _elsewhere(place, "k.3")
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
        assert first["run"] == later["run"] == "r" and first["beat"] != later["beat"]
        assert later["expires"] > first["expires"]  # for older releases
