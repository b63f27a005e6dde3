"""What lies in a store, and what of it may go: by age, by size, or because the runs that used it are gone."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.storage.lease import Lease, leases
from tasks.storage.places import Info, Place
from tasks.storage.store import FRESH_SECONDS, Store
from tasks.upkeep.liveness import live_runs

ORPHAN_SECONDS = 24 * 3600.0  # an object without an entry: its stage is being committed, or never will be


@dataclass(frozen=True)
class Inventory:
    """Everything in a store: entries by key, with their time of last use; objects and checkpoints with their bytes."""

    entries: Mapping[str, Mapping[str, Any]]
    used: Mapping[str, float]
    objects: Mapping[str, Info]
    partial: Mapping[str, list[Info]]
    leased: frozenset[str]
    oldest_live: float | None

    @property
    def size_bytes(self) -> int:
        """Bytes of objects and checkpoints."""
        checkpoints = (info.size for infos in self.partial.values() for info in infos)
        return sum(info.size for info in self.objects.values()) + sum(checkpoints)

    def chain(self, key: str | None) -> Iterable[str]:
        """A key and all that its result was made from."""
        seen = set[str]()
        while key in self.entries and key not in seen:  # an entry that somebody wrote may name itself
            seen.add(str(key))
            yield str(key)
            key = self.entries[str(key)].get("input")


@dataclass
class Pruned:
    """What was (or, in a dry run, would be) removed."""

    entries: int = 0
    checkpoints: int = 0
    bytes: int = 0
    kept: dict[str, int] = field(default_factory=dict)


def inventory(place: Place) -> Inventory:
    """Reads a store's contents; objects are not opened."""
    entries, used = {}, {}
    for info in place.files("keys"):
        key = _stem(info.name)
        with contextlib.suppress(OSError, ValueError, RecursionError):
            entry = json.loads(place.read(info.name))
            if isinstance(entry, dict) and _is_entry(entry):
                entries[key], used[key] = entry, info.modified
    partial: dict[str, list[Info]] = {}
    for info in place.files("partial"):
        partial.setdefault(info.name.split("/")[1], []).append(info)
    live = live_runs(place)
    return Inventory(
        entries,
        used,
        {info.name.rpartition("/")[2]: info for info in place.files("objects")},
        partial,
        frozenset(one.key for one in leases(place) if one.alive),
        min((_begun(place, one) for one in live), default=None),
    )


def _begun(place: Place, live: Lease) -> float:
    """When a live run began; 0 where it does not say, or its clock is ahead: then everything may be its."""
    since, beaten = live.facts.get("since"), place.info(live.name)
    known = isinstance(since, int | float) and beaten is not None and 0 < since <= beaten.modified + 1
    return float(since) if known else 0.0


def prune(
    store: Store,
    found: Inventory,
    *,
    older: float | None = None,
    size: int | None = None,
    runs: frozenset[str] | None = None,
    champions: frozenset[str] = frozenset(),
    dry_run: bool = False,
) -> Pruned:
    """Removes entries, then objects that no entry names. Never what is leased, in use by a live run, or a champion's.

    Args:
        store: the store; of a far one the copies on this machine go too.
        found: its inventory.
        older: seconds: entries not used for longer go.
        size: bytes: the entries used longest ago go, until the rest is no larger.
        runs: keys that existing runs used; all other entries go. None: this is no reason.
        champions: SHA-256 of files that are some model's champion; they and all that they were made from stay.
        dry_run: only tell.
    """
    now, kept = time.time(), _protected(found, champions)
    order = sorted(set(found.entries) - set(kept), key=lambda key: found.used[key])
    going = [
        key
        for key in order
        if (older is not None and now - found.used[key] > older) or (runs is not None and key not in runs)
    ]
    if size is not None:
        going += _over(found, [key for key in order if key not in set(going)], going, size)
    result = Pruned(kept={reason: list(kept.values()).count(reason) for reason in sorted(set(kept.values()))})
    names = [f"keys/{key}.json" for key in going]
    objects = _unnamed(found, set(going), now)
    checkpoints = [key for key, infos in found.partial.items() if _abandoned(found, key, infos, older, now)]
    names += [f"objects/{digest}" for digest in objects]
    names += [info.name for key in checkpoints for info in found.partial[key]]
    result.entries, result.checkpoints = len(going), len(checkpoints)
    result.bytes = sum(found.objects[digest].size for digest in objects)
    result.bytes += sum(info.size for key in checkpoints for info in found.partial[key])
    for name in () if dry_run else names:
        store.place.remove(name)
        if store.far:
            (store.root / name).unlink(missing_ok=True)
    return result


def _protected(found: Inventory, champions: frozenset[str]) -> dict[str, str]:
    """Keys that stay whatever is asked, and why."""
    kept: dict[str, str] = {}
    for key, entry in found.entries.items():
        if entry["object"] in champions:
            kept |= dict.fromkeys(found.chain(key), "champion")
    since = None if found.oldest_live is None else found.oldest_live - FRESH_SECONDS
    for key in found.entries:
        if key in found.leased:
            kept[key] = "leased"
        elif since is not None and found.used[key] >= since:
            kept[key] = "in use"
    return kept


def _over(found: Inventory, order: list[str], going: list[str], size: int) -> list[str]:
    """The entries used longest ago, without which the store is no larger than ``size`` bytes."""
    gone = set(going)
    named = Counter(entry["object"] for key, entry in found.entries.items() if key not in gone)
    left = found.size_bytes - sum(found.objects[digest].size for digest in _unnamed(found, gone, time.time()))
    more = []
    for key in order:
        if left <= size:
            break
        digest = found.entries[key]["object"]
        named[digest] -= 1
        left -= found.objects[digest].size if digest in found.objects and not named[digest] else 0
        more.append(key)
    return more


def _unnamed(found: Inventory, going: set[str], now: float) -> list[str]:
    """Objects that no entry names once ``going`` are gone; those that no entry names now must be a day old."""
    named_now = {entry["object"] for entry in found.entries.values()}
    named = {entry["object"] for key, entry in found.entries.items() if key not in going}
    return [
        digest
        for digest, info in found.objects.items()
        if (digest in named_now and digest not in named)
        or (digest not in named_now and now - info.modified > ORPHAN_SECONDS)
    ]


def _abandoned(found: Inventory, key: str, infos: list[Info], older: float | None, now: float) -> bool:
    """A checkpoint goes by age alone: it is what an interrupted run goes on from."""
    newest = max(info.modified for info in infos)
    return older is not None and key not in found.leased and now - newest > older


def _is_entry(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("object"), str) and isinstance(entry.get("input"), str | None)


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".json")
