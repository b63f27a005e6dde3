"""Which layers lose it: what each op of a compressed net gives beside the dense net's, alone and accumulated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deepcompression.errors import StructureError
from deepcompression.network.edits.quantize_values import INSIDE, Quantizer, quantizers
from deepcompression.network.trace import resting

_PIECE = 1 << 15  # values whose copies in float64 stay in a processor's cache
Forward = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True)
class Difference:
    """An op of two nets: the ratio of signal to noise in dB (inf where they are equal) and the cosine of its outputs.

    ``alone``: fed with what the dense net feeds its own; else in the whole compressed net, where errors have
    accumulated. ``clipped``: the share of the values at its quantized inputs and outputs that lie beyond the grid's
    ends; None where none is quantized. ``why``: why there are no figures, else empty.
    """

    op: str
    kind: str
    sqnr_alone: float | None = None
    cosine_alone: float | None = None
    sqnr: float | None = None
    cosine: float | None = None
    clipped: float | None = None
    why: str = ""


@dataclass
class _Pair:
    """Sums over two series of values, in float64."""

    signal: float = 0.0
    other: float = 0.0
    product: float = 0.0
    noise: float = 0.0

    def add(self, dense: Tensor, other: Tensor) -> None:
        pieces = zip(torch.split(dense.flatten(), _PIECE), torch.split(other.flatten(), _PIECE), strict=True)
        for one, two in ((one.double(), two.double()) for one, two in pieces):
            self.signal += float(one @ one)
            self.other += float(two @ two)
            self.product += float(one @ two)
            gap = one - two
            self.noise += float(gap @ gap)

    def sqnr(self) -> float:
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    def cosine(self) -> float:
        if not self.noise:
            return 1.0
        length = math.sqrt(self.signal * self.other)
        return self.product / length if length else 0.0


@dataclass
class _Op:
    """What is known of an op so far; ``outputs``: the dense net's for the present batch, call by call."""

    kind: str
    alone: _Pair = field(default_factory=_Pair)
    whole: _Pair = field(default_factory=_Pair)
    beyond: int = 0
    count: int = 0
    outputs: list[Tensor] = field(default_factory=list)
    why: str = ""


def differences(dense: nn.Module, compressed: nn.Module, batches: Iterable[Any], forward: Forward) -> list[Difference]:
    """Each op that has tensors of its own, in the order of its first call in the dense net.

    Both nets run in eval mode; one batch's outputs of all ops are in memory at a time.

    Args:
        dense: the net to compare with.
        compressed: the same after compression; modules correspond by name.
        batches: of samples.
        forward: (model, batch) -> outputs.

    Raises:
        StructureError: there is no batch, or the nets have no op in common.
    """
    ops: dict[str, _Op] = {}
    with resting(dense), resting(compressed), torch.no_grad():
        for batch in batches:
            with _taking(dense, compressed, ops):
                forward(dense, batch)
            with _comparing(compressed, ops):
                forward(compressed, batch)
    if not ops:
        raise StructureError("no op could be compared: there was no batch, or the nets have no module in common")
    return [_told(name, op) for name, op in ops.items()]


def _told(name: str, op: _Op) -> Difference:
    if op.why:
        return Difference(name, op.kind, why=op.why)
    clipped = op.beyond / op.count if op.count else None
    return Difference(name, op.kind, op.alone.sqnr(), op.alone.cosine(), op.whole.sqnr(), op.whole.cosine(), clipped)


@contextmanager
def _taking(dense: nn.Module, compressed: nn.Module, ops: dict[str, _Op]) -> Iterator[None]:
    """What the dense net's ops give is kept, and what the others give for the same inputs added, while it lasts."""
    others = dict(compressed.named_modules())

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, named: Any, output: Any) -> None:
            op, given = ops.setdefault(name, _Op(type(module).__name__)), _first(output)
            op.why = op.why or ("" if name in others else "is gone from the compressed net")
            op.why = op.why or ("" if given is not None else "gives no floating-point tensor")
            if given is None or op.why:
                return
            op.outputs.append(given.detach().clone())  # what follows may work in place
            _add(op, op.alone, given, _answer(others[name], arguments, named))

        return hook

    with ExitStack() as stack:
        for op in ops.values():
            op.outputs.clear()
        for name, module in _with_tensors(dense).items():
            stack.callback(module.register_forward_hook(watch(name), with_kwargs=True).remove)
        yield


@contextmanager
def _comparing(compressed: nn.Module, ops: dict[str, _Op]) -> Iterator[None]:
    """What the compressed net's ops give is added beside what was kept, while it lasts."""
    calls: Counter[str] = Counter()

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: Any, output: Any) -> None:
            op, number = ops[name], calls[name]
            calls[name] += 1
            if number >= len(op.outputs):
                op.why = op.why or "is called more often than in the dense net"
            elif not op.why:
                _add(op, op.whole, op.outputs[number], _first(output))

        return hook

    with ExitStack() as stack:
        for name, module in compressed.named_modules():
            if name in ops and not ops[name].why:
                for one in quantizers(module):
                    if one.site.side in INSIDE:
                        continue  # of a range that holds whatever comes
                    stack.callback(_watch_ends(module, one, ops[name]).remove)
                stack.callback(module.register_forward_hook(watch(name)).remove)
        yield
    for name, op in ops.items():
        if not op.why and calls[name] != len(op.outputs):
            op.why = "is called less often than in the dense net"


def _watch_ends(module: nn.Module, quantizer: Quantizer, op: _Op) -> RemovableHandle:
    """Counts what lies beyond a grid's ends, before the grid's own hook has cut it."""
    number = quantizer.site.number

    def count(values: Any) -> None:
        value = values[number] if isinstance(values, tuple | list) else values
        outside, total = quantizer.beyond(module, value)
        op.beyond += outside
        op.count += total

    if quantizer.site.side == "input":
        return module.register_forward_pre_hook(lambda _, arguments: count(arguments), prepend=True)
    return module.register_forward_hook(lambda _, arguments, output: count(output), prepend=True)


def _with_tensors(model: nn.Module) -> dict[str, nn.Module]:
    return {name: one for name, one in model.named_modules() if next(one.parameters(recurse=False), None) is not None}


def _answer(module: nn.Module, arguments: Any, named: Any) -> Tensor | None:
    """What a module gives for inputs that may be none of its own; None where it takes no such ones."""
    try:
        return _first(module(*arguments, **named))
    except (RuntimeError, TypeError, ValueError):
        return None


def _add(op: _Op, pair: _Pair, dense: Tensor, other: Tensor | None) -> None:
    if other is None or other.shape != dense.shape:
        op.why = "takes in or makes other shapes than the dense net's"
    else:
        pair.add(dense, other)


def _first(output: Any) -> Tensor | None:
    """The first floating-point tensor of what a module gives."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((one for part in parts if (one := _first(part)) is not None), None)
