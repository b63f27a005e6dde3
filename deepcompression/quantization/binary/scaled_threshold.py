"""NNCF's binary inputs: a learned scale above a learned threshold of each channel, else 0."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.network.edits import binary
from deepcompression.network.edits.quantize_values import Site
from deepcompression.quantization.binary.inputs import BinaryInput, channels_of
from deepcompression.quantization.sites import Seen

PER_MILLE = 1000
TINY = 1e-5  # a first scale at least


class ScaledThreshold(BinaryInput):
    """s 1[x > s t] with s = exp(p), one for all, and t = sigmoid(r) of each channel; p and r are learned.

    s starts at the 99.9 % quantile of the first batch for which it is active, t at a half. NNCF 2.5, binarization of
    activations "scale/threshold".
    """

    begun: Tensor

    def __init__(self, bits: int, layer: nn.Module) -> None:
        super().__init__(bits, layer)
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.part = nn.Parameter(torch.zeros(channels_of(layer)))
        self.register_buffer("begun", torch.zeros((), dtype=torch.bool))
        self._began = False

    def few(self, value: Tensor) -> Tensor:
        """The scale, or 0; before the first batch of training the value itself."""
        if not (self._began or self._begins(value)):
            return value
        scale, part = self.log_scale.exp(), self.part.sigmoid()
        return binary.scaled(value, scale, scale.detach() * part.detach(), part)

    def _begins(self, value: Tensor) -> bool:
        """Whether there is a scale; made of ``value`` in training, where there is none yet."""
        if not bool(self.begun) and self.training and value.numel():
            with torch.no_grad():
                top = value.detach().float().flatten().topk(max(1, value.numel() // PER_MILLE)).values[-1]
                self.log_scale.copy_(top.clamp(min=TINY).log())
                self.begun.fill_(True)
        self._began = bool(self.begun)
        return self._began

    def useless(self, seen: Seen) -> str:
        """All below 0 is 0."""
        return "" if seen.most > 0 else "no sample is above 0 there, so that every value would be 0"

    def record(self, site: Site) -> dict[str, Any]:
        """``binary``, with a threshold of each channel."""
        return {"kind": "binary", "sites": [str(site)], "values": binary.SCALED, "shape": list(self.part.shape)}

    def tensors(self) -> dict[str, Tensor]:
        """Scale, and thresholds."""
        scale = self.log_scale.detach().exp()
        return {"scale": scale, "threshold": scale * self.part.detach().sigmoid()}
