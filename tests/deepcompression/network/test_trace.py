"""Which layers' units belong together, by the graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcompression.errors import StructureError
from deepcompression.models import paper
from deepcompression.network.chains import WHOLE
from deepcompression.network.trace import chains, shapes
from deepcompression.pruning.kept_units import wanted


class Net(nn.Module):
    """Two convolutions and two linear layers around a forward of the test's own."""

    def __init__(self, between: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.first, self.second = nn.Linear(4 * 8 * 8, 6), nn.Linear(6, 5)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self, x)


def pairs(model: nn.Module) -> list[tuple[str, str]]:
    return [(chain.producer, chain.consumer) for chain in chains(model)[0]]


def test_the_papers_networks_are_chains_from_end_to_end():
    """The nets that recipes here compress can all be read; what is left alone is what must be."""
    assert pairs(paper.lenet_300_100()) == [("fc1", "fc2"), ("fc2", "fc3")]
    for make in (paper.lenet5, paper.digits_net):
        assert pairs(make()) == [("conv1", "conv2"), ("conv2", "fc1"), ("fc1", "fc2")]
        assert chains(make())[1] == {"fc2": "its units are the model's outputs"}
    with torch.device("meta"):
        vgg, alexnet = paper.vgg16(), paper.alexnet()
    assert len(pairs(vgg)) == 15 and list(chains(vgg)[1]) == ["classifier.fc8"]
    assert pairs(alexnet) == [("classifier.fc6", "classifier.fc7"), ("classifier.fc7", "classifier.fc8")]
    left = chains(alexnet)[1]
    assert "LocalResponseNorm" in left["features.conv1"] and left["features.conv4"] == "it has 2 groups"
    assert left["features.conv3"] == "features.conv4 takes its output: it has 2 groups"


