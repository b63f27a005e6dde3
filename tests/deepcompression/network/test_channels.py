"""Which channels belong together throughout a model, and what is left when some are removed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcompression.errors import StructureError
from deepcompression.network.chains import WHOLE
from deepcompression.network.channels import channel_groups
from deepcompression.network.resizing import Group, resize


class Net(nn.Module):
    """Some layers around a forward of the test's own."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, *given: Any, **named: Any) -> Any:
        return self.run(self, *given, **named)


def conv(taken: int, made: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(taken, made, 3, padding=1, **options)


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def varied(model: nn.Module) -> nn.Module:
    """The model with every tensor at random, statistics too, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - (0 if name.endswith("running_var") else 0.5))
    return model.eval()


def apply(model: nn.Module, record: Mapping[str, Any]) -> None:
    """Makes a model thin, as a record says."""
    thin: dict[int, Tensor] = {}
    for name, axes in record["tensors"].items():
        prefix, _, own = name.rpartition(".")
        module = model.get_submodule(prefix)
        old = getattr(module, own)
        if id(old) not in thin:
            new = old.detach()
            for axis, places in axes:
                new = new.index_select(axis, torch.tensor(places))
            thin[id(old)] = nn.Parameter(new) if isinstance(old, nn.Parameter) else new
        record_of = module._parameters if own in module._parameters else module._buffers
        record_of[own] = thin[id(old)]  # type: ignore[index]
    for name, attributes in record["modules"].items():
        for attribute, value in attributes.items():
            setattr(model.get_submodule(name), attribute, value)


def mask(model: nn.Module, kept: Sequence[tuple[Group, Sequence[int]]]) -> None:
    """Makes weights zero that take removed channels in."""
    state = model.state_dict()
    for group, channels in kept:
        for member in group.members:
            if member.role == "in":
                gone = [place for place, one in enumerate(member.index) if one >= 0 and one not in channels]
                state[member.tensor].index_fill_(member.axis, torch.tensor(gone, dtype=torch.long), 0.0)


def check(model: nn.Module, run: Callable[[nn.Module], Tensor], groups: int | None = None) -> list[Group]:
    """Removes about half of all channels and compares the thin net's outputs with the masked net's."""
    found, _ = channel_groups(varied(model), run)
    assert groups is None or len(found) == groups
    kept = [(group, list(range(0, group.channels, 2))) for group in found]
    thin, masked = copy.deepcopy(model), copy.deepcopy(model)
    apply(thin, resize(model, kept))
    mask(masked, kept)
    with torch.no_grad():
        torch.testing.assert_close(run(thin), run(masked))
        assert not torch.allclose(run(masked), run(model))
    assert sum(one.numel() for one in thin.parameters()) < sum(one.numel() for one in model.parameters())
    again, left = channel_groups(thin, run)
    assert WHOLE not in left and sum(one.channels for one in again) <= sum(one.channels for one in found)
    return found


def on_images(model: nn.Module) -> Tensor:
    return model(images())


class Block(nn.Module):
    """A ResNet's basic block."""

    def __init__(self, taken: int, made: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(taken, made, 3, stride, 1, bias=False), nn.BatchNorm2d(made)
        self.conv2, self.bn2 = conv(made, made, bias=False), nn.BatchNorm2d(made)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(taken, made, 1, stride, bias=False), nn.BatchNorm2d(made))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return F.relu(out)


def vgg() -> nn.Module:
    blocks = [conv(3, 6), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2), conv(6, 8), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10), nn.Dropout(), nn.ReLU(), nn.Linear(10, 5)]
    return nn.Sequential(*blocks, *head)


def resnet() -> nn.Module:
    stem = [conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), Block(4, 4), Block(4, 6, 2), Block(6, 6)]
    return nn.Sequential(*stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5))


def mobilenet() -> nn.Module:
    def gated(net: Any, x: Tensor) -> Tensor:
        wide = F.hardswish(net.norm(net.deep(F.relu6(net.wide(net.stem(x))))))
        gate = F.hardsigmoid(net.up(F.relu(net.down(wide.mean((2, 3), keepdim=True)))))
        return net.head(torch.flatten(net.narrow(wide * gate) + net.stem(x), 1))

    layers = {"wide": nn.Conv2d(4, 8, 1), "deep": conv(8, 8, groups=8, bias=False), "norm": nn.BatchNorm2d(8)}
    gate = {"down": nn.Conv2d(8, 4, 1), "up": nn.Conv2d(4, 8, 1)}
    return Net(gated, stem=conv(3, 4), **layers, **gate, narrow=nn.Conv2d(8, 4, 1), head=nn.Linear(256, 5))


