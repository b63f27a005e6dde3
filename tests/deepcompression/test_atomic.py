from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from deepcompression.atomic import written
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
