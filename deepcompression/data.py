"""Data in memory: scikit-learn's digits, MNIST and Fashion-MNIST; splits, augmentation."""

from __future__ import annotations

import gzip
import logging
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from deepcompression.batch import described, parts, rebuilt
from deepcompression.errors import DataError, FactoryError, one_line
from deepcompression.splits import Columns, Stream, as_split, columns_of, like

log = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
ENVIRONMENT = "DEEPCOMPRESSION_DATA"
IDX = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
DEBIAN_FASHION = [Path("/usr/share/datasets/fashion-mnist")]
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Splits:
    """Train, validation and test data.

    Each is a pair of tensors (samples, targets) of equal length, a map-style dataset, a DataLoader, or another of the
    forms that ``splits.as_split`` names. ``validation`` may be None: then it is taken from ``train``
    (``split_validation``).
    """

    train: Any
    validation: Any
    test: Any


def as_splits(made: Any, name: str) -> Splits:
    """What a data factory returned, each split in the form that is read.

    Args:
        made: ``Splits``, a tuple or list (train, validation, test), or a dict with these keys (validation may lack).
        name: the factory's, for messages.

    Raises:
        FactoryError: it is something else.
        DataError: one of the splits is no split; the message names it.
    """
    if isinstance(made, tuple | list) and len(made) == 3:
        made = Splits(*made)
    if isinstance(made, Mapping) and {"train", "test"} <= set(made) <= {"train", "validation", "test"}:
        made = Splits(made["train"], made.get("validation"), made["test"])
    if not isinstance(made, Splits):
        many = f" of {len(made)}" if isinstance(made, tuple | list) else ""
        raise FactoryError(
            f"data.factory {name}: expected three splits (train, validation, test), each a pair of tensors, a dataset "
            f"or a DataLoader, got {type(made).__name__}{many}"
        )
    return replace(made, **{which: _read(getattr(made, which), f"data.factory {name}: {which}") for which in SPLITS})


def _read(split: Any, where: str) -> Any:
    """A split in the form that is read, ``where`` before what is wrong with it."""
    if split is None and not where.endswith("train"):
        return None
    try:
        return as_split(split)
    except DataError as error:
        raise DataError(f"{where}: {str(error).removeprefix('data: ')}") from None


def digits(test: int = 360) -> Splits:
    """scikit-learn's 1,797 handwritten digits: samples (n, 1, 8, 8) float32 in [0, 1], targets (n,) int64.

    Args:
        test: samples of the test split, stratified, the same at every call.

    Raises:
        DataError: no sample would be left for one of the splits.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    if not 0 < test < len(labels):
        raise DataError(f"data.kwargs.test: expected 1 to {len(labels) - 1} of the {len(labels)} digits, got {test}")
    x = torch.from_numpy(images.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    y = torch.from_numpy(labels.astype(np.int64))
    kept, held = _stratified(y, test, seed=0)
    return Splits((x[kept], y[kept]), None, (x[held], y[held]))


def mnist(root: str | None = None) -> Splits:
    """MNIST: samples (n, 1, 28, 28) float32 in [0, 1], targets (n,) int64; 60,000 to train, 10,000 to test.

    Args:
        root: folder of the four IDX files (raw or .gz), or of a folder ``mnist`` with them. Without it
            ``DEEPCOMPRESSION_DATA`` is looked at, and then OpenML asked.

    Raises:
        DataError: files missing, truncated or of another kind; OpenML out of reach.
    """
    return _idx_or_openml(root, "mnist", "mnist_784", [])


def fashion_mnist(root: str | None = None) -> Splits:
    """Fashion-MNIST, as ``mnist``; also found where Debian's ``dataset-fashion-mnist`` puts it."""
    return _idx_or_openml(root, "fashion-mnist", "Fashion-MNIST", DEBIAN_FASHION)


