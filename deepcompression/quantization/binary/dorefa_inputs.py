"""DoReFa-Net's inputs: 2^k values from 0 to 1."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepcompression.network.edits import binary
from deepcompression.network.edits.integers import on_grid
from deepcompression.network.edits.quantize_values import Site
from deepcompression.quantization.binary.inputs import BinaryInput
from deepcompression.quantization.sites import Seen

HALF = 0.5


class DorefaInput(BinaryInput):
    """Q_k(clip(x, 0, 1)); gradients pass from 0 to 1.

    Zhou et al. (2016), arXiv 1606.06160, section 2.4.
    """

    def few(self, value: Tensor) -> Tensor:
        """The nearest of 2^k values, the even one of two as near."""
        one = torch.ones((), device=value.device)
        if self.bits == 1:
            return binary.scaled(value, one, HALF * one)
        exact = value.to(torch.promote_types(value.dtype, torch.float32))
        return on_grid(exact, self._scale().to(value.device), 0, 0, 2**self.bits - 1).to(value.dtype)

    def useless(self, seen: Seen) -> str:
        """All below 0 is 0."""
        return "" if seen.most > 0 else "no sample is above 0 there, so that every value would be 0"

    def record(self, site: Site) -> dict[str, Any]:
        """A grid, or of one bit a threshold."""
        if self.bits == 1:
            return {"kind": "binary", "sites": [str(site)], "values": binary.SCALED, "shape": []}
        how = {"range": "static", "bits": self.bits, "scheme": "asymmetric"}
        return {"kind": "quantize_values", "sites": [str(site)], **how}

    def tensors(self) -> dict[str, Tensor]:
        """Scale and threshold, or scale and zero point."""
        if self.bits == 1:
            return {"scale": torch.ones(()), "threshold": torch.tensor(HALF)}
        return {"scale": self._scale(), "zero_point": torch.zeros((), dtype=torch.int32)}

    def _scale(self) -> Tensor:
        return torch.tensor(1 / (2**self.bits - 1))
