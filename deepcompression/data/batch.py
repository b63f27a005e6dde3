"""What a batch is: its parts, whatever holds them; how it moves to a device; how many samples are in it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from deepcompression.errors import DataError, told


def parts(value: Any) -> list[Any] | None:
    """What a mapping, list, tuple or dataclass holds, in its order; None for everything else, texts among it."""
    if isinstance(value, PackedSequence):
        return None
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, tuple | list):
        return list(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, one.name) for one in dataclasses.fields(value)]
    return None


def rebuilt(value: Any, new: Sequence[Any]) -> Any:
    """A container of ``value``'s own type that holds ``new`` in place of its ``parts``."""
    if isinstance(value, Mapping):
        return _mapping(value, dict(zip(value, new, strict=True)))
    if isinstance(value, list):
        return _list(value, new)
    if isinstance(value, tuple):
        make = getattr(type(value), "_make", type(value))  # a namedtuple takes its parts one by one
        return make(new)
    changed = copy.copy(value)
    for one, part in zip(dataclasses.fields(value), new, strict=True):
        object.__setattr__(changed, one.name, part)  # a frozen one too
    return changed


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """``value`` with ``change`` done to everything in it that is no container; itself where nothing changes."""
    old = None if _moves(value) else parts(value)
    if old is None:
        return change(value)
    new = [mapped(one, change) for one in old]
    return value if all(a is b for a, b in zip(old, new, strict=True)) else rebuilt(value, new)


def copied(value: Any) -> Any:
    """The same tensors in containers of their own: who takes something out of one leaves the other whole."""
    if isinstance(value, Tensor | PackedSequence):
        return value
    inside = parts(value)
    return copy.copy(value) if inside is None or _moves(value) else rebuilt(value, [copied(one) for one in inside])


def moved(batch: Any, device: torch.device, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
    """``batch`` on the device, every container of the type that it had; what is no tensor stays as it is.

    What has a ``to`` of its own (PackedSequence, and batches of other libraries) moves by it.

    Args:
        batch: tensors in containers, at any depth.
        device: where they go.
        memory_format: of tensors with four axes.

    Raises:
        DataError: a batch that holds itself, or whose own ``to`` fails.
    """

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, memory_format=memory_format) if value.ndim == 4 else value.to(device)
        if not _moves(value):
            return value
        answer = value.to(device)
        return value if answer is None else answer

    try:
        return mapped(batch, move)
    except RecursionError:
        raise DataError("data: a batch holds itself") from None
    except Exception as error:  # of somebody's class
        raise DataError(f"data: a batch does not move to {device}: {told(error)}") from error


def described(value: Any) -> str:
    """What a batch, or a part of one, is made of, in a few words."""
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key}: {described(one)}" for key, one in list(value.items())[:8])
        return f"{'' if type(value) is dict else type(value).__name__}{{{inside}}}"
    inside_ = parts(value)
    if inside_ is None:
        return type(value).__name__
    shown = ", ".join(described(one) for one in inside_[:4]) + (f", ... {len(inside_)} parts" * (len(inside_) > 4))
    return f"{'' if type(value) is tuple else type(value).__name__}({shown})"


def lengths(value: Any) -> set[int]:
    """The numbers of samples that a step's outputs or targets may mean; none where they tell nothing.

    A tensor tells its first dimension; a list its length (one entry a sample), or that of its tensors where they are
    equally long (one entry an output); what is named tells what its parts tell.
    """
    if isinstance(value, Tensor | np.ndarray):
        return {len(value)} if value.ndim else set()
    if isinstance(value, PackedSequence):
        return {int(value.batch_sizes[0]), len(value.data)}
    inside = parts(value)
    if inside is None:
        return set()
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        of_tensors = {len(one) if isinstance(one, Tensor | np.ndarray) and one.ndim else None for one in inside}
        return {len(inside)} | (of_tensors if len(of_tensors) == 1 and None not in of_tensors else set())  # type: ignore[operator]
    return {length for one in inside for length in lengths(one)}


