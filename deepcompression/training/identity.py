"""What identifies data: a digest by which results may be used again, and how it came about."""

from __future__ import annotations

import hashlib
import inspect
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset

from deepcompression.data.splits import Columns, Splits
from deepcompression.errors import DataError, in_one_line
from deepcompression.training import randomness
from deepcompression.training.digest import Unknown, digest_of, feed_value

SECONDS = 30.0  # that reading one data set for its digest may take
AGAIN = 16  # samples that are read twice, to see whether they are the same ones
LOADER = ("batch_size", "drop_last", "num_workers", "sampler", "batch_sampler", "collate_fn", "worker_init_fn")


@dataclass(frozen=True)
class Identity:
    """What identifies data.

    ``digest``: SHA-256, hexadecimal; drawn by chance where the data could not be identified, so that nothing is ever
    equal to it. ``certain``: whether it was not. ``notes``: how, where it was not by bytes in memory or by a digest of
    the data set's own. ``doubts``: what a person must know.
    """

    digest: str
    certain: bool = True
    notes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


def identify(splits: Splits) -> Identity:
    """The digest of three splits, and how each came about.

    Of tensors and arrays their bytes; of a data set its own ``digest`` (attribute or method); else names, sizes and
    times of the files in its ``files`` or below its ``root``; else its samples, read once. A DataLoader counts with its
    data set, its sampler, its collate_fn and its batch size. What cannot be identified gets a digest by chance.

    Raises:
        DataError: a data set cannot be read.
    """
    found, unknown = _Found({}, []), dict[str, list[str]]()
    parts = []
    for name, split in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        try:
            parts.append(_split(split, name, found))
        except Unknown as reason:
            parts.append(secrets.token_hex(16))
            unknown.setdefault(str(reason), []).append(name)
    doubts = tuple(
        f"data: {', '.join(names)} cannot be identified ({reason}), so no result of this run will be used again; give "
        "the data set a `digest`: a text that says what is in it"
        for reason, names in unknown.items()
    )
    whole = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Identity(whole, not doubts, tuple(_sentences(found.read)), doubts)


@dataclass(frozen=True)
class _Read:
    """What was read of a split to identify it: so many ``files``, ``samples`` or ``batches``."""

    split: str
    what: str
    count: int
    seconds: float


@dataclass(frozen=True)
class _Found:
    """What is known so far: digests of data sets by id (splits may share one), and what was read."""

    digests: dict[int, str]
    read: list[_Read]


def _sentences(read: Sequence[_Read]) -> Iterator[str]:
    """A sentence for all splits that were identified in one way."""
    for what in dict.fromkeys(one.what for one in read):
        alike = [one for one in read if one.what == what]
        count, seconds = sum(one.count for one in alike), sum(one.seconds for one in alike)
        who = ", ".join(one.split for one in alike)
        if what == "files":
            yield (
                f"data: {who} identified by names, sizes and times of {count:,} files, and by what the data set holds"
            )
        else:
            yield (
                f"data: {who} identified by content: {count:,} {what} read in {seconds:.1f} s, at every start; a "
                "`digest` of the data set's own would save that"
            )


def _split(split: Any, name: str, found: _Found) -> str:
    if split is None:
        return "none"
    if isinstance(split, DataLoader):
        own = type(split).__iter__ is not DataLoader.__iter__  # batches of its own making
        streams = isinstance(split.dataset, IterableDataset) and split.num_workers  # which may be read in workers alone
        if own or (streams and not _told(split.dataset, name)):
            return _by_content(split, name, found)
        return f"{_split(split.dataset, name, found)} {_loader(split, name, found)}"
    if type(split) is Subset:  # what derives from it may change samples
        return f"{_split(split.dataset, name, found)} {digest_of(np.asarray(split.indices, np.int64))}"
    if type(split) is ConcatDataset:
        return f"[{' + '.join(_split(one, name, found) for one in split.datasets)}]"
    if id(split) not in found.digests:
        found.digests[id(split)] = _dataset(split, name, found)
    return found.digests[id(split)]


def _dataset(split: Any, name: str, found: _Found) -> str:
    if isinstance(split, tuple | list | dict):
        return digest_of(split)
    if isinstance(split, Columns):
        return digest_of([split.names, split.tensors])
    if type(split) is TensorDataset:
        return digest_of(split.tensors)
    if told := _told(split, name):
        return told
    if isinstance(told := _own(split, "_fingerprint"), str):  # Hugging Face's, of all that led to the rows
        return told
    files = _files(split)
    if not files:
        return _by_content(split, name, found)
    try:  # files alone do not tell what is made of them: labels, a choice, a transform
        digest = digest_of([split, _length(split), [_facts(path) for path in files]])
    except Unknown:
        return _by_content(split, name, found)
    found.read.append(_Read(name, "files", len(files), 0.0))
    return digest


