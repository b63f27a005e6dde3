"""Sharing while training: what training leaves, what it may change, and that it can go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainings import share_training

from deepcompression.errors import StructureError
from deepcompression.network.state import plain_state
from deepcompression.sharing.reassign import Masked, Reassigned
from deepcompression.sharing.share import share
from deepcompression.structure import check
from deepcompression.structure.constraints import structured
from deepcompression.training.problem import Problem

ADAM = {"factory": "torch.optim:Adam", "kwargs": {"lr": 0.01}}


def problem() -> Problem:
    """Three classes that a small net can learn."""
    x = torch.randn(192, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return Problem((x, y), (x, y), batch_size=16)


def pruned_net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    with torch.no_grad():
        for i in (0, 2):
            net[i].weight[net[i].weight.abs() < 0.1] = 0.0
    return net


def train(net: nn.Module, **more: Any) -> Any:
    arguments: dict[str, Any] = {"bits": {"0.weight": 2, "2.weight": 3}, "epochs": 6, "optimizer": ADAM} | more
    return share_training(net, problem(), **arguments)


def test_few_values_and_zeros_are_left():
    """Each named tensor has at most 2**bits values; what was zero still is; the rest is an ordinary model."""
    net = pruned_net()
    zero = {name: plain_state(net)[name] == 0 for name in ("0.weight", "2.weight")}
    made = train(net)
    for name, most in (("0.weight", 4), ("2.weight", 8)):
        weight = made.state[name]
        assert 1 < len(torch.unique(weight[weight != 0])) <= most
        assert bool((weight[zero[name]] == 0).all())
    assert list(made.state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in made.state.items())
    assert [layer.nonzero for layer in made.layers] == [int((made.state[n] != 0).sum()) for n in zero]


def test_a_rate_prunes_further():
    """With a rate, weights whose bits are worth more than they become zero, and the net learns around it."""
    without, with_rate = train(pruned_net(), epochs=20), train(pruned_net(), epochs=20, rate=0.3)
    assert sum(one.nonzero for one in with_rate.layers) < 0.8 * sum(one.nonzero for one in without.layers)
    assert with_rate.fit.best_metric > 0.9


def test_it_learns_more_than_sharing_at_once():
    """The loss after training with re-assignment is below that of one-shot sharing of the same weights."""
    net = pruned_net()
    at_once = share(plain_state(net), {"0.weight": 2, "2.weight": 3})
    other = pruned_net()
    other.load_state_dict(at_once.state)
    x, y = problem().train

    def loss(model: nn.Module) -> float:
        return float(nn.functional.cross_entropy(model(x), y).detach())

    train(net, epochs=12)
    assert loss(net) < 0.7 * loss(other)


def test_codes_move_and_come_to_rest():
    """Levels are means of their weights; each update moves weights a part of the way to them, zeros of the rate too."""
    weight = torch.tensor([[0.0, 1.0, 1.2], [-2.0, 0.01, 3.0]])
    part = Reassigned(weight, 3)
    trained = part.right_inverse(weight).clone()
    part.follow(trained, 0.02, pull=0.5)
    assert part(trained).flatten().tolist() == pytest.approx([0.0, 1.1, 1.1, -2.0, 0.0, 3.0])
    assert trained.tolist() == pytest.approx([1.05, 1.15, -2.0, 0.005, 3.0])
    for _ in range(30):
        part.follow(trained, 0.02, pull=0.5)
    assert torch.allclose(trained, part(trained).flatten()[1:], atol=1e-6)


def test_values_are_exactly_the_levels():
    """However far weights are from their levels, no sum of the two that is rounded makes further values."""
    generator = torch.Generator().manual_seed(0)
    part = Reassigned(torch.randn(1000, generator=generator), 4)
    assert set(part(100 * torch.randn(1000, generator=generator)).tolist()) <= set(part.levels.tolist())


def test_convolutions_get_weights_in_the_memory_format_of_the_model():
    """Else they would take twice as long."""
    part = Reassigned(torch.randn(4, 1, 3, 3), 2).to(memory_format=torch.channels_last)
    expected = torch.zeros(4, 1, 3, 3).to(memory_format=torch.channels_last).stride()
    assert part(torch.randn(36)).stride() == expected


@pytest.mark.filterwarnings("error")
def test_channels_last_under_a_mask_is_quiet():
    """Torch has nothing to say of weights in another memory format, in the terminal of a run."""
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    held = Masked(weight, 4)
    assert torch.equal(held(weight), held(weight.contiguous()))


def test_gradients_go_straight_through():
    """Each weight has its own place's gradient, a weight at zero too."""
    weight = torch.tensor([0.01, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0])
    part = Reassigned(weight, 2)
    trained = weight.clone().requires_grad_()
    part.follow(trained.detach(), 0.05, pull=0.0)
    assert part(trained)[0] == 0
    (part(trained) * torch.arange(7.0)).sum().backward()
    assert trained.grad is not None and trained.grad.tolist() == list(range(7))