def count_of(outputs: Any, targets: Any, expected: int | None) -> int | None:
    """Samples in a batch, by what its step returned; None where that leaves it open.

    Args:
        outputs: the step's.
        targets: the step's.
        expected: samples that the split put into the batch, where it knows. It decides between the readings of targets
            and outputs, such as time first; where it is none of them (tokens, nodes of graphs), targets count.
    """
    by_targets, by_outputs = lengths(targets), lengths(outputs)
    first = by_targets or by_outputs
    if expected in first or expected in _second(targets if by_targets else outputs):
        return expected
    if len(first) > 1:
        first &= by_outputs
    return first.pop() if len(first) == 1 else expected


def cut(batch: Any, count: int, size: int | None = None) -> tuple[Any, int]:
    """The first ``count`` samples of a batch, and how many there are then; all of one that cannot be cut.

    Along the first dimension of its tensors, and of lists that are as long; what is of another length, or comes in a
    container of another library, leaves open where a sample ends.

    Args:
        batch: as a loader gives it.
        count: of samples.
        size: of the batch, where the split tells; else as ``samples_in``.
    """
    total = size or samples_in(batch)
    if total <= count:
        return batch, total
    try:
        return _cut(batch, slice(count), total), count
    except _Whole:
        return batch, total


def portion(batch: Any, which: slice, total: int) -> Any:
    """Some samples of a batch, cut as ``cut`` does.

    Args:
        batch: as a loader gives it.
        which: of its samples.
        total: how many it has.

    Raises:
        DataError: where a sample of it ends cannot be told.
    """
    try:
        return _cut(batch, which, total)
    except _Whole:
        raise DataError(
            f"data: a batch is {described(batch)}, and where a sample of it ends cannot be told, so that devices "
            "cannot share it; let its tensors and lists be as long as it has samples, or train on one device"
        ) from None


def samples_in(batch: Any) -> int:
    """How many samples a batch has, by the length of its tensors and lists, the greatest where they are unlike."""
    return max((length for length in _leaves(batch) if length is not None), default=1)


class _Whole(Exception):
    """A part of a batch cannot be cut."""


def _leaves(value: Any) -> Iterator[int | None]:
    """The lengths of all that may count samples."""
    if isinstance(value, Tensor | np.ndarray):
        yield len(value) if value.ndim else None
    elif isinstance(value, PackedSequence):
        yield int(value.batch_sizes[0])
    elif isinstance(value, list) and not _holds(value):
        yield len(value)
    else:
        for one in parts(value) or []:
            yield from _leaves(one)


def _holds(value: Sequence[Any]) -> bool:
    """Whether parts are tensors, or containers."""
    return any(isinstance(one, Tensor | np.ndarray) or parts(one) is not None for one in value)


def _cut(value: Any, which: slice, total: int) -> Any:
    if value is None or isinstance(value, str | bytes | int | float):
        return value
    if isinstance(value, Tensor | np.ndarray):
        return value if not value.ndim else _sliced(value, which, total)
    if isinstance(value, list) and not _holds(value):
        return _sliced(value, which, total)
    inside = parts(value)
    if inside is None or (_moves(value) and not isinstance(value, Mapping)):
        raise _Whole
    return rebuilt(value, [_cut(one, which, total) for one in inside])


def _sliced(value: Any, which: slice, total: int) -> Any:
    if len(value) != total:
        raise _Whole
    return value[which]


def _second(value: Any) -> set[int]:
    return {value.shape[1]} if isinstance(value, Tensor | np.ndarray) and value.ndim > 1 else set()


def _moves(value: Any) -> bool:
    return not isinstance(value, Tensor) and callable(getattr(type(value), "to", None))


def _mapping(value: Mapping[Any, Any], new: dict[Any, Any]) -> Any:
    if type(value) is dict or not hasattr(value, "__setitem__"):
        return new if type(value) is dict else type(value)(new)  # type: ignore[call-arg]
    changed = copy.copy(value)  # keeps what else it is made of, such as a default factory
    for key, one in new.items():
        changed[key] = one
    return changed


def _list(value: list[Any], new: Sequence[Any]) -> list[Any]:
    if type(value) is list:
        return list(new)
    changed = copy.copy(value)
    changed[:] = new
    return changed
