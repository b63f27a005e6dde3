"""Trained quantization: the centroids of shared weights follow the summed gradient of their weights."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from deepcompression.errors import StructureError
from deepcompression.structure.constraints import SHARED, Structure, constraint, having, of_kind
from deepcompression.structure.hold import hold_by
from deepcompression.training.method import VALUES, Account, Claim, Context, Method


class Centroids(Method):
    """Trains the codebooks of all tensors whose weights are shared, one or several a tensor; codes and zeros stay.

    Han, Mao, Dally (2016), section 3.3.
    """

    name: ClassVar[str] = "centroids"
    holds_zeros: ClassVar[bool] = True

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """The values of every shared tensor."""
        return {(name, VALUES) for name in having(structure, SHARED)}

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Puts codebooks in place of shared weights.

        Raises:
            StructureError: nothing is shared.
        """
        self._names = having(context.structure, SHARED)
        if not self._names:
            raise StructureError("centroids: no weights are shared yet; let a stage share come before")
        words = {name: of_kind(context.structure[name], SHARED)[-1] for name in self._names}
        hold_by(model, {name: constraint(word).held for name, word in words.items()})
        return []

    def finish(self, model: nn.Module) -> Account:
        """Which tensors have trained codebooks."""
        return Account(report={"tensors": self._names})
