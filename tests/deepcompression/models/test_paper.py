"""The paper's networks, layer by layer as Caffe defines them."""

from __future__ import annotations

import pytest
import torch

from deepcompression.models import paper
from deepcompression.network.state import plain_state


def counts(model: torch.nn.Module) -> dict[str, int]:
    return {name: p.numel() for name, p in model.named_parameters() if name.endswith("weight")}


@pytest.mark.parametrize(
    ("make", "total", "shape"),
    [
        (paper.lenet_300_100, 266_610, (2, 1, 28, 28)),
        (paper.lenet5, 431_080, (2, 1, 28, 28)),
        (paper.digits_net, 53_002, (2, 1, 8, 8)),
    ],
)
def test_small_nets_have_the_papers_size_and_ten_classes(make, total, shape):
    """Ratios stand on the number of parameters: the paper's, and at most 60,000 for digits."""
    model = make()
    assert sum(p.numel() for p in model.parameters()) == total
    assert model(torch.zeros(shape)).shape == (2, 10)


@pytest.mark.parametrize(
    ("make", "total", "layers"),
    [
        (
            paper.alexnet,
            60_965_224,
            [34_848, 307_200, 884_736, 663_552, 442_368, 37_748_736, 16_777_216, 4_096_000],
        ),
        (
            paper.vgg16,
            138_357_544,
            [1_728, 36_864, 73_728, 147_456, 294_912, 589_824, 589_824, 1_179_648]
            + [2_359_296] * 5
            + [102_760_448, 16_777_216, 4_096_000],
        ),
    ],
)
def test_large_nets_have_the_papers_layers(make, total, layers):
    """The paper's tables of weights by layer; groups in AlexNet halve conv2, conv4 and conv5."""
    with torch.device("meta"):
        model = make()
    assert sum(p.numel() for p in model.parameters()) == total
    assert list(counts(model).values()) == layers


@pytest.mark.parametrize(("make", "side"), [(paper.alexnet, 227), (paper.vgg16, 224)])
def test_large_nets_take_the_papers_images(make, side):
    """The flattened features must fit fc6, which only a forward pass shows; `classes` sets the last layer."""
    with torch.device("meta"):
        model = make(classes=7)
        assert model(torch.empty(2, 3, side, side)).shape == (2, 7)


def test_dropout_correction_can_name_alexnets_modules():
    """A recipe's `dropout: {classifier.drop6: classifier.fc6}` needs these very names."""
    with torch.device("meta"):
        names = dict(paper.alexnet().named_modules())
    assert names["classifier.drop6"].p == names["classifier.drop7"].p == 0.5
    assert {"features.conv1", "classifier.fc6", "classifier.fc8"} <= set(names)


def test_lenet_300_100_takes_flat_images_too():
    """Samples (n, 784) and (n, 1, 28, 28) give the same logits."""
    torch.manual_seed(0)
    model, images = paper.lenet_300_100(), torch.rand(3, 1, 28, 28)
    assert torch.equal(model(images), model(images.flatten(1)))


def test_names_of_the_lenets_are_those_of_the_recipes():
    """Recipes name fc1, conv1 and so on; renaming a module would break them and every stored checkpoint."""
    assert list(plain_state(paper.lenet_300_100())) == [f"fc{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")]
    lenet5 = [f"{layer}.{p}" for layer in ("conv1", "conv2", "fc1", "fc2") for p in ("weight", "bias")]
    assert list(plain_state(paper.lenet5())) == lenet5
