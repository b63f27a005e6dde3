"""``{"kind": "threshold", "sites": [...]}``: values become 0 where their magnitude is at most a threshold.

The threshold, one number for all sites of a record, is a tensor of the state_dict below the module's own name, such as
``fc1.input_0_threshold``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepcompression.network.edits.quantize_values import After, AtSite, Before, Site, install, sites_of
from deepcompression.network.edits.record import Record, check_keys, misfit
from deepcompression.network.names import join

THRESHOLD = "threshold"


@dataclass(frozen=True)
class Thresholded(AtSite):
    """By the threshold that the module holds."""

    kind = "threshold"

    def changed(self, module: nn.Module, value: Tensor) -> Tensor:
        """The value, +0.0 where it is small; NaN stays. What becomes 0 gets no gradient."""
        least: Tensor = getattr(module, self.site.tensor(THRESHOLD))
        return torch.where(value.abs() <= least, torch.zeros_like(value), value)


@dataclass(frozen=True)
class InputThresholded(Before, Thresholded):
    """Before a forward."""


@dataclass(frozen=True)
class OutputThresholded(After, Thresholded):
    """After a forward."""


def apply(model: nn.Module, record: Record) -> None:
    """Register hooks, and the thresholds that they read, at each site; 0 until a state_dict is loaded.

    Raises:
        EditError: no such module, one that is never called, or a site that has a threshold already.
    """
    hooks, sites = {"input": InputThresholded, "output": OutputThresholded}, _sites(record)
    for site in sites:
        if site.side not in hooks:
            raise misfit(record, f"a site is module:input[i] or module:output[i], not {site}"[:200])
    install(model, record, [hooks[site.side](site) for site in sites], {THRESHOLD: torch.zeros(())})


def check_values(model: nn.Module, record: Record, state: Mapping[str, Tensor]) -> None:
    """Raise EditError where a threshold in ``state`` is not finite, or below 0.

    Args:
        model: with the edit applied.
        record: of the edit.
        state: tensors that are to be loaded.

    Raises:
        EditError: the first such site.
    """
    for site in _sites(record):
        least = state.get(join(site.module, site.tensor(THRESHOLD)))
        if least is not None and not bool((least.isfinite() & (least >= 0)).all()):
            raise misfit(record, f"the threshold of {site} must be finite and 0 or above, not {least.tolist()}"[:200])


def state_names(record: Record) -> list[str]:
    """What the thresholds of a record are called in the state_dict; EditError where it is not of this kind."""
    return [join(site.module, site.tensor(THRESHOLD)) for site in _sites(record)]


def _sites(record: Record) -> list[Site]:
    check_keys(record, "sites")
    return sites_of(record)
