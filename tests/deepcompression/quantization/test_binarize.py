"""Binarization: the papers' formulas, what is left in a model and its file, beside what, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from trainings import trained

import deepcompression.torch as bridge
from deepcompression.codec.file import decode
from deepcompression.errors import StructureError
from deepcompression.formats.state_dict import encode, to_raw_state
from deepcompression.network.edits.binary import scaled, signs
from deepcompression.network.state import plain_state
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.quantization.binarize import Activations, Binarize, Phases, Weights
from deepcompression.quantization.binary import inputs_of, weights_of
from deepcompression.quantization.binary.dorefa_gradients import QuantizedGradient, few_bits
from deepcompression.quantization.in_training import QuantizedTraining
from deepcompression.sharing.reassign import TrainedSharing
from deepcompression.structure.check import check
from deepcompression.structure.constraints import constraint
from deepcompression.structure.hold import hold_by
from deepcompression.training.device import Compute
from deepcompression.training.method import Method
from deepcompression.training.problem import Problem
from deepcompression.training.session import attach

ADAM = {"factory": "torch.optim:AdamW", "kwargs": {"lr": 0.01, "weight_decay": 0.1}}
BINARY, TWO_BITS = {"3.weight": ("binary",)}, Activations("dorefa", 2)
BOTH = {"weights": Weights(), "activations": Activations()}


def problem() -> Problem:
    """Three classes that a small net can learn."""
    x = torch.randn(192, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return Problem((x, y), (x, y), batch_size=32)


def net() -> nn.Sequential:
    """Three layers, a BatchNorm before each but the first."""
    torch.manual_seed(0)
    body = [nn.Linear(6, 32), nn.BatchNorm1d(32), nn.Hardtanh(), nn.Linear(32, 16), nn.BatchNorm1d(16), nn.Hardtanh()]
    return nn.Sequential(*body, nn.Linear(16, 3))


def train(model: nn.Module, *methods: Method, **more: Any) -> Any:
    given: dict[str, Any] = {"epochs": 4, "optimizer": ADAM, "compute": Compute("cpu")} | more
    return trained(model, problem(), methods, **given)


def gradients(kind: str, bits: int, weight: Tensor, outer: Tensor, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The values of a weight, and the gradient of its latent ones, by our code."""
    layer = nn.Linear(1, 1)
    layer.weight = nn.Parameter(weight.clone())
    hold_by(layer, {"weight": lambda _: weights_of(kind)(bits, axis, False)})
    (layer.weight * outer).sum().backward()
    return layer.weight.detach().numpy(), layer.parametrizations.weight.original.grad.numpy()  # type: ignore[index, union-attr]


@pytest.mark.parametrize(("shape", "axis"), [((5, 40), 0), ((4, 3, 3, 3), 0), ((6, 5, 2, 2), 1)])
def test_weights_follow_xnor_net(shape: tuple[int, ...], axis: int) -> None:
    """Section 3.1: signs times the mean magnitude of a filter; dC/dW = dC/dW~ (1/n + scale 1[|W| <= 1])."""
    torch.manual_seed(0)
    weight, outer = 0.9 * torch.randn(shape), torch.randn(shape)
    weight.view(-1)[:3] = torch.tensor([0.0, -0.0, 1.5])
    values, inner = gradients("xnor", 1, weight, outer, axis)
    w, g = weight.double().numpy(), outer.double().numpy()
    over = tuple(one for one in range(len(shape)) if one != axis)
    scale, n = np.abs(w).mean(over, keepdims=True), w.size // shape[axis]
    assert np.allclose(values, np.where(w < 0, -scale, scale), rtol=1e-6)
    assert values.reshape(-1)[0] > 0 and values.reshape(-1)[1] > 0
    assert np.allclose(inner, g * (1 / n + scale * (np.abs(w) <= 1)), rtol=1e-5)
    assert all(len(np.unique(np.abs(row))) == 1 for row in np.moveaxis(values, axis, 0))  # not almost


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_weights_follow_dorefa_net(bits: int) -> None:
    """Section 2.3: one scale for the layer and STE; of more bits through tanh and its greatest."""
    torch.manual_seed(bits)
    weight, outer = torch.randn(7, 30), torch.randn(7, 30)
    values, inner = gradients("dorefa", bits, weight, outer)
    w, g = weight.double().numpy(), outer.double().numpy()
    if bits == 1:
        assert np.allclose(values, np.where(w < 0, -1, 1) * np.abs(w).mean(), rtol=1e-6)
        assert np.allclose(inner, g)
        return
    t = np.tanh(w)
    most, place = np.abs(t).max(), np.unravel_index(np.abs(t).argmax(), t.shape)
    steps = 2**bits - 1
    assert np.allclose(values, 2 * np.round(steps * (t / (2 * most) + 0.5)) / steps - 1, atol=1e-6)
    of_t = g / most
    of_t[place] -= (g * t).sum() / most**2 * np.sign(t[place])
    assert np.allclose(inner, of_t * (1 - t**2), rtol=1e-4, atol=1e-6)
    assert len(np.unique(values)) <= 2**bits and values.max() == 1


