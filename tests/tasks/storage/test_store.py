from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from deepcompression.errors import StorageError
from tasks.storage import store as stores
from tasks.storage.places import place_at
from tasks.storage.store import Store, key_of


def _put(store: Store, content: bytes, key: str = "k") -> str:
    with store.working(key) as folder:
        (folder / "part").write_bytes(content)
        digest = store.put(folder / "part")
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
    assert not (tmp_path / "partial" / "k").exists()


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
    with pytest.raises(StorageError, match="file"), Store(tmp_path / "file").working("k"):
        pass


def test_look_up_does_not_read_the_object(tmp_path: Path) -> None:
    """A look-up costs the same however large the model is: existence and size are enough."""
    store = Store(tmp_path)
    path = store.object_path(_put(store, b"weights"))
    path.chmod(0)
    assert store.find("k") is not None


def test_use_renews_an_entry_at_most_hourly(tmp_path: Path) -> None:
    """What is used is not old; a look-up writes nothing while the note is fresh."""
    store = Store(tmp_path)
    _put(store, b"weights")
    path, entry = tmp_path / "keys" / "k.json", store.find("k")
    assert entry is not None
    for age, renewed in ((60, False), (2 * stores.FRESH_SECONDS, True)):
        os.utime(path, (time.time() - age,) * 2)
        before = path.stat().st_mtime
        store.used("k", entry)
        assert (path.stat().st_mtime > before) == renewed
    assert store.find("k") == entry


@pytest.fixture
def machines(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Store]:
    """Two machines that share an S3 bucket and no folder."""
    stores_ = []
    for name in ("one", "two"):
        monkeypatch.setenv("DEEPCOMPRESSION_CACHE", str(tmp_path / name))
        stores_.append(Store(f"{s3}/store"))
    return stores_


def test_machines_share_results_through_s3(machines: list[Store]) -> None:
    """What one machine made, another finds, fetches, and checks by its digest."""
    one, two = machines
    digest = _put(one, b"weights")
    assert one.root != two.root and not (two.root / "objects" / digest).exists()
    entry = two.find("k")
    assert entry is not None and two.intact(entry["object"])
    assert two.object_path(digest).read_bytes() == b"weights"


def test_damage_behind_a_url_is_found_and_made_again(machines: list[Store]) -> None:
    """An object whose bytes changed on the way is a miss, for every machine."""
    one, two = machines
    digest = _put(one, b"weights")
    two.place.write(f"objects/{digest}", b"Weights")
    assert two.find("k") is not None and not two.intact(digest)
    assert two.find("k") is None and one.find("k") is None


def test_checkpoint_of_a_machine_that_died_is_taken_up_by_another(
    machines: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rolling checkpoint reaches the far store within a second or at the failure; a finished stage leaves none."""
    monkeypatch.setattr(stores, "MIRROR_SECONDS", 0.05)
    one, two = machines
    with pytest.raises(KeyboardInterrupt), one.working("k") as folder:
        (folder / "checkpoint.pt").write_bytes(b"epoch 1")
        time.sleep(0.5)
        assert two.place.read("partial/k/checkpoint.pt") == b"epoch 1"
        (folder / "checkpoint.pt").write_bytes(b"epoch 2")
        raise KeyboardInterrupt
    with two.working("k") as folder:
        assert (folder / "checkpoint.pt").read_bytes() == b"epoch 2"
        (folder / "part").write_bytes(b"weights")
        two.commit("k", {"object": two.put(folder / "part")})
    assert two.place.files("partial") == [] and one.find("k") is not None


def test_a_far_store_that_is_away_is_one_clear_error(s3: str) -> None:
    """Neither a missing bucket nor an unknown protocol is a traceback of somebody else's library."""
    with pytest.raises(StorageError, match="no-such-bucket"):
        place_at("s3://no-such-bucket/store").write("a", b"")
    with pytest.raises(StorageError, match="nonsense://"):
        Store("nonsense://bucket/store")
