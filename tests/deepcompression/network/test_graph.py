from __future__ import annotations

import torch
from torch import Tensor, nn

from deepcompression.models import digits_net
from deepcompression.network.graph import graph


class Branched(nn.Module):
    """A residual sum, a layer that is used twice, weights that an operation takes, and a mapping as its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.drop, self.fc = nn.Dropout(), nn.Linear(3, 3)
        self.own = nn.Parameter(torch.ones(3, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.relu(self.norm(self.conv(x))) + x
        y = self.drop(y).mean((2, 3)).view(-1, 3)
        return {"logits": nn.functional.linear(self.fc(self.fc(y)), self.own)}


def told(model: nn.Module, *shape: int) -> list[tuple[str, str, list[int]]]:
    nodes = graph(model, lambda one: one(torch.rand(shape)))
    return [(node.module, node.kind, node.inputs) for node in nodes]


def test_layers_and_operations_stand_in_their_order() -> None:
    """What takes whose output is followed through operations that compute nothing."""
    assert told(digits_net(), 2, 1, 8, 8) == [
        ("", "input", []),
        ("conv1", "Conv2d", [0]),
        ("", "relu", [1]),
        ("pool", "MaxPool2d", [2]),
        ("conv2", "Conv2d", [3]),
        ("", "relu", [4]),
        ("pool", "MaxPool2d", [5]),
        ("fc1", "Linear", [6]),
        ("", "relu", [7]),
        ("fc2", "Linear", [8]),
    ]


def test_branches_and_repeated_layers_are_followed() -> None:
    """A sum has two inputs, a layer called twice is two nodes, and the model is left in its own mode."""
    model = Branched().train()
    found = told(model, 2, 3, 4, 4)
    assert ("", "add", [3, 0]) in found and model.training
    assert [one[:2] for one in found[5:]] == [("", "mean"), ("fc", "Linear"), ("fc", "Linear"), ("", "linear")]
    assert [one[2] for one in found[6:]] == [[5], [6], [7]]


def test_recurrent_layers_and_attention_are_one_node() -> None:
    """Modules of torch that hold others and compute by themselves are layers; what gives a tuple is followed."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.attention = nn.LSTM(4, 4, batch_first=True), nn.MultiheadAttention(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.lstm(x)
            return self.attention(y, y, y)[0][:, -1]

    found = told(Model(), 2, 3, 4)
    assert [one[:2] for one in found] == [("", "input"), ("lstm", "LSTM"), ("attention", "MultiheadAttention")]
    assert found[2][2] == [1]
