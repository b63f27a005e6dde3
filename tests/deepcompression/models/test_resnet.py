"""ResNet-20 for small images."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deepcompression.models.resnet import resnet20


@pytest.mark.parametrize(("channels", "side", "parameters", "multiplications"), [
    (1, 28, 272_186, 31_021_952),
    (3, 32, 272_474, 40_813_184),
])  # fmt: skip
def test_resnet20_has_its_size(channels: int, side: int, parameters: int, multiplications: int) -> None:
    """Figures of others are about this size: 0.27 million parameters, 40,813,184 multiplications for 32 x 32."""
    with torch.device("meta"):
        model = resnet20(channels)
    assert sum(one.numel() for one in model.parameters()) == parameters
    with FlopCounterMode(display=False) as counter:
        assert model(torch.zeros(1, channels, side, side, device="meta")).shape == (1, 10)
    assert counter.get_total_flops() == 2 * multiplications
