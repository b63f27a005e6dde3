"""How grids are found while a model trains: the words of recipes, each with what finds the grid, imported late."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from deepcompression.quantization.ranges.range import Range


class Word(NamedTuple):
    """Where a range is, and what it is for: of weights too; of grids whose 0 moves too."""

    place: str
    weights: bool = True
    asymmetric: bool = False


RANGES: dict[str, Word] = {
    "minmax": Word("deepcompression.quantization.ranges.minmax:MinMax", asymmetric=True),
    "lsq": Word("deepcompression.quantization.ranges.lsq:Lsq"),
    "tqt": Word("deepcompression.quantization.ranges.tqt:Tqt"),
    "learned": Word("deepcompression.quantization.ranges.learned:Learned", asymmetric=True),
    "pact": Word("deepcompression.quantization.ranges.pact:Pact", weights=False),
    "pact2": Word("deepcompression.quantization.ranges.pact2:Pact2", weights=False),
}


def range_named(word: str) -> type[Range]:
    """The range that a word of ``RANGES`` stands for."""
    module, _, name = RANGES[word].place.partition(":")
    found: type[Range] = getattr(import_module(module), name)
    return found


def misfit(what: str, word: str, scheme: str) -> str:
    """Why a range cannot be used; empty where it can.

    Args:
        what: weights or activations.
        word: the range.
        scheme: symmetric or asymmetric.
    """
    fitting = [name for name, one in RANGES.items() if one.weights or what == "activations"]
    if word not in fitting:
        return f"range {word!r} is none of {', '.join(fitting)}"
    moving = [name for name in fitting if RANGES[name].asymmetric]
    if scheme == "asymmetric" and word not in moving:
        return f"range {word} has 0 where symmetric grids have it; scheme: asymmetric goes with {' or '.join(moving)}"
    return ""
