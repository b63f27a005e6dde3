"""A penalty on activations as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tasks.execution.patterns import SELECTED
from tasks.execution.settings import ByName, MethodSettings

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.training.method import Method
    from tasks.execution.run import Run

Penalty = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(MethodSettings):
    """What goes into layers costs by its magnitude, which makes more of it zero (Georgiadis 2019)."""

    penalty: Annotated[Penalty | dict[str, Penalty], ByName, SELECTED] = Field(
        1e-2, description="added to the loss, times the mean magnitude of a layer's input; by names of layers"
    )

    def make(self) -> Method:
        """The method."""
        from deepcompression.pruning.activation_sparsity import ActivationSparsity

        return ActivationSparsity(self.penalty)

    def fits(self, run: Run, model: nn.Module) -> None:
        """Raises StructureError, before anything trains, where a named layer has no input that can cost."""
        from deepcompression.pruning.activations import inputs_of
        from tasks.execution.settings import table_of

        inputs_of(model, table_of(self.penalty))
