from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from deepcompression._atomic import written
from deepcompression.errors import StorageError


def test_failed_write_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    """A file is replaced whole or not at all."""
    path = tmp_path / "a.json"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), written(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old" and [one.name for one in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission denied"), (errno.EROFS, "read-only")],
)
def test_full_disk_and_missing_permission_are_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    """What the operating system refuses is told with the path, and nothing half-written stays."""

    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StorageError, match=text) as caught, written(tmp_path / "a.json") as file:
        file.write(b"new")
    assert "a.json" in str(caught.value) and not list(tmp_path.iterdir())


def test_a_link_that_waits_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link under the name of the unfinished file, were it guessed, leads to an error and not to its target."""
    monkeypatch.setattr(os, "urandom", bytes)
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / f".a.{'00' * 8}.part").symlink_to(tmp_path / "victim")
    with pytest.raises(StorageError), written(tmp_path / "a"):
        pass
    assert (tmp_path / "victim").read_bytes() == b"mine" and not (tmp_path / "a").exists()


def test_links_are_replaced_and_devices_stay(tmp_path: Path) -> None:
    """A link gives way to the file, its target untouched; a pipe, as /dev/null is a device, is no place for one."""
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "link").symlink_to(tmp_path / "victim")
    with written(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "victim").read_bytes() == b"mine" and (tmp_path / "link").read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    with (
        pytest.raises(StorageError, match="pipe: cannot be written: it is no ordinary file"),
        written(tmp_path / "pipe"),
    ):
        pass
    assert (tmp_path / "pipe").is_fifo()
