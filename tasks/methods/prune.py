"""Gradual pruning of weights or filters, or N:M from the first step on, as a method of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from deepcompression.pruning.criteria import CRITERIA, of_filters
from deepcompression.training.ramps import TOLERANCE
from tasks.execution.patterns import NAMED, SELECTED
from tasks.execution.pruned_by import AnyCriterion, Curve, Multiple, Tolerance, one_of
from tasks.execution.settings import ByName, Density, Factory, MethodSettings, plain

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.structure.constraints import Structure
    from deepcompression.training.method import Method
    from tasks.execution.run import Run

Granularity = Annotated[str, one_of("weight", "filter", blocks=False)]
N_M = ("layers", "decay")  # keys of N:M alone
FILTER = ("flops", "parameters", "soft", "updates", "remove", "multiple")  # of filters alone


class Settings(MethodSettings):
    """The density of weights (Zhu & Gupta 2017) or filters falls along a curve while the model trains; or N:M (SR-STE,
    Zhou 2021)."""

    granularity: Granularity = Field(
        "weight",
        description="filter: whole channels; 2:4, or any N:M: of every M weights along the inputs the N largest count "
        "in each step",
    )
    density: Annotated[Density | dict[str, Density] | None, ByName, SELECTED] = Field(
        None, description="fraction of weights, or of a layer's filters, that stays"
    )
    flops: float | None = Field(
        None, gt=0, lt=1, description="of filters, instead of density: the part of the multiplications that stays"
    )
    parameters: float | None = Field(None, gt=0, lt=1, description="the same, of the parameters")
    multiple: Multiple = 1
    scope: Literal["layer", "global"] = "layer"
    start: Density = Field(1.0, description="density at the first step")
    ramp: float = Field(0.7, gt=0, le=1, description="fraction of the epochs in which the density falls")
    curve: Curve = Field("cubic", description="along which the density falls")
    tolerance: Tolerance = TOLERANCE
    criterion: AnyCriterion | None = Field(
        None, description="what makes a weight, or a filter, important; default magnitude, of filters fpgm"
    )
    score: Factory | None = Field(
        None, description="a criterion of yours: returns (name, weight) -> importance, of filters too"
    )
    soft: bool = Field(False, description="of filters: zeros may come back until the end of the ramp")
    updates: int | None = Field(None, ge=1, description="of filters: how many times they are chosen; default 20")
    remove: bool = Field(False, description="of filters: the model ends thin, by an edit that the file holds")
    layers: Annotated[list[str] | None, NAMED] = Field(
        None, min_length=1, description="of N:M: names of tensors or patterns; default: all that can have it"
    )
    decay: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="of N:M: what draws weights that do not count to zero; default 2e-4",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Settings:
        if self.granularity not in ("weight", "filter"):
            self._check_n_m()
            return self
        if given := [name for name in N_M if getattr(self, name) is not None]:
            raise ValueError(f"{given[0]} goes with a granularity such as 2:4; remove it")
        if self.criterion and self.score:
            raise ValueError(f"criterion: {self.criterion} goes without a score of yours")
        known = of_filters() if self.granularity == "filter" else tuple(CRITERIA)
        if self.criterion and self.criterion not in known:
            told = f"granularity: {self.granularity} goes with criterion: one of {', '.join(known)}"
            raise ValueError(f"{told}; not {self.criterion}")
        return self._check_filters() if self.granularity == "filter" else self._check_density()

    def _said(self, names: Iterable[str]) -> list[str]:
        """Those that are not what they are by default: a stored recipe has all keys."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]

    def _check_density(self) -> Settings:
        if given := self._said(FILTER):
            raise ValueError(f"{given[0]} goes with granularity: filter; remove it")
        if self.density is None:
            raise ValueError("expected a density, or a granularity such as 2:4")
        if self.scope == "global" and not isinstance(self.density, float):
            raise ValueError("scope: global takes one density for all selected layers, such as density: 0.1")
        return self

    def _check_filters(self) -> Settings:
        if sum(one is not None for one in (self.density, self.flops, self.parameters)) != 1:
            raise ValueError("expected exactly one of density, flops and parameters")
        if self.scope == "global":
            raise ValueError("granularity: filter goes with scope: layer; flops or parameters find one density for all")
        return self

    def _check_n_m(self) -> None:
        if given := self._said(sorted({*type(self).model_fields} - {"granularity", *N_M})):
            raise ValueError(f"granularity: {self.granularity} goes without {given[0]}; it says itself how many stay")

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Channels are removed where nothing is grouped by them."""
        if self.remove:
            from deepcompression.structure.constraints import refuse_torn

            refuse_torn(structure, "the removal of filters; let it come before, or take remove: false")

    def edits(self) -> Mapping[str, str]:
        """Filters that are removed."""
        return {"resize": "remove: true"} if self.remove else {}

    def make(self) -> Method:
        """The method."""
        if self.granularity == "filter":
            return self._of_filters()
        if self.granularity != "weight":
            from deepcompression.pruning.sr_ste import DECAY, SrSte

            return SrSte(self.granularity, self.layers, DECAY if self.decay is None else self.decay)
        from deepcompression.pruning.gradual import GradualPruning

        assert self.density is not None
        criterion = self.criterion or "magnitude"
        return GradualPruning(
            self.density, self.scope, self.start, self.ramp, criterion, plain(self.score), self.curve, self.tolerance
        )

    def _of_filters(self) -> Method:
        from deepcompression.pruning.filters_in_training import UPDATES, FilterPruning
        from tasks.stages.filters import limit_of

        return FilterPruning(
            self.density,
            limit_of(self),
            self.criterion or "fpgm",
            plain(self.score),
            self.start,
            self.ramp,
            self.curve,
            self.soft,
            self.updates or UPDATES,
            self.remove,
            self.tolerance,
            self.multiple,
        )

    def fits(self, run: Run, model: nn.Module) -> None:
        """Raises StructureError where filters cannot go, or a tensor that is named cannot have N:M, or none can."""
        if self.granularity == "filter":
            from tasks.stages.filters import refuse_unfit

            refuse_unfit(run, model, self)
        elif self.granularity != "weight":
            from deepcompression.pruning.patterns import fitting
            from deepcompression.structure.patterns import pattern_of

            fitting(model, pattern_of(self.granularity), self.layers)