def densenet() -> nn.Module:
    def dense(net: Any, x: Tensor) -> Tensor:
        first = net.stem(x)
        second = torch.cat([first, net.one(F.relu(net.norm1(first)))], 1)
        third = torch.cat([second, net.two(F.relu(net.norm2(second)))], dim=1)
        return net.head(third.mean([2, 3]))

    norms = {"norm1": nn.BatchNorm2d(4), "norm2": nn.BatchNorm2d(6)}
    return Net(dense, stem=conv(3, 4), one=conv(4, 2), two=conv(6, 2), **norms, head=nn.Linear(8, 5))


def grouped() -> nn.Module:
    layers = [conv(3, 8), nn.ReLU(), conv(8, 4, groups=2), nn.PReLU(4), conv(4, 8, groups=4), nn.ReLU()]
    return nn.Sequential(*layers, conv(8, 4), nn.Flatten(), nn.Linear(256, 5))


def transposed() -> nn.Module:
    layers = [nn.ConvTranspose2d(3, 6, 2), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, groups=2), nn.Tanh()]
    return nn.Sequential(*layers, nn.ConvTranspose2d(4, 4, 2, groups=4), nn.ConvTranspose2d(4, 2, 1))


def last() -> nn.Module:
    """Channels on the last axis, and flattened behind the places."""
    return Net(
        lambda net, x: net.head(net.mix(net.stem(x).permute(0, 2, 3, 1)).relu().flatten(1)),
        **{"stem": conv(3, 4), "mix": nn.Linear(4, 4), "head": nn.Linear(256, 5)},
    )