def test_an_interrupted_training_ends_in_the_same_bits(tmp_path: Path):
    """Going on from a checkpoint changes nothing."""
    whole = train(pruned_net(), rate=0.02).state
    for stop in (2, 5):
        path = tmp_path / f"{stop}.pt"

        class Stop(Exception):
            """The process that was killed."""

        def told(progress: Any, stop: int = stop) -> None:
            if progress.epoch > stop:
                raise Stop

        with pytest.raises(Stop):
            train(pruned_net(), rate=0.02, checkpoint=path, progress=told)
        again = train(pruned_net(), rate=0.02, checkpoint=path).state
        assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_other_structure_is_held():
    """Zeros of further tensors stay, and sharing that was there before is not loosened."""
    net = pruned_net()
    state = share(plain_state(net), {"2.weight": 2}).state
    state["0.bias"][:16] = 0.0
    net.load_state_dict(state)
    made = train(net, bits={"0.weight": 2}, zeros=["0.bias"], shared=["2.weight"])
    check.check(state, made.state, structured(["0.bias", "2.weight"], ["2.weight"]))
    with pytest.raises(StructureError, match=r"0\.weight: is shared already"):
        train(pruned_net(), bits={"0.weight": 2}, shared=["0.weight"])


def test_a_model_is_baked_after_an_error():
    """A training that diverges leaves ordinary parameters, not parametrizations."""
    net = pruned_net()
    with pytest.raises(Exception, match="loss"):
        train(net, optimizer={"factory": "torch.optim:SGD", "kwargs": {"lr": 1e20}})
    assert all(isinstance(one, Tensor) for one in net.state_dict().values())
    assert list(net.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("bits", "rate", "message"), [({"0.weight": 0}, 0.0, "bits 0"), ({"0.weight": 2}, -1.0, "rate -1")]
)
def test_bad_settings_are_named(bits: dict[str, int], rate: float, message: str):
    """Bits and rates out of range are refused before anything trains."""
    with pytest.raises(StructureError, match=message):
        train(pruned_net(), bits=bits, rate=rate)


def test_the_rate_is_full_long_before_codes_rest(monkeypatch: pytest.MonkeyPatch):
    """What the rate prunes can be made up for: it rises in the first half; weights are pulled ever harder."""
    followed: list[tuple[float, float]] = []
    follow = Reassigned.follow

    def watched(self: Reassigned, weights: Tensor, rate: float, pull: float, mask: Tensor | None) -> None:
        followed.append((rate, pull))
        follow(self, weights, rate, pull, mask)

    monkeypatch.setattr(Reassigned, "follow", watched)
    train(pruned_net(), bits={"0.weight": 2}, rate=0.04, epochs=10)
    rates, pulls = [rate for rate, _ in followed], [pull for _, pull in followed]
    assert rates[0] == pulls[0] == 0 and rates == sorted(rates) and pulls == sorted(pulls) and 0.4 < pulls[-1] < 0.5
    assert sum(rate == 0.04 for rate in rates) == pytest.approx(len(rates) / 2, abs=2)


def test_the_last_epochs_are_at_rest():
    """When training ends no code changes any more: the last states differ by little, however noisy training was."""
    made = train(pruned_net(), epochs=40, rate=0.02, seed=3)
    last = [entry["val_loss"] for entry in made.fit.history[-4:]]
    assert max(last) - min(last) < 0.05 * max(last)
