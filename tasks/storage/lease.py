"""Leases: who works on what. On any place that can create a file exclusively; nobody live is ever ended.

A lease on ``key`` is the file ``leases/<key>.<n>.json``. Who finds only dead ones creates the next number; of several
takers exactly one succeeds. A lease ends by release, or at once when its process, on the same boot of the same machine,
is gone. Of a holder elsewhere only this counts: whether its file changes. No clock of a machine is compared with
another's: who waits sees the file unchanged for ``LEASE_SECONDS`` of its own; who looks once compares the file's time
with that of a file that it writes beside it, both by the clock of the place, and is in no hurry (``SILENT_SECONDS``).
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from deepcompression.errors import StorageError
from tasks.machine.process import LARGEST_NOTE, lives, mapping_of, whoami
from tasks.storage.places import Place

LEASE_SECONDS = 60.0  # four heartbeats
SILENT_SECONDS = 600.0  # longer than a clock of a file server is ever put forward
POLL_SECONDS = 0.5
FOLDER = "leases"


@dataclass(frozen=True)
class Lease:
    """One lease file: its name, its key, its number, what stands in it, and how long it has been silent.

    ``silent`` is in seconds of the place's own clock; 0 where it does not matter, or where nothing can be written there
    to compare with.
    """

    name: str
    key: str
    number: int
    facts: Mapping[str, Any]
    silent: float = 0.0

    @property
    def alive(self) -> bool:
        """Whether its holder lives, as far as one look can tell; in doubt it does."""
        known = lives(self.facts)
        return self.silent <= SILENT_SECONDS if known is None else known

    @property
    def holder(self) -> str:
        """For people."""
        return f"process {self.facts.get('pid', '?')} on {self.facts.get('host', '?')}"


class _Watch:
    """What a waiter has seen of leases: one elsewhere is dead once it has not changed for long enough."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[str, float]] = {}

    def alive(self, one: Lease) -> bool:
        if not one.alive or lives(one.facts):
            return one.alive
        now, content = time.monotonic(), repr(one.facts)
        before, since = self.seen.get(one.name, ("", now))
        if content != before:
            self.seen[one.name] = content, now
        return content != before or now - since <= LEASE_SECONDS


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
    mine = {**(facts or {}), **whoami(), "token": uuid.uuid4().hex, "since": time.time()}
    told, watch = False, _Watch()
    while (name := _claim(place, key, mine, watch)) is None:
        holder = next((one.holder for one in leases(place, key, by_clock=False) if watch.alive(one)), None)
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
    place.write(f"{FOLDER}/{key}.0.json", _content({**facts, **whoami(), "token": uuid.uuid4().hex}))


def leases(place: Place, key: str = "", by_clock: bool = True) -> list[Lease]:
    """All lease files, or those of one key; dead ones too. What is no lease, whatever it holds, is left out.

    Args:
        place: where they lie.
        key: all of them where empty.
        by_clock: whether the place is asked for its time, to see which have been silent for long.
    """
    found = []
    for info in place.files(FOLDER):
        stem, _, number = info.name.removeprefix(f"{FOLDER}/").removesuffix(".json").rpartition(".")
        if number.isascii() and number.isdigit() and len(number) < 10 and key in ("", stem):
            facts = _read(place, info.name) if info.size <= LARGEST_NOTE else None
            if facts is not None:
                found.append((Lease(info.name, stem, int(number), facts), info.modified))
    if not by_clock or all(lives(one.facts) is not None for one, _ in found):
        return [one for one, _ in found]
    now = _present(place)
    return [replace(one, silent=now - modified if now else 0.0) for one, modified in found]


def _present(place: Place) -> float | None:
    """The time by the clock that stamps a place's files; None where nothing can be written there."""
    name = f"{FOLDER}/clock-{uuid.uuid4().hex}"
    try:
        place.write(name, b"")
        found = place.info(name)
        place.remove(name)
    except StorageError:
        return None
    return found.modified if found else None


def _claim(place: Place, key: str, mine: Mapping[str, Any], watch: _Watch) -> str | None:
    """The name of the lease file that is now ours, or None where somebody alive holds the key."""
    others = leases(place, key, by_clock=not watch.seen)
    living = [watch.alive(one) for one in others]  # of each, from now on, when it was last seen to change
    if any(living):
        return None
    number = max((one.number for one in others), default=-1) + 1
    name = f"{FOLDER}/{key}.{number}.json"
    if not place.create(name, _content(mine)):
        if _torn(place, name):  # nobody can ever release it
            place.remove(name)
        return None
    # Somebody who looked before or after us may have created another number; whoever sees a rival steps back.
    if any(one.name != name and watch.alive(one) for one in leases(place, key, by_clock=False)):
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
    """Other than the one before: ``beat``. ``expires`` is for older releases."""
    return json.dumps({**mine, "beat": uuid.uuid4().hex, "expires": time.time() + LEASE_SECONDS}).encode()


def _torn(place: Place, name: str) -> bool:
    try:
        return mapping_of(place.read(name)) is None
    except OSError:
        return False


def _read(place: Place, name: str) -> dict[str, Any] | None:
    try:
        return mapping_of(place.read(name))
    except OSError:
        return None
