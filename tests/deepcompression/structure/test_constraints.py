"""Constraints in words: each is read back, held while a tensor trains, and found broken where it is."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepcompression.errors import InvariantError, StructureError
from deepcompression.network.state import plain_state
from deepcompression.structure.check import check, refuse_changes
from deepcompression.structure.constraints import constraint, having, structured, together
from deepcompression.structure.hold import bake, hold_structure


def grid(per_channel: bool) -> Tensor:
    """Integers from -7 to 7 times a scale, of the tensor or of each of six rows; a third of them zeros."""
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(-7, 8, (6, 10), generator=generator).float()
    integers[:, ::3] = 0.0
    scales = torch.rand(6, 1, generator=generator) + 0.1 if per_channel else torch.tensor(0.3)
    return torch.where(integers == 0, 0.0, integers * scales)


def signs() -> Tensor:
    """Plus or minus one scale a row."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(0, 2, (6, 10), generator=generator) * 2.0 - 1) * 0.05 * torch.arange(1.0, 7.0)[:, None]


def two_of_four() -> Tensor:
    """Of every four weights in a row the first two are zero."""
    weight = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))
    weight[:, torch.arange(12) % 4 < 2] = 0.0
    return weight


KEPT = [
    (("zeros", "grid(4)"), grid(False)),
    (("zeros", "grid(4, 0)"), grid(True)),
    (("zeros", "n_m(2, 4)"), two_of_four()),
    (("binary",), signs()),
    (("zeros", "shared"), grid(False)),
    (("zeros", "shared", "grid(4)"), grid(False)),
    (("zeros", "shared(0)"), grid(False)),
    (("shared(1)",), grid(False)),
    (("zeros", "shared(0, 5)"), grid(False)),
    (("zeros", "shared(0, 20)", "shared"), grid(False)),
]


@pytest.mark.parametrize(("words", "weight"), KEPT, ids=lambda one: "-".join(one) if isinstance(one, tuple) else "")
def test_a_training_keeps_what_is_held(words: tuple[str, ...], weight: Tensor) -> None:
    """Steps of plain SGD change the weights, and every constraint is true of what is baked."""
    torch.manual_seed(0)
    model = nn.Linear(weight.shape[1], weight.shape[0])
    model.weight.data = weight.clone()
    before, structure = plain_state(model), {"weight": words}
    check(before, before, structure)
    hold_structure(model, structure)
    assert torch.equal(model.weight, weight)  # holding changes nothing
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for _ in range(5):
        optimizer.zero_grad()
        (model(torch.randn(32, weight.shape[1])) - 1).square().mean().backward()
        optimizer.step()
    after = plain_state(bake(model))
    assert not torch.equal(after["weight"], before["weight"])
    assert not bool((after["weight"].signbit() & (after["weight"] == 0)).any())  # the integer 0 is +0.0
    check(before, after, structure)


@pytest.mark.parametrize(
    ("word", "before", "after", "told"),
    [
        (
            "shared",
            torch.ones(2, 2),
            torch.tensor([[1.0, 1.0], [2.0, 2.0]]),
            "weights that shared a value no longer do",
        ),
        ("shared(1)", torch.ones(2, 2), torch.tensor([[1.0, 1.0], [2.0, 2.0]]), "a value in its channel or group no"),
        ("shared(0, 2)", torch.ones(2, 4), torch.arange(8.0).reshape(2, 4), "a value in its channel or group no"),
        ("grid(4)", grid(False), torch.randn(6, 10), "no longer integers times a scale"),
        ("grid(3)", grid(False), grid(False), "do not fit 3 bits"),
        ("n_m(2, 4)", two_of_four(), torch.ones(6, 12), "4 of 4 weights in a row are not zero, 2:4 allows 2"),
        ("binary", signs(), grid(False), "no longer binary"),
    ],
)
def test_what_is_broken_is_named(word: str, before: Tensor, after: Tensor, told: str) -> None:
    """The tensor's name and what is wrong with it."""
    with pytest.raises(InvariantError, match=rf"w: .*{told}"):
        check({"w": before}, {"w": after}, {"w": (word,)})


