"""Pictures from folders and tables: which, with what class, prepared how, and what identifies them."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch

from deepcompression.data import images
from deepcompression.data.pictures import prepared
from deepcompression.data.splits import split_validation
from deepcompression.errors import DataError
from deepcompression.models.hub_common import Preparation
from deepcompression.training.identity import identify

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    """Digests are kept in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def draw(path, value=0, size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two classes, five pictures each."""
    for place, name in enumerate(("cat", "ant")):
        for number in range(5):
            draw(tmp_path / "all" / name / f"{number}.png", 10 * place + number)
    return tmp_path / "all"


def test_a_folder_by_class_becomes_splits_with_names(folder):
    """Classes in the order of their names; the test split has each class's part, the same at every call."""
    one, two = images(str(folder), test=4), images(str(folder), test=4)
    assert one.classes == ("ant", "cat") and one.validation is None
    assert len(one.train) == 6 and sorted(one.test[at][1] for at in range(4)) == [0, 0, 1, 1]
    assert one.test.entries == two.test.entries
    sample, label = one.train[0]
    assert sample.shape == (3, 4, 6) and sample.dtype == torch.float32 and label == 0
    assert float(sample.min()) >= 0 and float(sample.max()) <= 1


def test_folders_of_splits_are_taken_as_they_are(tmp_path):
    """train, val and test beside each other, with one numbering of classes."""
    for which in ("train", "val", "test"):
        draw(tmp_path / which / "b" / "1.png")
    draw(tmp_path / "train" / "a" / "1.jpg")
    splits = images(str(tmp_path))
    assert [len(one) for one in (splits.train, splits.validation, splits.test)] == [2, 1, 1]
    assert splits.test[0][1] == 1 and splits.classes == ("a", "b")


def test_a_table_names_paths_labels_and_splits(tmp_path):
    """Labels that are numbers are the classes' numbers; words are numbered, by a list where one is given."""
    for number in range(3):
        draw(tmp_path / f"{number}.png", number)
    (tmp_path / "t.csv").write_text("path,label,split\n0.png,7,train\n1.png,7,val\n2.png,9,test\n")
    splits = images(str(tmp_path), table="t.csv")
    assert (splits.train[0][1], splits.test[0][1], splits.classes) == (7, 9, None)
    (tmp_path / "w.csv").write_text("path,label,split\n0.png,dog,\n1.png,cat,\n2.png,dog,test\n")
    splits = images(str(tmp_path), table="w.csv", classes=["dog", "cat", "cow"])
    assert [splits.train[at][1] for at in range(2)] == [0, 1] and splits.classes == ("dog", "cat", "cow")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert images(str(tmp_path), table="w.csv", classes=str(tmp_path / "names.txt")).train[0][1] == 1


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,label\n", "expected the columns path and label, got file, label"),
        ("path,label,split\n0.png,1,training\n", "line 2: expected a path, a label"),
        ("path,label\n0.png,\n", "line 2"),
    ],
)
def test_a_table_that_says_something_else_is_refused(tmp_path, table, words):
    """With its line."""
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(DataError, match=words):
        images(str(tmp_path), table="t.csv")


def test_what_is_no_folder_of_classes_is_refused(tmp_path, folder):
    """No folder, loose pictures, a class that the list has not, an impossible value."""
    with pytest.raises(DataError, match="no such folder"):
        images(str(tmp_path / "absent"))
    draw(tmp_path / "loose" / "1.png")
    with pytest.raises(DataError, match="in no folder of a class: name them in a table"):
        images(str(tmp_path / "loose"))
    with pytest.raises(DataError, match=r"its class 'ant' is not among the 1 of data\.kwargs\.classes"):
        images(str(folder), classes=["cat"])
    with pytest.raises(DataError, match="leaves nothing on one side"):
        images(str(folder), test=10)
    with pytest.raises(DataError, match="interpolation of nearest"):
        images(str(folder), interpolation="cubic")


