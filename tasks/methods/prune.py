"""Gradual pruning, or N:M from the first step on, as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from tasks.execution.patterns import NAMED, SELECTED
from tasks.execution.settings import ByName, Density, Factory, MethodSettings, plain
from tasks.stages.prune import Criterion, Curve, one_of

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.training.method import Method
    from tasks.execution.run import Run

Granularity = Annotated[str, one_of("weight", blocks=False)]
N_M = ("layers", "decay")  # keys of N:M alone


class Settings(MethodSettings):
    """The density falls along a cubic curve while the model trains (Zhu & Gupta 2017); or N:M (SR-STE, Zhou 2021)."""

    granularity: Granularity = Field(
        "weight", description="2:4, or any N:M: of every M weights along the inputs the N largest count in each step"
    )
    density: Annotated[Density | dict[str, Density] | None, ByName, SELECTED] = Field(
        None, description="fraction of weights that stays"
    )
    scope: Literal["layer", "global"] = "layer"
    start: Density = Field(1.0, description="density at the first step")
    ramp: float = Field(0.7, gt=0, le=1, description="fraction of the epochs in which the density falls")
    curve: Curve = Field("cubic", description="along which the density falls")
    criterion: Criterion = Field("magnitude", description="what makes a weight important")
    score: Factory | None = Field(None, description="a criterion of yours: returns (name, weight) -> importance")
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
        if self.granularity == "weight":
            self._check_density()
        else:
            self._check_n_m()
        return self

    def _check_density(self) -> None:
        if self.density is None:
            raise ValueError("expected a density, or a granularity such as 2:4")
        if given := [name for name in N_M if getattr(self, name) is not None]:
            raise ValueError(f"{given[0]} goes with a granularity such as 2:4; remove it")
        if self.scope == "global" and not isinstance(self.density, float):
            raise ValueError("scope: global takes one density for all selected layers, such as density: 0.1")
        if self.criterion != "magnitude" and self.score:
            raise ValueError(f"criterion: {self.criterion} goes without a score of yours")

    def _check_n_m(self) -> None:
        if given := sorted(self.model_fields_set - {"granularity", *N_M}):
            raise ValueError(f"granularity: {self.granularity} goes without {given[0]}; it says itself how many stay")

    def make(self) -> Method:
        """The method."""
        if self.granularity != "weight":
            from deepcompression.pruning.sr_ste import DECAY, SrSte

            return SrSte(self.granularity, self.layers, DECAY if self.decay is None else self.decay)
        from deepcompression.pruning.gradual import GradualPruning

        assert self.density is not None
        return GradualPruning(
            self.density, self.scope, self.start, self.ramp, self.criterion, plain(self.score), self.curve
        )

    def fits(self, run: Run, model: nn.Module) -> None:
        """Raises StructureError where a tensor that is named cannot have N:M, or none can."""
        if self.granularity != "weight":
            from deepcompression.pruning.patterns import fitting
            from deepcompression.structure.patterns import pattern_of

            fitting(model, pattern_of(self.granularity), self.layers)
