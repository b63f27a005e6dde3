"""Criteria of pruning by their names in recipes: what makes a weight, or a filter, important. A further one is a
further line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from deepcompression import factory
from deepcompression.errors import StructureError

if TYPE_CHECKING:
    from deepcompression.pruning.prune import Score
    from deepcompression.training.method import Context

    Maker = Callable[[Context], Score]

CRITERIA: dict[str, str | None] = {
    "magnitude": None,  # what `prune` goes by where no score is given
    "wanda": "deepcompression.pruning.wanda:Wanda",
}
FILTERS: dict[str, str] = {
    "fpgm": "deepcompression.pruning.filters:fpgm",
    "l1": "deepcompression.pruning.filters:l1",
    "l2": "deepcompression.pruning.filters:l2",
}


def maker(name: str) -> Maker | None:
    """What makes the score (name, weight) -> importance, of samples; None for magnitude, which needs none.

    Raises:
        StructureError: no criterion has this name.
    """
    if name not in CRITERIA:
        raise StructureError(f"prune: criterion {name!r} is not known; expected one of {', '.join(CRITERIA)}")
    spec = CRITERIA[name]
    return factory.load(spec) if spec else None
