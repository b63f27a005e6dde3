"""What must stay true of a tensor, in words that files hold: ``zeros``, ``shared``, ``grid(8, 0)``, ``n_m(2, 4)``.

``grid(8)`` has one scale, ``grid(8, 0)`` one for each place of axis 0, ``grid(4, 1, 32)`` one for each 32 consecutive
elements of each place of axis 1; ``binary`` has plus or minus a scale of each place of axis 0, ``binary(1)`` of axis 1.
The codebooks of ``shared``, ``shared(0)``, ``shared(0, 256)`` are of such parts too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from deepcompression.errors import StructureError
from deepcompression.network.parametrized import Holder
from deepcompression.structure.binary import Binary
from deepcompression.structure.grid import Grid
from deepcompression.structure.n_m import NM
from deepcompression.structure.shared import Shared
from deepcompression.structure.zeros import Zeros

ZEROS, SHARED = "zeros", "shared"
KINDS: dict[str, type[Constraint]] = {ZEROS: Zeros, SHARED: Shared, "grid": Grid, "n_m": NM, "binary": Binary}
_WORD = re.compile(r"(\w+)(?:\((\d+)(?:, (\d+)(?:, (\d+))?)?\))?")

Structure = Mapping[str, tuple[str, ...]]  # tensor name -> constraints, each in a word


class Constraint(Protocol):
    """What must stay true of a tensor; ``order`` is that of what holds it (``network.parametrized``)."""

    order: ClassVar[int]

    def held(self, weight: Tensor) -> Holder:
        """What keeps it true of ``weight`` while it trains."""

    def check(self, name: str, before: Tensor, after: Tensor) -> int:
        """How much coarser the tensor became; InvariantError where it is no longer true.

        Args:
            name: of the tensor, for messages.
            before: its weights before a stage.
            after: its weights after it.

        Raises:
            InvariantError: it is no longer true.
        """


def constraint(word: str) -> Constraint:
    """The constraint that a word stands for.

    Raises:
        StructureError: none does.
    """
    found = _WORD.fullmatch(word)
    kind = KINDS.get(found[1]) if found else None
    if found is None or kind is None:
        raise StructureError(f"structure {word!r} is not known; expected one of {', '.join(KINDS)}")
    try:
        return kind(*(int(number) for number in found.groups()[1:] if number is not None))
    except TypeError:
        raise StructureError(
            f"structure {word!r}: wrong numbers; for instance zeros, shared, grid(8, 0), n_m(2, 4)"
        ) from None


def structured(zeros: Iterable[str] = (), shared: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """The structure of tensors whose zeros stay, and of those whose sharing stays."""
    found: dict[str, tuple[str, ...]] = {}
    for word, names in ((ZEROS, zeros), (SHARED, shared)):
        for name in names:
            found[name] = (*found.get(name, ()), word)
    return found


def together(*structures: Structure) -> dict[str, tuple[str, ...]]:
    """All constraints of several structures, each once."""
    found: dict[str, tuple[str, ...]] = {}
    for structure in structures:
        for name, words in structure.items():
            found[name] = tuple(dict.fromkeys((*found.get(name, ()), *words)))
    return found


def of_order(words: Iterable[str], *orders: int) -> list[str]:
    """Those of some constraints that are held in these places."""
    return [word for word in words if constraint(word).order in orders]


def having(structure: Structure, word: str) -> list[str]:
    """Names of the tensors with a constraint of this kind: ``shared`` is ``shared(0)`` too."""
    return [name for name, words in structure.items() if of_kind(words, word)]


def refuse_torn(structure: Structure, change: str) -> None:
    """Raise where a change of the order or number of channels would tear groups that have a scale or codebook each.

    Args:
        structure: what is true of tensors.
        change: that would, and what to do instead, for the message.

    Raises:
        StructureError: some tensor has such groups.
    """
    for name, words in structure.items():
        for word in words:
            if getattr(constraint(word), "group", None) is not None:
                raise StructureError(f"{name}: is {word}, and its groups would be torn by {change}")


def of_kind(words: Iterable[str], kind: str) -> list[str]:
    """Those of some constraints that are of one kind, whatever their numbers."""
    return [word for word in words if kind_of(word) == kind]


def kind_of(word: str) -> str:
    """The kind of a constraint, without its numbers."""
    return word.partition("(")[0]
