"""XNOR-Net's weights: signs, times the mean magnitude of each output filter."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from deepcompression.quantization.binary.latent import Latent, signed


class Xnor(Latent):
    """Rastegari et al. (2016), "XNOR-Net", arXiv 1603.05279, section 3.1.

    The gradient of a latent weight is that of its value times 1 / n + scale x 1[|w| <= 1], for n weights a filter.
    """

    by_filter: ClassVar[bool] = True

    @property
    def word(self) -> str:
        """Plus or minus a scale of each filter; with pruned ones, integers from -1 to 1."""
        if self.zeros:
            return f"grid(2, {self.axis})"
        return "binary" if self.axis == 0 else f"binary({self.axis})"

    def values(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Signs times scales, and the paper's gradient."""
        over = [one for one in range(weight.ndim) if one != self.axis]
        scale = self.mean(weight, over)
        gain = torch.where(weight.detach().abs() <= 1, scale, 0.0) + 1 / self.count(weight, over)
        return signed(weight, scale), weight * gain
