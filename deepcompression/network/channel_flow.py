"""Which channels of which tensors belong together: read off one run of a model, operation by operation.

Every axis of a parameter or buffer is numbered, a number a place. While the model runs, each operation says which axis
of its result has which of its inputs' numbers, which places are the same channel, and which cannot be removed. An
operation without a rule here keeps all that goes into it as it is: nothing is taken for harmless that is not known.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

Ids = NDArray[np.int64]  # a number for each place of an axis; -1 where nothing can be removed
Axes = tuple[Ids | None, ...]  # of each axis of a tensor; None: an axis without channels

FIXED = "a tensor of fixed size joins its channels"


@dataclass(frozen=True)
class Known:
    """What is known of a tensor: its axes, and whether it is a parameter (or a view of one)."""

    axes: Axes
    parameter: bool = False


@dataclass(frozen=True)
class Call:
    """One call of an operation: its name, its arguments by name, what it gave."""

    name: str
    arguments: Mapping[str, Any]
    outputs: tuple[Tensor, ...]

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @property
    def told(self) -> str:
        """Its name for people: ``log_softmax`` of what PyTorch calls ``_log_softmax``."""
        return self.name.lstrip("_").removeprefix("native_")

    @property
    def inputs(self) -> list[Tensor]:
        """All tensors among the arguments, in order."""
        return list(_tensors(self.arguments.values()))


@dataclass
class Found:
    """What a run told of the numbers.

    ``ties``: places that are the same channel; ``stops``: places that must stay, and why; ``makes``, ``reads``,
    ``depthwise``: axes of weights that make channels, take channels in, or do both a channel at a time; ``outputs``:
    axes that the model returned; ``heads``: of axes that are parted into heads, where these are followed, each head's
    first place.
    """

    ties: list[tuple[Ids, Ids]] = field(default_factory=list)
    stops: list[tuple[Ids, str]] = field(default_factory=list)
    makes: list[Ids] = field(default_factory=list)
    reads: list[Ids] = field(default_factory=list)
    depthwise: list[Ids] = field(default_factory=list)
    outputs: list[Ids] = field(default_factory=list)
    heads: list[Ids] = field(default_factory=list)

    def stop(self, ids: Ids | None, why: str) -> None:
        """Says that places must stay."""
        if ids is not None and (ids >= 0).any():
            self.stops.append((ids[ids >= 0], why))

    def tie(self, one: Ids, other: Ids, why: str) -> None:
        """Says that two axes are the same channels, place by place; what meets a fixed place must stay.

        Args:
            one: (k,) places, negative where fixed.
            other: (k,) places, likewise.
            why: the operation, for people.
        """
        both = (one >= 0) & (other >= 0)
        self.ties.append((one[both], other[both]))
        self.stop(one[~both], why)
        self.stop(other[~both], why)


class Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows channels through all that runs in its ``with`` block.

    Args:
        numbered: the model's tensors and the numbers of their axes; a tensor that has several names once.
        resizable: whether the number of groups that a depthwise weight is used with can be changed with it.
        rules: of an operation, by its name and whether it is made element by element, what it does to channels.
        heads: whether an axis that is parted in two stays whole in the second part, instead of alike in all parts.
    """

    def __init__(
        self,
        numbered: Sequence[tuple[Tensor, Axes]],
        resizable: Callable[[Tensor, int], bool],
        rules: Callable[[str, bool], Callable[[Flow, Call], None]],
        heads: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found, self.heads = Found(), heads
        self.resizable, self.rules = resizable, rules
        self.known: Any = WeakTensorKeyDictionary()
        self.mixed: Any = WeakTensorKeyDictionary()  # of what a softmax gave: the axes that it was made of
        self.own = {id(tensor) for tensor, _ in numbered}
        for tensor, axes in numbered:
            self.known[tensor] = Known(axes, parameter=True)

    def __enter__(self) -> Flow:
        self.collects = gc.isenabled()
        gc.disable()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if self.collects:
            gc.enable()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation and follows it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if any(tensor in self.known for tensor in _tensors([*args, *kwargs.values()])):
            space, _, name = func._schema.name.partition("::")
            names = [(one.name, one.default_value) for one in func._schema.arguments]
            given = dict(names) | dict(zip(dict(names), args, strict=False)) | kwargs
            rule = self.rules(name if space == "aten" else func._schema.name, torch.Tag.pointwise in func.tags)
            rule(self, Call(name, given, tuple(_tensors([result]))))
        return result

    def axes(self, tensor: Tensor) -> Axes:
        """The numbers of a tensor's axes."""
        known: Known | None = self.known.get(tensor)
        return known.axes if known else (None,) * tensor.ndim

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the model's own, or a view of one."""
        known: Known | None = self.known.get(tensor)
        return known is not None and known.parameter

    def put(self, tensor: Tensor, axes: Sequence[Ids | None], parameter: bool = False) -> None:
        """Notes the axes of a result; what an operation changed in place keeps its own.

        Args:
            tensor: a result.
            axes: places of each axis; None where they are not followed.
            parameter: whether it is one of the model's.
        """
        if tensor not in self.known and any(axis is not None for axis in axes):
            self.known[tensor] = Known(tuple(axes), parameter)

    def join(self, axes: Sequence[Ids | None], sizes: Sequence[int], why: str) -> Ids | None:
        """The one axis that several become, as in an addition: their places are the same channels.

        Args:
            axes: places of each; None where they are not followed.
            sizes: of each.
            why: the operation, for people.
        """
        size = max(sizes)
        for axis, own in zip(axes, sizes, strict=True):
            if own != size:
                self.found.stop(axis, f"{why}: one channel meets many")
        wide = [axis for axis, own in zip(axes, sizes, strict=True) if own == size]
        known = [axis for axis in wide if axis is not None]
        for axis in known[1:]:
            self.found.tie(known[0], axis, f"{why}: {FIXED}")
        if len(known) < len(wide):
            for axis in known:
                self.found.stop(axis, f"{why}: {FIXED}")
        return known[0] if known else None

    def returned(self, result: Any) -> None:
        """Notes what the model's forward returns: its outputs, whatever a loss makes of them afterwards."""
        leaves = [one for one in _pytree.tree_leaves(result) if isinstance(one, Tensor)]
        axes = [axis for one in leaves for axis in (*self.axes(one), *self.mixed.get(one, ()))]
        self.found.outputs += [axis[axis >= 0] for axis in axes if axis is not None]

    def kept_alive(self) -> None:
        """Says that what still lives after the run must stay: the model's outputs, and what it keeps of its own."""
        gc.collect(0)  # cycles of the run; none is older, as none is collected meanwhile
        for tensor, known in list(self.known.items()):
            if id(tensor) not in self.own:
                for axis in known.axes:
                    self.found.stop(axis, "its channels are the model's outputs, or kept by it")


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def unknown(flow: Flow, call: Call) -> None:
    """Everything that goes in stays: the operation may mix channels."""
    for tensor in call.inputs:
        for axis in flow.axes(tensor):
            flow.found.stop(axis, f"{call.told} mixes its channels, or is not known to keep them apart")
    for tensor in call.outputs:
        if tensor in flow.known:
            del flow.known[tensor]
