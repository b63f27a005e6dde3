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
    "taylor": "deepcompression.pruning.taylor:Taylor",
}
FILTERS: dict[str, str] = {  # of the weights of filters alone
    "fpgm": "deepcompression.pruning.worth:fpgm",
    "l1": "deepcompression.pruning.worth:l1",
    "l2": "deepcompression.pruning.worth:l2",
    "fpgm-mix": "deepcompression.pruning.worth:fpgm_mix",
}
MEASURED: dict[str, str] = {  # of channels, by what else the model and data say of them
    "bn_scale": "deepcompression.pruning.bn_scale:BnScale",
    "apoz": "deepcompression.pruning.apoz:Apoz",
    "fisher": "deepcompression.pruning.fisher:Fisher",
}


def of_filters() -> tuple[str, ...]:
    """The names of all criteria of filters: their own, and those of single weights that are summed over a filter."""
    return (*FILTERS, *MEASURED, *(name for name, spec in CRITERIA.items() if spec))


def maker(name: str) -> Maker | None:
    """What makes the score (name, weight) -> importance, of samples; None for magnitude, which needs none.

    Raises:
        StructureError: no criterion has this name.
    """
    if name not in CRITERIA:
        raise StructureError(f"prune: criterion {name!r} is not known; expected one of {', '.join(CRITERIA)}")
    spec = CRITERIA[name]
    return factory.load(spec) if spec else None
