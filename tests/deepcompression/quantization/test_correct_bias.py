"""Means of outputs after bias correction are those before quantization; what has no place for it is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.network.edits.apply import apply_all
from deepcompression.quantization.correct_bias import correct_bias

SITE = {"kind": "quantize_values", "range": "dynamic", "bits": 3, "scheme": "asymmetric"}


def forward(model: nn.Module, batch: Tensor) -> Any:
    return model(batch)


def pair(*layers: Any, sites: Any = (0,)) -> tuple[nn.Module, nn.Module]:
    """The same net twice, the second one's weights rounded, and what goes into the layers at ``sites``."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        made.append(nn.Sequential(*(layer() for layer in layers)))
    for module in made[1].modules():
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            module.weight.data = (module.weight.data * 8).round() / 8
    apply_all(made[1], [{**SITE, "sites": [f"{site}:input[0]"]} for site in sites])
    return made[0].eval(), made[1].eval()


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (4, 6)),
    "tokens": (lambda: nn.Linear(6, 5), (4, 3, 6)),
    "conv1d": (lambda: nn.Conv1d(6, 5, 3), (4, 6, 9)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, groups=2), (4, 6, 5, 5)),
    "one image": (lambda: nn.Conv2d(6, 4, 3), (6, 5, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 5, 2), (4, 6, 3, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_the_mean_of_each_channel_is_what_it_was(kind: str) -> None:
    """Over samples and places, of every kind of layer, batches of different sizes weighing by their size."""
    make, shape = LAYERS[kind]
    dense, quantized = pair(make)
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1)) + 0.7
    batches = list(x) if kind == "one image" else [x[0], torch.cat([x[1], x[2]])]
    axis = -3 if "image" in kind or kind in ("conv2d", "transposed") else -2 if kind == "conv1d" else -1

    def means(model: nn.Module) -> Tensor:
        outputs = [model(one).movedim(axis, 0).flatten(1) for one in batches]
        return torch.cat(outputs, 1).double().mean(1)

    with torch.no_grad():
        before, wanted = means(quantized), means(dense)
        (row,) = correct_bias(dense, quantized, batches, forward)
        after = means(quantized)
    assert (row.layer, row.tensor, row.why) == ("0", "0.bias", "")
    assert row.shift == pytest.approx(float((wanted - before).abs().max()), rel=1e-3)
    assert row.shift > 0.01
    assert torch.allclose(after, wanted, atol=1e-5)


def test_layers_are_fed_with_what_the_dense_model_gives() -> None:
    """The second layer is corrected for its own error alone, whatever the first one's is."""
    dense, quantized = pair(lambda: nn.Linear(4, 6), nn.ReLU, lambda: nn.Linear(6, 3), sites=(0, 2))
    x = torch.rand(64, 4)
    correct_bias(dense, quantized, [x], forward)
    inner = dense[:2](x)
    assert torch.allclose(quantized[2](inner).mean(0), dense[2](inner).mean(0), atol=1e-5)


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_norm_takes_up_what_a_layer_without_bias_is_off(affine: bool) -> None:
    """Its running mean is lowered as much: what comes out of both is right on average; all else stays."""
    conv = lambda: nn.Conv2d(3, 4, 3, bias=False)  # noqa: E731
    dense, quantized = pair(conv, lambda: nn.BatchNorm2d(4, affine=affine))
    for model in (dense, quantized):
        model[1].running_mean.copy_(torch.arange(4.0))
        model[1].running_var.fill_(4.0)
    x = torch.rand(8, 3, 6, 6)
    (row,) = correct_bias(dense, quantized, x.split(4), forward)
    assert (row.tensor, row.why) == ("1.running_mean", "")
    assert row.shift > 0.001
    # ranges are those of each call
    means = [torch.cat([model(one) for one in x.split(4)]).mean((0, 2, 3)) for model in (dense, quantized)]
    assert torch.allclose(*means, atol=1e-5)


class Shared(nn.Module):
    """Two layers without bias before one BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.norm = (nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))

    def forward(self, x: Tensor) -> Tensor:
        """Both, one after the other."""
        return self.norm(self.b(self.norm(self.a(x))))


class Changed(nn.Module):
    """What is between layer and BatchNorm works in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.norm, self.unused = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Rectified in place."""
        return self.norm(self.a(x).relu_())


def test_what_is_not_corrected_is_said() -> None:
    """No bias and no BatchNorm of its own; a tensor that must stay; a bias of two layers; never called; recurrent."""
    none = "it has no bias, and no BatchNorm of its own follows that could take it up"
    for make, sites in ((Shared, ("a", "b")), (Changed, ("a",))):
        dense, quantized = make().eval(), make().eval()
        records = [{**SITE, "sites": [f"{site}:input[0]"]} for site in sites]
        apply_all(quantized, records)
        before = quantized.norm.running_mean.clone()
        rows = correct_bias(dense, quantized, [torch.rand(4, 4)], forward)
        assert [row.why for row in rows] == [none] * len(sites)
        assert torch.equal(quantized.norm.running_mean, before)
    dense, quantized = Changed().eval(), Changed().eval()
    apply_all(quantized, [{**SITE, "sites": ["unused:input[0]"]}])
    assert [row.why for row in correct_bias(dense, quantized, [torch.rand(4, 4)], forward)] == [
        "the forward never calls it"
    ]
    dense, quantized = pair(lambda: nn.Linear(4, 4), lambda: nn.Linear(4, 4), sites=(0, 1))
    quantized[1].bias = quantized[0].bias
    rows = correct_bias(dense, quantized, [torch.rand(4, 4)], forward)
    assert rows[0].why == "its bias is that of others too: 0.bias, 1.bias"
    dense, quantized = pair(lambda: nn.Linear(4, 4))
    (row,) = correct_bias(dense, quantized, [torch.rand(4, 4)], forward, {"0.bias": "0.bias must stay shared"})
    assert row.why == "0.bias must stay shared"
    dense, quantized = pair(lambda: nn.LSTM(4, 4))
    (row,) = correct_bias(dense, quantized, [torch.rand(4, 4)], forward)
    assert row.why == "a recurrent layer's outputs are not off by what its biases add"


def test_a_layer_that_is_as_it_was_is_left() -> None:
    """Only what is quantized has a row."""
    dense, quantized = pair(lambda: nn.Linear(4, 4), lambda: nn.Linear(4, 4))
    quantized[1].weight.data = dense[1].weight.data.clone()
    before = quantized[1].bias.detach().clone()
    rows = correct_bias(dense, quantized, [torch.rand(4, 4)], forward)
    assert [row.layer for row in rows] == ["0"]
    assert torch.equal(quantized[1].bias, before)