def test_inputs_follow_the_papers() -> None:
    """Signs pass gradients within 1; DoReFa's values from 0 to 1; NNCF's scale and threshold have their own."""
    x = torch.tensor([-1.5, -1.0, -0.2, -0.0, 0.0, 0.3, 0.52, 0.9, 1.0, 2.0], requires_grad=True)
    given = x.detach().double().numpy()
    outer = torch.arange(1.0, 11.0)
    (signs(x) * outer).sum().backward()
    assert torch.equal(signs(x.detach()), torch.tensor([-1.0] * 3 + [1.0] * 7))
    assert np.allclose(x.grad.numpy(), outer.numpy() * (np.abs(given) <= 1))  # type: ignore[union-attr]
    for bits in (1, 2, 3):
        x.grad = None
        made = inputs_of("dorefa")(bits, nn.Linear(10, 1))(x)
        (made * outer).sum().backward()
        steps = 2**bits - 1
        assert np.allclose(made.detach().numpy(), np.round(given.clip(0, 1) * steps) / steps, atol=1e-6)
        assert np.allclose(x.grad.numpy(), outer.numpy() * ((given >= 0) & (given <= 1)))  # type: ignore[union-attr]
    assert float(inputs_of("dorefa")(1, nn.Linear(1, 1))(torch.tensor([0.5]))) == 0  # the even one of two as near
    x.grad = None
    scale, part = torch.tensor(0.8, requires_grad=True), torch.full((10,), 0.5, requires_grad=True)
    made = scaled(x, scale, 0.8 * part.detach(), part)
    (made * outer).sum().backward()
    out, o = np.where(given > np.float32(0.4), 0.8, 0.0), outer.double().numpy()
    assert np.allclose(made.detach().numpy(), out)
    assert np.allclose(x.grad.numpy(), o * ((given >= 0) & (given <= 0.8)))  # type: ignore[union-attr]
    assert float(scale.grad) == pytest.approx((o * np.where(given <= 0.8, (out - given) / 0.8, 1)).sum(), rel=1e-5)  # type: ignore[arg-type]
    assert np.allclose(part.grad.numpy(), -o * ((given > 0) & (given < 0.8)))  # type: ignore[union-attr]


