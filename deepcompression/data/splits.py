"""What a split may be: columns in memory, samples by index, a stream of samples, or batches ready made."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from deepcompression.errors import DataError, FactoryError

Stream = IterableDataset
FORMS = (
    "a pair or a dict of tensors, arrays or lists of equal length, a map-style dataset, an IterableDataset or a "
    "DataLoader"
)
COLUMN = (Tensor, np.ndarray, list)


@dataclass(frozen=True)
class Columns:
    """Named tensors of equal length: a batch is a dict of their slices."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.tensors[0])


class Rows(Dataset[Any]):
    """Columns of which some are no tensors (texts, images of unlike sizes): a sample is one entry of each."""

    def __init__(self, columns: Sequence[Any], names: Sequence[str] | None = None) -> None:
        self.columns, self.names = columns, names

    def __len__(self) -> int:
        return len(self.columns[0])

    def __getitem__(self, index: int) -> Any:
        sample = tuple(column[index] for column in self.columns)
        return sample if self.names is None else dict(zip(self.names, sample, strict=True))


def as_split(split: Any) -> Any:
    """A split in one of the forms that are read: a tuple of tensors, ``Columns``, a dataset, or a DataLoader.

    Args:
        split: a pair or a dict of columns (tensors, numpy arrays, lists), whose batches are tuples or dicts; or a
            dataset (what has ``__getitem__`` and ``__len__``, or an IterableDataset) or DataLoader, returned as it is.
            A list is a list of samples, unless it can only be one of columns.

    Raises:
        DataError: it is something else, it has no sample, or its columns are of unequal lengths.
    """
    if isinstance(split, Mapping) and not all(isinstance(key, int) for key in split):
        return _columns([_of_pandas(part) for part in split.values()], [str(key) for key in split])
    if isinstance(split, tuple) and any(isinstance(_of_pandas(part), COLUMN) for part in split):
        return _columns([_of_pandas(part) for part in split], None)
    if isinstance(split, list) and _are_columns(split):
        return _columns(split, None)
    if isinstance(split, DataLoader | Stream | Columns):
        return split
    scalar = isinstance(split, Tensor | np.ndarray) and not split.ndim
    if scalar or not (hasattr(split, "__getitem__") and hasattr(split, "__len__")) or isinstance(split, str | bytes):
        missing = "; it has no __len__" if hasattr(split, "__getitem__") and hasattr(split, "__iter__") else ""
        raise DataError(f"data: expected {FORMS}, got {type(split).__name__}{missing}")
    if not len(split):
        raise DataError("data: a split has no samples")
    return split


def columns_of(split: Any) -> tuple[Tensor, ...]:
    """The tensors of a split in one of ``as_split``'s forms; none where its samples are read one by one."""
    return split.tensors if isinstance(split, Columns) else split if isinstance(split, tuple) else ()


def like(split: Any, tensors: Sequence[Tensor]) -> Any:
    """A split with other ``columns_of``."""
    return Columns(split.names, tuple(tensors)) if isinstance(split, Columns) else tuple(tensors)


def drawn(split: Any, count: int, seed: int = 0) -> Any:
    """A split with ``count`` samples of another, drawn from all of it: what is sorted by class gives some of each.

    Args:
        split: in one of ``as_split``'s forms.
        count: of samples; a split with no more, and one whose samples come in an order of its own (a DataLoader, a
            stream), is returned as it is.
        seed: of the choice.
    """
    split = as_split(split)
    tensors = columns_of(split)
    if isinstance(split, DataLoader | Stream) or (total := len(tensors[0] if tensors else split)) <= count:
        return split
    chosen = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:count]
    return like(split, [part[chosen] for part in tensors]) if tensors else Subset(split, chosen.tolist())


class Begun(IterableDataset[Any]):
    """The first samples of a stream."""

    def __init__(self, stream: Any, count: int) -> None:
        self.stream, self.count = stream, count

    def __iter__(self) -> Iterator[Any]:
        return islice(iter(self.stream), self.count)


def _are_columns(split: list[Any]) -> bool:
    """Whether a list holds columns: tensors, or up to three arrays or lists that no samples of one kind can be."""
    if split and all(isinstance(part, Tensor) for part in split):
        return True
    if not 2 <= len(split) <= 3 or not all(isinstance(part, COLUMN) for part in split):
        return False
    shapes = {np.shape(part) if isinstance(part, np.ndarray | Tensor) else len(part) for part in split}
    return len(shapes) > 1 if not any(isinstance(part, list) for part in split) else len(split[0]) > len(split)


def _of_pandas(part: Any) -> Any:
    """A frame or series as an array."""
    return part.to_numpy() if callable(getattr(part, "to_numpy", None)) else part


def _columns(given: Sequence[Any], names: Sequence[str] | None) -> Any:
    titles = names or [f"part {place}" for place in range(1, len(given) + 1)]
    for title, part in zip(titles, given, strict=True):
        if not isinstance(part, COLUMN) or (not isinstance(part, list) and not part.ndim):
            raise DataError(f"data: expected {FORMS}; of this one, {title} is {_shown(part)}")
    lengths = [len(part) for part in given]
    if len(set(lengths)) != 1:
        told = ", ".join(f"{title} {length}" for title, length in zip(titles, lengths, strict=True))
        raise DataError(f"data: the parts of a split have unequal lengths {lengths} ({told})")
    if not lengths[0]:
        raise DataError("data: a split has no samples")
    read = [_column(part) for part in given]
    tensors = tuple(part for part in read if isinstance(part, Tensor))
    if len(tensors) < len(read):
        return Rows(read, names)
    return tensors if names is None else Columns(tuple(names), tensors)


def _column(part: Any) -> Tensor | Sequence[Any]:
    """One tensor where entries are numbers of one shape; else the entries as they are."""
    if isinstance(part, Tensor):
        return part
    if isinstance(part, list):
        part = _stacked(part)
    if not isinstance(part, np.ndarray):
        return part  # type: ignore[no-any-return]
    if part.dtype.kind not in "biufc":
        return list(part)
    # One that must not be written to (a memory map) would crash the process under a step that writes to it.
    return torch.from_numpy(np.ascontiguousarray(part) if part.flags.writeable else part.copy())


def _stacked(entries: list[Any]) -> Any:
    """Tensors, arrays or numbers of one shape as one tensor or array; other entries as they are."""
    if all(isinstance(one, Tensor) for one in entries):
        kinds = {(one.shape, one.dtype) for one in entries}
        return torch.stack(entries) if len(kinds) == 1 else entries
    if all(type(one) in (int, float, bool) for one in entries):
        return torch.tensor(entries)
    if all(isinstance(one, np.ndarray | np.generic) for one in entries):
        return np.stack(entries) if len({np.shape(one) for one in entries}) == 1 else entries
    return entries


def _shown(part: Any) -> str:
    return "None" if part is None else f"a {type(part).__name__}"


SPLITS = ("train", "validation", "test")
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Splits:
    """Train, validation and test data.

    Each is a pair of tensors (samples, targets) of equal length, a map-style dataset, a DataLoader, or another of the
    forms that ``splits.as_split`` names. ``validation`` may be None: then it is taken from ``train``
    (``split_validation``). ``classes`` are the names of what the model's outputs stand for, where the data has any.
    """

    train: Any
    validation: Any
    test: Any
    classes: tuple[str, ...] | None = None


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
