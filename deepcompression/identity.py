"""What identifies data: a digest by which results may be used again, and how it came about."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from deepcompression import randomness
from deepcompression.data import Splits
from deepcompression.errors import DataError
from deepcompression.splits import Columns

SECONDS = 30.0  # that reading one data set for its digest may take
AGAIN = 16  # samples that are read twice, to see whether they are the same ones
DEEPEST = 20  # containers in containers in a sample
LOADER = ("batch_size", "drop_last", "num_workers", "sampler", "batch_sampler", "collate_fn", "worker_init_fn")
PLAIN = (str, int, float, complex, bool, type(None), np.generic, torch.dtype, torch.device, torch.Size, slice, range)


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


Feed = Callable[[Any], None]  # takes bytes, or what has them


class _Unknown(Exception):
    """Something has no content that could be digested; its message says what."""


def identify(splits: Splits) -> Identity:
    """The digest of three splits, and how each came about.

    Of tensors and arrays their bytes; of a data set its own ``digest`` (attribute or method); else names, sizes and
    times of the files in its ``files`` or below its ``root``; else its samples, read once. A DataLoader counts with its
    data set, its sampler, its collate_fn and its batch size. What cannot be identified gets a digest by chance.

    Raises:
        DataError: a data set cannot be read.
    """
    found = _Found({}, [], [])
    parts = []
    for name, split in (("train", splits.train), ("validation", splits.validation), ("test", splits.test)):
        try:
            parts.append(_split(split, name, found))
        except _Unknown as reason:
            parts.append(secrets.token_hex(16))
            found.doubts.append(
                f"data: the {name} split cannot be identified ({reason}), so no result of this run will be used again; "
                "give the data set a `digest`: a text that says what is in it"
            )
    whole = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Identity(whole, not found.doubts, tuple(found.notes), tuple(found.doubts))


@dataclass(frozen=True)
class _Found:
    """What is known so far: digests of data sets by id (splits may share one), sentences for people."""

    digests: dict[int, str]
    notes: list[str]
    doubts: list[str]


def _split(split: Any, name: str, found: _Found) -> str:
    if split is None:
        return "none"
    if isinstance(split, DataLoader):
        return f"{_split(split.dataset, name, found)} {_loader(split, name, found)}"
    if isinstance(split, Subset):
        return f"{_split(split.dataset, name, found)} {_of(np.asarray(split.indices, np.int64))}"
    if id(split) not in found.digests:
        found.digests[id(split)] = _dataset(split, name, found)
    return found.digests[id(split)]


def _dataset(split: Any, name: str, found: _Found) -> str:
    if isinstance(split, tuple | list | dict):
        return _of(split)
    if isinstance(split, Columns):
        return _of([split.names, split.tensors])
    if type(split) is TensorDataset:
        return _of(split.tensors)
    told = getattr(split, "digest", None)
    if told is not None:
        return str(told() if callable(told) else told)
    if isinstance(told := getattr(split, "_fingerprint", None), str):  # Hugging Face's, of all that led to the rows
        return told
    if files := _files(split):
        found.notes.append(f"data: {name} is identified by names, sizes and times of {len(files):,} files")
        return _of([type(split).__qualname__, _length(split), [_facts(path) for path in files]])
    return _by_content(split, name, found)


def _by_content(data: Any, name: str, found: _Found) -> str:
    """All samples, read once under one seed, so that random augmentation is the same at every start."""
    started = time.perf_counter()
    try:
        with randomness.kept(_generators(data), data):
            if _beginning(data) != _beginning(data):
                raise _Unknown(f"{type(data).__qualname__} gives other samples each time it is read")
            digest, count = _streamed(data, started)
    except (_Unknown, DataError):
        raise
    except Exception as error:  # code of the user's
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise DataError(f"data: {name}: reading a sample of {type(data).__qualname__} fails: {told}") from error
    seconds, read = time.perf_counter() - started, "batches" if isinstance(data, DataLoader) else "samples"
    found.notes.append(
        f"data: {name} is identified by content: {count:,} {read} read in {seconds:.1f} s, at every start; a "
        "`digest` of the data set's own would save that"
    )
    return digest


def _beginning(data: Any) -> str:
    randomness.seed_everything(0)
    _reseed(data)
    digest = hashlib.sha256()
    for value in islice(_samples(data), AGAIN):
        _feed(digest.update, value)
    return digest.hexdigest()


def _streamed(data: Any, started: float) -> tuple[str, int]:
    randomness.seed_everything(0)
    _reseed(data)
    digest, count, length = hashlib.sha256(), 0, _length(data)
    for value in _samples(data):
        _feed(digest.update, value)
        count += 1
        spent = time.perf_counter() - started
        whole = spent * (length or count) / count
        if spent > SECONDS or (length and count >= AGAIN and spent > 1 and whole > 2 * SECONDS):
            many = f"its {length:,} samples" if length else "it"
            raise _Unknown(f"reading {many} takes more than the {SECONDS:g} s that a digest may cost")
    return digest.hexdigest(), count


def _samples(data: Any) -> Iterator[Any]:
    if isinstance(data, DataLoader | IterableDataset) or not hasattr(data, "__getitem__"):
        return iter(data)
    return (data[index] for index in range(len(data)))


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
            _describe(digest.update, getattr(loader, part, None), loader.dataset)
        for generator in _generators(loader):
            digest.update(str(generator.initial_seed()).encode())
    except _Unknown:
        return _by_content(loader, name, found)
    return digest.hexdigest()


def _describe(feed: Feed, value: Any, dataset: Any, depth: int = 0) -> None:
    """What draws or joins samples: its class and what it holds, but for the data set; functions by their code."""
    if value is dataset or isinstance(value, torch.Generator):
        return
    if depth > DEEPEST:
        raise _Unknown("an object that holds itself")
    if isinstance(value, partial):
        value = ["partial", value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        value = ["method", value.__func__, value.__self__]
    if isinstance(value, type):
        feed(f"{value.__module__}.{value.__qualname__}".encode())
    elif isinstance(value, FunctionType):
        feed(f"{value.__module__}.{value.__qualname__}".encode())
        _code(feed, value.__code__)
        inner = [[cell.cell_contents for cell in value.__closure__ or ()], value.__defaults__, value.__kwdefaults__]
        _describe(feed, inner, dataset, depth + 1)
    elif isinstance(value, list | tuple):
        feed(f"{type(value).__qualname__} {len(value)}".encode())
        for one in value:
            _describe(feed, one, dataset, depth + 1)
    elif isinstance(value, Mapping):
        _describe(feed, [list(value), list(value.values())], dataset, depth + 1)
    elif hasattr(value, "__dict__") and not isinstance(value, Tensor | np.ndarray):
        feed(f"{type(value).__module__}.{type(value).__qualname__}".encode())
        _describe(feed, vars(value), dataset, depth + 1)
    else:
        _feed(feed, value)


def _code(feed: Feed, code: CodeType) -> None:
    feed(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _code(feed, constant)
        else:
            feed(repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant).encode())


# ---------------------------------------------------------------- values


def _of(value: Any) -> str:
    digest = hashlib.sha256()
    _feed(digest.update, value)
    return digest.hexdigest()


def _feed(feed: Feed, value: Any, depth: int = 0) -> None:
    """A value's type and content, unambiguously, to a digest; _Unknown where an object does not show what it holds."""
    if depth > DEEPEST:
        raise _Unknown(f"containers are more than {DEEPEST} deep")
    kind = type(value).__qualname__
    if isinstance(value, Tensor):
        _feed_tensor(feed, value)
    elif isinstance(value, np.ndarray) and value.dtype != object:
        feed(f"array {value.dtype} {value.shape}\n".encode())
        feed(np.ascontiguousarray(value).reshape(-1).view(np.uint8))
    elif isinstance(value, PLAIN):
        feed(f"{kind} {value!r}\n".encode())
    elif isinstance(value, bytes | bytearray):
        feed(f"{kind} {len(value)}\n".encode() + bytes(value))
    elif isinstance(value, Mapping):
        feed(f"{kind} {len(value)}\n".encode())
        for key, one in value.items():
            _feed(feed, key, depth + 1)
            _feed(feed, one, depth + 1)
    elif isinstance(value, tuple | list | np.ndarray):
        feed(f"{kind} {len(value)}\n".encode())
        for one in value:
            _feed(feed, one, depth + 1)
    elif isinstance(value, Path):
        feed(f"path {value}\n".encode())
    else:
        feed(f"{kind}\n".encode())
        _feed(feed, _content(value), depth + 1)