def _own(data: Any, attribute: str) -> Any:
    """What a data set has itself; what its ``__getattr__`` takes from one that it wraps says nothing of the wrapper."""
    return getattr(data, attribute, None) if inspect.getattr_static(data, attribute, None) is not None else None


def _told(split: Any, name: str) -> str | None:
    """A data set's ``digest``, if it has one.

    Raises:
        DataError: it fails, or is nothing that says what is in the data.
    """
    with in_one_line(f"data: {name}: the `digest` of {type(split).__qualname__} fails", DataError):
        told = _own(split, "digest")
        told = told() if callable(told) else told
    if told is None or isinstance(told, str):
        return told
    if isinstance(told, bytes | int):
        return digest_of(told)
    got, whose = type(told).__qualname__, type(split).__qualname__
    raise DataError(f"data: {name}: the `digest` of {whose}: expected a text that says what is in the data, got {got}")


def _by_content(data: Any, name: str, found: _Found) -> str:
    """All samples, read once under one seed, so that random augmentation is the same at every start."""
    started, reading = time.perf_counter(), f"data: {name}: reading a sample of {type(data).__qualname__} fails"
    with in_one_line(reading, DataError), randomness.kept(_generators(data), data):
        if _some(data) != _some(data):
            raise Unknown(f"{type(data).__qualname__} gives other samples each time it is read")
        digest, count = _streamed(data, started)
    kind = "batches" if isinstance(data, DataLoader) else "samples"
    found.read.append(_Read(name, kind, count, time.perf_counter() - started))
    return digest


def _some(data: Any) -> str:
    """A few samples: the first of a stream, from all of the rest."""
    randomness.seed_everything(0)
    _reseed(data)
    digest = hashlib.sha256()
    for value in islice(_samples(data, AGAIN), AGAIN):
        feed_value(digest.update, value)
    return digest.hexdigest()


def _streamed(data: Any, started: float) -> tuple[str, int]:
    randomness.seed_everything(0)
    _reseed(data)
    digest, count, length = hashlib.sha256(), 0, _length(data)
    for value in _samples(data):
        feed_value(digest.update, value)
        count += 1
        spent = time.perf_counter() - started
        whole = spent * (length or count) / count
        if spent > SECONDS or (length and count >= AGAIN and spent > 1 and whole > 2 * SECONDS):
            many = f"its {length:,} samples" if length else "it"
            raise Unknown(f"reading {many} takes more than the {SECONDS:g} s that a digest may cost")
    return digest.hexdigest(), count


def _samples(data: Any, most: int | None = None) -> Iterator[Any]:
    """All samples; of what is read by index no more than ``most``, from its beginning to its end."""
    if isinstance(data, DataLoader | IterableDataset) or not hasattr(data, "__getitem__"):
        return iter(data)
    count = len(data)
    step = 1 if most is None or count <= most else (count - 1) / (most - 1)
    return (data[int(number * step)] for number in range(count if most is None else min(count, most)))


def _reseed(data: Any) -> None:
    for generator in _generators(data):
        generator.manual_seed(generator.initial_seed())


def _generators(data: Any) -> list[torch.Generator]:
    owners = [data, getattr(data, "sampler", None), getattr(getattr(data, "batch_sampler", None), "sampler", None)]
    found = [getattr(one, "generator", None) for one in owners]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


# ---------------------------------------------------------------- loaders


def _loader(loader: Any, name: str, found: _Found) -> str:
    """What makes batches of a data set; by content where some part of it cannot be described."""
    digest = hashlib.sha256()
    try:
        for part in LOADER:
            digest.update(part.encode())
            feed_value(digest.update, getattr(loader, part, None), loader.dataset)
        for generator in _generators(loader):
            feed_value(digest.update, generator)
    except Unknown:
        return _by_content(loader, name, found)
    return digest.hexdigest()


# ---------------------------------------------------------------- values


# ---------------------------------------------------------------- files


def _files(split: Any) -> list[Path]:
    """The files that a data set names, or all below its root, in order."""
    try:
        root, named = _own(split, "root"), _own(split, "files")
    except Exception:  # a property of the user's; reading samples will tell
        return []
    listed: Iterable[Path] = ()
    if isinstance(named, list | tuple) and all(isinstance(path, str | Path) for path in named):
        listed = [Path(path) for path in named]
    elif isinstance(root, str | Path) and str(root):
        listed = Path(root).rglob("*")
    started, found = time.perf_counter(), []
    for path in listed:
        if time.perf_counter() - started > SECONDS:
            raise Unknown(f"there are more files below {root} than can be listed in {SECONDS:g} s")
        found += [path] if path.is_file() else []
    return sorted(found)


def _facts(path: Path) -> list[Any]:
    facts = path.stat()
    return [str(path), facts.st_size, facts.st_mtime_ns]


def _length(split: Any) -> int | None:
    try:
        return len(split)
    except TypeError:
        return None