def halves() -> nn.Module:
    """Channels cut in halves that scale each other, and shuffled."""

    def forward(net: Any, x: Tensor) -> Tensor:
        first, second = net.stem(x).chunk(2, 1)
        wide = F.glu(net.wide(first * second.sigmoid()), 1)
        count, size = wide.shape[0], wide.shape[1]
        shuffled = wide.view(count, 2, size // 2, 8, 8).transpose(1, 2).flatten(1, 2)
        return net.head(shuffled.mean((2, 3)))

    return Net(forward, stem=conv(3, 8), wide=conv(4, 16), head=nn.Linear(8, 5))


@pytest.mark.parametrize(
    ("make", "groups"),
    [(halves, 2), (vgg, 3), (resnet, 5), (mobilenet, 3), (densenet, 3), (grouped, 3), (transposed, 2), (last, 2)],
)
def test_a_thin_net_computes_what_the_masked_one_does(make: Callable[[], nn.Module], groups: int):
    """The kinds of coupling that nets have: chains, additions, gates, concatenations, groups, flattening."""
    check(make(), on_images, groups)


def test_members_say_where_each_channel_lies():
    """A criterion scores all weights that make a channel; behind a flattening a channel has many columns."""
    found = check(vgg(), on_images)
    assert [group.channels for group in found] == [6, 8, 10]
    assert [(one.tensor, one.axis, one.role) for one in found[0].members] == [
        *[("0.weight", 0, "out"), ("0.bias", 0, "along"), ("1.weight", 0, "along"), ("1.bias", 0, "along")],
        *[("4.weight", 1, "in"), ("1.running_mean", 0, "along"), ("1.running_var", 0, "along")],
    ]
    assert found[1].members[-1].index == tuple(channel for channel in range(8) for _ in range(4))
    assert [one.module for one in check(resnet(), on_images)[0].makers] == ["0", "3.conv2"]
    assert [one.role for one in check(mobilenet(), on_images)[1].makers] == ["out", "depthwise", "out"]
    assert found == channel_groups(vgg(), on_images)[0]


def test_records_name_sizes_of_modules_and_every_name_of_a_tensor():
    """They are plain values: they are written into files and done again to a model from its factory."""
    model = mobilenet()
    wide = channel_groups(model, on_images)[0][1]
    record = resize(model, [(wide, [5, 0])])
    assert record["tensors"]["deep.weight"] == [[0, [0, 5]]]
    assert record["modules"] == {
        "wide": {"out_channels": 2},
        "deep": {"out_channels": 2, "in_channels": 2, "groups": 2},
        "norm": {"num_features": 2},
        "down": {"in_channels": 2},
        "up": {"out_channels": 2},
        "narrow": {"in_channels": 2},
    }
    tied = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    tied[2].weight = tied[0].weight
    assert channel_groups(tied, lambda net: net(torch.ones(2, 6)))[0] == []  # its channels are the inputs too
    code = Net(lambda net, x: net.up(net.down(x).relu()), down=nn.Linear(8, 6), up=nn.Linear(6, 8))
    code.up.weight = nn.Parameter(code.down.weight.detach().T.contiguous())
    code.run = lambda net, x: F.linear(net.down(x).relu(), net.down.weight.T, net.up.bias)
    [group] = check(code, lambda net: net(torch.ones(2, 8)))
    assert resize(code, [(group, [1])])["modules"] == {"down": {"out_features": 1}}


@pytest.mark.parametrize(
    ("channels", "words"),
    [([], "0: none of its 6 channels would stay"), ([6], "from 0 to 5, not .6."), ([1, 1], "different numbers")],
)
def test_impossible_channels_are_refused(channels: list[int], words: str):
    """A layer without channels computes nothing."""
    model = vgg()
    with pytest.raises(StructureError, match=words):
        resize(model, [(channel_groups(model, on_images)[0][0], channels)])


@pytest.mark.parametrize(
    ("between", "words"),
    [
        (lambda net, x: x.softmax(1), "softmax mixes"),
        (lambda net, x: x - x.mean(1, keepdim=True), "mean mixes"),
        (lambda net, x: F.layer_norm(x, x.shape[1:]), "layer_norm mixes"),
        (lambda net, x: F.group_norm(x, 2), "group_norm mixes"),
        (lambda net, x: F.normalize(x, dim=1), "linalg_vector_norm mixes"),
        (lambda net, x: x + x.flip(1), "flip mixes"),
        (lambda net, x: x.cumsum(1), "cumsum mixes"),
        (lambda net, x: x[:, [1, 0, 2, 3]], "index mixes"),
        (lambda net, x: torch.cat(x.split((3, 1), 1)[::-1], 1), "split cuts"),
        (lambda net, x: torch.cat([x[:, :2], x[:, 2:]], 1), "a slice takes"),
        (lambda net, x: torch.stack([x[:, 0], x[:, 1], x[:, 2], x[:, 3]], 1), "select takes"),
        (lambda net, x: x * torch.ones(4, 1, 1), "mul: a tensor of fixed size"),
        (lambda net, x: x * net.single(x), None),
        (lambda net, x: x.view(2, 2, 2, 1, 8, 8).flatten(1, 3), "a copy does not run"),
        (lambda net, x: x.view(-1, 4, 8, 8), "a copy does not run"),
        (lambda net, x: torch.cat(x.split(2, 1)[::-1], 1), "its code computes with sizes, or takes channels by number"),
        (lambda net, x: x * x.shape[1] ** -0.5, "its code computes with sizes"),
        (lambda net, x: x + x.view(2, 2, 2, 8, 8).transpose(1, 2).flatten(1, 2), "only be removed all together"),
        (lambda net, x: (x.flatten(2) @ x.flatten(2).mT @ x.flatten(2)).view_as(x), "bmm of two"),
        (lambda net, x: F.pixel_shuffle(x, 2).repeat(1, 4, 1, 1), "pixel_shuffle mixes"),
        (lambda net, x: net.kept.append(x) or x, "the model's outputs, or kept"),
        (lambda net, x: x * torch.from_numpy(x.detach().numpy().copy()), "mul: a tensor of fixed size"),
        (lambda net, x: F.conv2d(x, torch.ones(4, 1, 1, 1), groups=4), "convolution mixes"),
    ],
)  # fmt: skip
def test_what_mixes_channels_is_named(between: Callable[..., Tensor], words: str | None):
    """What is not surely a matter of single channels stays whole, with its reason: nothing is guessed."""
    model = Net(
        lambda net, x: net.head(between(net, net.stem(x)).mean((2, 3))),
        **{"stem": conv(3, 4), "single": nn.Conv2d(4, 1, 1), "head": nn.Linear(4, 5)},
    )
    model.kept = []
    found, left = channel_groups(model, on_images)
    assert left["head"] == "it makes the model's output"
    assert left["single"] in ("it has one channel only", "the run did not use it as a layer")
    assert words is None or (found == [] and words in left["stem"])


@pytest.mark.parametrize(
    ("wrap", "run"),
    [
        (lambda x: x, lambda net, x: F.cross_entropy(net(x), torch.zeros(2, dtype=torch.long))),
        (lambda x: x.log_softmax(1), lambda net, x: F.nll_loss(net(x), torch.zeros(2, dtype=torch.long))),
        (lambda x: {"logits": x}, lambda net, x: (net(x)["logits"] ** 2).sum()),
        (lambda x: x.softmax(1), lambda net, x: net(x)),
    ],
)
def test_a_layer_that_makes_the_output_is_told_so(wrap: Callable[..., Any], run: Callable[..., Tensor]):
    """Not by what the loss, or a last softmax, does with it: nobody could mend that."""
    model = Net(lambda net, x: wrap(net.head(net.stem(x).mean((2, 3)))), stem=conv(3, 4), head=nn.Linear(4, 5))
    found, left = channel_groups(model, lambda net: run(net, torch.ones(2, 3, 8, 8)))
    assert [one.tensor for group in found for one in group.makers] == ["stem.weight"]
    assert left == {"head": "it makes the model's output"} and not model._forward_hooks


def test_heads_that_are_there_in_training_only_are_seen():
    """An auxiliary classifier reads the same channels: training goes on after they are removed."""

    def forward(net: Any, x: Tensor) -> Any:
        features = net.stem(x).mean((2, 3))
        return (net.head(features), net.aux(features)) if net.training else net.head(features)

    model = Net(forward, stem=conv(3, 4), head=nn.Linear(4, 5), aux=nn.Linear(4, 2))
    [group] = check(model, on_images)
    assert [one.tensor for one in group.members if one.role == "in"] == ["head.weight", "aux.weight"]


def test_two_parameters_on_one_memory_and_scripts_are_left_alone():
    """Each would be cut by itself, and the tie would be lost."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight.data = model[0].weight.data
    found, left = channel_groups(model, lambda net: net(torch.ones(2, 4)))
    assert found == [] and "0.weight are two tensors on one memory" in left["2"]
    script = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)))
    assert channel_groups(script, lambda net: net(torch.ones(2, 4))) == ([], {WHOLE: "it has TorchScript modules"})


def test_groups_that_the_code_forbids_do_not_take_others_with_them():
    """Copies are tried in halves until those are found that do not run."""
    model = nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 6), nn.ReLU(), conv(6, 4), nn.Unflatten(1, (4, 1)))
    model.extend([nn.Flatten(1, 2), conv(4, 6), nn.Flatten(), nn.Linear(384, 5)])
    found, left = channel_groups(model, on_images)
    assert [group.makers[0].module for group in found] == ["0", "2", "7"]
    assert set(left) == {"4", "9"} and "without a third of its channels a copy does not run: RuntimeError" in left["4"]


def test_a_size_in_a_formula_shows_behind_weights_that_are_zero_too():
    """Heads and residual branches often begin as zeros."""
    torch.manual_seed(0)
    layers = {"stem": conv(3, 6), "head": nn.Linear(6, 2)}
    model = Net(lambda net, x: net.head(net.stem(x).mean((2, 3)) * net.stem.bias.numel()), **layers)
    nn.init.zeros_(model.head.weight)
    found, left = channel_groups(model, on_images)
    assert found == [] and "its code computes with sizes" in left["stem"] and not model.head.weight.any()


def test_tokens_and_models_with_several_inputs_are_followed():
    """The hidden layer of a transformer's feed-forward; dictionaries in and out; branches on values."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    [group] = check(layer, lambda net: net(torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))))
    assert {one.module for one in group.members} == {"linear1", "linear2"}
    left = channel_groups(layer, lambda net: net(torch.ones(2, 4, 8)))[1]
    assert set(left) == {"self_attn.in_proj_weight", "self_attn.out_proj", "linear2"}

    def answer(net: Any, words: Tensor, scale: Tensor) -> dict[str, Any]:
        hidden = net.one(net.table(words).mean(1)) if scale.sum() > 0 else words
        return {"logits": net.two(hidden * scale[:, None]), "note": "plain"}

    model = Net(answer, table=nn.Embedding(9, 4), one=nn.Linear(4, 6), two=nn.Linear(6, 2))
    given = {"words": torch.tensor([[1, 2], [3, 4]]), "scale": torch.ones(2)}
    found = check(model, lambda net: net(**given)["logits"], groups=1)
    assert [one.tensor for one in found[0].members] == ["one.weight", "one.bias", "two.weight"]


class Conv1D(nn.Module):
    """The transformers library's linear layer: its weight is (in, out), its result has a size that it holds."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.ones(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


def test_sizes_that_modules_hold_change_with_their_tensors():
    """Each kind of module has its own names for them; a gate that comes in one piece loses as much of each half."""
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(Conv1D(12, 8), nn.GELU(), Conv1D(8, 12))
    [group] = check(model, lambda net: net(tokens))
    assert resize(model, [(group, range(5))])["modules"] == {"0": {"nf": 5}, "2": {"nx": 5}}
    gate = Net(lambda net, x: net.out(F.silu((h := net.both(x).chunk(2, -1))[0]) * h[1]), **linear(8, 12, 6, 8))
    [group] = check(gate, lambda net: net(tokens))
    assert resize(gate, [(group, [0, 4])])["tensors"]["both.weight"] == [[0, [0, 4, 6, 10]]]
    model = nn.Sequential(conv(3, 4), nn.InstanceNorm2d(4, affine=True), nn.PReLU(4), conv(4, 2))
    [group] = check(model, on_images)
    modules = resize(model, [(group, [3])])["modules"]
    assert modules["1"] == {"num_features": 1} and modules["2"] == {"num_parameters": 1}


def test_features_behind_a_norm_over_tokens_go_in_eval_mode_alone():
    """BatchNorm1d of (samples, tokens, features) has statistics a token: fixed ones leave features apart."""
    tokens = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(6, 3))
    [group] = check(model, lambda net: net(tokens))
    assert [one.tensor for one in group.members] == ["0.weight", "0.bias", "3.weight"]
    places = nn.Sequential(nn.Conv1d(5, 4, 1), nn.BatchNorm1d(4), nn.Linear(8, 6), nn.BatchNorm1d(4), nn.Linear(6, 3))
    assert {one.module for group in check(places, lambda net: net(tokens)) for one in group.makers} >= {"2"}
    own = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(5, track_running_stats=False), nn.Linear(6, 3))
    assert channel_groups(varied(own), lambda net: net(tokens))[1]["0"] == "a BatchNorm takes its statistics over it"


def linear(*sizes: int) -> dict[str, nn.Module]:
    return {"both": nn.Linear(*sizes[:2]), "out": nn.Linear(*sizes[2:])}


def test_padded_shortcuts_and_own_parameters_are_followed_place_by_place():
    """ResNet's shortcut without weights pads with constants: those channels stay, the others go."""

    def shortcut(net: Any, x: Tensor) -> Tensor:
        first = net.stem(x)
        return net.head((net.wide(first) * net.scale + F.pad(first, (0, 0, 0, 0, 1, 1))).mean((2, 3)))

    model = Net(shortcut, stem=conv(3, 4), wide=conv(4, 6), head=nn.Linear(6, 5))
    model.scale = nn.Parameter(torch.ones(6, 1, 1))
    [group] = check(model, on_images)
    assert {one.tensor: one.index for one in group.members}["scale"] == (-1, 0, 1, 2, 3, -1)


def test_computed_weights_and_foreign_layers_are_named():
    """A weight that is a function of others, a recurrent layer, a layer that the run does not reach."""
    normed = nn.utils.parametrizations.weight_norm(conv(3, 4))
    model = nn.Sequential(normed, nn.ReLU(), conv(4, 4), nn.Flatten(), nn.Linear(256, 5))
    found, left = channel_groups(model, on_images)
    assert [one.makers[0].module for one in found] == ["2"]
    assert left["0"] == "its weight is computed from other tensors"
    model = Net(
        lambda net, x: net.head(net.cell(net.one(x))[0]), one=nn.Linear(3, 4), cell=nn.LSTM(4, 4), head=nn.Linear(4, 2)
    )
    model.spare = nn.Linear(3, 3)
    found, left = channel_groups(model, lambda net: net(torch.ones(2, 5, 3)))
    assert found == [] and "rnn" in left["one"] and left["spare"] == "the run did not use it as a layer"


def test_reading_leaves_the_model_and_the_random_numbers_as_they_were():
    """Statistics, modes, attributes, generators: nothing of the user's is touched."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.seen += 1
            return x + torch.rand(()) * 0 + random.random() * 0 + np.random.rand() * 0

    model = nn.Sequential(Counting(), *vgg())
    model[2].eval()
    before, modes = copy.deepcopy(model.state_dict()), [one.training for one in model.modules()]
    drawn, others = torch.get_rng_state(), (random.getstate(), np.random.get_state()[1].tolist())
    assert len(channel_groups(model, on_images)[0]) == 3
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert modes == [one.training for one in model.modules()] and model[0].calls == 0
    assert others == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(drawn, torch.get_rng_state()) and all(one.grad is None for one in model.parameters())


def test_a_model_that_does_not_run_is_left_alone_with_the_reason():
    """The error of somebody's forward is told in a line."""
    found, left = channel_groups(vgg(), lambda net: net(torch.ones(2, 3)))
    assert found == [] and "a copy of it does not run: RuntimeError" in left[WHOLE]
    for model, words in ((nn.LazyLinear(3), "without a size"), (nn.Linear(3, 3, device="meta"), "meta device")):
        assert words in channel_groups(model, lambda net: net(torch.ones(2, 3)))[1][WHOLE]
