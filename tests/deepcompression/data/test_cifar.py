"""CIFAR-10 in the forms that people have."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
import torch

from deepcompression.data import cifar, cifar10
from deepcompression.errors import DataError


def records(count, seed=0):
    table = np.random.default_rng(seed).integers(0, 256, (count, cifar.RECORD), np.uint8)
    table[:, 0] %= 10
    return table


@pytest.fixture
def folder(tmp_path):
    """The six binary files, of few records."""
    inside = tmp_path / "cifar-10-batches-bin"
    inside.mkdir()
    for seed, name in enumerate((*cifar.TRAIN, *cifar.TEST)):
        (inside / name).write_bytes(records(3, seed).tobytes())
    return tmp_path


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(monkeypatch):
    monkeypatch.delenv(cifar.ENVIRONMENT, raising=False)


def test_binary_files_become_splits(folder, monkeypatch):
    """Five files to train, one to test; a record is the class, then three planes."""
    splits = cifar10(str(folder))
    assert splits.train[0].shape == (15, 3, 32, 32) and splits.test[1].shape == (3,)
    first = records(3)[0]
    assert int(splits.train[1][0]) == first[0] and splits.classes == cifar.CLASSES
    assert np.array_equal((splits.train[0][0] * 255).round().numpy().reshape(-1), first[1:])
    monkeypatch.setenv(cifar.ENVIRONMENT, str(folder / "cifar-10-batches-bin"))
    assert torch.equal(cifar10().train[0], splits.train[0])


def test_their_archive_is_read_as_it_is(folder, tmp_path):
    """Nothing is unpacked to the disk."""
    place = tmp_path / "archive"
    place.mkdir()
    with tarfile.open(place / cifar.ARCHIVE, "w:gz") as archive:
        archive.add(folder / "cifar-10-batches-bin", "cifar-10-batches-bin")
    assert torch.equal(cifar10(str(place)).test[0], cifar10(str(folder)).test[0])
    assert [path.name for path in place.iterdir()] == [cifar.ARCHIVE]
    with tarfile.open(place / cifar.ARCHIVE, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x"), io.BytesIO())
    with pytest.raises(DataError, match=r"has no data_batch_1\.bin"):
        cifar10(str(place))


def test_folders_of_pictures_are_read_too(tmp_path, monkeypatch):
    """train and test, a folder a class, as people share it."""
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for which in ("train", "test"):
        for name in cifar.CLASSES:
            (tmp_path / which / name).mkdir(parents=True)
            image.new("RGB", (32, 32), (255, 0, 0)).save(tmp_path / which / name / "1.png")
    splits = cifar10(str(tmp_path))
    assert splits.train[1].tolist() == list(range(10)) and splits.train[0][0].amax((1, 2)).tolist() == [1, 0, 0]


def test_what_is_missing_or_damaged_is_one_line(folder, tmp_path, monkeypatch):
    """Pickles are not read, truncated files are named, and offline the way out is told."""
    (tmp_path / "py").mkdir()
    (tmp_path / "py" / "data_batch_1").write_bytes(b"")
    with pytest.raises(DataError, match="its files are pickles, which could run code: fetch the binary version"):
        cifar10(str(tmp_path / "py"))
    path = folder / "cifar-10-batches-bin" / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin: expected records of 3,073 bytes, found 9,218 bytes"):
        cifar10(str(folder))
    path.write_bytes(b"\x0b" + path.read_bytes()[1:] + b"\0")
    with pytest.raises(DataError, match="a class 11; expected 0 to 9"):
        cifar10(str(folder))

    def offline(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    with pytest.raises(DataError, match=r"OpenML is out of reach .*name it by data\.kwargs\.root") as caught:
        cifar10()
    assert "\n" not in str(caught.value)
