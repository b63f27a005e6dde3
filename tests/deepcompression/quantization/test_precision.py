"""Rounding: exact values of a narrower type, never a harmful one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deepcompression.errors import StructureError
from deepcompression.network.state import plain_state
from deepcompression.quantization.precision import round_by_effect, round_precision
from deepcompression.quantization.rounding import on_grid
from deepcompression.training.evaluate import evaluate
from deepcompression.training.problem import Problem


def weights(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_codebooks_and_the_rest_are_rounded_each_to_its_precision():
    """numpy rounds float16 in the same way; tensors keep their dtype, what is excluded its bits."""
    state = {
        "w": weights(0, 40),
        "b": weights(1, 40),
        "double": weights(2, 3).double(),
        "count": torch.tensor(3),
    }
    made = round_precision(state, shared=["w"], codebook="float16", rest="bfloat16").state
    assert np.array_equal(made["w"].numpy(), state["w"].numpy().astype(np.float16).astype(np.float32))
    assert torch.equal(made["b"], state["b"].bfloat16().float())
    assert made["double"] is state["double"] and made["count"] is state["count"]
    assert made["w"].dtype == torch.float32


def test_auto_is_the_first_type_that_has_the_range():
    """A codebook with a tiny centroid is bfloat16, others are float16; what neither holds stays and says why."""
    state = {"a": torch.tensor([0.1, 0.3]), "b": torch.tensor([0.1, 1e-6]), "c": torch.tensor([0.1, 1e-40])}
    made = round_precision(state, shared=[*state], codebook="auto")
    assert torch.equal(made.state["a"], state["a"].half().float())
    assert torch.equal(made.state["b"], state["b"].bfloat16().float())
    assert torch.equal(made.state["c"], state["c"]) and made.kept == {
        "c": "a value would become zero or subnormal in bfloat16"
    }


def test_float32_changes_nothing_and_a_narrower_tensor_is_not_rounded_again():
    """The default is lossless, and a float16 tensor does not pass through bfloat16."""
    state = {"w": weights(0, 5), "half": weights(1, 5).half()}
    assert all(round_precision(state).state[name] is state[name] for name in state)
    assert round_precision(state, rest="bfloat16").state["half"] is state["half"]


@pytest.mark.parametrize(
    ("value", "precision", "rule"),
    [
        (1e6, "float16", "overflow in float16"),
        (65520.0, "float16", "overflow in float16"),
        (1e-5, "float16", "zero or subnormal in float16"),
        (1e-9, "float16", "zero or subnormal in float16"),
        (3.4e38, "bfloat16", "overflow in bfloat16"),
        (1e-40, "bfloat16", "zero or subnormal in bfloat16"),
    ],
)
@pytest.mark.parametrize("shared", [[], ["w"]])
def test_a_tensor_that_rounding_would_harm_stays_and_says_why(
    value: float, precision: str, rule: str, shared: list[str]
):
    """A running variance of 1e-9 rounded to zero, or a centroid to a pruned weight, would break the net."""
    state = {"w": torch.tensor([1.1, 0.0, value])}
    made = round_precision(state, shared=shared, codebook=precision, rest=precision)
    assert torch.equal(made.state["w"], state["w"])
    assert rule in made.kept["w"]


def test_zeros_stay_and_values_that_were_not_finite_stay_outside_codebooks():
    """Rounding is not blamed for what was there before."""
    state = {"w": torch.tensor([0.0, -0.0, torch.inf, 1.1])}
    made = round_precision(state, rest="float16")
    assert made.kept == {}
    assert made.state["w"].tolist()[:3] == [0.0, 0.0, torch.inf]
    assert torch.signbit(made.state["w"]).tolist() == [False, True, False, False]
    with pytest.raises(StructureError, match="w: 1 values"):
        round_precision(state, shared=["w"])


def test_centroids_that_fall_together_are_counted():
    """Structure only coarsens, and the report says by how much."""
    state = {"w": torch.tensor([1.0, 1.0001, 2.0])}
    assert round_precision(state, shared=["w"], codebook="float16").merged == {"w": 1}


def test_a_tied_codebook_is_rounded_once_under_all_names():
    """A second name must not get the precision of the rest."""
    tied = weights(0, 9)
    made = round_precision({"a": tied, "b": tied}, shared=["a"], codebook="float16", rest="bfloat16").state
    assert made["a"] is made["b"]
    assert torch.equal(made["b"], tied.half().float())


def test_an_unknown_precision_is_refused():
    """A typing error must not leave the file at full precision."""
    with pytest.raises(StructureError, match="'float8'; expected one of float32, float16, bfloat16"):
        round_precision({}, rest="float8")


def test_int8_is_a_grid_that_the_codec_finds():
    """Multiples of one scale, at most 127 of it: a file stores them as integers, smaller than 16-bit floats."""
    state = {"w": torch.randn(400, generator=torch.Generator().manual_seed(0)), "n": torch.arange(3)}
    rounded = round_precision(state, rest="int8").state
    step = state["w"].abs().max() / 127
    assert float((rounded["w"] - state["w"]).abs().max()) <= float(step) * 0.501
    assert len(torch.unique(rounded["w"])) <= 255 and torch.equal(rounded["n"], state["n"])
    assert not bool((torch.signbit(rounded["w"]) & (rounded["w"] == 0)).any())
    from deepcompression import torch as files

    sizes = [len(files.encode({"w": one}, "huffman")) for one in (rounded["w"], state["w"].half().float())]
    assert sizes[0] < 0.7 * sizes[1]
    assert torch.equal(round_precision({"z": torch.zeros(4)}, rest="int8").state["z"], torch.zeros(4))


def test_precision_by_effect_is_what_the_loss_allows():
    """With a tolerance everything is int8; with hardly any, the loss stays; codebooks are rounded anyway."""
    x = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    problem = Problem((x, x[:, :3].argmax(1)), (x, x[:, :3].argmax(1)))
    torch.manual_seed(0)
    start = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    state = plain_state(start)
    rounded, chosen = round_by_effect(start, problem, shared=["0.weight"], codebook="float16", tolerance=10.0)
    assert chosen == {"0.bias": "int8", "2.weight": "int8", "2.bias": "int8"} and not rounded.kept
    assert torch.equal(rounded.state["0.weight"], state["0.weight"].half().float())
    assert all(torch.equal(start.state_dict()[name], tensor) for name, tensor in rounded.state.items())
    before = evaluate(start, problem.validation, problem.step, problem.metric).loss
    some, taken = round_by_effect(start, problem, tolerance=1e-4)
    after = evaluate(start, problem.validation, problem.step, problem.metric).loss
    assert after <= before * (1 + 1e-4) and set(taken) | set(some.kept) == set(state)


VARIANCES = torch.tensor([1e-4, 0.01, 1.0, 1000.0])


@pytest.mark.parametrize(
    ("tensor", "held"),
    [
        (VARIANCES, "float16"),
        (torch.tensor([0.0, 1e-9, 1.0]), "bfloat16"),
        (torch.tensor([-1.0, -1e-3]), "float16"),
        (torch.tensor([1.0, 1e-5]), "bfloat16"),
        (torch.logspace(-3, 2, 32).reshape(4, 8), "float16"),
        (torch.tensor([1.0, 1e-42]), "float32"),
    ],
    ids=["variances", "with a dead channel", "negative", "scale and epsilon", "a table of gains", "subnormal"],
)
def test_int8_keeps_the_ratios_of_values_of_one_sign(tensor: Tensor, held: str):
    """A variance that became zero multiplies its channel by 300; such tensors get 16 bits, and it is said."""
    made = round_precision({"bn.running_var": tensor}, rest="int8")
    after = made.state["bn.running_var"]
    alive = tensor != 0
    assert float((after[alive] / tensor[alive] - 1).abs().max()) <= 2**-8
    assert not after[~alive].any()
    assert made.instead["bn.running_var"].startswith(f"is {held}: by int8 one of its values, which have one sign")


@pytest.mark.parametrize(
    "tensor",
    [
        weights(0, 64),
        weights(1, 64).abs() * 0.2 + 0.9,
        torch.tensor(0.07),
        torch.tensor([1e-5]),
        torch.sin(torch.arange(64) / 7.0).reshape(8, 8),
        torch.tensor([0.0, 1.0, 1.0, 0.0]),
        torch.zeros(0, 3),
        torch.zeros(3),
    ],
    ids=["bias", "norm weight", "temperature", "epsilon", "positions", "mask", "empty", "zeros"],
)
def test_int8_stays_on_its_grid_where_ratios_are_kept_or_of_no_matter(tensor: Tensor):
    """What int8 held well before is stored in as few bytes as before."""
    made = round_precision({"w": tensor}, rest="int8")
    assert torch.equal(made.state["w"], on_grid(tensor))
    assert not made.instead and not made.coarse and not made.kept


def test_int8_says_what_it_changes_much_and_what_it_leaves():
    """An outlier takes the grid of all others; other dtypes and what is not finite keep their precision aloud."""
    spread = torch.cat([weights(0, 5000), torch.tensor([300.0])]).reshape(1, -1)
    state = {
        "w": spread,
        "half": weights(1, 4).half(),
        "double": weights(2, 4).double(),
        "inf": torch.tensor(torch.inf),
    }
    made = round_precision(state, rest="int8")
    assert made.coarse == {"w": "is int8, by which 3,867 of its 5,001 values would become zero"}
    some = torch.cat([weights(0, 5000), torch.tensor([30.0])]).reshape(1, -1)
    assert round_precision({"w": some}, rest="int8").coarse == {
        "w": "is int8, by which it is changed by 6% (root mean square)"
    }
    assert made.kept == {
        "half": "int8 is for float32, it is float16",
        "double": "float64 is not rounded",
        "inf": "a value is NaN or infinite",
    }
    assert round_precision({"n": torch.arange(3)}, rest="int8").kept == {}


def test_precision_by_effect_keeps_ratios_whatever_the_loss_says():
    """A channel that is dead on validation hides what its variance of zero does elsewhere."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    model[1].running_var.copy_(VARIANCES)
    x = torch.randn(16, 5)
    problem = Problem((x, x[:, :3].argmax(1)), (x, x[:, :3].argmax(1)))
    rounded, chosen = round_by_effect(model, problem, tolerance=1e9)
    assert chosen["1.running_var"] == "bfloat16" and chosen["1.running_mean"] == "int8" and chosen["0.weight"] == "int8"
    assert rounded.state["1.running_var"].all()


