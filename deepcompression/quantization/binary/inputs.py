"""What all kinds of binary inputs have in common: a module that stands before a layer while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deepcompression.network.edits.quantize_values import Before, Site
from deepcompression.quantization.sites import Seen

OWN = "binary"  # how a layer calls what stands before it, behind side and number of the site


class BinaryInput(nn.Module):
    """Few values in place of a layer's input; the input itself while it is not ``active``.

    Args:
        bits: of a value.
        layer: whose input it is.
    """

    def __init__(self, bits: int, layer: nn.Module) -> None:
        super().__init__()
        self.bits = bits
        self.active = True

    def forward(self, value: Tensor) -> Tensor:
        """The value in its few values, in its shape and dtype."""
        return self.few(value) if self.active else value

    def few(self, value: Tensor) -> Tensor:
        """The value as it is used."""
        raise NotImplementedError

    def useless(self, seen: Seen) -> str:
        """Why nothing would be left of what came by before training; empty where something is."""
        raise NotImplementedError

    def record(self, site: Site) -> dict[str, Any]:
        """The edit that does the same for good."""
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """The values of the tensors that the edit brings, by what they are."""
        return {}


@dataclass(frozen=True)
class Training(Before):
    """Calls what stands before a layer."""

    kind = "binary"

    def changed(self, module: nn.Module, value: Tensor) -> Tensor:
        """The value in its few values."""
        found: Tensor = getattr(module, self.site.tensor(OWN))(value)
        return found


def channels_of(layer: nn.Module) -> list[int]:
    """The shape of one number for each channel of what goes into a layer: (channels, 1, 1) before a Conv2d."""
    if hasattr(layer, "in_channels"):
        places = len(layer.kernel_size)  # type: ignore[arg-type]
        return [int(layer.in_channels), *[1] * places]  # type: ignore[arg-type]
    return [int(layer.nx if hasattr(layer, "nx") else layer.in_features)]  # type: ignore[arg-type]
