"""Checkpoints from elsewhere."""

from __future__ import annotations

import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune as torch_prune

from deepcompression import torch as files
from deepcompression.errors import FormatError, WeightsError
from deepcompression.formats.checkpoint import read_state
from deepcompression.network.load import load_state, own_tensors, unwrapped


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight


class Payload:
    """A pickle of this class would run code when loaded."""

    def __reduce__(self):
        return (print, ("code ran",))


def equal(one, two) -> bool:
    return list(one) == list(two) and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "safetensors", "dcz"])
def test_every_kind_of_file_gives_the_same_state(tmp_path, suffix):
    """torch.save, safetensors and .dcz hold the same tensors, counters and dtypes included."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = tmp_path / f"net.{suffix}"
    {"safetensors": save_file, "dcz": files.save}.get(suffix, torch.save)(state, path)
    read = read_state(path)
    assert set(read) == set(state)
    assert all(torch.equal(read[name], state[name]) and read[name].dtype == state[name].dtype for name in state)


def test_a_foreign_checkpoint_loads_by_key_and_strip(tmp_path):
    """The usual training script: DataParallel's prefix, weights under a key, an optimizer beside them."""
    model = Net()
    wrapped = OrderedDict((f"module.{name}", tensor) for name, tensor in model.state_dict().items())
    path = tmp_path / "last.pt"
    torch.save({"epoch": 3, "model": {"ema": wrapped}, "optimizer": {"state": {}}}, path)
    state = read_state(path, key="model.ema", strip=["module."])
    target = Net()
    files.load_state(target, state, where="model.weights")
    assert equal(target.state_dict(), model.state_dict())


def test_prefixes_are_stripped_once_each_in_order(tmp_path):
    """`module.module.x` loses only as many prefixes as are named."""
    torch.save({"module.net.module.x": torch.ones(1)}, tmp_path / "w.pt")
    assert list(read_state(tmp_path / "w.pt", strip=["module.", "net."])) == ["module.x"]
    assert list(read_state(tmp_path / "w.pt", strip=["net."])) == ["module.net.module.x"]


