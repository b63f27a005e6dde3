"""Layers of a student and of its teacher, side by side: which, and what they give."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError, in_one_line
from deepcompression.network.trace import resting
from deepcompression.training.method import Context
from deepcompression.training.teacher import Teacher

Layers = Mapping[str, str] | Sequence[str]
GLOB = "*?["


class Pair(NamedTuple):
    """The names of two modules."""

    student: str
    teacher: str


class Features(NamedTuple):
    """What two modules give for one batch: (batch, channels, ...) each."""

    student: Tensor
    teacher: Tensor


def pairs_of(student: nn.Module, teacher: nn.Module, layers: Layers, who: str) -> list[Pair]:
    """The modules that names or patterns mean; several of a pattern go together in the order of each model.

    Args:
        student: with the modules that learn.
        teacher: with those that they learn from.
        layers: the student's to the teacher's; or names that are the same in both.
        who: the method, for messages.

    Raises:
        StructureError: a pattern matches nothing, or unlike numbers of modules.
    """
    table = layers if isinstance(layers, Mapping) else {name: name for name in layers}
    if not table:
        raise StructureError(f"{who}: no layers are named; give layers: [NAME] or layers: {{STUDENT: TEACHER}}")
    found: list[Pair] = []
    for own, other in table.items():
        ones, others = _modules(student, own, f"{who}: the student"), _modules(teacher, other, f"{who}: the teacher")
        if len(ones) != len(others):
            raise StructureError(
                f"{who}: {own} means {len(ones)} layers of the student, {other} {len(others)} of the teacher; expected "
                "as many"
            )
        found += [Pair(*both) for both in zip(ones, others, strict=True)]
    return found


def _modules(model: nn.Module, pattern: str, whose: str) -> list[str]:
    names = [name for name, _ in model.named_modules() if name]
    found = [name for name in names if name == pattern]
    if any(sign in pattern for sign in GLOB):
        found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        near = difflib.get_close_matches(pattern, names, 3) or names[:5]
        raise StructureError(f"{whose} has no layer {pattern!r}; expected one such as {', '.join(near)}")
    return found


class Watched:
    """The outputs of pairs of modules, from now on until ``close``; of a module that is called twice the last one.

    Args:
        student: whose forward is followed by ``take``.
        context: with a teacher whose layers can be looked into.
        layers: see ``pairs_of``.
        axis: of channels.
        who: the method, for messages.
    """

    def __init__(self, student: nn.Module, context: Context, layers: Layers, axis: int, who: str) -> None:
        if not isinstance(context.teacher, Teacher) or context.teacher.model is None:
            raise StructureError(f"{who} needs a teacher's layers; give attach() or train() teacher= a module")
        self.teacher, self.axis, self.who = context.teacher, axis, who
        self.pairs = pairs_of(student, context.teacher.model, layers, who)
        self._given: dict[tuple[str, str], Any] = {}
        self._hooks = [
            model.get_submodule(name).register_forward_hook(self._keeper((side, name)))
            for side, model in (("student", student), ("teacher", context.teacher.model))
            for name in dict.fromkeys(getattr(pair, side) for pair in self.pairs)
        ]

    def _keeper(self, key: tuple[str, str]) -> Any:
        def keep(module: nn.Module, given: Any, output: Any) -> None:
            self._given[key] = output

        return keep

    def tried(self, student: nn.Module, context: Context) -> list[Features]:
        """What a few samples of the training split give, without gradients.

        Raises:
            StructureError: there are none; the forward fails, does not call a layer, or gives no tensor there.
        """
        batch = next(iter(context.batches(self.who, 2)))
        with resting(student), torch.no_grad(), in_one_line(f"{self.who}: the forward failed", StructureError):
            context.forward(student, batch)
            self.teacher(batch)
        self.teacher.forget()
        return self._taken()

    def take(self, batch: Any) -> list[Features]:
        """Of the student's last forward, with its graph, and of the teacher for the same batch."""
        self.teacher(batch)
        return self._taken()

    def _taken(self) -> list[Features]:
        found = [Features(*(self._one(side, name) for side, name in pair._asdict().items())) for pair in self.pairs]
        self._given = {}
        return found

    def _one(self, side: str, name: str) -> Tensor:
        given = self._given.get((side, name))
        if not isinstance(given, Tensor) or not given.is_floating_point() or given.ndim < 2:
            what = "was not called" if given is None else f"gave {_shown(given)}"
            raise StructureError(
                f"{self.who}: layer {name} of the {side} {what}; expected one tensor of numbers (batch, channels, ...)"
            )
        return given.movedim(self.axis, 1) if given.ndim > 2 else given

    def close(self) -> None:
        """Takes its hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._given = [], {}


def _shown(value: Any) -> str:
    return f"a tensor of {value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
