"""A folder of pictures by class, or a table of paths and labels, read picture by picture."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepcompression.data.contents import digest_of_files
from deepcompression.data.splits import Splits, _stratified
from deepcompression.errors import DataError, one_line
from deepcompression.models.hub import preparation_of
from deepcompression.models.hub_common import DEFAULT, Preparation

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"))
FOLDERS = {"train": ("train",), "validation": ("val", "valid", "validation"), "test": ("test",)}
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Entry:
    """A picture's file and the number of its class."""

    path: Path
    label: int


class Pictures(Dataset[tuple[Tensor, int]]):
    """Pictures (channels, h, w) float32, each with the number of its class (int).

    Several at once are decoded in ``workers`` threads: Pillow lets go of Python's lock while it works. The digest is of
    the files' contents; each is read for it once (``contents``).
    """

    def __init__(self, entries: Sequence[Entry], prepare: Preparation, channels: int, workers: int) -> None:
        self.entries, self.prepare, self.channels, self.workers = tuple(entries), prepare, channels, workers

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        entry = self.entries[index]
        return prepared(entry.path, self.prepare, self.channels), entry.label

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Several samples, which a DataLoader asks for at once."""
        if self.workers < 2 or len(indices) < 2:
            return [self[index] for index in indices]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self.__getitem__, indices))

    @cached_property
    def digest(self) -> str:
        """What is in the pictures, what they are called, and how they are prepared."""
        content = digest_of_files([one.path for one in self.entries], _check)
        labels = [one.label for one in self.entries]
        return f"{content} {labels} {self.prepare} {self.channels}"


def images(
    folder: str,
    table: str | None = None,
    classes: str | Sequence[str] | None = None,
    like: str | Mapping[str, Any] | None = None,
    resize: int | Sequence[int] | None = None,
    crop: int | Sequence[int] | None = None,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    interpolation: str | None = None,
    channels: int = 3,
    test: int | float = 0.2,
    workers: int = 1,
    seed: int = 0,
) -> Splits:
    """Pictures by class: samples (channels, h, w) float32, targets int64.

    Without a table: ``folder/CLASS/...``, or ``folder/train/CLASS/...``, ``folder/val/...``, ``folder/test/...``.
    Classes are numbered in the order of their names.

    Args:
        folder: where the pictures are; paths of a table begin there.
        table: a CSV file with the columns ``path`` and ``label``, and, where it says which split, ``split`` (train,
            validation, test). Labels that are all numbers are the classes' numbers.
        classes: all names, in the order of the model's outputs, or a file with a name in each line.
        like: a model of a hub, ``torchvision:resnet50``, whose published weights' preparation is taken; or a mapping
            with ``model``, and where wanted ``weights`` (which of them) and the model's arguments.
        resize: pixels of the shorter side, or (height, width); before the crop.
        crop: pixels that are cut out of the middle, or (height, width).
        mean: of each channel, of values in [0, 1]; it is subtracted.
        std: of each channel; it divides.
        interpolation: nearest, bilinear, bicubic, box, hamming or lanczos.
        channels: 3, or 1 for grey.
        test: pictures of the test split, a count or a fraction of each class, where nothing else says which they are.
        workers: threads that decode.
        seed: of that choice.

    Raises:
        DataError: no pictures, a class that is not among ``classes``, a table without its columns, an impossible value.
    """
    root = _folder(folder)
    entries, named = _of_table(root, table) if table else _of_folders(root)
    names = _names(classes, entries, numbers=bool(table))
    parts = {which: _numbered(some, names) for which, some in entries.items()}
    if named:
        _parted(parts, test, seed)
    prepare = _preparation(like, resize, crop, mean, std, interpolation)
    if channels not in MODES or workers < 1:
        raise DataError(f"data.kwargs: expected channels of 1 or 3 and workers of 1 or more, got {channels}, {workers}")
    splits = {which: Pictures(some, prepare, channels, workers) if some else None for which, some in parts.items()}
    if not splits["train"]:
        raise DataError(f"data.kwargs.folder {Path(folder).resolve()}: no pictures to train with")
    return Splits(splits["train"], splits["validation"], splits["test"], names)


# ---------------------------------------------------------------- which pictures

Named = dict[str, list[tuple[Path, str]]]  # by split: files and names of classes


def _folder(folder: str) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise DataError(
            f"data.kwargs.folder {root.resolve()}: no such folder; expected one with a folder for each class"
        )
    return root


def _of_folders(root: Path) -> tuple[Named, bool]:
    """All pictures, and whether the test split is still to be taken from them."""
    found = {
        which: next((root / name for name in names if (root / name).is_dir()), None) for which, names in FOLDERS.items()
    }
    if found["train"] is None:
        return {"train": _by_class(root), "validation": [], "test": []}, True
    parts = {which: _by_class(folder) if folder else [] for which, folder in found.items()}
    return parts, not parts["test"]


def _by_class(folder: Path) -> list[tuple[Path, str]]:
    inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = [(path, one.name) for one in inner for path in sorted(one.rglob("*")) if path.suffix.lower() in SUFFIXES]
    if not found:
        loose = any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
        hint = "; its pictures are in no folder of a class: name them in a table: path,label" if loose else ""
        raise DataError(f"data.kwargs.folder {folder.resolve()}: no folder of a class with pictures in it{hint}")
    return found


def _of_table(root: Path, table: str) -> tuple[Named, bool]:
    path = Path(table) if Path(table).exists() else root / table
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data.kwargs.table {table}: cannot be read: {one_line(error)}") from None
    if not {"path", "label"} <= set(columns):
        raise DataError(f"data.kwargs.table {table}: expected the columns path and label, got {', '.join(columns)}")
    parts: Named = {"train": [], "validation": [], "test": []}
    words = {word: which for which, names in FOLDERS.items() for word in names}
    for number, row in enumerate(rows, 2):
        which = words.get(row.get("split") or "train")
        if which is None or not row["path"] or not row["label"]:
            raise DataError(
                f"data.kwargs.table {table}, line {number}: expected a path, a label and, where there is a column "
                f"split, train, validation or test, got {', '.join(str(value) for value in row.values())}"
            )
        parts[which].append((root / row["path"], row["label"]))
    return parts, "split" not in columns


def _names(classes: str | Sequence[str] | None, entries: Named, *, numbers: bool) -> tuple[str, ...] | None:
    """The classes' names by number; None where labels are numbers themselves."""
    if isinstance(classes, str):
        try:
            text = Path(classes).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"data.kwargs.classes {classes}: cannot be read: {one_line(error)}") from None
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    if classes is not None:
        return tuple(map(str, classes))
    found = {label for some in entries.values() for _, label in some}
    return None if numbers and all(one.isdecimal() for one in found) else tuple(sorted(found))