@pytest.mark.parametrize(
    "flat",
    [
        lambda x: x.flatten(1),
        lambda x: torch.flatten(x, 1),
        lambda x: torch.flatten(x, start_dim=1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x.view(x.size()[0], -1),
        lambda x: x.view((-1, 4 * 8 * 8)),
        lambda x: torch.reshape(x, (-1, 4 * 8 * 8)),
        lambda x: nn.functional.dropout(torch.relu(x), training=False).flatten(1),
        lambda x: F.leaky_relu(F.max_pool2d(x, 1)).flatten(1),
    ],
)
def test_flattening_is_recognised_however_it_is_written(flat: Callable[[Tensor], Tensor]):
    """People write it in many ways; each must lead from convolutions to linear layers."""
    model = Net(lambda net, x: net.second(net.first(flat(net.conv(x))).relu()))
    seen = shapes(model, lambda one: one(torch.zeros(2, 3, 8, 8)))
    assert ("conv", "first") in [(chain.producer, chain.consumer) for chain in chains(model, seen)[0]]
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_means_over_all_places_are_pools():
    """Global average pooling is often a mean over two axes."""
    for mean in (lambda x: x.mean((2, 3)), lambda x: torch.mean(x, dim=[-1, -2]), lambda x: x.mean((2, 3), True)):
        head = Net(lambda net, x, mean=mean: net.head(mean(net.conv(x)).flatten(1)), head=nn.Linear(4, 2))
        assert pairs(head) == [("conv", "head")]
    over_channels = Net(lambda net, x: net.head(net.conv(x).mean(1).flatten(1)), head=nn.Linear(64, 2))
    assert "mean mixes its units" in chains(over_channels)[1]["conv"]


@pytest.mark.parametrize(
    ("between", "layers", "layer", "reason"),
    [
        (lambda net, x: net.first((net.conv(x) + net.again(net.conv(x))).flatten(1)), {}, "conv", "used 2 times"),
        (lambda net, x: net.again(h := net.conv(x)) + h, {}, "conv", "goes to 2 places"),
        (lambda net, x: net.first((net.conv(x) + 1).flatten(1)), {}, "conv", "add follows"),
        (lambda net, x: torch.cat([net.conv(x), x], 1), {}, "conv", "cat joins its output with other"),
        (lambda net, x: net.again(net.conv(x).softmax(1)), {}, "conv", "softmax follows"),
        (lambda net, x: net.again(net.norm(net.conv(x))), {"norm": nn.GroupNorm(2, 4)}, "conv", "norm (GroupNorm)"),
        (lambda net, x: net.again(net.conv(x).transpose(2, 3)), {}, "conv", "transpose follows"),
        (lambda net, x: net.again(F.dropout(net.conv(x))), {}, "conv", "dropout follows"),
        (lambda net, x: net.deep(net.conv(x)), {"deep": nn.Conv2d(4, 4, 3, groups=2)}, "conv", "it has 2 groups"),
        (lambda net, x: net.rows(net.conv(x)), {"rows": nn.Linear(8, 4)}, "conv", "do not reach rows"),
        (lambda net, x: net.conv(x).flatten(1) @ net.first.weight.T, {}, "first", "does not call it as a module"),
        (lambda net, x: F.linear(net.first(x.flatten(1)), net.first.weight.T), {}, "conv", "does not call it"),
        (lambda net, x: net.bilinear(net.conv(x)), {"bilinear": nn.ConvTranspose2d(4, 4, 2)}, "conv", "follows"),
        (lambda net, x: net.again(net.norm(net.conv(x))), {"norm": nn.BatchNorm2d(4, track_running_stats=False)},
         "conv", "no running statistics"),
        (lambda net, x: net.again(net.prelu(net.conv(x))), {"prelu": nn.PReLU(4)}, "conv", "prelu (PReLU) follows"),
        (lambda net, x: net.second(F.max_pool1d(net.first(x.flatten(1)), 1)), {}, "first", "mixes its units"),
        (lambda net, x: net.norm(net.again(net.norm(net.conv(x)))), {"norm": nn.BatchNorm2d(4)}, "conv",
         "norm is used more than once"),
    ],
)  # fmt: skip
def test_what_is_no_chain_is_left_alone_with_the_reason(between, layers, layer, reason):
    """Where units are not surely the next layer's inputs, nothing may be changed, and people are told why."""
    found, left = chains(Net(between, **layers))
    assert layer not in [chain.producer for chain in found]
    assert reason in left[layer]


def test_tied_hooked_and_held_layers_are_left_alone():
    """A change of one use would change the others, or be undone by what computes the weight."""
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    tied[2].weight = tied[0].weight
    assert pairs(tied) == [] and "used elsewhere" in chains(tied)[1]["0"]
    hooked = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    handle = hooked[1].register_forward_hook(lambda *_: None)
    assert chains(hooked)[1]["0"] == "1 (ReLU) has hooks"
    handle.remove()
    assert pairs(hooked) == [("0", "2")]
    normed = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
    assert pairs(normed) == []
    read = Net(lambda net, x: net.second(net.first(x.flatten(1)).relu()) @ net.second.weight)
    assert "second takes its output: its parameters are used elsewhere too" in chains(read)[1]["first"]


def test_a_model_that_cannot_be_traced_is_left_alone_as_a_whole():
    """Control flow that depends on values is beyond torch.fx; the model itself stays as it is."""
    model = Net(lambda net, x: net.conv(x) if x.sum() > 0 else x)
    model.conv.eval()
    found, left = chains(model)
    assert found == [] and "cannot trace" in left[WHOLE]
    assert model.training and not model.conv.training
    assert chains(nn.Linear(3, 3)) == ([], {WHOLE: "the graph does not call it as a module"})


def test_reading_leaves_no_trace_in_the_model():
    """Constants in forward make torch.fx put attributes on the model."""
    model = Net(lambda net, x: net.again(net.conv(x)) * torch.ones(4, 1, 1))
    before = set(vars(model))
    assert pairs(model) == [("conv", "again")] and set(vars(model)) == before


def test_counts_of_units_come_by_layer_pattern_or_default():
    """Fractions are rounded, at least one unit stays, a name beats a pattern and both beat the default."""
    model = paper.lenet5()
    assert wanted(model, {"conv*": 0.5, "conv2": 7}) == {"conv1": 10, "conv2": 7}
    assert wanted(model, {"default": 0.001, "fc1": 1.0}) == {"conv1": 1, "conv2": 1, "fc1": 500}


@pytest.mark.parametrize(
    ("units", "words"),
    [
        ({"fc2": 3}, "fc2: its units cannot be removed: its units are the model's outputs"),
        ({"fc9": 3}, "'fc9' matches no tensor"),
        ({"fc1.bias": 3}, "fc1.bias: its units cannot"),
        ({"fc1": 501}, "501 units are impossible; expected a count from 1 to 500"),
        ({"fc1": 0}, "0 units"),
        ({"fc1": 1.5}, "1.5 units"),
        ({"default": True}, "True units"),
    ],
)
def test_units_that_cannot_be_removed_are_refused_by_name(units, words):
    """Before any training, in a line that says why."""
    with pytest.raises(StructureError, match=words):
        wanted(paper.lenet5(), units)


def test_an_open_view_is_followed_where_samples_show_that_it_keeps_them_whole():
    """``view(-1, 64)`` of a larger map puts rows of one sample under each other: the graph looks the same."""
    model = Net(lambda net, x: net.head(net.conv(x).view(-1, 64)), head=nn.Linear(64, 5))
    assert "only shapes of samples tell" in chains(model)[1]["conv"]
    whole, parts = (shapes(model, lambda one, n=n: one(torch.zeros(2, 3, n, n))) for n in (4, 8))
    assert [chain.consumer for chain in chains(model, whole)[0]] == ["head"]
    assert "or they deny it" in chains(model, parts)[1]["conv"]


def test_a_norm_behind_a_linear_layer_is_followed_where_its_input_has_two_axes():
    """BatchNorm takes the second axis: of sequences, that are the tokens."""

    def make(before: nn.Module) -> nn.Sequential:
        return nn.Sequential(before, nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))

    assert pairs(make(nn.Flatten())) == [("1", "4")]
    assert "may have more than two axes (sequences)" in chains(make(nn.Identity()))[1]["1"]
    model = make(nn.Identity())
    rows, tokens = (shapes(model, lambda one, s=s: one(torch.zeros(*s))) for s in ((2, 6), (2, 4, 6)))
    assert len(chains(model, rows)[0]) == 1
    [chain] = chains(model, tokens)[0]
    assert chain.rows == ("1.weight", "1.bias")  # the norm has a place a token, none a unit
    assert bool(chain.constants(dict(model.state_dict())).isnan().all())


def test_samples_without_a_batch_axis_are_seen():
    """A convolution takes a single image too; flattening from its second axis is another thing then."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 2))
    seen = shapes(model, lambda one: one(torch.zeros(1, 8, 8)))
    assert chains(model, seen)[1]["0"] == "its input has no axis that counts samples"


class _Same(nn.Conv2d):
    """A subclass that adds nothing to the computation."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.note = "mine"


class _Other(nn.Conv2d):
    """A subclass that computes something else."""

    def forward(self, x):
        return super().forward(x).flip(1)


class _Mine(nn.ReLU):
    """A known operation by another name."""


def test_subclasses_with_the_layers_own_forward_are_the_layer() -> None:
    """Whether forward is inherited decides, not the class: another forward may mix channels."""
    same = nn.Sequential(_Same(1, 4, 3), _Mine(), _Same(4, 2, 3))
    assert [(chain.producer, chain.consumer) for chain in chains(same)[0]] == [("0", "2")]
    for position in (0, 2):
        layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)]
        layers[position] = _Other(*((1, 4, 3) if position == 0 else (4, 2, 3)))
        assert chains(nn.Sequential(*layers))[0] == []