@pytest.mark.parametrize("word", ["zero", "grid", "n_m(2)", "zeros(1)", "grid(8, 0, 1, 1)", "", "grid(x)"])
def test_words_that_stand_for_nothing_are_refused(word: str) -> None:
    """A word that is not known, or has too many or too few numbers."""
    with pytest.raises(StructureError, match="structure"):
        constraint(word)


def test_codebooks_of_channels_learn_apart() -> None:
    """What is equal in two channels has a centroid in each, and merges are counted within channels."""
    weight = torch.tensor([[0.5, 0.5, 1.0, 0.0], [1.0, 0.5, 0.5, 1.0]])
    held = constraint("shared(0)").held(weight)
    centroids = held.right_inverse(weight)
    assert centroids.tolist() == [0.5, 1.0, 0.5, 1.0] and torch.equal(held(centroids), weight)
    moved = held(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert moved.tolist() == [[1.0, 1.0, 2.0, 0.0], [4.0, 3.0, 3.0, 4.0]]
    assert check({"w": weight}, {"w": moved}, {"w": ("shared(0)",)}).merged_groups == 0
    one = held(torch.tensor([1.0, 2.0, 4.0, 4.0]))
    assert check({"w": weight}, {"w": one}, {"w": ("zeros", "shared(0)")}).merged_groups == 1
    centroids.requires_grad_()
    held(centroids).sum().backward()
    assert centroids.grad is not None and centroids.grad.tolist() == [2.0, 1.0, 2.0, 2.0]


@given(st.integers(1, 16), st.integers(0, 3) | st.none())
def test_a_grids_word_is_read_back(bits: int, axis: int | None) -> None:
    """Bits and axis come back from the word."""
    found = constraint(f"grid({bits})" if axis is None else f"grid({bits}, {axis})")
    assert (found.bits, found.axis) == (bits, axis)  # type: ignore[attr-defined]


@given(st.lists(st.sampled_from("abc"), unique=True), st.lists(st.sampled_from("abc"), unique=True))
@settings(deadline=None)
def test_structures_come_together(zeros: list[str], shared: list[str]) -> None:
    """Every constraint once, whatever the order."""
    both = together(structured(zeros), structured((), shared), structured(zeros, shared))
    assert set(having(both, "zeros")) == set(zeros) and set(having(both, "shared")) == set(shared)
    assert all(len(set(words)) == len(words) for words in both.values())


def test_what_is_on_no_grid_is_not_held() -> None:
    """Before training, with the tensor's name; the model stays as it was."""
    model = nn.Linear(4, 3)
    with pytest.raises(StructureError, match="weight: its values are no multiples of a scale"):
        hold_structure(model, {"weight": ("grid(4)",)})
    assert not nn.utils.parametrize.is_parametrized(model)


def test_only_what_was_selected_may_change() -> None:
    """A changed bit, another shape, a tensor that came or went: each is named."""
    before = {"a": torch.zeros(2), "b": torch.ones(2)}
    refuse_changes(before, {"a": torch.ones(2), "b": torch.ones(2)}, ["a"])
    for after in ({"a": torch.tensor([0.0, -0.0]), "b": torch.ones(2)}, {"a": torch.zeros(3), "b": torch.ones(2)}):
        with pytest.raises(InvariantError, match="a: changed"):
            refuse_changes(before, after, ["b"])
    with pytest.raises(InvariantError, match="c: is in only one"):
        refuse_changes(before, {**before, "c": torch.zeros(1)}, ["a"])


def test_what_is_tied_to_a_selected_tensor_changes_with_it() -> None:
    """A stage names the first name of a tied tensor; another tensor with the same new values is not meant."""
    before, tied = {name: torch.zeros(2) for name in "abc"}, torch.ones(2)
    refuse_changes(before, {"a": tied, "b": tied, "c": torch.zeros(2)}, ["a"])
    with pytest.raises(InvariantError, match="c: changed"):
        refuse_changes(before, {"a": tied, "b": tied, "c": torch.ones(2)}, ["a"])