def split_validation(splits: Splits, validation: int | float, seed: int = 0) -> Splits:
    """``splits`` with validation data taken from the training data, the same at every call.

    Args:
        splits: with ``validation`` None.
        validation: how many samples (int), or which fraction (float below 1).
        seed: of the choice; stratified where the targets are integers.

    Raises:
        DataError: nothing would be left, or ``train`` is a DataLoader or a stream.
    """
    train = as_split(splits.train)
    if isinstance(train, DataLoader | Stream):
        kind = "DataLoaders" if isinstance(train, DataLoader) else "streams (IterableDataset)"
        raise DataError(f"data: a factory that returns {kind} must return its own validation split, got None")
    tensors = columns_of(train)
    total = len(tensors[0]) if tensors else len(train)
    count = round(validation * total) if isinstance(validation, float) else validation
    if not 0 < count < total:
        raise DataError(f"data.validation: {validation} of {total} training samples leaves nothing on one side")
    if tensors:
        kept, held = _stratified(_targets(train, tensors), count, seed)
        halves = [like(train, [part[chosen] for part in tensors]) for chosen in (kept, held)]
        return replace(splits, train=halves[0], validation=halves[1])
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    kept, held = order[count:].sort().values, order[:count].sort().values
    return replace(splits, train=Subset(train, kept.tolist()), validation=Subset(train, held.tolist()))


def _targets(split: Any, tensors: tuple[Tensor, ...]) -> Tensor:
    """What is stratified by: the second column; of named ones the first that may be classes."""
    if not isinstance(split, Columns):
        return tensors[min(1, len(tensors) - 1)]
    return next((one for one in tensors if one.ndim == 1 and not one.is_floating_point()), tensors[-1])


def shift(pixels: int = 1, fraction: float = 1.0) -> Callable[[Any, torch.Generator], Any]:
    """An augmentation: images move by up to ``pixels`` in each direction, zeros follow.

    Args:
        pixels: largest shift in each of the two directions.
        fraction: of the samples that move.

    Returns:
        (batch, generator) -> batch, for batches that hold images (n, ..., h, w): their first part with three
        dimensions or more.
    """
    if pixels < 0 or not 0 <= fraction <= 1:
        raise DataError(f"data.augment: shift takes pixels >= 0 and fraction in [0, 1], got {pixels}, {fraction}")

    def augment(batch: Any, generator: torch.Generator) -> Any:
        if isinstance(batch, Tensor):
            return shift_images(batch, pixels, fraction, generator)
        held = list(parts(batch) or [])
        place = next((at for at, one in enumerate(held) if isinstance(one, Tensor) and one.ndim > 2), None)
        if place is None:
            raise DataError(f"data.augment: shift found no images (n, ..., h, w) in a batch {described(batch)}")
        held[place] = shift_images(held[place], pixels, fraction, generator)
        return rebuilt(batch, held)

    return augment


def shift_images(images: Tensor, pixels: int, fraction: float, generator: torch.Generator) -> Tensor:
    """``images`` (n, ..., h, w), each moved by its own random offset; drawn on the generator's device."""
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
            f"data.kwargs.root {root}: no {IDX['train'][0]}(.gz) in it or in its folder {name}; "
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
    from sklearn.datasets import fetch_openml

    log.warning("%s: fetching from OpenML, some 15 MB, once (kept in ~/scikit_learn_data) ...", name)
    try:
        x, y = fetch_openml(openml, version=1, return_X_y=True, as_frame=False)
    except Exception as error:  # network, TLS, HTTP, parsing: to the user all the same
        reason = one_line(error)[:120]
        raise DataError(
            f"{name}: no local files and OpenML is out of reach ({type(error).__name__}: {reason}); "
            f"put the four IDX files into a folder and name it by data.kwargs.root or {ENVIRONMENT}"
        ) from None
    images = torch.from_numpy(np.ascontiguousarray(x, np.float32) / 255).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(np.asarray(y).astype(np.int64))
    return Splits((images[:60000], labels[:60000]), None, (images[60000:], labels[60000:]))


def _stratified(targets: Tensor, count: int, seed: int) -> Pair:
    """Indices (kept, held), ascending, ``count`` of them held; of classes the same part of each."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    if targets.ndim == 1 and not targets.is_floating_point():
        # A sample's rank in its class, as a fraction: the lowest ones form a stratified sample of any size.
        _, classes, counts = torch.unique(targets[order], return_inverse=True, return_counts=True)
        by_class = classes.argsort(stable=True)
        of = classes[by_class]
        rank = (torch.arange(len(order)) - (counts.cumsum(0) - counts)[of] + 0.5) / counts[of]
        order = order[by_class[rank.argsort(stable=True)]]
    return order[count:].sort().values, order[:count].sort().values
