"""N:M and blocks, at once and while training, against definitions that are written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from trainings import trained

from deepcompression import torch as files
from deepcompression.codec.file import File
from deepcompression.errors import StructureError
from deepcompression.network.state import plain_state
from deepcompression.pruning.patterns import blocks_stay, fitting, n_m_stays, prune_to_patterns
from deepcompression.pruning.sr_ste import Chosen, SrSte
from deepcompression.structure.constraints import constraint
from deepcompression.structure.patterns import NM, Block, pattern_of
from deepcompression.training.method import Context
from deepcompression.training.problem import Problem

ADAM = {"factory": "torch.optim:Adam", "kwargs": {"lr": 0.01}}
SHAPES = [(3, 8), (2, 10), (2, 8, 3, 3), (4, 6, 1, 2), (2, 9, 2)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 4), NM(3, 8)])
def test_of_every_m_along_the_inputs_the_n_largest_stay(shape: tuple[int, ...], pattern: NM) -> None:
    """At each place of a kernel, the earlier of equal ones; the last group may be smaller: in numpy, one by one."""
    random = np.random.default_rng(0)
    scores = random.integers(0, 5, shape).astype(np.float32)  # many are equal
    wanted = np.zeros(shape, bool)
    for place in np.ndindex(shape[0], *shape[2:]):
        row, places = scores[place[0], :, *place[1:]], range(0, shape[1], pattern.m)
        for start in places:
            group = sorted(range(start, min(start + pattern.m, shape[1])), key=lambda one: (-row[one], one))
            for one in group[: pattern.n]:
                wanted[place[0], one, *place[1:]] = True
    found = n_m_stays(torch.tensor(scores), pattern)
    assert torch.equal(found, torch.tensor(wanted))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.floats(0.05, 1), st.integers(0, 99)
)
def test_blocks_stay_or_go_whole(rows: int, columns: int, down: int, across: int, density: float, seed: int) -> None:
    """Those with the largest sums, as many as the density says, one at least."""
    scores = torch.rand(rows * down, columns * across, generator=torch.Generator().manual_seed(seed)) + 0.01
    keep = blocks_stay(scores, Block(rows, columns), density).numpy()
    sums, whole = [], []
    for top in range(0, rows * down, rows):
        for left in range(0, columns * across, columns):
            part = keep[top : top + rows, left : left + columns]
            assert part.all() or not part.any()
            whole.append(bool(part.all()))
            sums.append(float(scores[top : top + rows, left : left + columns].sum()))
    assert sum(whole) == max(round(density * len(whole)), 1)
    assert min(one for one, stays in zip(sums, whole, strict=True) if stays) >= max(
        (one for one, stays in zip(sums, whole, strict=True) if not stays), default=0.0
    )


def test_kernels_of_one_input_stay_or_go_whole() -> None:
    """Whatever their size; layers without kernels are left."""
    net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, (1, 5)), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(8, 3))
    found, left = fitting(net, pattern_of("kernel"), None)
    assert (
        found == ["0.weight", "1.weight"] and left["2.weight"] == left["4.weight"] == "has no kernels of several places"
    )
    for name in found:
        weight = prune_to_patterns(net.state_dict(), [name], pattern_of("kernel"), 0.25).state[name]
        alive = (weight != 0).flatten(2)
        assert bool((alive.all(2) == alive.any(2)).all()) and float(alive.any(2).float().mean()) == 0.25
        norms = net.state_dict()[name].abs().flatten(2).sum(2)
        assert float(norms[alive.any(2)].min()) >= float(norms[~alive.any(2)].max())


class Net(nn.Module):
    """Inputs of 1, of 8, of 6 on the other axis, and of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3)
        self.turned, self.head = nn.ConvTranspose2d(8, 8, 1), nn.Linear(32, 3)

    def forward(self, images: Tensor) -> Tensor:
        found = torch.relu(self.second(torch.relu(self.first(images))))
        return self.head(self.turned(found).flatten(1))


def test_what_cannot_have_a_pattern_is_left_with_the_reason_or_refused_by_name() -> None:
    """Too few inputs, inputs on another axis, blocks that do not fill the matrix."""
    found, left = fitting(Net(), NM(2, 4), None)
    assert found == ["second.weight", "head.weight"]
    assert left == {
        "first.weight": "has 1 inputs, fewer than 4",
        "turned.weight": "has its inputs on another axis than 1",
    }
    for layers, pattern, words in (
        (["first"], NM(2, 4), r"first\.weight: has 1 inputs, fewer than 4; leave it out of layers"),
        (["head"], Block(4, 4), r"head\.weight: is 3 x 32, which blocks of 4 x 4 do not fill; leave it"),
        (["first"], Block(5, 1), r"first\.weight: is 8 x 9"),
    ):
        with pytest.raises(StructureError, match=rf"^{words}"):
            fitting(Net(), pattern, layers)
    with pytest.raises(StructureError, match="and no other fits"):
        fitting(nn.Sequential(nn.Linear(2, 3)), NM(2, 4), None)
    net = nn.Sequential(nn.Embedding(8, 8, padding_idx=0))
    with pytest.raises(StructureError, match="has a padding row"):
        fitting(net, NM(2, 4), ["0.weight"])
    for word in ("4:4", "5:4", "1x1", "0:4", "2:4:8", "x4", "row"):
        with pytest.raises(StructureError, match=f"granularity '{word}' is no pattern"):
            pattern_of(word)


