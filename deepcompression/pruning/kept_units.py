"""How many units of each layer are to stay."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from deepcompression.errors import StructureError
from deepcompression.network.chains import WHOLE, Chain
from deepcompression.network.names import resolve
from deepcompression.network.trace import Seen, chains


def wanted(model: nn.Module, units: Mapping[str, int | float], seen: Seen | None = None) -> dict[str, int]:
    """How many units each named producer is to keep, by the producer's name.

    Args:
        model: its chains are read.
        units: layer names or patterns, as of ``selection.resolve``, -> a count, or a fraction of the units in (0, 1];
            ``default`` is for all other producers.
        seen: as of ``chains``.

    Raises:
        StructureError: a pattern matches nothing; a layer is no producer of a chain, with the reason; an impossible
            number.
    """
    found, left = chains(model, seen)
    producers = {chain.weight: chain for chain in found}
    named = resolve(model, {name: number for name, number in units.items() if name != "default"})
    for weight in named:
        if weight not in producers:
            layer = weight.removesuffix(".weight")
            reason = left.get(layer) or left.get(WHOLE, "it is no Linear, Conv1d or Conv2d")
            raise StructureError(f"{layer}: its units cannot be removed: {reason}")
    if "default" in units:
        named = {**dict.fromkeys(producers, units["default"]), **named}
    return {producers[weight].producer: _count(producers[weight], number) for weight, number in named.items()}


def _count(chain: Chain, number: int | float) -> int:
    if isinstance(number, int) and not isinstance(number, bool) and 1 <= number <= chain.units:
        return number
    if isinstance(number, float) and 0 < number <= 1:
        return max(round(number * chain.units), 1)
    raise StructureError(
        f"{chain.producer}: {number!r} units are impossible; expected a count from 1 to {chain.units} or a fraction "
        "in (0, 1]"
    )
