"""Names, held structure, and the checks of what stages may change."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import InvariantError, StructureError
from deepcompression.network.names import padding_rows, prunable, resolve, select
from deepcompression.network.state import bits_of, dense_bytes, density, is_zero, normalised, plain_state, replaced
from deepcompression.structure.check import Coarsened, check
from deepcompression.structure.constraints import structured
from deepcompression.structure.hold import bake, hold


class Net(nn.Module):
    """Everything that names must tell apart: ties, padding, recurrence, normalisation, biases."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=0)
        self.rnn = nn.GRU(4, 4)
        self.norm = nn.LayerNorm(4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 7)
        self.second.weight = self.first.weight
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.rnn(self.embedding(tokens))[0])
        return self.decoder(self.second(torch.relu(self.first(hidden))))


def sparse_linear(seed: int = 0, size: int = 16) -> nn.Linear:
    """A layer half of whose weights are zero, the others of four values; its bias begins with a zero."""
    torch.manual_seed(seed)
    layer = nn.Linear(size, size)
    values = torch.tensor([-0.5, -0.25, 0.125, 0.75])
    weight = values[torch.randint(4, (size, size))]
    layer.weight.data = torch.where(torch.rand(size, size) < 0.5, weight, 0)
    layer.bias.data[0] = 0
    return layer


def train(model: nn.Module, sample: Tensor, steps: int = 5, **options: object) -> None:
    """A training loop of somebody's own."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(sample).square().sum().backward()
        optimizer.step()


def test_default_selection_is_weights_of_linear_and_convolution_layers_tied_ones_once():
    """What is pruned without being named must not reach embeddings, recurrent layers, norms or biases."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ConvTranspose1d(2, 2, 3), nn.Linear(2, 2))
    assert prunable(model) == ["0.weight", "2.weight", "3.weight"]
    assert prunable(Net()) == ["first.weight"]


def test_parametrizations_of_the_user_are_left_alone():
    """A weight that is computed from others (weight norm) has no tensor of its own that could be zero."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.Linear(3, 3))
    assert prunable(model) == ["1.weight"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("first", ["first.weight"]),
        ("second", ["first.weight"]),
        ("f*", ["first.weight"]),
        ("first.bias", ["first.bias"]),
        ("*.bias", ["norm.bias", "first.bias", "second.bias", "decoder.bias"]),
        ("rnn.weight_ih_l0", ["rnn.weight_ih_l0"]),
        ("*weight_hh_l0", ["rnn.weight_hh_l0"]),
        ("embedding", ["embedding.weight"]),
        ("norm", ["norm.weight"]),
        ("*", ["first.weight"]),
    ],
)
def test_a_pattern_means_modules_weights_and_tensors_that_it_spells_out(pattern: str, names: list[str]):
    """A wildcard must not prune biases or recurrent weights by accident, a full name must reach them."""
    assert select(Net(), [pattern]) == names


def test_exact_names_beat_patterns_and_earlier_patterns_beat_later_ones():
    """Per-layer settings must not depend on the order in which an exact name is written."""
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("fc1", "fc2", "out")})
    table = {"fc*": 1, "*1": 2, "default": 4, "fc2": 3}
    assert resolve(model, table) == {"fc1.weight": 1, "fc2.weight": 3, "out.weight": 4}


def test_names_may_hold_the_signs_of_patterns():
    """A budget names every tensor in full; a key such as experts[0] must mean itself, and beat patterns before it."""
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("a[0]", "a0", "b*", "bc", "q?", "[!z]")})
    own = {f"{name}.weight": place for place, name in enumerate(model)}
    assert resolve(model, own) == own
    assert resolve(model, {"b*": 1, "*": 2, "a[0]": 3}) == {
        **dict.fromkeys(own, 2),
        "b*.weight": 1,
        "a[0].weight": 3,
    }


def test_a_pattern_that_matches_nothing_names_its_neighbours():
    """A typing error in a layer's name must not silently leave the layer dense."""
    with pytest.raises(StructureError, match=r"'frist'.*first"):
        select(Net(), ["frist"])


def test_held_zeros_stay_under_momentum_and_weight_decay_and_free_zeros_move():
    """The whole point of holding; a bias that happens to be zero is not pruned."""
    model = sparse_linear()
    before = plain_state(model)
    assert hold(model).zeros == ["weight"]
    train(model, torch.randn(8, 16, generator=torch.Generator().manual_seed(1)))
    after = plain_state(bake(model))
    assert torch.equal(is_zero(before["weight"]), is_zero(after["weight"]))
    assert after["bias"][0] != 0
    assert not torch.equal(before["weight"], after["weight"])


