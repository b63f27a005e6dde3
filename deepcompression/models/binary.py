"""The fully connected net of the binary papers: BatchNorm, a sign, and binary weights, three times 1,024 wide."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class DroppedLinear(nn.Linear):
    """A Linear that drops some of its inputs while it trains: behind what binarizes them, so that 0 is dropped."""

    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.dropout = dropout

    def forward(self, value: Tensor) -> Tensor:
        """(n, outputs) of (n, inputs)."""
        return super().forward(functional.dropout(value, self.dropout, self.training))


class BinaryMLP(nn.Module):
    """784-1024-1024-1024-10 without biases, a BatchNorm behind each layer (BinaryNet; LFC of FINN and BNN-PYNQ).

    Float until it is binarized: then fc1 to fc4 take signs, which the hardtanh between lets through as they are. Takes
    images (n, 1, 28, 28) or (n, 784) in [0, 1], which become -1 to 1. 2,916,372 parameters.
    """

    def __init__(self, hidden: int = 1024, dropout: float = 0.2) -> None:
        super().__init__()
        self.fc1, self.norm1 = DroppedLinear(784, hidden, dropout), nn.BatchNorm1d(hidden)
        self.fc2, self.norm2 = DroppedLinear(hidden, hidden, dropout), nn.BatchNorm1d(hidden)
        self.fc3, self.norm3 = DroppedLinear(hidden, hidden, dropout), nn.BatchNorm1d(hidden)
        self.fc4, self.norm4 = DroppedLinear(hidden, 10, dropout), nn.BatchNorm1d(10)
        self.act = nn.Hardtanh()

    def forward(self, images: Tensor) -> Tensor:
        """Logits (n, 10)."""
        value = self.act(self.norm1(self.fc1(2 * images.flatten(1) - 1)))
        value = self.act(self.norm2(self.fc2(value)))
        value = self.act(self.norm3(self.fc3(value)))
        logits: Tensor = self.norm4(self.fc4(value))
        return logits


def binary_mlp(hidden: int = 1024, dropout: float = 0.2) -> nn.Module:
    """The net of the binary papers, untrained.

    Args:
        hidden: units of each of the three hidden layers.
        dropout: the part of a layer's inputs that is dropped while it trains.
    """
    return BinaryMLP(hidden, dropout)