def test_resizing_cutting_and_normalising(tmp_path):
    """The shorter side, then the middle, then (value / 255 - mean) / std; what is missing is black."""
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(40, dtype=np.uint8).reshape(4, 10)).save(path)
    whole = prepared(path, Preparation(), 1)
    assert torch.equal((whole * 255).round()[0], torch.arange(40.0).reshape(4, 10))
    cut = prepared(path, Preparation(crop=(2, 4), mean=(0.5,), std=(0.25,)), 1)
    assert torch.allclose(cut, (whole[:, 1:3, 3:7] - 0.5) / 0.25)
    assert prepared(path, Preparation(resize=8), 3).shape == (3, 8, 20)
    assert prepared(path, Preparation(resize=(3, 5)), 3).shape == (3, 3, 5)
    more = prepared(path, Preparation(crop=(7, 10)), 1)
    assert torch.equal(more[:, 1:5], whole) and not more[:, [0, 5, 6]].any()


def test_pictures_are_prepared_as_torchvision_does(tmp_path):
    """To the bit, shrinking and enlarging, of odd sizes too."""
    transforms = _torchvision()
    for size in ((61, 40), (33, 90), (20, 20)):
        path = draw(tmp_path / f"{size[0]}.png", size=size)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        theirs = transforms.Compose([
            transforms.Resize(37), transforms.CenterCrop(32), transforms.ToTensor(), transforms.Normalize(mean, std),
        ])  # fmt: skip
        with Image.open(path) as image:
            assert torch.equal(prepared(path, Preparation(37, (32, 32), mean, std), 3), theirs(image.convert("RGB")))


def _torchvision():
    pytest.importorskip("torchvision", exc_type=ImportError)
    return pytest.importorskip("torchvision.transforms")


def test_threads_give_the_same_pictures(folder):
    """A DataLoader asks for several at once, of a part of a split too."""
    alone, together = images(str(folder)), images(str(folder), workers=3)
    part = split_validation(together, 2).train
    for at, (sample, label) in enumerate(part.__getitems__(list(range(len(part))))):
        inner = part.indices[at]
        assert torch.equal(sample, alone.train[inner][0]) and label == alone.train[inner][1]


def test_digest_is_of_contents_and_each_file_is_read_once(folder, tmp_path, monkeypatch):
    """A changed byte is another digest; a file that is as it was is not opened again; times alone change nothing."""
    before = identify(images(str(folder)))
    assert before.certain and not before.notes
    opened = []
    monkeypatch.setattr("deepcompression.data.contents._content", lambda path: opened.append(path) or "other")
    assert identify(images(str(folder))) == before and opened == []
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    os.utime(folder / "cat" / "1.png", (1, 1))
    assert identify(images(str(folder))) == before
    draw(folder / "cat" / "1.png", 99)
    assert identify(images(str(folder))) != before
    (kept,) = [json.loads(one.read_text()) for one in (tmp_path / "cache").rglob("*.json")][:1]
    assert all(len(one) == 3 for one in kept.values())
    assert identify(images(str(folder), resize=3)) != identify(images(str(folder)))


def test_a_digest_that_cannot_be_kept_is_told(folder, tmp_path, monkeypatch, caplog):
    """The cache's folder cannot be made: a warning, and the run goes on."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert identify(images(str(folder))).certain
    assert "cannot be written" in caplog.text


def test_what_is_no_picture_is_named(folder):
    """A web page under a picture's name, and a picture that ends too soon."""
    (folder / "cat" / "9.jpg").write_text("<html>")
    with pytest.raises(DataError, match=r"9\.jpg: no picture that Pillow reads \(UnidentifiedImageError") as caught:
        identify(images(str(folder)))
    assert "\n" not in str(caught.value)
    raw = draw(folder / "cat" / "9.png", size=(90, 90)).read_bytes()
    (folder / "cat" / "9.jpg").write_bytes(raw[:300])
    with pytest.raises(DataError, match=r"9\.jpg: no picture that Pillow reads"):
        prepared(folder / "cat" / "9.jpg", Preparation(), 3)
