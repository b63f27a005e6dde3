"""Data sets, splits, digests and augmentation."""

from __future__ import annotations

import gzip
import logging
import struct

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from deepcompression.data import small_images as data
from deepcompression.data.splits import Splits, split_validation
from deepcompression.errors import DataError

FILES = {
    "train-images-idx3-ubyte": (6, 28, 28),
    "train-labels-idx1-ubyte": (6,),
    "t10k-images-idx3-ubyte": (4, 28, 28),
    "t10k-labels-idx1-ubyte": (4,),
}


def idx(shape: tuple[int, ...], seed: int = 0) -> bytes:
    values = np.random.default_rng(seed).integers(0, 10 if len(shape) == 1 else 256, shape, np.uint8)
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, 8, len(shape), *shape) + values.tobytes()


def write(folder, *, zipped=False, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in FILES.items():
        raw = idx(shape, seed)
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(raw) if zipped else raw)
    return folder


@pytest.fixture(autouse=True)
def _no_data_of_this_machine(monkeypatch):
    monkeypatch.delenv(data.ENVIRONMENT, raising=False)
    monkeypatch.setattr(data, "DEBIAN_FASHION", [])


def test_digits_are_split_once_and_for_all():
    """1,437 + 360 samples in [0, 1], every class with its share in both, the same at every call."""
    one, two = data.digits(), data.digits()
    (x, y), (tx, ty) = one.train, one.test
    assert x.shape == (1437, 1, 8, 8) and tx.shape == (360, 1, 8, 8)
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    assert float(x.min()) == 0 and float(x.max()) == 1
    assert int(torch.bincount(ty).min()) >= 34 and int(torch.bincount(ty).max()) <= 38
    assert torch.equal(one.test[0], two.test[0]) and one.validation is None
    everything = torch.cat([x, tx]).flatten(1).sum(0)
    from sklearn.datasets import load_digits

    assert torch.allclose(everything, torch.from_numpy(load_digits().data).float().sum(0) / 16, atol=1e-3)


def test_digits_refuse_an_impossible_test_split():
    """No empty training or test split comes out."""
    for test in (0, 1797, -1):
        with pytest.raises(DataError, match=r"data\.kwargs\.test"):
            data.digits(test)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_idx_files_are_read_raw_or_zipped_in_the_folder_or_below(tmp_path, zipped, inside):
    """The four files of MNIST, as everybody has them, become samples in [0, 1] and int64 targets."""
    write(tmp_path / "mnist" if inside else tmp_path, zipped=zipped)
    splits = data.mnist(str(tmp_path))
    assert splits.train[0].shape == (6, 1, 28, 28) and splits.test[1].shape == (4,)
    pixels = np.frombuffer(idx((6, 28, 28))[16:], np.uint8)
    np.testing.assert_array_equal((splits.train[0].numpy() * 255).round().reshape(-1), pixels)
    np.testing.assert_array_equal(splits.train[1].numpy(), np.frombuffer(idx((6,))[8:], np.uint8))


def test_one_environment_variable_serves_both_data_sets(tmp_path, monkeypatch):
    """Both have files of the same names: each is found in its own folder, never in the other's."""
    write(tmp_path / "mnist", seed=1)
    write(tmp_path / "fashion-mnist", seed=2)
    monkeypatch.setenv(data.ENVIRONMENT, str(tmp_path))
    assert not torch.equal(data.mnist().train[0], data.fashion_mnist().train[0])
    monkeypatch.setenv(data.ENVIRONMENT, str(tmp_path / "mnist"))
    monkeypatch.setattr(data, "_from_openml", lambda *_: data.Splits("asked", None, None))
    assert data.fashion_mnist().train == "asked" and data.mnist().train[0].shape == (6, 1, 28, 28)
    monkeypatch.setenv(data.ENVIRONMENT, str(tmp_path / "fashion-mnist"))
    assert data.mnist().train == "asked" and data.fashion_mnist().train[0].shape == (6, 1, 28, 28)


