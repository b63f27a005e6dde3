"""Data in memory: scikit-learn's digits, MNIST and Fashion-MNIST; splits, augmentation."""

from __future__ import annotations

import gzip
import importlib.util
import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcompression.data.batch import described, parts, rebuilt
from deepcompression.data.openml import fetched
from deepcompression.data.splits import Pair, Splits, _stratified
from deepcompression.errors import DataError

ENVIRONMENT = "DEEPCOMPRESSION_DATA"
IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
DEBIAN_FASHION = [Path("/usr/share/datasets/fashion-mnist")]


def digits(test: int = 360) -> Splits:
    """scikit-learn's 1,797 handwritten digits: samples (n, 1, 8, 8) float32 in [0, 1], targets (n,) int64.

    Args:
        test: samples of the test split, stratified, the same at every call.

    Raises:
        DataError: no sample would be left for one of the splits.
    """
    table = _digits()
    images, labels = table[:, :-1], table[:, -1]
    if not 0 < test < len(labels):
        raise DataError(f"data.kwargs.test: expected 1 to {len(labels) - 1} of the {len(labels)} digits, got {test}")
    x = torch.from_numpy(images.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    y = torch.from_numpy(labels.astype(np.int64))
    kept, held = _stratified(y, test, seed=0)
    return Splits((x[kept], y[kept]), None, (x[held], y[held]), DIGITS)


def _digits() -> np.ndarray[Any, np.dtype[np.float64]]:
    """The file that scikit-learn brings: a row a digit, 64 pixels from 0 to 16, then the label.

    Importing scikit-learn to read it takes longer than reading torch and training on it.
    """
    found = importlib.util.find_spec("sklearn")
    for folder in (found and found.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.column_stack([images, labels])


def mnist(root: str | None = None) -> Splits:
    """MNIST: samples (n, 1, 28, 28) float32 in [0, 1], targets (n,) int64; 60,000 to train, 10,000 to test.

    Args:
        root: folder of the four IDX files (raw or .gz), or of a folder ``mnist`` with them. Without it
            ``DEEPCOMPRESSION_DATA`` is looked at, and then OpenML asked.

    Raises:
        DataError: files missing, truncated or of another kind; OpenML out of reach.
    """
    return replace(_idx_or_openml(root, "mnist", "mnist_784", []), classes=DIGITS)


def fashion_mnist(root: str | None = None) -> Splits:
    """Fashion-MNIST, as ``mnist``; also found where Debian's ``dataset-fashion-mnist`` puts it."""
    return replace(_idx_or_openml(root, "fashion-mnist", "Fashion-MNIST", DEBIAN_FASHION), classes=CLOTHES)


def shift(pixels: int = 1, fraction: float = 1.0) -> Callable[[Any, torch.Generator], Any]:
    """An augmentation: images move by up to ``pixels`` in each direction, zeros follow.

    Args:
        pixels: largest shift in each of the two directions.
        fraction: of the samples that move.

    Returns:
        (batch, generator) -> batch, for batches that hold images (n, ..., h, w): their first part with three
        dimensions or more.

    Raises:
        DataError: one of the two is impossible.
    """
    if pixels < 0 or not 0 <= fraction <= 1:
        raise DataError(f"data.augment: shift takes pixels >= 0 and fraction in [0, 1], got {pixels}, {fraction}")

    return _of_images("shift", lambda images, generator: shift_images(images, pixels, fraction, generator))


def flip(fraction: float = 0.5) -> Callable[[Any, torch.Generator], Any]:
    """An augmentation: left and right of an image change places.

    Args:
        fraction: of the samples that are turned.

    Returns:
        (batch, generator) -> batch, as of ``shift``.

    Raises:
        DataError: an impossible fraction.
    """
    if not 0 <= fraction <= 1:
        raise DataError(f"data.augment: flip takes a fraction in [0, 1], got {fraction}")

    def turned(images: Tensor, generator: torch.Generator) -> Tensor:
        chosen = torch.rand(len(images), generator=generator, device=generator.device) < fraction
        chosen = chosen.to(images.device).reshape(-1, *[1] * (images.ndim - 1))
        return torch.where(chosen, images.flip(-1), images)

    return _of_images("flip", turned)


def _of_images(name: str, change: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[[Any, torch.Generator], Any]:
    """An augmentation of a batch's first part with three dimensions or more."""

    def augment(batch: Any, generator: torch.Generator) -> Any:
        if isinstance(batch, Tensor):
            return change(batch, generator)
        held = list(parts(batch) or [])
        place = next((at for at, one in enumerate(held) if isinstance(one, Tensor) and one.ndim > 2), None)
        if place is None:
            raise DataError(f"data.augment: {name} found no images (n, ..., h, w) in a batch {described(batch)}")
        held[place] = change(held[place], generator)
        return rebuilt(batch, held)

    return augment


def shift_images(images: Tensor, pixels: int, fraction: float, generator: torch.Generator) -> Tensor:
    """``images`` (n, ..., h, w), each moved by its own random offset; drawn on the generator's device.

    Args:
        images: (n, ..., h, w).
        pixels: at most so many, down and across; zeros come in.
        fraction: probability that an image moves.
        generator: of the offsets.
    """
    n, height, width = images.shape[0], images.shape[-2], images.shape[-1]
    device = generator.device
    offsets = torch.randint(-pixels, pixels + 1, (n, 2), generator=generator, device=device)
    moved = torch.rand(n, 1, generator=generator, device=device) < fraction
    offsets = (offsets * moved).to(images.device)
    padded = torch.nn.functional.pad(images.reshape(n, -1, height, width), (pixels,) * 4)
    # Offsets are few: one slice for each, of which the samples take theirs, is faster than gathering pixels.
    shifted = images.reshape(n, -1, height, width).clone()
    for dy in range(-pixels, pixels + 1):
        for dx in range(-pixels, pixels + 1):
            rows = ((offsets[:, 0] == dy) & (offsets[:, 1] == dx)).nonzero().squeeze(1)
            top, left = pixels + dy, pixels + dx
            shifted[rows] = padded[rows, :, top : top + height, left : left + width]
    return shifted.reshape(images.shape)


def read_idx(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An IDX file of uint8 (LeCun's format), raw or gzipped, as an array of its own shape.

    Raises:
        DataError: unreadable, no IDX file of bytes, shorter or longer than its header says.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); the file may be truncated, fetch it again") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path}: not an IDX file of bytes (it begins with {raw[:4].hex(' ') or 'nothing'})")
    shape = tuple(int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3]))
    expected = 4 + 4 * raw[3] + int(np.prod(shape, dtype=object))
    if len(raw) != expected:
        raise DataError(f"{path}: expected {expected:,} bytes for shape {shape}, found {len(raw):,}; fetch it again")
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _idx_or_openml(root: str | None, name: str, openml: str, elsewhere: list[Path]) -> Splits:
    folder = _find_folder(root, name, elsewhere)
    if folder is None:
        return _from_openml(openml, name)
    return Splits(_pair(folder, *IDX["train"]), None, _pair(folder, *IDX["test"]))


def _find_folder(root: str | None, name: str, elsewhere: list[Path]) -> Path | None:
    if root:
        places = [Path(root) / name, Path(root)]
    else:
        shared = os.environ.get(ENVIRONMENT)
        places = [*([Path(shared) / name, *_of_its_own(Path(shared), name)] if shared else []), *elsewhere]
    found = next((place for place in places if _idx_path(place, IDX["train"][0])), None)
    if root and found is None:
        raise DataError(
            f"data.kwargs.root {Path(root).resolve()}: no {IDX['train'][0]}(.gz) in it or in its folder {name}; "
            "expected the four IDX files"
        )
    return found


def _of_its_own(folder: Path, name: str) -> list[Path]:
    """The folder itself, unless its name says that its files, named alike, are another data set's."""
    other = "fashion" in folder.resolve().name.lower()
    return [folder] if other == name.startswith("fashion") else []


def _idx_path(folder: Path, name: str) -> Path | None:
    names = (name, f"{name}.gz", name.replace("-idx", ".idx"), name.replace("-idx", ".idx") + ".gz")
    return next((folder / one for one in names if (folder / one).is_file()), None)


def _pair(folder: Path, images: str, labels: str) -> Pair:
    arrays = []
    for name in (images, labels):
        path = _idx_path(folder, name)
        if path is None:
            raise DataError(f"{folder}: {name}(.gz) is missing; expected the four IDX files")
        arrays.append(read_idx(path))
    x, y = arrays
    if len(x) != len(y) or x.ndim != 3 or y.ndim != 1:
        raise DataError(f"{folder}: images {x.shape} and labels {y.shape} do not belong together")
    return torch.from_numpy(x.astype(np.float32) / 255).unsqueeze(1), torch.from_numpy(y.astype(np.int64))


def _from_openml(openml: str, name: str) -> Splits:
    instead = f"put the four IDX files into a folder and name it by data.kwargs.root or {ENVIRONMENT}"
    images, labels = fetched(openml, name, (1, 28, 28), "15 MB", instead)
    return Splits((images[:60000], labels[:60000]), None, (images[60000:], labels[60000:]))