def _numbered(some: Sequence[tuple[Path, str]], names: tuple[str, ...] | None) -> list[Entry]:
    if names is None:
        return [Entry(path, int(label)) for path, label in some]
    number = {name: place for place, name in enumerate(names)}
    for path, label in some:
        if label not in number and not label.isdecimal():
            raise DataError(f"data: {path}: its class {label!r} is not among the {len(names)} of data.kwargs.classes")
    return [Entry(path, number[label] if label in number else int(label)) for path, label in some]


def _parted(parts: dict[str, list[Entry]], test: int | float, seed: int) -> None:
    """Takes the test split from the training pictures, of each class its part."""
    whole = parts["train"]
    count = round(test * len(whole)) if isinstance(test, float) else test
    if not 0 < count < len(whole):
        raise DataError(f"data.kwargs.test: {test} of {len(whole)} pictures leaves nothing on one side")
    kept, held = _stratified(torch.tensor([one.label for one in whole]), count, seed)
    parts["train"], parts["test"] = [whole[one] for one in kept.tolist()], [whole[one] for one in held.tolist()]


# ---------------------------------------------------------------- how they are read


def _preparation(
    like: str | Mapping[str, Any] | None,
    resize: int | Sequence[int] | None,
    crop: int | Sequence[int] | None,
    mean: Sequence[float] | float | None,
    std: Sequence[float] | float | None,
    interpolation: str | None,
) -> Preparation:
    """As a model of a hub has it, but for what is named."""
    asked = {"model": like} if isinstance(like, str) else dict(like or {})
    base = Preparation()
    if asked:
        model, which = str(asked.pop("model", "")), str(asked.pop("weights", DEFAULT))
        base = preparation_of(model, asked, which)
    made = Preparation(
        base.resize if resize is None else resize if isinstance(resize, int) else (resize[0], resize[1]),
        base.crop if crop is None else (crop, crop) if isinstance(crop, int) else (crop[0], crop[1]),
        base.mean if mean is None else _each(mean),
        base.std if std is None else _each(std),
        interpolation or base.interpolation,
    )
    if made.interpolation not in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos") or not all(made.std):
        raise DataError(
            "data.kwargs: expected interpolation of nearest, bilinear, bicubic, box, hamming, lanczos and no std of 0, "
            f"got {made.interpolation}, {made.std}"
        )
    return made


def _each(value: Sequence[float] | float) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, int | float) else tuple(map(float, value))


def prepared(path: Path, how: Preparation, channels: int) -> Tensor:
    """A picture (channels, h, w) float32, resized, cut and normalised, to the bit as torchvision does it with Pillow.

    Args:
        path: of a file that Pillow reads.
        how: what is done.
        channels: 1 or 3.

    Raises:
        DataError: it is no picture, or damaged.
    """
    picture = _opened(path, lambda image: _shaped(image.convert(MODES[channels]), how))
    pixels = torch.from_numpy(np.array(picture, np.uint8)).reshape(picture.height, picture.width, channels)
    values = pixels.permute(2, 0, 1).contiguous().float() / 255
    return (values - torch.tensor(how.mean)[:, None, None]) / torch.tensor(how.std)[:, None, None]


def _check(path: Path) -> None:
    _opened(path, lambda image: image.size)


def _opened(path: Path, use: Callable[[Any], Any]) -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise DataError("data: pictures are read with Pillow: pip install 'deep-compression[data]'") from None
    try:
        with Image.open(path) as image:
            return use(image)
    except Exception as error:  # Pillow throws many kinds for a damaged file
        reason = one_line(error).replace(str(path), "").strip(" '\"")
        raise DataError(
            f"data: {path}: no picture that Pillow reads ({type(error).__name__}: {reason[:120]})"
        ) from None


def _shaped(image: Any, how: Preparation) -> Any:
    from PIL import Image

    if how.resize is not None:
        width, height = image.size
        size = _resized(width, height, how.resize)
        image = image if size == (width, height) else image.resize(size, Image.Resampling[how.interpolation.upper()])
    return image if how.crop is None else _cut(image, *how.crop)


def _resized(width: int, height: int, resize: int | tuple[int, int]) -> tuple[int, int]:
    """(width, height) after it."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    short, long = min(width, height), max(width, height)
    longer = int(resize * long / short)
    return (resize, longer) if width <= height else (longer, resize)


def _cut(image: Any, height: int, width: int) -> Any:
    """The middle; what is missing is black."""
    left, top = _before(image.width - width), _before(image.height - height)
    return image.crop((left, top, left + width, top + height))


def _before(more: int) -> int:
    """Pixels that are cut off before the middle; below 0, that are added there."""
    return round(more / 2.0) if more >= 0 else -(-more // 2)