def test_debians_folder_is_found(tmp_path, monkeypatch):
    """Fashion-MNIST needs no setting where the distribution's package is installed."""
    monkeypatch.setattr(data, "DEBIAN_FASHION", [tmp_path / "absent", write(tmp_path / "there", zipped=True)])
    assert data.fashion_mnist().test[0].shape == (4, 1, 28, 28)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: raw[:-1], r"expected 4,720 bytes.*found 4,719"),
        (lambda raw: raw + b"\0", r"expected 4,720 bytes.*found 4,721"),
        (lambda raw: raw[:3], "not an IDX file"),
        (lambda raw: b"", "not an IDX file"),
        (lambda raw: b"\0\0\x0d\x03" + raw[4:], "not an IDX file of bytes"),
        (lambda raw: gzip.compress(raw)[:-20], "cannot be read"),
        (lambda raw: raw[:4] + b"\xff\xff\xff\xff" * 3 + raw[16:], "expected"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, spoil, words):
    """Truncated, overlong, alien or absurd files give the file's name and what was expected."""
    path = write(tmp_path) / "train-images-idx3-ubyte"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=words) as caught:
        data.mnist(str(tmp_path))
    assert path.name in str(caught.value)


def test_missing_folder_and_missing_file_are_named(tmp_path):
    """A root that was given is never silently replaced by a download."""
    with pytest.raises(DataError, match=r"data\.kwargs\.root.*absent"):
        data.mnist(str(tmp_path / "absent"))
    (write(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\(\.gz\) is missing"):
        data.mnist(str(tmp_path))


def test_images_and_labels_must_belong_together(tmp_path):
    """Labels of another length would train a wrong network without a word."""
    (write(tmp_path) / "train-labels-idx1-ubyte").write_bytes(idx((5,)))
    with pytest.raises(DataError, match="do not belong together"):
        data.mnist(str(tmp_path))


def test_offline_says_what_to_do(monkeypatch, caplog):
    """Without files and without a network: progress was announced, one line names root and variable."""

    def offline(*_, **__):
        raise OSError("Name or service\nnot known")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", offline)
    with caplog.at_level(logging.WARNING), pytest.raises(DataError) as caught:
        data.mnist()
    message = str(caught.value)
    assert "data.kwargs.root" in message and data.ENVIRONMENT in message and "\n" not in message
    assert "OpenML" in caplog.text


def test_openml_is_reshaped_and_split_as_mnist_is(monkeypatch):
    """What fetch_openml returns (rows of 784 floats, labels as text) becomes the ordinary splits."""
    x = np.random.default_rng(0).integers(0, 256, (60_002, 784)).astype(np.uint8)
    y = np.array([str(i % 10) for i in range(len(x))])
    monkeypatch.setattr("sklearn.datasets.fetch_openml", lambda *_, **__: (x, y))
    splits = data.mnist()
    assert splits.train[0].shape == (60_000, 1, 28, 28) and splits.test[1].tolist() == [0, 1]
    np.testing.assert_array_equal((splits.test[0][1] * 255).round().flatten().numpy(), x[60_001])


@pytest.mark.parametrize("validation", [30, 0.3])
def test_validation_is_stratified_disjoint_and_repeatable(validation):
    """A count or a fraction leaves train; each class gives its share; one seed gives one split."""
    y = torch.arange(100) % 4
    y[:40] = 0
    splits = Splits((torch.arange(100.0)[:, None], y), None, (torch.zeros(1, 1), torch.zeros(1)))
    one, two = (split_validation(splits, validation, seed=5) for _ in range(2))
    ids = torch.cat([one.train[0], one.validation[0]]).flatten().sort().values
    assert torch.equal(ids, torch.arange(100.0)) and len(one.validation[1]) == 30
    share = torch.bincount(one.validation[1]) / torch.bincount(y)
    assert torch.allclose(share, torch.tensor(0.3), atol=0.08)
    assert torch.equal(one.validation[0], two.validation[0])
    other = split_validation(splits, validation, seed=6)
    assert not torch.equal(one.validation[0], other.validation[0])
    assert torch.equal(y[one.validation[0].flatten().long()], one.validation[1])


def test_validation_of_real_targets_and_of_datasets():
    """Targets that are no classes are split at random; a map-style dataset becomes two subsets."""
    pair = (torch.arange(10.0), torch.rand(10))
    split = split_validation(Splits(pair, None, pair), 3)
    assert len(split.train[0]) == 7 and len(split.validation[1]) == 3
    dataset = TensorDataset(torch.arange(10.0))
    split = split_validation(Splits(dataset, None, dataset), 0.2)
    assert sorted(float(part[i][0]) for part in (split.train, split.validation) for i in range(len(part))) == [
        float(i) for i in range(10)
    ]


@pytest.mark.parametrize("validation", [0, 10, 11, -1, 0.0, 1.0, 0.001])
def test_a_split_that_leaves_one_side_empty_is_refused(validation):
    """An empty validation split would make every choice by validation meaningless."""
    pair = (torch.zeros(10, 1), torch.zeros(10))
    with pytest.raises(DataError, match=r"data\.validation"):
        split_validation(Splits(pair, None, pair), validation)


def test_a_loader_cannot_be_split():
    """A DataLoader's order is its own affair: its factory must return a validation split."""
    loader = DataLoader(TensorDataset(torch.zeros(4)))
    with pytest.raises(DataError, match="validation split"):
        split_validation(Splits(loader, None, loader), 1)


def test_shift_moves_whole_images_and_fills_with_zeros():
    """Every image is one of its nine shifts by up to a pixel, each of them occurs, targets stay."""
    images, targets = torch.rand(300, 1, 5, 4) + 0.5, torch.arange(300)
    moved, same = data.shift(1)((images, targets), torch.Generator().manual_seed(0))
    assert torch.equal(same, targets) and moved.shape == images.shape
    seen = set()
    for before, after in zip(images, moved, strict=True):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                expected = torch.zeros_like(before)
                expected[:, max(-dy, 0) : 5 - max(dy, 0), max(-dx, 0) : 4 - max(dx, 0)] = before[
                    :, max(dy, 0) : 5 + min(dy, 0), max(dx, 0) : 4 + min(dx, 0)
                ]
                if torch.equal(after, expected):
                    seen.add((dy, dx))
                    break
            else:
                continue
            break
        else:
            raise AssertionError("not a shift of its original")
    assert len(seen) == 9


def test_shift_is_drawn_from_the_generator_and_moves_the_fraction():
    """A resumed run must draw the same shifts; `fraction` leaves the other samples as they are."""
    images = torch.rand(1000, 6, 6) + 0.5
    augment = data.shift(2, fraction=0.25)
    one, two = (augment((images,), torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(one, two)
    moved = (one != images).flatten(1).any(1).float().mean()
    assert 0.25 * 24 / 25 - 0.05 < float(moved) < 0.25 * 24 / 25 + 0.05
    assert torch.equal(data.shift(1, fraction=0.0)((images,), torch.Generator())[0], images)


def test_flip_turns_the_fraction_and_nothing_else():
    """Whole images, drawn from the generator; targets stay."""
    images, targets = torch.rand(400, 1, 3, 4), torch.arange(400)
    turned, same = data.flip(0.25)((images, targets), torch.Generator().manual_seed(0))
    moved = (turned != images).flatten(1).any(1)
    assert torch.equal(turned[moved], images[moved].flip(-1)) and torch.equal(same, targets)
    assert 0.15 < float(moved.float().mean()) < 0.35
    with pytest.raises(DataError, match="flip takes a fraction"):
        data.flip(2)


@pytest.mark.parametrize("wrong", [{"pixels": -1}, {"fraction": 1.5}, {"fraction": -0.1}])
def test_shift_refuses_impossible_settings(wrong):
    """A recipe's mistake is told when the recipe is read, not in the first batch."""
    with pytest.raises(DataError, match="shift"):
        data.shift(**wrong)
