"""Words and numbers of keys that say how something is pruned: of stages and of methods."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, WithJsonSchema

from deepcompression.errors import StructureError
from deepcompression.pruning.criteria import CRITERIA, MEASURED, of_filters
from deepcompression.training.ramps import CURVES, NUMBERED, curve_of


def one_of(*words: str, blocks: bool = True) -> AfterValidator:
    """Takes one of some words, or a pattern: N:M, and blocks where they are meant too."""
    sign, more = ("[:x]", " or ROWSxCOLUMNS, such as 1x4") if blocks else (":", "")

    def checked(word: str) -> str:
        found = re.fullmatch(rf"([1-9]\d*)({sign})([1-9]\d*)", word)
        if word not in words and found is None:
            raise ValueError(f"expected {', '.join(words)}, N:M, such as 2:4,{more}, got {word!r}".replace(",,", ","))
        if found and found[2] == ":" and int(found[1]) >= int(found[3]):
            raise ValueError(f"expected N:M with N below M, got {word!r}, which prunes nothing")
        if found and found[2] == "x" and int(found[1]) * int(found[3]) == 1:
            raise ValueError(f"expected blocks of more than one weight, got {word!r}")
        return word

    return AfterValidator(checked)


def known_curve(word: str) -> str:
    """Takes a word of ``training.ramps``."""
    try:
        curve_of(word)
    except StructureError as error:  # what came is told behind it
        raise ValueError(str(error).partition("; ")[2]) from None
    return word


def criteria_of(granularity: str) -> tuple[str, ...]:
    """The names of what can make important what goes."""
    if granularity == "channel":  # scales and zeros are of what makes channels
        return tuple(one for one in of_filters() if one not in MEASURED)
    return of_filters() if granularity in WHOLE else tuple(CRITERIA)


WHOLE = ("filter", "channel", "head")  # what goes with all that belongs to it, in all layers that share it
LAYER = "layer"
Granularity = Annotated[str, one_of("weight", *WHOLE, LAYER, "kernel")]
Quality = Annotated[float, Field(gt=0)]
Curve = Annotated[str, AfterValidator(known_curve), WithJsonSchema({"anyOf": [{"enum": list(CURVES)}, NUMBERED]})]
Tolerance = Annotated[float, Field(ge=0, lt=1, description="of curve: adaptive: part of the metric that may be lost")]
Multiple = Annotated[
    int, Field(ge=1, description="of which as many stay in each group, where it has so many: 8 suits most processors")
]
Criterion = Literal[tuple(CRITERIA)]
AnyCriterion = Literal[tuple(dict.fromkeys((*CRITERIA, *of_filters())))]
