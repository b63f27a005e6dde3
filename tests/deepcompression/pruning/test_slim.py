"""Removal and reordering of units against what the model computes, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from deepcompression import torch as files
from deepcompression.errors import InvariantError, StructureError
from deepcompression.models import paper
from deepcompression.network import names, state
from deepcompression.network.chains import WHOLE
from deepcompression.pruning.slim import Slimmed, slim
from deepcompression.structure import check, hold
from deepcompression.structure.constraints import structured


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU, bias: bool = True, seed: int = 0) -> nn.Sequential:
    """Linear layers (named 0, 2, 4, ...) with an activation between each two."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, wide in pairwise(sizes):
        layers += [nn.Linear(inputs, wide, bias=bias), act()]
    return nn.Sequential(*layers[:-1]).double()


def kill(model: nn.Module, layer: str, rows: Sequence[int] = (), columns: Sequence[int] = ()) -> None:
    """Zeroes rows and columns (input channels) of a layer's weight."""
    weight = model.get_submodule(layer).weight.data
    weight[list(rows)] = 0
    weight[:, list(columns)] = 0


def trained_norms(model: nn.Module) -> None:
    """Statistics and affine parameters as training leaves them: none 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low in (
                (module.weight, 0.5),
                (module.running_var, 0.5),
                (module.bias, -1),
                (module.running_mean, -1),
            ):
                if tensor is not None:
                    tensor.data.uniform_(low, 1)


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(x)


def checked(model: nn.Module, x: Tensor, **options: object) -> Slimmed:
    """Slims a model, makes sure that its outputs, shapes and structure stay, and that there is nothing left to do."""
    before, expected = state.plain_state(model), outputs(model, x)
    made = slim(model, outputs=lambda one: one(x), **options)
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-9, atol=1e-9)
    after = state.plain_state(model)
    assert {name: one.shape for name, one in after.items()} == {name: one.shape for name, one in before.items()}
    weights = names.prunable(model)
    check.check(made.arranged, after, structured(weights, weights))
    for name, tensor in before.items():
        torch.testing.assert_close(made.arranged[name].double().sum(), tensor.double().sum())
    again = copy.deepcopy(model)
    slim(again, reorder=False)
    assert all(torch.equal(one, after[name]) for name, one in state.plain_state(again).items())
    floats = [one for one in after.values() if one.is_floating_point()]
    assert not any(bool(((one == 0) & ~state.is_zero(one)).any()) for one in floats)
    return made


def is_dead(model: nn.Module, layer: str, unit: int) -> bool:
    module = model.get_submodule(layer)
    return not module.weight[unit].any() and not (module.bias is not None and module.bias[unit].any())


def test_a_unit_that_nothing_reads_is_removed():
    """Its row and bias compute what no weight takes up."""
    model = mlp(6, 5, 4)
    kill(model, "2", columns=[1, 3])
    made = checked(model, torch.randn(7, 6).double(), reorder=False)
    assert [is_dead(model, "0", unit) for unit in range(5)] == [False, True, False, True, False]
    assert (made.layers[0].dead_before, made.layers[0].dead, made.layers[0].folded) == (0, 2, 0)
    assert made.zeroed == ["0.weight", "2.weight"] and made.left == {"2": "its units are the model's outputs"}


@pytest.mark.parametrize(
    "act", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Hardtanh, nn.LeakyReLU, nn.Softplus]
)
def test_a_unit_without_weights_gives_its_constant_to_the_next_bias(act: Callable[[], nn.Module]):
    """act(bias), times the next layer's columns, is part of that layer's bias; a sigmoid of nothing is one half."""
    model = mlp(6, 5, 4, act=act)
    kill(model, "0", rows=[0, 2])
    model[0].bias.data[2] = 0
    bias, columns = model[2].bias.clone(), model[2].weight.clone()
    constants = model[1](model[0].bias)[[0, 2]]
    made = checked(model, torch.randn(7, 6).double(), reorder=False)
    torch.testing.assert_close(model[2].bias, bias + columns[:, [0, 2]] @ constants)
    assert not model[2].weight[:, [0, 2]].any() and is_dead(model, "0", 0) and is_dead(model, "0", 2)
    assert made.layers[0].folded == int((constants != 0).sum())


def test_removal_goes_through_the_net_both_ways():
    """What died makes others die: behind it (its constant is all that one saw) and before it (nobody else read it)."""
    model = mlp(4, 3, 3, 3, 2, act=nn.Softplus)
    kill(model, "0", rows=[0])
    kill(model, "2", rows=[0, 1], columns=[1])
    model[2].weight.data[0, 0] = 0.5  # unit 0 of layer 2 sees unit 0 of layer 0, which is constant
    kill(model, "6", columns=[2])
    kill(model, "4", rows=[0])
    made = checked(model, torch.randn(9, 4).double())
    assert [layer.dead for layer in made.layers] == [2, 2, 2]
    assert sum(layer.folded for layer in made.layers) >= 2


def test_without_a_bias_to_take_it_a_constant_stays():
    """The unit goes only where its constant is zero."""
    model = mlp(6, 5, 4)
    model[2] = nn.Linear(5, 4, bias=False).double()
    kill(model, "0", rows=[0, 1])
    model[0].bias.data[:2] = torch.tensor([0.75, -0.75])
    made = checked(model, torch.randn(7, 6).double(), reorder=False)
    assert (made.layers[0].dead, made.layers[0].constant, made.layers[0].folded) == (1, 1, 0)
    assert model[2].weight[:, 0].any() and not model[2].weight[:, 1].any() and model[0].bias[0] == 0.75
    sigmoid = mlp(6, 5, 4, act=nn.Sigmoid, bias=False)
    kill(sigmoid, "0", rows=[0])
    assert checked(sigmoid, torch.randn(7, 6).double()).layers[0].constant == 1


@pytest.mark.parametrize("padding", [0, 1])
def test_units_go_through_depthwise_layers(padding: int):
    """What dies before, in or behind one dies in all three; a constant goes on where no border changes it."""
    torch.manual_seed(0)
    deep = nn.Conv2d(6, 6, 3, padding=padding, groups=6)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), deep, nn.BatchNorm2d(6), nn.SiLU(), nn.Conv2d(6, 3, 1)
    ).double()
    trained_norms(model)
    kill(model, "0", rows=[0])  # a constant, which borders change where there is padding
    model[1].bias.data[0] = 3.0
    kill(model, "3", rows=[1])
    kill(model, "6", columns=[2])
    made = checked(model, torch.randn(3, 2, 6, 6).double())
    [layer] = made.layers
    assert (layer.name, layer.through, layer.consumer) == ("0", ("3",), "6")
    assert layer.dead == (3 if padding == 0 else 2) and layer.constant == (1 if padding else 0)
    assert made.zeroed == ["0.weight", "3.weight", "6.weight"]


class ConvNet(nn.Module):
    """LeNet-5's kind with BatchNorm: conv, norm, ReLU, pool, conv, norm, ReLU, pool, flatten, linear, norm, linear."""

    def __init__(self, padding: int = 0, pool: nn.Module | None = None, affine: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.norm1 = nn.Conv2d(2, 5, 3, padding=1), nn.BatchNorm2d(5, affine=affine)
        self.conv2, self.norm2 = nn.Conv2d(5, 6, 3, padding=padding), nn.BatchNorm2d(6, affine=affine)
        self.pool = pool or nn.MaxPool2d(2)
        side = self.features(torch.zeros(2, 2, 10, 10)).shape[-1]
        self.fc1, self.norm3, self.fc2 = nn.Linear(6 * side**2, 7), nn.BatchNorm1d(7), nn.Linear(7, 3)
        trained_norms(self)
        self.double().eval()

    def features(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.norm1(self.conv1(x))))
        return self.pool(F.relu(self.norm2(self.conv2(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        return self.fc2(self.norm3(self.fc1(x.view(x.size(0), -1))).sigmoid())


POOLS = [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, padding=1), nn.AvgPool2d(2), nn.AvgPool2d(3, 2, padding=1)]
POOLS += [
    nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    nn.AdaptiveAvgPool2d(3),
    nn.AvgPool2d(3, 1, ceil_mode=True),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("padding", [0, 1])
def test_convolutions_with_batchnorm_pools_and_padding_keep_their_outputs(pool: nn.Module, padding: int):
    """Where zeros are put around a map, a constant is none at the borders, and only zero may go."""
    model = ConvNet(padding, pool)
    kill(model, "conv1", rows=[0, 1])
    kill(model, "conv2", rows=[2, 5], columns=[3])
    kill(model, "fc1", rows=[4])
    model.norm1.bias.data[:2] = torch.tensor([2.0, -9.0])  # one constant is positive, the other is cut off by the ReLU
    made = checked(model, torch.randn(4, 2, 10, 10).double(), reorder=not padding)
    bordered = padding or (isinstance(pool, nn.AvgPool2d) and pool.padding and pool.count_include_pad)
    assert (made.layers[0].dead, made.layers[0].constant) == ((2, 1) if bordered else (3, 0))
    assert made.layers[2].folded == 1 and made.layers[1].dead + made.layers[1].constant >= 2


def test_a_removed_unit_leaves_its_batchnorm_at_rest():
    """Weight, bias and mean 0, variance 1: nothing of the unit is left to store or to train; without affine too."""
    for affine in (True, False):
        model = ConvNet(affine=affine)
        kill(model, "conv2", columns=[1])
        assert not model.conv2.weight[:, 1].any()
        checked(model, torch.randn(4, 2, 10, 10).double(), reorder=False)
        assert model.norm1.running_mean[1] == 0 and model.norm1.running_var[1] == 1
        assert not affine or (model.norm1.weight[1] == 0 and model.norm1.bias[1] == 0)


def test_one_dimensional_convolutions_and_global_means():
    """Conv1d and a mean over all places are chains like any other."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm, self.b = nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.Conv1d(6, 5, 3)
            self.head = nn.Linear(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.gelu(self.b(F.avg_pool1d(self.norm(self.a(x)), 2))).mean(-1))

    torch.manual_seed(0)
    model = Net()
    trained_norms(model)
    model.double().eval()
    kill(model, "a", rows=[1])
    kill(model, "b", rows=[0, 4])
    made = checked(model, torch.randn(4, 2, 30).double())
    assert [(layer.name, layer.dead) for layer in made.layers] == [("a", 1), ("b", 2)]


def test_residuals_shared_modules_and_untraceable_models_keep_every_bit():
    """What cannot be followed is not touched, and the result says why."""

    class Residual(nn.Module):
        def __init__(self, traceable: bool) -> None:
            super().__init__()
            self.first, self.again, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.traceable = traceable

        def forward(self, x: Tensor) -> Tensor:
            if not self.traceable and x.sum() > 0:
                return x
            x = self.first(x).relu()
            x = x + self.again(self.again(x))
            return self.last(x)

    for traceable, layers in ((True, {"first", "again", "last"}), (False, {WHOLE})):
        model = Residual(traceable)
        kill(model, "first", rows=[0])
        kill(model, "last", columns=[1])
        before = state.plain_state(model)
        made = slim(model)
        assert all(torch.equal(before[name], one) for name, one in state.plain_state(model).items())
        assert set(made.left) == layers and made.layers == [] and made.zeroed == []
        assert len(made.notes) == 1 + len(layers) and "nothing changed" in made.notes[0]
        with pytest.raises(
            StructureError, match=r"first: its units cannot be removed: (torch.fx|its output goes to 2)"
        ):
            slim(model, units={"first": 2})


@pytest.mark.parametrize(
    "make",
    [paper.digits_net, *(pytest.param(one, marks=pytest.mark.slow) for one in (paper.lenet_300_100, paper.lenet5))],
)
def test_pruned_nets_code_smaller_and_compute_the_same(make: Callable[[], nn.Module]):
    """On the nets of the recipes: fewer bytes of the file, told as they are, outputs equal to float32's rounding."""
    torch.manual_seed(0)
    model = make()
    for name in names.prunable(model):
        weight = model.get_parameter(name).data
        importance = weight.abs() * torch.rand(len(weight), *[1] * (weight.ndim - 1))  # some rows fare worse
        weight.copy_(torch.where(importance > importance.quantile(0.8), (weight * 50).round() / 50, 0))
    side = 8 if make is paper.digits_net else 28
    x = torch.randn(16, 1, side, side)
    expected, before = outputs(model, x), len(files.encode(model.state_dict(), "adaptive"))
    made = slim(model, outputs=lambda one: one(x))
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-4, atol=1e-4)
    assert len(files.encode(model.state_dict(), "adaptive")) < before
    assert any(layer.reordered for layer in made.layers)
    for layer in made.layers:
        assert layer.bytes_after <= layer.bytes_before


def test_a_bias_keeps_the_precision_that_it_had():
    """float16 and bfloat16 biases would take twice the bytes; where the type has no room for it, that is told."""
    for dtype in (torch.float16, torch.bfloat16):
        model = mlp(6, 5, 4).float()
        model[2].bias.data = model[2].bias.data.to(dtype).float()
        model[2].bias.data[0] = 1 if dtype is torch.float16 else 2.0**-40  # which float16 does not have
        kill(model, "0", rows=[0])
        model[0].bias.data[0] = 0.3
        bias, taken = model[2].bias.clone(), 0.3 * model[2].weight[:, 0]
        made = slim(model)
        assert torch.equal(model[2].bias, (bias + taken).to(dtype).float())
        assert f"2.bias: took constants in, rounded to {str(dtype)[6:]} again" in made.notes
    model = mlp(6, 5, 4).float()
    model[2].bias.data = model[2].bias.data.half().float()
    kill(model, "0", rows=[0])
    model[0].bias.data[0] = 1e6
    assert "2.bias: took constants in, which float16 holds no more" in slim(model).notes
    model = mlp(6, 5, 4).float()
    model[2].bias.data.zero_()
    kill(model, "0", rows=[0])
    model[0].bias.data[0] = 0.3
    taken = model[0].bias[0].double() * model[2].weight[:, 0].double()
    slim(model)
    assert torch.equal(model[2].bias, taken.float())


def test_negative_zeros_do_not_survive_and_do_not_count_as_weights():
    """A pruned weight is +0.0; what only holds -0.0 is dead."""
    model = mlp(6, 5, 4)
    model[0].weight.data[0] = -0.0
    model[0].bias.data[0] = -0.0
    checked(model, torch.randn(7, 6).double())
    assert not torch.signbit(model[0].weight[model[0].weight == 0]).any()


def test_no_layer_is_emptied():
    """Where nothing would be left of a layer, whoever pruned it so is to hear of it: it stays as it is."""
    model = mlp(6, 5, 4)
    kill(model, "2", columns=range(5))
    before = state.plain_state(model)
    slim(model)
    assert all(torch.equal(before[name], one) for name, one in state.plain_state(model).items())


@pytest.mark.parametrize(
    ("tensor", "value"), [("1.weight", torch.nan), ("1.bias", torch.inf), ("2.running_var", torch.nan)]
)
def test_values_that_are_not_finite_are_refused_by_name(tensor: str, value: float):
    """0 times infinity is not 0: no unit could be called dead."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    model.state_dict()[tensor][(0,) * model.state_dict()[tensor].ndim] = value
    with pytest.raises(StructureError, match=f"{tensor}: 1 values"):
        slim(model)


def test_units_keeps_those_of_the_largest_norms_and_only_so_many():
    """The product of norms of row and columns decides; whatever is cut is wholly zero, whatever stays is untouched."""
    model = ConvNet()
    before = state.plain_state(model)
    x = torch.randn(4, 2, 10, 10).double()
    made = slim(model, units={"conv*": 3, "fc1": 0.3}, reorder=False, outputs=lambda one: one(x))
    assert [(layer.name, layer.units, layer.dead, layer.cut) for layer in made.layers] == [
        ("conv1", 5, 2, 2),
        ("conv2", 6, 3, 3),
        ("fc1", 7, 5, 5),
    ]
    score = before["conv1.weight"].flatten(1).norm(dim=1) * before["conv2.weight"].transpose(0, 1).flatten(1).norm(
        dim=1
    )
    kept = sorted(score.argsort(descending=True)[:3].tolist())
    assert [unit for unit in range(5) if model.conv1.weight[unit].any()] == kept
    assert torch.equal(model.conv1.weight[kept], before["conv1.weight"][kept])
    assert [unit for unit in range(5) if model.norm1.weight[unit]] == kept
    assert set(made.zeroed) == {"conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight"}
    assert int(model.fc1.weight.any(1).sum()) == 2 and int(model.fc2.weight.any(0).sum()) == 2


def test_a_model_that_does_more_than_its_graph_says_is_refused():
    """Units may be read by a way that the graph does not show: then outputs change, and the stage must not go on."""
    model = mlp(6, 50, 4)
    model[0].weight.data[torch.rand(50, 6) < 0.5] = 0
    order = torch.arange(50).double()
    with pytest.raises(InvariantError, match="outputs differ"):
        slim(model, outputs=lambda one: one[0](torch.ones(1, 6).double()) * order)


def test_training_goes_on_with_units_dead_and_modes_as_they_were():
    """A model in training mode comes back in it, with gradients; held zeros keep dead units dead."""
    model = ConvNet().float().train()
    model.norm2.eval()
    kill(model, "conv2", columns=[1])
    made = slim(model)
    assert model.training and not model.norm2.training and model.conv1.weight.requires_grad
    hold.hold(model, made.zeroed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 2, 10, 10)).square().sum().backward()
        optimizer.step()
    hold.bake(model)
    assert int((~model.conv2.weight.any(0).any(-1).any(-1)).sum()) == 1


@st.composite
def nets(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A small net of linear or convolution layers with random zeros, rows and columns among them, and inputs."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    acts = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity]
    layers: list[nn.Module] = []
    width = draw(st.integers(1, 4))
    convs = draw(st.integers(0, 3))
    x = torch.randn(3, width, 9, 9) if convs else torch.randn(3, width)
    for number in range(convs):
        wide, padding = draw(st.integers(1, 6)), draw(st.sampled_from([0, 1]))
        kernel = draw(st.sampled_from([1, 3])) if nn.Sequential(*layers)(x).shape[-1] >= 3 else 1
        layers.append(nn.Conv2d(width, wide, kernel, padding=padding, bias=draw(st.booleans())))
        layers += [nn.BatchNorm2d(wide)] if draw(st.booleans()) else []
        layers += [draw(st.sampled_from(acts))()]
        layers += [draw(st.sampled_from(POOLS))] if number == 0 and draw(st.booleans()) else []
        width = wide
    if convs:
        layers += [nn.Flatten()]
        width = nn.Sequential(*layers)(x).shape[1]
    for _ in range(draw(st.integers(1, 3))):
        wide = draw(st.integers(1, 6))
        layers += [nn.Linear(width, wide, bias=draw(st.booleans())), draw(st.sampled_from(acts))()]
        width = wide
    model = nn.Sequential(*layers)
    trained_norms(model)
    for module in model:
        if isinstance(module, nn.Linear | nn.Conv2d):
            weight = module.weight.data
            weight[torch.rand(weight.shape) > draw(st.sampled_from([0.1, 0.5, 1.0]))] = 0
            weight[torch.rand(len(weight)) < draw(st.sampled_from([0, 0.4]))] = 0
            weight[:, torch.rand(weight.shape[1]) < draw(st.sampled_from([0, 0.4]))] = 0
    return model.double().eval(), x.double()


@settings(max_examples=25, deadline=None)
@given(nets())
def test_any_small_net_with_any_zeros_computes_what_it_did(drawn: tuple[nn.Module, Tensor]):
    """Whatever is dead, constant, padded, pooled or unbiased: outputs stay, and one pass finds all there is."""
    model, x = drawn
    made = checked(model, x)
    for layer in made.layers:
        assert layer.dead_before <= layer.dead <= layer.units and layer.cut == 0


def test_a_shared_bias_takes_no_constants_in() -> None:
    """Its equal values stay equal: the unit that would have been folded stays, and outputs are what they were."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    with torch.no_grad():
        net[0].weight[2] = 0.0
        net[0].bias[2] = 1.0
        net[2].bias.copy_(torch.tensor([0.5, 0.5, -0.5, -0.5]))
    x = torch.randn(8, 4)
    before = net(x)
    made = slim(net, shared=["2.bias"], reorder=False)
    assert sum(layer.folded for layer in made.layers) == 0
    assert torch.equal(net(x), before) and len(torch.unique(net[2].bias)) == 2
    assert sum(layer.folded for layer in slim(net, reorder=False).layers) == 1
