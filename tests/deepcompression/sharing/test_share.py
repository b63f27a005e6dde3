"""Weight sharing on state_dicts."""

from __future__ import annotations

import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from deepcompression.errors import StructureError
from deepcompression.sharing import share as sharing
from deepcompression.sharing.share import share
from deepcompression.structure.shared import Shared


def sparse(shape: tuple[int, ...], density: float = 0.3, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * 0.1
    kept = torch.rand(shape, generator=generator) < density
    return torch.where(kept, weight, torch.zeros(())).to(dtype)


@pytest.mark.parametrize("init", ["linear", "density", "random", "optimal"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_non_zero_weights_take_few_values_and_zeros_stay(init, dtype):
    """At most 2**bits values in the layer's own dtype; exactly the zeros of before; the rest untouched."""
    state = {"a.weight": sparse((40, 50), dtype=dtype), "b": torch.randn(7), "n": torch.arange(3)}
    made = share(state, {"a.weight": 3}, init=init)
    weight = made.state["a.weight"]
    assert weight.dtype == dtype and weight.shape == (40, 50)
    assert torch.equal(weight == 0, state["a.weight"] == 0)
    assert len(torch.unique(weight[weight != 0])) <= 8
    assert made.state["b"] is state["b"] and made.state["n"] is state["n"]
    assert list(made.state) == list(state)


def test_the_account_tells_the_truth():
    """Centroids, counts and errors of the report are recomputed from the tensors themselves."""
    state = {"w": sparse((60, 60)), "v": sparse((5, 3), density=1.0, seed=1)}
    made = share(state, {"w": 4, "v": 1})
    for layer in made.layers:
        before, after = state[layer.name].double(), made.state[layer.name].double()
        assert layer.squared_error == pytest.approx(float(((before - after) ** 2).sum()), rel=1e-9)
        assert layer.nonzero == int((before != 0).sum())
        assert layer.centroids == torch.unique(after[after != 0]).tolist()
        assert layer.root_mean_square_error == pytest.approx((layer.squared_error / layer.nonzero) ** 0.5)
    assert [(layer.name, layer.bits) for layer in made.layers] == [("w", 4), ("v", 1)]


def test_error_is_not_above_scikit_learns():
    """scikit-learn, started at the same centroids on the non-zero weights alone, is the oracle."""
    weight = sparse((200, 100))
    values = weight[weight != 0].double().numpy()[:, None]
    start = np.linspace(values.min(), values.max(), 16)[:, None]
    theirs = KMeans(16, init=start, n_init=1).fit(values)
    assert share({"w": weight}, {"w": 4}).layers[0].squared_error <= theirs.inertia_ * (1 + 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_no_weight_is_pruned_by_a_centroid_at_zero(dtype):
    """Weights on both sides of zero whose mean is zero would vanish: they keep a value that is not zero."""
    tiny = torch.finfo(dtype).smallest_normal
    weight = torch.tensor([tiny, -tiny, 2 * tiny, -2 * tiny, 0.0, 1.0, -1.0], dtype=dtype)
    made = share({"w": weight}, {"w": 1}, init="linear").state["w"]
    assert torch.equal(made == 0, weight == 0)
    symmetric = share({"w": torch.tensor([-0.5, 0.5, 1.0, -1.0, 0.0])}, {"w": 1}).state["w"]
    assert int((symmetric == 0).sum()) == 1


def test_negative_zero_becomes_the_one_zero():
    """A pruned weight is the bit pattern +0.0: -0.0 counts as pruned, and loses its sign."""
    made = share({"w": torch.tensor([-0.0, 0.0, 1.0, 2.0, 3.0])}, {"w": 2}).state["w"]
    assert made.view(torch.int32)[:2].tolist() == [0, 0]
    assert made[2:].tolist() == [1.0, 2.0, 3.0]


def test_few_values_and_no_values_are_kept_exactly():
    """A layer that is shared already, or all zero, comes back bit for bit."""
    shared = torch.tensor([0.5, 0.25, -1.0, 0.0])[torch.randint(0, 4, (30, 20))]
    made = share({"w": shared, "z": torch.zeros(3, 3)}, {"w": 2, "z": 5})
    assert torch.equal(made.state["w"], shared) and torch.equal(made.state["z"], torch.zeros(3, 3))
    assert made.layers[0].squared_error == 0 and made.layers[1].centroids == []


def test_a_padding_row_is_left_alone():
    """An embedding's padding row keeps its own values and does not pull at the centroids."""
    weight = sparse((6, 50), density=1.0)
    weight[2] = 100.0
    made = share({"e": weight}, {"e": 2}, padding={"e": 2})
    assert torch.equal(made.state["e"][2], weight[2]) and max(made.layers[0].centroids) < 1
    others = torch.tensor([0, 1, 3, 4, 5])
    alone = share({"e": weight[others]}, {"e": 2}).state["e"]
    assert torch.equal(made.state["e"][others], alone)


def test_tied_tensors_stay_one():
    """A tied weight is one object under two names: both get the shared one."""
    weight = sparse((10, 10))
    made = share({"in.weight": weight, "out.weight": weight}, {"in.weight": 2}).state
    assert made["in.weight"] is made["out.weight"] and made["in.weight"] is not weight


def test_input_is_not_changed_and_the_seed_decides():
    """A pure function: the state given stays; random starts repeat with their seed."""
    state = {"w": sparse((40, 40))}
    copy = state["w"].clone()
    one, two, other = (share(state, {"w": 3}, init="random", seed=seed).state["w"] for seed in (1, 1, 2))
    assert torch.equal(state["w"], copy) and torch.equal(one, two) and not torch.equal(one, other)


def test_a_transposed_tensor_is_shared_in_its_own_order():
    """Codes follow the tensor's indices, not its memory."""
    weight = sparse((8, 5))
    straight = share({"w": weight.t().contiguous()}, {"w": 2}).state["w"]
    assert torch.equal(share({"w": weight.t()}, {"w": 2}).state["w"], straight)


@pytest.mark.parametrize(
    ("state", "bits", "init", "words"),
    [
        ({"w": torch.ones(2)}, {"w": 0}, "linear", "w: bits 0 is impossible"),
        ({"w": torch.ones(2)}, {"w": 17}, "linear", "bits 17"),
        ({"w": torch.ones(2)}, {"w": True}, "linear", "bits True"),
        ({"w": torch.ones(2)}, {"w": 2.5}, "linear", "bits 2.5"),
        ({"w": torch.ones(2)}, {"w": 2}, "forgy", "linear, density, random, optimal"),
        ({"w": torch.ones(2)}, {"v": 2}, "linear", "v: no floating-point tensor"),
        ({"w": torch.ones(2, dtype=torch.int64)}, {"w": 2}, "linear", "w: no floating-point tensor"),
        ({"w": torch.tensor([1.0, torch.nan])}, {"w": 2}, "linear", "w: 1 values are NaN or infinite"),
    ],
)
def test_what_is_impossible_is_refused_by_name(state, bits, init, words):
    """One line names the tensor and the rule."""
    with pytest.raises(StructureError, match=words):
        share(state, bits, init=init)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("zeros", [False, True])
def test_large_tensors_are_shared_in_place_as_others_are(dtype: torch.dtype, zeros: bool) -> None:
    """The way with little memory gives the bits, the values and the error of the other one."""
    weight = torch.randn(150, 200, generator=torch.Generator().manual_seed(1)).to(dtype)
    if zeros:
        weight[weight.abs() < 0.3] = 0.0
    books = partial(sharing._books, "linear", "own", 0)
    wanted, account = sharing._share_parts("w", weight, 3, 0.0, None, Shared(), books)
    ours = weight.clone()
    found = sharing._share_whole("w", ours, 3, "linear", 0)
    assert torch.equal(ours, wanted)
    assert (found.centroids, found.nonzero) == (account.centroids, account.nonzero)
    assert found.squared_error == pytest.approx(account.squared_error, rel=1e-5)
    assert torch.equal(share({"w": weight}, {"w": 3}).state["w"], wanted)


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 10), (torch.bfloat16, 4)])
def test_sharing_takes_little_memory_beside_the_tensor(dtype: torch.dtype, bits: int) -> None:
    """Neither codes nor float32 values of the whole tensor are held."""
    weight = torch.randn(1 << 22, generator=torch.Generator().manual_seed(1)).to(dtype)
    if dtype == torch.bfloat16:
        weight[: 1 << 21] = 0.5  # so many are equal that values are not counted into bins
    tracemalloc.start()
    sharing._share_whole("w", weight, bits, "linear", 0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20  # which does not grow with the tensor
