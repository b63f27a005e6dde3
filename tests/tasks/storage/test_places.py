from __future__ import annotations

import threading
import uuid
from pathlib import Path

import pytest

from deepcompression.errors import StorageError
from tasks.storage.places import Far, Near, Place, place_at


@pytest.fixture(params=["near", "file", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """The same folder on this machine, behind a file URL, in memory, and in S3."""
    if request.param == "s3":
        return place_at(f"{request.getfixturevalue('s3')}/place")
    if request.param == "memory":
        return place_at(f"memory://{uuid.uuid4().hex}")
    return place_at(f"file://{tmp_path}/x" if request.param == "file" else str(tmp_path / "x"))


def test_every_verb_on_every_place(place: Place, tmp_path: Path) -> None:
    """Near and far behave alike: what is written is read, listed, measured, copied and removed."""
    assert place.info("a/b.txt") is None and place.files("a") == []
    with pytest.raises(FileNotFoundError):
        place.read("a/b.txt")
    place.write("a/b.txt", b"one")
    place.write("a/b.txt", b"three")
    (tmp_path / "local").write_bytes(b"local")
    place.put(tmp_path / "local", "a/c/d.txt")
    assert place.read("a/b.txt") == b"three"
    assert sorted((one.name, one.size) for one in place.files("a")) == [("a/b.txt", 5), ("a/c/d.txt", 5)]
    info = place.info("a/b.txt")
    assert info is not None and info.size == 5 and abs(info.modified - (tmp_path / "local").stat().st_mtime) < 60
    place.fetch("a/c/d.txt", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == b"local"
    with pytest.raises(FileNotFoundError):
        place.fetch("a/none", tmp_path / "none")
    assert not (tmp_path / "none").exists() and len(list((tmp_path / "new").iterdir())) == 1
    place.remove("a/b.txt")
    place.remove("a/b.txt")
    assert [one.name for one in place.files("a")] == ["a/c/d.txt"]
    place.clear("a")
    place.clear("a")
    assert place.files("a") == []


def test_one_of_many_creates(place: Place) -> None:
    """Exclusive creation has exactly one winner, whose content stays."""
    if isinstance(place, Far) and "memory" in place.where:
        pytest.skip("fsspec's memory file system checks, then writes; it serves one process only")
    winners: list[int] = []
    threads = [
        threading.Thread(target=lambda n=n: place.create("race", b"%d" % n) and winners.append(n)) for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1 and place.read("race") == b"%d" % winners[0]


def test_a_local_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    """Where a file stands in the way, every verb that writes says so in one line."""
    (tmp_path / "file").write_text("")
    blocked = Near(tmp_path / "file")
    for attempt in (lambda: blocked.write("a", b""), lambda: blocked.create("a", b"")):
        with pytest.raises(StorageError, match="file"):
            attempt()
