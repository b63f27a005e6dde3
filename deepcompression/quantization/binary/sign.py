"""XNOR-Net's inputs: signs."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from deepcompression.network.edits import binary
from deepcompression.network.edits.quantize_values import Site
from deepcompression.quantization.binary.inputs import BinaryInput
from deepcompression.quantization.sites import Seen


class Sign(BinaryInput):
    """-1 below 0, else 1; gradients pass where the magnitude is at most 1.

    Rastegari et al. (2016), arXiv 1603.05279, section 3.2, without the factors K of places, as the paper's own nets and
    others' leave them to the BatchNorm that follows. A BatchNorm stands before it, so that both signs occur.
    """

    def few(self, value: Tensor) -> Tensor:
        """Signs."""
        return binary.signs(value)

    def useless(self, seen: Seen) -> str:
        """One sign alone says nothing."""
        if seen.least >= 0:
            return (
                "no sample is below 0 there, so that every sign would be 1; put a BatchNorm in place of the ReLU "
                "before it, take kind scaled_threshold or dorefa, or name the layer in keep"
            )
        return "" if seen.most >= 0 else "every sample is below 0 there, so that every sign would be -1"

    def record(self, site: Site) -> dict[str, Any]:
        """``binary``, by signs."""
        return {"kind": "binary", "sites": [str(site)], "values": binary.SIGNS, "shape": []}
