"""Counts of multiplications, beside sums by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepcompression.measure.flops import count
from deepcompression.models import lenet5


@given(
    groups=st.sampled_from([1, 2, 4]),
    stride=st.integers(1, 3),
    padding=st.integers(0, 2),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    batch=st.integers(1, 3),
    transposed=st.booleans(),
)
def test_convolutions_by_hand(
    groups: int, stride: int, padding: int, kernel: tuple[int, int], batch: int, transposed: bool
) -> None:
    """Each output (transposed: each input) meets each weight of its group once, whatever stride and padding are."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    padding = min(padding, *((one - 1) // 2 for one in kernel))
    layer = kind(8, 4, kernel, stride=stride, padding=padding, groups=groups)
    inputs = torch.rand(batch, 8, 9, 7)
    outputs = layer(inputs)
    weights = kernel[0] * kernel[1] * 8 // groups * 4
    places = inputs[:, 0].numel() if transposed else outputs[:, 0].numel()
    found = count(layer, [inputs])
    assert (found.macs, found.nonzero, found.flops) == (places * weights, places * weights, 2 * places * weights)


def test_zeros_are_counted_apart_layer_by_layer() -> None:
    """The paper's net: each weight of fc1 is used once, each of conv2 at 64 places; a pruned one is not used."""
    net = lenet5()
    with torch.no_grad():
        net.get_parameter("fc1.weight")[:100] = 0
        net.get_parameter("conv2.weight")[:, :5] = 0
    found = count(net, [torch.rand(1, 1, 28, 28)])
    layers = {one.name: (one.macs, one.nonzero) for one in found.layers}
    assert layers["conv1"] == (24 * 24 * 20 * 25,) * 2
    assert layers["conv2"] == (8 * 8 * 50 * 20 * 25, 8 * 8 * 50 * 15 * 25)
    assert layers["fc1"] == (800 * 500, 800 * 400)
    assert found.macs == 2_293_000 and found.nonzero == sum(one for _, one in layers.values())
    assert next(one for one in found.layers if one.name == "conv2").density == 0.75


class Tied(nn.Module):
    """An embedding that is the last layer too, and two products of its own: of an activation with a weight, and not."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(10, 4)
        self.last = nn.Linear(4, 10, bias=False)
        self.last.weight = self.words.weight
        self.own = nn.Parameter(torch.ones(10, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        values = nn.functional.linear(self.last(self.words(inputs)), self.own.t())
        return values @ values.transpose(1, 2)


def test_what_is_no_module_counts_too() -> None:
    """Products in a forward stand under its module; only weights can be zero; looking words up multiplies nothing."""
    net = Tied()
    with torch.no_grad():
        net.own[:5] = 0
        net.words.weight[0] = 0
    found = count(net, [torch.tensor([[1, 2]])])
    layers = {one.name: (one.macs, one.nonzero) for one in found.layers}
    assert layers == {"last": (2 * 40, 2 * 36), "": (2 * 30 + 2 * 2 * 3, 2 * 15 + 2 * 2 * 3)}
    assert found.left_out == {}


def test_attention_and_recurrent_layers_by_hand() -> None:
    """They run as one op of their own; what they are made of is counted, their zeros too."""
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with torch.no_grad():
        attention.self_attn.in_proj_weight[:8] = 0
    found = {one.name: (one.macs, one.nonzero) for one in count(attention, [torch.rand(1, 3, 8)]).layers}
    assert found["self_attn"] == (3 * 8 * 24 + 3 * 8 * 8 + 2 * 3 * 3 * 8, 3 * 8 * 16 + 3 * 8 * 8 + 2 * 3 * 3 * 8)
    assert found["linear1"] == (3 * 8 * 16,) * 2
    assert count(nn.LSTM(4, 5), [torch.rand(7, 1, 4)]).macs == 7 * (4 * 5) * (4 + 5)
    assert count(nn.GRU(4, 5), [torch.rand(7, 1, 4)]).macs == 7 * (3 * 5) * (4 + 5)


def test_what_cannot_be_counted_is_named() -> None:
    """A layer that is silently free would make a net look cheaper than it is."""
    found = count(nn.Bilinear(3, 4, 5), [torch.rand(1, 3), torch.rand(1, 4)])
    assert (found.macs, found.left_out) == (0, {"": "Bilinear"})


def test_the_model_stays_as_it_was() -> None:
    """Counting leaves no hook, and neither mode nor switches of PyTorch changed, a model that fails too."""
    net = nn.Linear(3, 2).train()
    fast, enabled = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled
    with pytest.raises(RuntimeError):
        count(net, [torch.rand(1, 4)])
    assert net.training and not net._forward_hooks and not net._forward_pre_hooks
    assert (torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.enabled) == (fast, enabled)