def test_a_scaled_threshold_begins_at_the_top_of_its_first_batch() -> None:
    """99.9 % of it lie below the scale; a threshold for each channel, at a half; evaluation begins nothing."""
    value = torch.rand(50, 4, 10, 10)
    one = inputs_of("scaled_threshold")(1, nn.Conv2d(4, 2, 3))
    assert torch.equal(one.eval()(value), value)
    made = one.train()(value)
    top = float(value.flatten().sort(descending=True).values[19])
    assert float(one.tensors()["scale"]) == pytest.approx(top, rel=1e-6) and one.part.shape == (4, 1, 1)
    assert torch.equal(made, torch.where(value > one.tensors()["threshold"], one.tensors()["scale"], 0))
    assert float(one.eval()(3 * value).detach().max()) == pytest.approx(top, rel=1e-6)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_gradients_follow_dorefa_net(bits: int) -> None:
    """Section 2.5: of each sample 2 m (Q(g / 2m + 1/2 + noise) - 1/2); right on average, and only while training."""
    torch.manual_seed(0)
    gradient, noise = torch.randn(6, 5, 3), torch.rand(6, 5, 3) - 0.5
    gradient[2] = 0
    g, steps = gradient.double().numpy(), 2**bits - 1
    m = np.abs(g).max((1, 2), keepdims=True)
    with np.errstate(invalid="ignore"):
        r = np.round(steps * (g / (2 * m) + 0.5) + noise.double().numpy()) / steps
    assert np.allclose(few_bits(gradient, bits, noise), np.nan_to_num(2 * m * (r - 0.5)), atol=1e-5)
    many = torch.stack([few_bits(gradient, bits, torch.rand_like(gradient) - 0.5) for _ in range(2000)]).mean(0)
    assert torch.allclose(many, gradient, atol=0.25 * float(gradient.abs().max()) / 2**bits + 1e-3)
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(QuantizedGradient(1))
    for training, few in ((True, 2), (False, 9)):
        x = torch.randn(3, 3, requires_grad=True)
        layer.bias.grad = None
        outer = torch.randn(3, 3)
        (layer.train(training)(x) * outer).sum().backward()
        given = outer if not training else None
        signs_of_rows = torch.linalg.lstsq(layer.weight.detach().T, x.grad.T).solution.T  # type: ignore[union-attr]
        assert len(signs_of_rows[0].abs().mul(1e3).round().unique()) == (1 if given is None else few // 3)


@pytest.mark.parametrize(
    ("how", "words", "kinds"),
    [
        ({"weights": Weights(), "activations": Activations()}, BINARY, ["binary"]),
        ({"weights": Weights("dorefa"), "activations": Activations("scaled_threshold")}, BINARY, ["binary"]),
        ({"weights": Weights("dorefa", 3), "activations": TWO_BITS}, {"3.weight": ("grid(4)",)}, ["quantize_values"]),
        ({"weights": None, "activations": Activations("dorefa", {"3": 1, "6": 4})}, {}, ["binary", "quantize_values"]),
        ({"keep": [], "gradients": 6, **BOTH}, {f"{n}.weight": ("binary",) for n in (0, 3, 6)}, ["binary"] * 3),
    ],
)  # fmt: skip
def test_a_binarized_net_goes_through_a_file_and_on(how: Any, words: Any, kinds: list[str], tmp_path: Path) -> None:
    """Structure, edits, the user's own model from the file to the bit, and more training that keeps all of it."""
    model = net()
    made = train(model, Binarize(**how), epochs=6)
    state, account = plain_state(model), made.accounts[0][1]
    assert made.structure == words and [edit["kind"] for edit in account.edits] == kinds
    assert made.fit.best_metric > 0.6
    check(state, state, made.structure)
    bridge.save(state, tmp_path / "m.dcz", edits=account.edits)
    again = bridge.load_into(net(), tmp_path / "m.dcz")
    x = problem().train[0]
    assert torch.equal(model.eval()(x), again.eval()(x))
    later = train(again, epochs=1, structure=made.structure)
    check(state, plain_state(again), later.structure)
    assert not torch.equal(plain_state(again)["0.bias"], state["0.bias"])


def test_pruned_weights_stay_zero_beside_their_signs() -> None:
    """In one training with gradual pruning, and after it: a scale, its negative, and 0, a scale for each filter."""
    model = net()
    made = train(model, Binarize(), GradualPruning({"3.weight": 0.4}), epochs=6)
    weight = plain_state(model)["3.weight"]
    assert made.structure == {"3.weight": ("grid(2, 0)", "zeros")} or made.structure == {
        "3.weight": ("zeros", "grid(2, 0)")
    }
    assert int((weight != 0).sum()) == round(0.4 * weight.numel())
    assert all(len(row[row != 0].abs().unique()) <= 1 for row in weight)


def test_phases_begin_where_they_say_and_the_best_state_is_binary() -> None:
    """Float, then activations, then weights too, then without decay; what counts is from where all is binary."""
    seen: list[tuple[bool, bool, float, float]] = []
    method = Binarize(**BOTH, phases=Phases(0.25, 0.5, 0.75))  # type: ignore[arg-type]

    class Look(Method):
        def before_step(self, model: Any, now: Any) -> None:
            few = len(model[3].weight.detach().abs().unique()) <= 16
            decay = now.optimizer.param_groups[0]["weight_decay"]
            seen.append((model[3].input_0_binary.active, few, decay, float(model[3].weight.detach().abs().max())))

    made = train(net(), method, Look(), epochs=8, optimizer={**ADAM, "kwargs": {"lr": 0.5, "weight_decay": 0.1}})
    assert made.fit.best_epoch > 4 and method.settled == 0.5
    active, few, decay, _ = zip(*seen, strict=True)
    steps = len(seen)
    assert [list(one).index(value) for one, value in ((active, True), (few, True), (decay, 0.0))] == [
        steps // 4, steps // 2, 3 * steps // 4,
    ]  # fmt: skip
    assert all(most <= 1 for *_, most in seen[steps // 2 + 1 :]) and max(most for *_, most in seen) > 1
    bits = [row["binarize/bits"] for row in made.fit.history]
    assert (bits[0], bits[-1]) == (32, 1) and made.fit.history[-1]["binarize/activation_bits"] == 1


def test_a_training_that_ends_too_early_says_so_and_one_killed_behind_its_end_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was never trained as it is used is told; a checkpoint of all epochs is none such."""
    late = Phases(0.5, 0.5)
    with attach(net(), [Binarize(**BOTH, phases=late)], 8, samples=[problem().train]) as session:  # type: ignore[arg-type]
        session.step()
    assert "binarize: training ended before all was binary" in caplog.text
    caplog.clear()
    for _ in range(2):
        train(net(), Binarize(**BOTH, phases=late), epochs=2, checkpoint=tmp_path / "c.pt")  # type: ignore[arg-type]
    assert "binarize" not in caplog.text


class Tied(nn.Module):
    """The head is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight


TURNED = nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2))
CROSSED = nn.Sequential(nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 4, 2))
CROSSED[1].weight = CROSSED[0].weight
RELU = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("model", "how", "structure", "told"),
    [
        (net(), {"weights": Weights("xnor", 2)}, {}, ".*: weights: bits 2 is impossible for xnor, expected 1; dorefa"),
        (net(), {"weights": Weights("dorefa", 9)}, {}, "3.weight: weights: bits 9 is impossible for dorefa, exp"),
        (net(), {"weights": Weights("bwn")}, {}, "3.weight: weights: kind 'bwn' is not known; expected one of"),
        (net(), {"activations": Activations("sign", 4)}, {}, "3.weight: activations: bits 4 is impossible for sign"),
        (net(), {"weights": None}, {}, "binarize: expected weights, activations, or both"),
        (net(), {"gradients": 40}, {}, "binarize: gradients 40 is impossible, expected 1 to 16 bits"),
        (net(), {"phases": Phases(0, 1.0)}, {}, "binarize: a phase begins at 1, when the training ends"),
        (net(), {"phases": Phases(-0.1)}, {}, "binarize: .* is impossible; expected fractions from 0 to 1"),
        (net(), {"keep": ["3"], "weights": Weights(bits={"3": 1})}, {}, "3.weight: stands in keep and in weights.bits"),
        (net(), {"keep": ["*"]}, {}, "binarize: weights.bits: no layer is left: keep names all of them"),
        (net()[:3], {}, {}, r"binarize: weights.bits: no layer is left: the first and the last .*, such as keep: \[\]"),
        (net(), {"weights": Weights(bits={"3.bias": 1})}, {}, "3.bias: is no weight of a Linear or Conv layer"),
        (Tied(), {"weights": Weights(bits={"embed": 1})}, {}, None),
        (net(), {"keep": ["nine"]}, {}, "pattern 'nine' matches no tensor"),
        (net(), {}, {"3.weight": ("shared",)}, "3.weight: is shared already, which binarize would undo; name"),
        (net(), {}, {"3.weight": ("grid(8)",)}, r"3.weight: is grid\(8\) already, which binarize would undo"),
        (RELU, {"activations": Activations()}, {}, r"2:input\[0\]: no sample is below 0 there, so that every sign"),
        (net(), {"activations": Activations()}, None, "binarize: activations needs samples of the training data"),
        (TURNED, {"keep": []}, {}, "0.weight: is of a tr.* 2 groups, .*; kind: dorefa, .*, or name it in keep$"),
        (CROSSED, {"keep": []}, {}, "0.weight: is tied, and .*; kind: dorefa, which has one .*, or name it in keep$"),
        (TURNED, {"keep": [], "weights": Weights("dorefa")}, {}, None),
    ],
)  # fmt: skip
def test_what_is_impossible_is_refused_in_one_line(
    model: nn.Module, how: Any, structure: Any, told: str | None
) -> None:
    """Before anything trains, with the tensor's or the key's name, and the model is as it was."""
    names = list(model.state_dict())
    samples = None if structure is None else [problem().train]
    if told is None:
        attach(model, [Binarize(**how)], 5, samples=samples).close()
    else:
        with pytest.raises(StructureError, match=f"^{told}") as raised:
            attach(model, [Binarize(**how)], 5, samples=samples, structure=structure or {})
        assert "\n" not in str(raised.value)
    assert list(model.state_dict()) == names and not any(one._forward_pre_hooks for one in model.modules())


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (QuantizedTraining(4), "3.weight: binarize and quantize both claim its values"),
        (TrainedSharing(2, 0.1), "3.weight: binarize and share both claim its values"),
        (QuantizedTraining(None, 4), r"3:input\[0\]: binarize and quantize both claim its activation"),
    ],
)
def test_two_methods_on_one_role_are_refused(other: Method, told: str) -> None:
    """As all others."""
    with pytest.raises(StructureError, match=told):
        attach(net(), [Binarize(**BOTH), other], 5, samples=[problem().train])  # type: ignore[arg-type]