def test_a_running_mean_keeps_its_place_among_its_samples():
    """A channel of small values has a mean that the grid of a channel of large ones does not know."""
    state = {"a.running_mean": torch.tensor([0.01, 100.0]), "a.running_var": torch.tensor([1e-4, 1e4])}
    made = round_precision(state, rest="int8")
    assert float(made.state["a.running_mean"][0]) == pytest.approx(0.01, rel=1e-3)
    assert "is float16: by int8 a mean would be off by 0.95 standard deviations" in made.instead["a.running_mean"]
    inputs = {"mean": torch.tensor([-1.0, 0.01, 100.0]), "std": torch.tensor([1.0, 0.01, 100.0])}
    assert "is float16: by int8 a mean would be off by " in round_precision(inputs, rest="int8").instead["mean"]
    alone = round_precision({"a.running_mean": torch.tensor([0.3, -1.0, 2.0])}, rest="int8")
    assert not alone.instead and not alone.coarse
    far = {"b.running_mean": torch.tensor([1000.3, -1.0]), "b.running_var": torch.tensor([1e-4, 1e-4])}
    assert round_precision(far, rest="int8").instead["b.running_mean"].startswith("is float32: ")
    assert "off by 19 standard deviations" in round_precision(far, rest="float16").coarse["b.running_mean"]


def test_a_vector_most_of_which_the_grid_would_clear_gets_16_bits():
    """One number a channel: each of them may be all that its channel has."""
    vector = torch.tensor([1.0, -1e-3, 1e-3, 2e-3] * 4)
    made = round_precision({"v": vector, "m": vector.reshape(4, 4)}, rest="int8")
    assert made.instead == {"v": "is float16: by int8 12 of its 16 values would become zero"}
    assert made.coarse == {"m": "is int8, by which 12 of its 16 values would become zero"}
