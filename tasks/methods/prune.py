"""Gradual pruning as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from tasks.execution.patterns import SELECTED
from tasks.execution.settings import ByName, Density, Factory, MethodSettings, plain
from tasks.stages.prune import Criterion

if TYPE_CHECKING:
    from deepcompression.training.method import Method


class Settings(MethodSettings):
    """The density falls along a cubic curve while the model trains (Zhu & Gupta 2017)."""

    density: Annotated[Density | dict[str, Density], ByName, SELECTED] = Field(
        description="fraction of weights that stays"
    )
    scope: Literal["layer", "global"] = "layer"
    start: Density = Field(1.0, description="density at the first step")
    ramp: float = Field(0.7, gt=0, le=1, description="fraction of the epochs in which the density falls")
    criterion: Criterion = Field("magnitude", description="what makes a weight important")
    score: Factory | None = Field(None, description="a criterion of yours: returns (name, weight) -> importance")

    @model_validator(mode="after")
    def _one_ranking(self) -> Settings:
        if self.scope == "global" and not isinstance(self.density, float):
            raise ValueError("scope: global takes one density for all selected layers, such as density: 0.1")
        if self.criterion != "magnitude" and self.score:
            raise ValueError(f"criterion: {self.criterion} goes without a score of yours")
        return self

    def make(self) -> Method:
        """The method."""
        from deepcompression.pruning.gradual import GradualPruning

        return GradualPruning(self.density, self.scope, self.start, self.ramp, self.criterion, plain(self.score))