def test_baking_gives_back_an_ordinary_model():
    """Names, order, classes, dtypes and tied weights must be as they were before holding."""
    model = Net()
    keys, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    model.first.weight.data[0] = 0
    hold(model, ["second.weight", "rnn.weight_ih_l0"], shared=["decoder.weight"])
    train(model, torch.tensor([[1], [0], [3]]))
    bake(model)
    assert list(model.state_dict()) == keys
    assert [type(module) for module in model.modules()] == kinds
    assert model.first.weight is model.second.weight
    assert model.decoder.weight is model.embedding.weight
    assert isinstance(model.first.weight, nn.Parameter)


def test_tied_weights_have_one_structure_at_every_use():
    """Two uses of one weight must see the same values while training, and both gradients must count."""
    model = Net()
    model.first.weight.data[0] = 0
    twin = copy.deepcopy(model)
    hold(model, ["first.weight"])
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in twin.parameters())
    sample = torch.tensor([[1], [2], [3]])
    model(sample).square().sum().backward()
    twin(sample).square().sum().backward()
    gradient = model.first.parametrizations.weight.original.grad
    torch.testing.assert_close(gradient[1:], twin.first.weight.grad[1:])
    assert not gradient[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_centroids_gradient_is_the_sum_of_its_weights_gradients(dtype: torch.dtype):
    """Section 3.3 of the paper, against autograd on the dense weight."""
    model = sparse_linear().to(dtype)
    dense = copy.deepcopy(model)
    sample = torch.randn(8, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    hold(model, shared=["weight"])
    model(sample).square().sum().backward()
    dense(sample).square().sum().backward()
    centroids = model.parametrizations.weight.original
    assert centroids.tolist() == [-0.5, -0.25, 0.125, 0.75]
    for centroid, gradient in zip(centroids, centroids.grad, strict=True):
        expected = dense.weight.grad[dense.weight == centroid].double().sum()
        torch.testing.assert_close(gradient.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)


def test_shared_weights_stay_shared_and_their_zeros_stay():
    """Training centroids must change values only, never groups."""
    model = sparse_linear()
    before = plain_state(model)
    hold(model, shared=["weight"])
    train(model, torch.randn(8, 16, generator=torch.Generator().manual_seed(1)))
    after = plain_state(bake(model))
    assert check(before, after, structured(["weight"], ["weight"])) == Coarsened(0, 0)
    assert len(after["weight"].unique()) == 5
    assert not torch.equal(before["weight"], after["weight"])


def test_structure_is_held_under_autocast_and_in_copies():
    """bfloat16 training and copied models (EMA, checkpoints) are common loops of one's own."""
    model = sparse_linear()
    before = plain_state(model)
    hold(model, shared=["weight"])
    clone = copy.deepcopy(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        train(clone, torch.ones(2, 16))
    check(before, plain_state(bake(clone)), structured(["weight"], ["weight"]))
    assert torch.equal(plain_state(bake(model))["weight"], before["weight"])


def test_a_padding_row_is_free_of_its_embeddings_structure():
    """The padding row gets no gradient, whatever is held around it."""
    model = Net()
    model.embedding.weight.data[3] = 0
    hold(model, ["embedding.weight"])
    train(model, torch.tensor([[0], [1], [3]]))
    bake(model)
    assert not model.embedding.weight[3].any()
    assert padding_rows(model) == {"embedding.weight": 0}


@pytest.mark.parametrize(
    ("names", "rule"), [(["nothing"], "no floating-point parameter"), (["bias", "weight"], "NaN or infinite")]
)
def test_hold_refuses_what_it_cannot_hold_and_leaves_the_model_alone(names: list[str], rule: str):
    """A refused call must not leave a half-held model."""
    model = sparse_linear()
    model.weight.data[0, 0] = torch.nan
    with pytest.raises(StructureError, match=rule):
        hold(model, names)
    assert list(model.state_dict()) == ["weight", "bias"]


def test_holding_twice_is_refused():
    """A second mask over the first would survive the baking."""
    model = sparse_linear()
    hold(model)
    with pytest.raises(StructureError, match="held already"):
        hold(model, ["weight"])


def test_check_names_the_tensor_in_which_a_zero_came_alive():
    """A stage that breaks structure must be stopped with the tensor's name."""
    before = {"a": torch.tensor([0.0, 1.0])}
    with pytest.raises(InvariantError, match="a: 1 pruned"):
        check(before, {"a": torch.tensor([2.0, 1.0])}, structured(["a"], []))
    with pytest.raises(InvariantError, match="a: 1 pruned"):
        check(before, {"a": torch.tensor([-0.0, 1.0])}, structured(["a"], []))
    with pytest.raises(InvariantError, match="a: every weight"):
        check(before, {"a": torch.tensor([0.0, 0.0])}, structured(["a"], []))


def test_check_counts_merged_groups_and_refuses_split_ones():
    """Structure only coarsens, and how much is reported."""
    before = {"a": torch.tensor([0.0, 1.0, 1.0, 2.0, 3.0])}
    after = {"a": torch.tensor([0.0, 5.0, 5.0, 5.0, 0.0])}
    assert check(before, after, structured(["a"], ["a"])) == Coarsened(1, 2)
    with pytest.raises(InvariantError, match="a: weights that shared"):
        check(before, {"a": torch.tensor([0.0, 1.0, 1.5, 2.0, 3.0])}, structured([], ["a"]))


def test_members_of_a_group_may_be_pruned_while_the_rest_stays_equal():
    """Pruning what is shared takes single weights out of their groups; what is left must still be one value."""
    before = {"a": torch.tensor([0.0, 1.0, 1.0, 1.0, 2.0, 2.0])}
    after = {"a": torch.tensor([0.0, 5.0, 0.0, 5.0, 0.0, 0.0])}
    assert check(before, after, structured(["a"], ["a"])) == Coarsened(3, 1)
    with pytest.raises(InvariantError, match="a: weights that shared"):
        check(before, {"a": torch.tensor([0.0, 5.0, 0.0, 6.0, 0.0, 0.0])}, structured(["a"], ["a"]))
    with pytest.raises(InvariantError, match="a: weights that shared"):
        check({"a": torch.tensor([0.0, 0.0, 1.0])}, {"a": torch.tensor([0.0, 1.0, 1.0])}, structured([], ["a"]))


def test_normalising_turns_negative_zero_into_zero_in_named_tensors_alone():
    """-0.0 is no pruned weight in the file, and other tensors keep every bit."""
    state = {"a": torch.tensor([-0.0, 1.0]), "b": torch.tensor([-0.0])}
    made = normalised(state, ["a"])
    assert bits_of(made["a"]).tolist() == [0, 0x3F800000]
    assert made["b"] is state["b"]
    assert bits_of(state["a"])[0] != 0


@pytest.mark.parametrize(
    ("tensor", "rule"),
    [
        (torch.tensor([torch.inf]), "a: 1 values"),
        (torch.tensor([1]), "a: no floating"),
        (None, "a: no floating"),
    ],
)
def test_normalising_refuses_non_finite_integer_and_missing_tensors(tensor: Tensor | None, rule: str):
    """Pruning NaN has no meaning; the message names the tensor."""
    with pytest.raises(StructureError, match=rule):
        normalised({} if tensor is None else {"a": tensor}, ["a"])


def test_dense_bytes_count_tied_tensors_once_and_doubles_as_four_bytes():
    """The numerator of every ratio that is printed."""
    assert dense_bytes(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))) == 4 * (6 + 2 + 4 * 2) + 8
    assert dense_bytes(nn.Linear(3, 2).double()) == 4 * 8
    assert dense_bytes(nn.Linear(3, 2).half()) == 2 * 8
    model = Net()
    assert dense_bytes(model) == 4 * sum(parameter.numel() for parameter in model.parameters())


def test_a_plain_state_is_a_copy_in_which_tied_tensors_are_one_object():
    """Stages find ties by identity, and must not change the model through its state."""
    model = Net()
    state = plain_state(model)
    assert state["first.weight"] is state["second.weight"]
    state["first.weight"].zero_()
    assert model.first.weight.any()
    changed = replaced(state, {"first.weight": torch.ones(1)})
    assert changed["second.weight"] is changed["first.weight"]
    assert density(state, ["first.weight", "decoder.weight"]) == pytest.approx(24 / 44, abs=1e-6)


def test_a_parametrization_of_the_users_own_survives_beside_ours():
    """Baking ends what hold began and nothing else."""
    model = sparse_linear()
    nn.utils.parametrize.register_parametrization(model, "bias", nn.Tanh())
    hold(model)
    bake(model)
    assert sorted(model.state_dict()) == ["parametrizations.bias.original", "weight"]
    assert model(torch.zeros(1, 16)).isfinite().all()


@pytest.mark.parametrize("channels", [1, 3])
def test_held_weights_are_in_the_memory_format_of_the_model(channels: int) -> None:
    """Shared weights are trained flat; convolutions get them as the model was laid out, also with a single channel."""
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Conv2d(4, 4, 3))
    expected = copy.deepcopy(model).to(memory_format=torch.channels_last)
    names = ["0.weight", "1.weight"]
    hold(model, shared=names)
    assert model[0].weight.is_contiguous()
    model.to(memory_format=torch.channels_last)
    assert [model[i].weight.stride() for i in (0, 1)] == [expected[i].weight.stride() for i in (0, 1)]
    assert "layout" not in " ".join(model.state_dict())
    bake(model)
    assert all(torch.equal(model.state_dict()[name], expected.state_dict()[name]) for name in names)