def _content(value: Any) -> Any:
    """What an object of another class holds."""
    if is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in fields(value)]
    if all(hasattr(value, name) for name in ("tobytes", "mode", "size")):  # an image of Pillow's
        return [value.mode, value.size, value.tobytes()]
    if vars_ := getattr(value, "__dict__", None):
        return dict(vars_)
    raise _Unknown(f"samples hold a {type(value).__qualname__}, whose content cannot be seen")


def _feed_tensor(feed: Feed, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_quantized:
        raise _Unknown(f"samples hold a tensor of layout {value.layout}")
    feed(f"{value.dtype} {tuple(value.shape)}\n".encode())
    if value.numel():
        feed(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


# ---------------------------------------------------------------- files


def _files(split: Any) -> list[Path]:
    """The files that a data set names, or all below its root, in order."""
    root, named = getattr(split, "root", None), getattr(split, "files", None)
    listed: Iterable[Path] = ()
    if isinstance(named, list | tuple) and all(isinstance(path, str | Path) for path in named):
        listed = [Path(path) for path in named]
    elif isinstance(root, str | Path) and str(root):
        listed = Path(root).rglob("*")
    return sorted(path for path in listed if path.is_file())


def _facts(path: Path) -> list[Any]:
    facts = path.stat()
    return [str(path), facts.st_size, facts.st_mtime_ns]


def _length(split: Any) -> int | None:
    try:
        return len(split)
    except TypeError:
        return None