def test_values_that_are_binary_are_not_binarized_again() -> None:
    """A site has one edit; weights may be, for they stay what they are."""
    model = net()
    made = train(model, Binarize(**BOTH), epochs=1)  # type: ignore[arg-type]
    with pytest.raises(StructureError, match=r"3:input\[0\]: is quantized already"):
        attach(model, [Binarize(**BOTH)], 5, samples=[problem().train])  # type: ignore[arg-type]
    again = train(model, Binarize(), epochs=1, structure=made.structure)
    assert again.structure == made.structure


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 6), min_size=2, max_size=4),
    st.sampled_from(["xnor", "dorefa"]),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 1),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 2**31),
)
def test_any_binary_weights_go_through_a_file(
    shape: list[int], kind: str, dtype: torch.dtype, axis: int, bits: int, zeros: bool, seed: int
) -> None:
    """Any shape, type and axis: they are what their word says, no -0.0 is among them, and come back to the bit."""
    latent = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    latent = torch.where(latent.abs() < 0.3, 0, latent)
    made = weights_of(kind)(1 if kind == "xnor" else bits, axis, zeros)
    weight = made(latent).detach()
    assert not bool((torch.signbit(weight) & (weight == 0)).any())
    assert not zeros or torch.equal(weight == 0, latent == 0) or not bool(latent.any())
    if bool(weight.any()):
        constraint(made.word).check("w", weight, weight)
    back = decode(encode({"w": weight}, "packed"))["w"].bits
    assert back.tobytes() == to_raw_state({"w": weight})["w"].bits.tobytes()
