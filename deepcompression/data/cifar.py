"""CIFAR-10 from its binary files, their archive, a folder of pictures, or OpenML."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepcompression.data.openml import fetched
from deepcompression.data.pictures import Pictures, images
from deepcompression.data.small_images import ENVIRONMENT
from deepcompression.data.splits import Pair, Splits
from deepcompression.errors import DataError, one_line

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST = ("test_batch.bin",)
RECORD = 1 + 3 * 32 * 32  # the class, then red, green and blue, row by row
INSIDE = ("", "cifar-10-batches-bin", "cifar10", "cifar-10", "cifar10/cifar-10-batches-bin")
ARCHIVE = "cifar-10-binary.tar.gz"


def cifar10(root: str | None = None) -> Splits:
    """CIFAR-10: samples (n, 3, 32, 32) float32 in [0, 1], targets (n,) int64; 50,000 to train, 10,000 to test.

    Args:
        root: folder of the six binary files, of their archive cifar-10-binary.tar.gz, or of ``train`` and ``test`` with
            a folder of pictures for each class. Without it ``DEEPCOMPRESSION_DATA`` is looked at, then OpenML asked.

    Raises:
        DataError: files missing, damaged or of another kind; OpenML out of reach.
    """
    place = root or os.environ.get(ENVIRONMENT)
    found = _found(Path(place)) if place else None
    if found is not None:
        return found
    if root:
        raise DataError(f"data.kwargs.root {Path(root).resolve()}: {_missing(Path(root))}")
    return _from_openml()


def _found(root: Path) -> Splits | None:
    for inner in (root / one for one in INSIDE):
        if (inner / TRAIN[0]).is_file():
            return _splits({name: _bytes(inner / name) for name in (*TRAIN, *TEST)}, inner)
        if (inner / ARCHIVE).is_file():
            return _splits(_unpacked(inner / ARCHIVE), inner / ARCHIVE)
        if (inner / "train" / CLASSES[0]).is_dir() and (inner / "test").is_dir():
            return _of_pictures(inner)
    return None


def _missing(root: Path) -> str:
    expected = f"expected {TRAIN[0]} to {TRAIN[-1]} and {TEST[0]}, {ARCHIVE}, or train and test with a folder a class"
    pickled = any((root / one / "data_batch_1").is_file() for one in (*INSIDE, "cifar-10-batches-py"))
    return f"its files are pickles, which could run code: fetch the binary version; {expected}" if pickled else expected


def _splits(files: dict[str, bytes], where: Path) -> Splits:
    train, test = (_pair([_records(files[name], where / name) for name in names]) for names in (TRAIN, TEST))
    return Splits(train, None, test, CLASSES)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; expected six binary files") from None


def _unpacked(path: Path) -> dict[str, bytes]:
    """The six files of the archive, in memory: nothing is written."""
    try:
        with tarfile.open(path) as archive:
            members = {Path(one.name).name: one for one in archive if one.isfile() and one.size < 1 << 26}
            return {name: archive.extractfile(members[name]).read() for name in (*TRAIN, *TEST)}  # type: ignore[union-attr]
    except KeyError as error:
        raise DataError(f"{path}: has no {error.args[0]}; expected the binary version of CIFAR-10") from None
    except (OSError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{path}: cannot be read ({one_line(error)}); fetch it again") from None


def _records(raw: bytes, where: Path) -> tuple[Tensor, Tensor]:
    if not raw or len(raw) % RECORD:
        raise DataError(f"{where}: expected records of {RECORD:,} bytes, found {len(raw):,} bytes; fetch it again")
    table = np.frombuffer(raw, np.uint8).reshape(-1, RECORD)
    if table[:, 0].max() > 9:
        raise DataError(f"{where}: a class {table[:, 0].max()}; expected 0 to 9")
    return torch.from_numpy(table[:, 1:].reshape(-1, 3, 32, 32).copy()), torch.from_numpy(table[:, 0].astype(np.int64))


def _pair(several: list[tuple[Tensor, Tensor]]) -> Pair:
    pixels, labels = (torch.cat(parts) for parts in zip(*several, strict=True))
    return pixels.float() / 255, labels


def _of_pictures(folder: Path) -> Splits:
    splits = images(str(folder), classes=CLASSES)
    return Splits(_stacked(splits.train), None, _stacked(splits.test), CLASSES)


def _stacked(pictures: Pictures) -> Pair:
    samples = pictures.__getitems__(range(len(pictures)))
    shapes = {sample.shape for sample, _ in samples}
    if shapes != {torch.Size((3, 32, 32))}:
        raise DataError(f"{pictures.entries[0].path.parents[2]}: expected pictures of 32 x 32, got {len(shapes)} sizes")
    return torch.stack([sample for sample, _ in samples]), torch.tensor([label for _, label in samples])


def _from_openml() -> Splits:
    instead = f"put its binary files into a folder and name it by data.kwargs.root or {ENVIRONMENT}"
    pixels, labels = fetched("CIFAR_10", "cifar10", (3, 32, 32), "600 MB", instead)
    return Splits((pixels[:50_000], labels[:50_000]), None, (pixels[50_000:], labels[50_000:]), CLASSES)
