"""DoReFa-Net's weights: signs times the layer's mean magnitude, or 2^k values from -1 to 1."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcompression.quantization.binary.latent import Latent, signed

TINY = 1e-20


class DorefaWeights(Latent):
    """Zhou et al. (2016), "DoReFa-Net", arXiv 1606.06160, section 2.3.

    k = 1: sign(w) E|w|, the gradient straight through. Else 2 Q_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1, the gradient
    that of this without the rounding.
    """

    @property
    def word(self) -> str:
        """Plus or minus one scale; with pruned ones, or of more bits, odd integers, of one more bit."""
        return "binary" if self.bits == 1 and not self.zeros else f"grid({self.bits + 1})"

    def values(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The values, and what has their gradient."""
        if self.bits == 1:
            return signed(weight, self.mean(weight, list(range(weight.ndim)))), weight
        bent = weight.tanh()
        smooth = bent / bent.abs().amax().clamp(min=TINY)
        most = 2**self.bits - 1
        steps = 2 * ((smooth.detach() + 1) / 2 * most).round() - most  # odd integers
        return steps * torch.tensor(1 / most, dtype=weight.dtype, device=weight.device), smooth