def test_two_tensors_must_not_become_one(tmp_path):
    """Stripping that makes two names equal would lose a tensor silently."""
    torch.save({"a.x": torch.ones(1), "x": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match="same name"):
        read_state(tmp_path / "w.pt", strip=["a."])


def test_pairs_of_torchs_own_pruning_are_merged(tmp_path):
    """weight_orig and weight_mask become the weight that the model really had, zeros as +0.0."""
    model = nn.Linear(6, 5)
    torch_prune.l1_unstructured(model, "weight", amount=0.5)
    torch_prune.random_unstructured(model, "bias", amount=2)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    state = read_state(tmp_path / "w.pt")
    assert set(state) == {"weight", "bias"} and torch.equal(state["weight"], model.weight)
    assert torch.equal(state["weight"].view(torch.int32) == 0, model.weight_mask == 0)
    assert torch.equal(state["bias"], model.bias)


def _locally(model):
    torch_prune.l1_unstructured(model[0], "weight", amount=0.5)
    torch_prune.random_unstructured(model[0], "bias", amount=2)


def _globally(model):
    pairs = [(model[0], "weight"), (model[2], "weight"), (model[2], "bias")]
    torch_prune.global_unstructured(pairs, torch_prune.L1Unstructured, amount=0.6)


def _filters_and_inputs(model):
    torch_prune.ln_structured(model[0], "weight", amount=3, n=2, dim=0)
    torch_prune.ln_structured(model[2], "weight", amount=0.5, n=1, dim=1)
    torch_prune.random_structured(model[2], "weight", amount=1, dim=0)  # the second of a tensor: a container of both


def _by_a_mask_and_for_good(model):
    torch_prune.custom_from_mask(model[0], "weight", mask=torch.ones(6, 3, 2, 2).tril())
    torch_prune.l1_unstructured(model[2], "weight", amount=0.5)
    torch_prune.remove(model[2], "weight")
    torch_prune.identity(model[2], "bias")


@pytest.mark.parametrize("prune", [_locally, _globally, _filters_and_inputs, _by_a_mask_and_for_good])
@pytest.mark.parametrize("wrapped", ["", "module."])
def test_whatever_torch_pruned_is_read_as_the_model_had_it(tmp_path, prune, wrapped):
    """Weights, biases, filters, inputs, several tensors at once, several ways on one tensor: each with its zeros, in a
    model of the user's class, which gives the same; and a model that is pruned itself gets the pairs.
    """
    torch.manual_seed(0)
    build = lambda: nn.Sequential(nn.Conv2d(3, 6, 2), nn.Flatten(), nn.Linear(54, 5))  # noqa: E731
    model, plain, x = build(), build(), torch.randn(2, 3, 4, 4)
    prune(model)
    torch.save({f"{wrapped}{name}": one for name, one in model.state_dict().items()}, tmp_path / "w.pt")
    state = unwrapped(plain, read_state(tmp_path / "w.pt"))
    load_state(plain, state, where="w.pt")
    assert torch.equal(plain(x), model(x))
    for name in [name for name in model.state_dict() if name.endswith("_mask")]:
        value = plain.get_parameter(name.removesuffix("_mask"))
        assert torch.equal(value.view(torch.int32) == 0, model.get_buffer(name) == 0)
    pruned = build()
    prune(pruned)
    state = unwrapped(pruned, read_state(tmp_path / "w.pt", own=own_tensors(pruned)))
    load_state(pruned, state, where="w.pt")
    assert torch.equal(pruned(x), model(x))


def test_names_that_only_look_like_pairs_are_kept(tmp_path):
    """A buffer called `attention_mask` or a lone `x_orig` belongs to the model."""
    torch.save({"attention_mask": torch.ones(2), "x_orig": torch.ones(1)}, tmp_path / "w.pt")
    assert set(read_state(tmp_path / "w.pt")) == {"attention_mask", "x_orig"}


@pytest.mark.parametrize("whole", [Payload(), {"weights": Payload()}])
def test_code_in_a_pickle_is_never_run(tmp_path, capsys, whole):
    """A checkpoint that carries code is refused, with the way out; nothing of it runs."""
    torch.save(whole, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"contains code.*state_dict"):
        read_state(tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(whole))
    with pytest.raises(WeightsError, match=r"plain\.pt"):
        read_state(tmp_path / "plain.pt")
    assert "code ran" not in capsys.readouterr().out


def test_a_whole_pickled_model_is_refused(tmp_path):
    """torch.save(model) is the commonest mistake: the message says what to save instead."""
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(WeightsError, match=r"contains code.*model\.state_dict\(\)"):
        read_state(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("content", "key", "words"),
    [
        ({"state_dict": {"x": torch.ones(1)}, "epoch": 1}, None, "model.weights.key, perhaps to state_dict"),
        ({"state_dict": {"x": torch.ones(1)}}, "weights", "no key 'weights'; the file has state_dict"),
        ({"a": {"b": torch.ones(1)}}, "a.c", "no key 'a.c'; the file has b"),
        ({"a": torch.ones(1)}, "a.b", "no key 'a.b'"),
        ([torch.ones(1)], None, "expected a mapping of names to tensors"),
        ({"a": 1}, None, "expected a mapping of names to tensors"),
    ],
)
def test_what_is_no_state_dict_is_explained(tmp_path, content, key, words):
    """The message names the file, what it has, and the recipe's key that would help."""
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=words) as caught:
        read_state(tmp_path / "w.pt", key=key)
    assert "w.pt" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors", "w.dcz"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", b"\x80\x02}q\x00.", None])
def test_damaged_and_missing_files_are_named(tmp_path, name, content):
    """Whatever the bytes, the answer is one line that names the file, never a traceback of a library."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises((WeightsError, FormatError)) as caught:
        read_state(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_a_tied_name_may_be_missing():
    """safetensors keeps one name of a tied parameter; either one is enough for both."""
    source = Net()
    for absent in ("first.weight", "second.weight"):
        state = source.state_dict()
        del state[absent]
        target = Net()
        files.load_state(target, state, where="weights")
        assert torch.equal(target.first.weight, source.first.weight)
        assert target.first.weight is target.second.weight


def test_a_misfit_is_listed_and_changes_nothing():
    """Missing, unexpected and mis-shaped tensors are named, a few of each; the model stays as it was."""
    model = nn.Sequential(OrderedDict((f"l{i}", nn.Linear(2, 2)) for i in range(4)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = {"l0.weight": torch.zeros(3, 2), "l0.bias": torch.zeros(2), "head.bias": torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        files.load_state(model, state, where="model.weights w.pt")
    message = str(caught.value)
    assert message.startswith("model.weights w.pt:")
    assert "missing: l1.weight, l1.bias, l2.weight and 3 more" in message
    assert "unexpected: head.bias" in message and "l0.weight (3, 2) instead of (2, 2)" in message
    assert equal(model.state_dict(), before)


def test_the_prefix_that_would_help_is_named():
    """`module.` in front of every name is the commonest misfit: the message gives the recipe's line."""
    model = nn.Sequential(nn.Linear(2, 2))
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"model\.weights\.strip: \['module\.'\]"):
        files.load_state(model, state, where="w")
