"""A small encoder and decoder that gives each pixel a class, to try methods on; U-Net's kind (arXiv 1505.04597)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Segmenter(nn.Module):
    """Logits for each pixel of pictures (n, channels, h, w), h and w multiples of 4."""

    def __init__(self, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.fine = _block(channels, width, 1)
        self.middle = _block(width, 2 * width, 2)
        self.coarse = _block(2 * width, 4 * width, 2)
        self.up1 = _block(6 * width, 2 * width, 1)
        self.up2 = _block(3 * width, width, 1)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, classes, h, w)."""
        fine = self.fine(images)
        middle = self.middle(fine)
        joined = torch.cat([_doubled(self.coarse(middle)), middle], 1)
        joined = torch.cat([_doubled(self.up1(joined)), fine], 1)
        logits: Tensor = self.head(self.up2(joined))
        return logits


def segmenter(classes: int = 4, channels: int = 3, width: int = 16) -> nn.Module:
    """A small segmenter, untrained; for ``deepcompression.data:shapes``, and ``step: segmentation``.

    Args:
        classes: that a pixel may have.
        channels: of a picture.
        width: channels behind the first layer.
    """
    return Segmenter(classes, channels, width)


def _doubled(maps: Tensor) -> Tensor:
    return functional.interpolate(maps, scale_factor=2.0, mode="nearest")


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip
