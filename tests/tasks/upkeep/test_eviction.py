from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from tasks.storage.store import Store
from tasks.upkeep import eviction
from tasks.upkeep.eviction import inventory, prune

DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four results of 100 bytes, used 4, 3, 2 and 1 days ago, each made from the one before; an old checkpoint."""
    made, before = Store(tmp_path / "store"), None
    for days, key in ((4, "a"), (3, "b"), (2, "c"), (1, "d")):
        with made.working(key) as folder:
            (folder / "part").write_bytes(key.encode() * 100)
            made.commit(key, {"stage": key, "input": before, "object": made.put(folder / "part")})
        _age(made, f"keys/{key}.json", days)
        before = key
    (made.root / "partial" / "e").mkdir(parents=True)
    (made.root / "partial" / "e" / "checkpoint.pt").write_bytes(b"x" * 50)
    _age(made, "partial/e/checkpoint.pt", 3)
    return made


def _age(store: Store, name: str, days: float) -> None:
    os.utime(store.root / name, (time.time() - days * DAY,) * 2)


def _left(store: Store) -> set[str]:
    return set(inventory(store.place).entries)


def test_inventory_counts_what_is_there(store: Store) -> None:
    """Bytes are those of objects and checkpoints; nothing is opened."""
    found = inventory(store.place)
    assert found.size_bytes == 450 and list(found.chain("c")) == ["c", "b", "a"] and not found.leased


def test_by_age(store: Store) -> None:
    """What was not used for so long goes, checkpoints too; a dry run only tells."""
    told = prune(store, inventory(store.place), older=2.5 * DAY, dry_run=True)
    assert (told.entries, told.checkpoints, told.bytes) == (2, 1, 250) and len(_left(store)) == 4
    assert prune(store, inventory(store.place), older=2.5 * DAY) == told
    assert _left(store) == {"c", "d"} and len(list((store.root / "objects").iterdir())) == 2
    assert not (store.root / "partial" / "e" / "checkpoint.pt").exists()


def test_by_size_the_longest_unused_first(store: Store) -> None:
    """Entries go until the rest fits; checkpoints, which somebody may go on from, stay."""
    done = prune(store, inventory(store.place), size=260)
    assert done.entries == 2 and _left(store) == {"c", "d"} and inventory(store.place).size_bytes == 250


def test_objects_that_two_results_share_stay_with_the_second(store: Store) -> None:
    """Removing one name of an object does not remove the object."""
    entry = json.loads((store.root / "keys" / "a.json").read_text())
    store.commit("same", {key: entry[key] for key in ("stage", "input", "object")})
    prune(store, inventory(store.place), older=3.5 * DAY)
    assert "a" not in _left(store) and store.find("same") is not None


def test_of_runs_that_are_gone(store: Store) -> None:
    """Keys that no run used go."""
    prune(store, inventory(store.place), runs=frozenset({"c", "d"}))
    assert _left(store) == {"c", "d"}


def test_what_a_champion_was_made_from_always_stays(store: Store) -> None:
    """The champion's file, and all stages before it."""
    champion = json.loads((store.root / "keys" / "c.json").read_text())["object"]
    done = prune(store, inventory(store.place), older=0, size=0, runs=frozenset(), champions=frozenset({champion}))
    assert _left(store) == {"a", "b", "c"} and done.kept == {"champion": 3}


def test_what_is_leased_or_in_use_always_stays(store: Store) -> None:
    """A stage that somebody works on, and everything that a live run has used since it began."""
    with store.lease("a"):
        done = prune(store, inventory(store.place), older=0)
        assert _left(store) == {"a"} and done.kept == {"leased": 1}
    with store.lease("run-x"):
        store.used("a", store.find("a") or {})
        done = prune(store, inventory(store.place), older=0, size=0, runs=frozenset())
        assert _left(store) == {"a"} and done.kept == {"in use": 1}
    prune(store, inventory(store.place), older=0)
    assert _left(store) == set()


def test_an_object_that_is_being_committed_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between an object and its entry lies a moment; only objects without an entry for a day are garbage."""
    (store.root / "objects" / "new").write_bytes(b"new")
    prune(store, inventory(store.place), older=30 * DAY)
    assert (store.root / "objects" / "new").exists()
    monkeypatch.setattr(eviction, "ORPHAN_SECONDS", -1.0)
    prune(store, inventory(store.place), older=30 * DAY)
    assert not (store.root / "objects" / "new").exists() and len(_left(store)) == 4
