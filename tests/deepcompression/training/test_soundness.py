"""Models that people bring: what no state_dict carries is told before anything trains."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import FactoryError, InputError
from deepcompression.models.paper import lenet5
from deepcompression.training.soundness import refuse_hidden_state, refuse_unfit

Part = Callable[[nn.Module], None]


class Net(nn.Module):
    """A plain model, of which each test changes how it is built or what its forward does."""

    def __init__(self, built: Part | None = None, during: Callable[[nn.Module, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.during = during or (lambda model, x: x)
        if built:
            built(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.during(self, self.norm(self.a(x))))


class Extra(nn.Linear):
    """A layer with state of its own beside its tensors."""

    def __init__(self, value: Any) -> None:
        super().__init__(4, 4)
        self.value = value

    def get_extra_state(self) -> Any:
        return self.value

    def set_extra_state(self, state: Any) -> None:
        self.value = state


def refused(make: Callable[[], nn.Module], hidden: bool = True) -> str:
    """What is said about a model before training, or nothing."""
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        models.append(make())
    x = torch.randn(8, 4)
    try:
        refuse_unfit(*models)
        if hidden:
            refuse_hidden_state(*models, lambda model: model(x.to(next(model.parameters()).dtype)))
    except InputError as error:
        return str(error)
    return ""


def tie_by_data(model: nn.Module) -> None:
    model.b.weight.data = model.a.weight.data


def transpose(model: nn.Module) -> None:
    model.b.weight = nn.Parameter(model.a.weight.detach().t())


SHARED = nn.Linear(4, 4)
MADE: dict[str, nn.Module] = {}

UNFIT = {
    "lazy": (lambda: Net(lambda m: setattr(m, "a", nn.LazyLinear(4))), "a.weight (LazyLinear) has no shape before"),
    "extra dict": (lambda: Net(lambda m: setattr(m, "a", Extra({"s": 1}))), "a.get_extra_state returns a dict"),
    "extra none": (lambda: Net(lambda m: setattr(m, "a", Extra(None))), "a.get_extra_state returns a NoneType"),
    "cached": (lambda: MADE.setdefault("net", Net()), "returned the same object on two calls"),
    "shared part": (lambda: Net(lambda m: setattr(m, "a", SHARED)), "a.weight is the same object in two models"),
    "tied by data": (lambda: Net(tie_by_data), "a.weight and b.weight are two Parameters on one memory; tie them by"),
    "transposed": (lambda: Net(transpose), "a.weight and b.weight are unlike views of the same memory"),
    "complex": (lambda: Net(lambda m: m.a.to(torch.complex64)), "a.weight is complex64, which files do not hold"),
    "float8": (lambda: nn.Linear(4, 4).to(torch.float8_e4m3fn), "weight is float8_e4m3fn, in which nothing trains"),
    "meta": (lambda: nn.Linear(4, 4, device="meta"), "weight is on the meta device"),
    "sparse": (
        lambda: Net(lambda m: m.register_buffer("s", torch.eye(3).to_sparse())),
        "s is a torch.sparse_coo tensor of torch.float32; only dense",
    ),
    "expanded": (
        lambda: Net(lambda m: m.register_buffer("e", torch.ones(1).expand(4))),
        "e is an expanded view, into which nothing can be loaded",
    ),
    "random width": (
        lambda: nn.Linear(4, int(torch.randint(4, 99, ()))),
        "two calls return different models: weight is float32 (",
    ),
}


@pytest.mark.parametrize("kind", UNFIT)
def test_a_model_whose_tensors_are_not_all_that_it_is_is_refused(kind: str):
    """Each of these trained for hours and then died, or gave another model back."""
    make, words = UNFIT[kind]
    assert refused(make, hidden=False).startswith(words)


def new_layer(model: nn.Module, x: Tensor) -> Tensor:
    if not hasattr(model, "late"):
        model.late = nn.Linear(4, 4)
    return model.late(x)


def new_parameter(model: nn.Module, x: Tensor) -> Tensor:
    model.a.weight = nn.Parameter(model.a.weight.detach() * 0.9)
    return x


def grows(model: nn.Module, x: Tensor) -> Tensor:
    model.seen = torch.cat([model.seen, x[:1, 0]])
    return x


def freezes(model: nn.Module, x: Tensor) -> Tensor:
    model.a.weight.requires_grad_(False)
    return x


def moves(model: nn.Module, x: Tensor) -> Tensor:
    if model.training:
        model.mean = 0.5 * model.mean + 0.5 * (x + 3).mean(0)
    return x - model.mean


def counts(model: nn.Module, x: Tensor) -> Tensor:
    model.calls += model.training
    return x / (1 + model.calls)


def buffer(name: str, value: Callable[[], Tensor], persistent: bool = False) -> Part:
    return lambda model: model.register_buffer(name, value(), persistent=persistent)


def times(name: str) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, x: x * getattr(model, name)


HIDDEN = {
    "layer in forward": (lambda: Net(during=new_layer), "its forward makes late.weight"),
    "parameter in forward": (
        lambda: Net(during=new_parameter),
        "its forward puts a new Parameter in place of a.weight",
    ),
    "growing buffer": (
        lambda: Net(buffer("seen", lambda: torch.zeros(1), True), grows),
        "its forward changes seen from ((1,), 'float32') to ((2,), 'float32')",
    ),
    "freezing": (lambda: Net(during=freezes), "its forward sets requires_grad of a.weight to False"),
    "random buffer": (lambda: Net(buffer("p", lambda: torch.randn(4)), times("p")), "such as p: register_buffer"),
    "random attribute": (lambda: Net(lambda m: setattr(m, "q", torch.randn(4)), times("q")), "such as q: register_"),
    "random number": (lambda: Net(lambda m: setattr(m, "r", np.random.rand()), times("r")), "such as r: register_"),
    "moving mean": (lambda: Net(buffer("mean", lambda: torch.zeros(4)), moves), "such as mean: register_buffer"),
    "counter": (lambda: Net(lambda m: setattr(m, "calls", 0), counts), "such as calls: register_buffer"),
    "unregistered layer": (
        lambda: Net(lambda m: setattr(m, "l", [nn.Linear(4, 4)]), lambda m, x: m.l[0](x)),
        "gives other outputs",
    ),
}


@pytest.mark.parametrize("kind", HIDDEN)
def test_a_model_with_state_beside_its_state_dict_is_refused(kind: str):
    """The file would give another model back than the one that was measured."""
    make, words = HIDDEN[kind]
    assert words in refused(make)


@pytest.mark.parametrize(
    "make",
    [
        Net,
        lambda: Net().double(),
        lambda: Net(lambda m: setattr(m, "a", Extra(torch.ones(2)))),
        lambda: Net(lambda m: setattr(m.b, "weight", m.a.weight)),
        lambda: Net(buffer("p", lambda: torch.arange(4.0)), times("p")),
        lambda: Net(buffer("q", lambda: torch.randn(4), persistent=True), times("q")),
        lambda: Net(buffer("empty", lambda: torch.zeros(0, 4), persistent=True)),
        lambda: Net(during=lambda m, x: nn.functional.dropout(x)),
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 0), nn.ReLU()),
        lambda: torch.compile(nn.Linear(4, 4), backend="eager"),
    ],
)
def test_models_whose_state_dict_is_all_pass(make: Callable[[], nn.Module]):
    """Ties, buffers, tensors as extra state, parametrizations and dropout are no reason to refuse."""
    assert refused(make) == ""


def test_models_of_our_own_pass():
    """What ships must not be refused."""
    assert refused(lenet5, hidden=False) == ""


def test_outputs_that_differ_by_themselves_are_told(caplog: pytest.LogCaptureFixture):
    """A model with a generator of its own cannot be judged: neither can its metrics."""
    caplog.set_level(logging.WARNING, "deepcompression")
    generator = torch.Generator()
    assert refused(lambda: Net(during=lambda m, x: x + torch.randn(4, generator=generator))) == ""
    assert "the model's outputs for the same samples differ" in caplog.text


def test_a_state_dict_that_a_new_model_does_not_take_is_refused():
    """Hooks that rename on the way out but not back would end a run after its training."""

    class Renamed(Net):
        def state_dict(self, *arguments: Any, **options: Any) -> Any:
            return {f"net.{name}": value for name, value in super().state_dict(*arguments, **options).items()}

    assert refused(Renamed).startswith("a.weight is a parameter that state_dict() leaves out")
    with pytest.raises(FactoryError, match="a new model does not take its state_dict"):
        refuse_hidden_state(Renamed(), Renamed(), lambda model: model(torch.ones(2, 4)))


def test_training_in_float16_is_warned_of(caplog: pytest.LogCaptureFixture):
    """SGD gets through, Adam ends in NaN; frozen weights are no matter."""
    caplog.set_level(logging.WARNING, "deepcompression")
    assert refused(lambda: Net().half().requires_grad_(False), hidden=False) == "" and not caplog.messages
    assert refused(lambda: Net().half(), hidden=False) == ""
    assert caplog.messages[0].startswith("a.weight is float16, in which what Adam")