def test_pruning_at_once_keeps_what_it_says_and_the_file_counts_patterns(tmp_path: Any) -> None:
    """Values that stay are untouched; positions of 2:4 cost at most 0.70 bits a weight in the file, blocks less."""
    state = {"w": torch.randn(512, 256, generator=torch.Generator().manual_seed(0))}
    pruned = prune_to_patterns(state, ["w"], NM(2, 4))
    weight = pruned.state["w"]
    assert constraint("n_m(2, 4)").check("w", state["w"], weight) == 0 and pruned.layers[0].density == 0.5
    assert torch.equal(weight[weight != 0], state["w"][weight != 0])
    sign = torch.where(weight != 0, 1.0, 0.0)  # one value: what the file takes is positions
    count = files.save({"w": sign}, tmp_path / "n_m.dcz", coder="adaptive")
    with File(tmp_path / "n_m.dcz") as file:
        assert 8 * file.index.entries[0].size / weight.numel() < 0.70
    blocks = prune_to_patterns(state, ["w"], Block(4, 4), 0.5).state["w"]
    smaller = files.save({"w": torch.where(blocks != 0, 1.0, 0.0)}, tmp_path / "b.dcz", coder="adaptive")
    assert smaller < count / 4 and int((blocks != 0).sum()) == blocks.numel() // 2
    with pytest.raises(StructureError, match="blocks go with a density, N:M without"):
        prune_to_patterns(state, ["w"], NM(2, 4), 0.5)


def test_the_gradient_is_straight_through_and_the_rest_shrinks() -> None:
    """What counts has the gradient of a plain weight; what does not has that and decay times itself (equation 9)."""
    weight = nn.Parameter(torch.tensor([[3.0, -1.0, 2.0, 0.5, 4.0, 0.0, 1.0, -2.0]]))
    held = Chosen(weight, pattern=NM(2, 4), decay=0.1, held=True)
    out = held(weight)
    assert out.tolist() == [[3.0, 0.0, 2.0, 0.0, 4.0, 0.0, 0.0, -2.0]]
    given = torch.arange(1.0, 9.0)[None]
    out.backward(given)
    wanted = given + 0.1 * weight.detach() * torch.tensor([[0.0, 1, 0, 1, 0, 1, 1, 0]])
    wanted[0, 5] = 0  # zero before: it stays so
    assert torch.allclose(weight.grad, wanted)


def problem() -> Problem:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(128, 16, generator=generator)
    return Problem((x, x[:, :3].argmax(1)), (x, x[:, :3].argmax(1)), batch_size=32)


def test_several_processes_shrink_what_does_not_count_once() -> None:
    """Their gradients are added up, and each of them has the decay in its own."""

    def gradient(processes: int) -> Tensor:
        torch.manual_seed(0)
        model = nn.Linear(8, 2)
        SrSte("2:4", decay=0.5).attach(model, Context(processes=processes))
        (model(torch.zeros(1, 8)).sum()).backward()
        found: Tensor = model.parametrizations.weight.original.grad  # type: ignore[union-attr, index, assignment]
        return found

    assert float(gradient(1).abs().sum()) > 0
    torch.testing.assert_close(2 * gradient(2), gradient(1))


def test_masks_move_while_training_and_the_end_is_n_m() -> None:
    """Weights that counted at first need not in the end; the account says what later stages must keep."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    first = n_m_stays(net[0].weight.detach().abs(), NM(1, 4))
    done = trained(net, problem(), [SrSte("1:4")], epochs=20, optimizer=ADAM)
    assert done.structure == dict.fromkeys(("0.weight", "2.weight"), ("zeros", "n_m(1, 4)"))
    weight = plain_state(net)["0.weight"]
    assert (
        constraint("n_m(1, 4)").check("0.weight", weight, weight) == 0 and float((weight != 0).float().mean()) == 0.25
    )
    assert not torch.equal(weight != 0, first) and done.fit.best_metric > 0.8
    assert max(row["prune/moved"] for row in done.fit.history) > 0 and done.fit.history[-1]["prune/density"] == 0.25
    trained(net, problem(), [], epochs=1, optimizer=ADAM, structure=done.structure)
    later = plain_state(net)["0.weight"]
    assert torch.equal(later != 0, weight != 0) and not torch.equal(later, weight)


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (SrSte("1x4"), "granularity 1x4 is of blocks; while training it is N:M"),
        (SrSte("2:4", ["3.weight"]), "pattern '3.weight' matches"),
        (SrSte("2:4", decay=-1.0), "decay -1.0; expected 0 or more"),
    ],
)
def test_what_is_impossible_is_refused_before_training(method: SrSte, words: str) -> None:
    """In one line."""
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 3))
    with pytest.raises(StructureError, match=words):
        trained(net, problem(), [method], epochs=1, optimizer=ADAM)
