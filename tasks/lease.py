"""Leases: who works on what, until when. On any place that can create a file exclusively; nobody live is ever ended.

A lease on ``key`` is the file ``leases/<key>.<n>.json``. Who finds only dead ones creates the next number; of several
takers exactly one succeeds. A lease ends by release, by expiry (no heartbeat), or at once when its process, on the same
machine, is gone.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from deepcompression.errors import StorageError
from tasks.places import Place

LEASE_SECONDS = 60.0
POLL_SECONDS = 0.5
FOLDER = "leases"


@dataclass(frozen=True)
class Lease:
    """One lease file: its place, its key, its number, and what stands in it."""

    name: str
    key: str
    number: int
    facts: Mapping[str, Any]

    @property
    def alive(self) -> bool:
        """Whether its holder lives, as far as can be known from here."""
        return _alive(self.facts)

    @property
    def holder(self) -> str:
        """For people."""
        return f"process {self.facts.get('pid', '?')} on {self.facts.get('host', '?')}"


@contextlib.contextmanager
def lease(
    place: Place, key: str, waiting: Callable[[str], None] | None = None, facts: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Holds ``key`` while the block runs; waits while another live process holds it.

    Args:
        place: where all who could want the key look.
        key: letters, digits, dots, dashes, underscores.
        waiting: called once with the holder's description when there is somebody to wait for.
        facts: what others should know of the holder.

    Raises:
        StorageError: the place cannot be written.
    """
    mine = {**(facts or {}), **_whoami(), "token": uuid.uuid4().hex, "since": time.time()}
    told = False
    while (name := _claim(place, key, mine)) is None:
        holder = next((one.holder for one in leases(place, key) if one.alive), None)
        if waiting and holder and not told:
            told = True
            waiting(holder)
        time.sleep(POLL_SECONDS * random.uniform(0.8, 1.2))
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(place, name, mine, stop), daemon=True, name="lease-heartbeat")
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        with contextlib.suppress(StorageError):
            if (_read(place, name) or {}).get("token") == mine["token"]:
                place.remove(name)


def leave(place: Place, key: str, facts: Mapping[str, Any]) -> None:
    """Leaves a lease of this process behind: from its end on it is a dead one, for others to find."""
    place.write(f"{FOLDER}/{key}.0.json", _content({**facts, **_whoami(), "token": uuid.uuid4().hex}))


def leases(place: Place, key: str = "") -> list[Lease]:
    """All lease files, or those of one key; dead ones too."""
    found = []
    for info in place.files(FOLDER):
        stem, _, number = info.name.removeprefix(f"{FOLDER}/").removesuffix(".json").rpartition(".")
        if number.isdigit() and key in ("", stem):
            facts = _read(place, info.name)
            if facts is not None:
                found.append(Lease(info.name, stem, int(number), facts))
    return found


def _claim(place: Place, key: str, mine: Mapping[str, Any]) -> str | None:
    """The name of the lease file that is now ours, or None where somebody alive holds the key."""
    others = leases(place, key)
    if any(one.alive for one in others):
        return None
    number = max((one.number for one in others), default=-1) + 1
    name = f"{FOLDER}/{key}.{number}.json"
    if not place.create(name, _content(mine)):
        if _torn(place, name):  # nobody can ever release it
            place.remove(name)
        return None
    # Somebody who looked before or after us may have created another number; whoever sees a rival steps back.
    if any(one.alive and one.name != name for one in leases(place, key)):
        place.remove(name)
        return None
    for one in others:
        place.remove(one.name)
    return name


def _heartbeat(place: Place, name: str, mine: Mapping[str, Any], stop: threading.Event) -> None:
    while not stop.wait(LEASE_SECONDS / 4):
        with contextlib.suppress(StorageError):  # a place that is away for a moment
            if (_read(place, name) or {}).get("token") != mine["token"]:
                return
            place.write(name, _content(mine))


def _content(mine: Mapping[str, Any]) -> bytes:
    return json.dumps({**mine, "expires": time.time() + LEASE_SECONDS}).encode()


def _whoami() -> dict[str, Any]:
    process = psutil.Process()
    return {"host": socket.gethostname(), "space": _space(), "pid": process.pid, "started": process.create_time()}


@lru_cache
def _space() -> str:
    """The PID namespace: in two containers of one host name, a process number means two things."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _alive(facts: Mapping[str, Any]) -> bool:
    try:
        if (facts["host"], facts["space"]) == (socket.gethostname(), _space()):
            process = psutil.Process(facts["pid"])
            return abs(process.create_time() - facts["started"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
        return bool(facts["expires"] > time.time())
    except psutil.NoSuchProcess:
        return False
    except (KeyError, TypeError):
        return False


def _torn(place: Place, name: str) -> bool:
    try:
        return not isinstance(json.loads(place.read(name)), dict)
    except OSError:
        return False
    except ValueError:
        return True


def _read(place: Place, name: str) -> dict[str, Any] | None:
    try:
        facts = json.loads(place.read(name))
    except (OSError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
