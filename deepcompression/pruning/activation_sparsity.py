"""Activations that cost: what goes into layers is drawn to zero by its magnitudes in the loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.edits.quantize_values import Site
from deepcompression.network.names import table_of
from deepcompression.network.watching import watched
from deepcompression.pruning.activations import inputs_of
from deepcompression.training.method import Account, Context, Method


@dataclass(eq=False)
class ActivationSparsity(Method):
    """The loss grows by penalty x the mean magnitude of what goes into each layer, which behind a ReLU becomes zeros.

    Args:
        penalty: 0 or more, of the inputs of all layers, or by name pattern of their weights; 0: of none.

    Georgiadis (2019), "Accelerating convolutional neural networks via activation map compression", arXiv 1812.04056,
    section 3.1.
    """

    name: ClassVar[str] = "activation_sparsity"
    penalty: float | Mapping[str, float] = 1e-2

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Watches the inputs of layers.

        Raises:
            StructureError: as ``activations.inputs_of``, an impossible penalty, or one of 0 for every layer.
        """
        for pattern, penalty in table_of(self.penalty).items():
            if not 0 <= penalty < math.inf:
                raise StructureError(f"activation_sparsity: {pattern}: penalty {penalty}; expected 0 or more")
        found = inputs_of(model, table_of(self.penalty))
        if not found.sites:
            raise StructureError("activation_sparsity: no layer's input has a penalty above 0")
        self._penalties, self._left = found.sites, dict(found.left)
        self._costs: dict[Site, list[Tensor]] = {site: [] for site in self._penalties}
        self._counts: dict[Site, list[int]] = {site: [0, 0] for site in self._penalties}
        self._zeros: dict[str, float] = {}
        self._watch = watched(model, self._penalties, self._see)
        self._watch.__enter__()
        return []

    def _see(self, site: Site, value: Tensor) -> None:
        """What goes into a layer while it trains."""
        if torch.is_grad_enabled() and value.numel():
            self._costs[site].append(value.float().abs().mean())
            zero, total = self._counts[site]
            with torch.no_grad():
                self._counts[site] = [zero + value.numel() - int(value.count_nonzero()), total + value.numel()]

    def loss(self, loss: Tensor, model: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """The loss, and what this step's activations cost."""
        for site, costs in self._costs.items():
            if costs:
                cost = torch.stack(costs).mean()
                loss = loss + self._penalties[site] * cost.to(loss.device)
                costs.clear()
        return loss

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The part of the values that was zero since this was asked before, of each layer's input, and of all."""
        counts, self._counts = self._counts, {site: [0, 0] for site in self._penalties}
        self._zeros = {site.module: zero / total for site, (zero, total) in counts.items() if total}
        zero, total = (sum(one[place] for one in counts.values()) for place in (0, 1))
        each = {f"zeros/{name or 'model'}": part for name, part in self._zeros.items()}
        return {"zeros": zero / max(total, 1), **each}

    def finish(self, model: nn.Module) -> Account:
        """What part of the values was zero in the last epoch."""
        rows = [{"layer": name, "zeros": part} for name, part in self._zeros.items()]
        return Account(report={"inputs": rows}, left=self._left)

    def close(self, model: nn.Module) -> None:
        """Watches no longer."""
        if watch := vars(self).pop("_watch", None):
            watch.__exit__(None, None, None)

    def state_dict(self) -> dict[str, Any]:
        """What the last epoch's values were."""
        return {"zeros": dict(self._zeros)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there."""
        self._zeros = dict(state["zeros"])
