"""Average Hessian traces, against exact Hessians."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deepcompression.allocation.hawq import Spread, hessian_traces, perturbations
from deepcompression.errors import StructureError
from deepcompression.network.names import parameters
from deepcompression.quantization.linear import table

MANY = Spread(tolerance=0.02, vectors=250)
Loss = Callable[[nn.Module], Tensor]


class Quadratic(nn.Module):
    """Its loss is half of w A w."""

    def __init__(self, curvature: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(1, 2, len(curvature)))
        self.register_buffer("curvature", curvature)

    def forward(self) -> Tensor:
        return 0.5 * self.weight @ self.curvature @ self.weight


def net() -> nn.Module:
    """Smooth, with BatchNorm whose statistics are not those of a batch, and dropout."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 3))
    model.train()(torch.randn(40, 5))
    return model


def loss_of(samples: int, seed: int) -> Loss:
    inputs = torch.randn(samples, 5, generator=torch.Generator().manual_seed(seed))
    return lambda model: nn.functional.cross_entropy(model(inputs), inputs[:, :3].argmax(1))


def exact(model: nn.Module, name: str, loss: Loss) -> float:
    """The trace of the whole Hessian of one tensor, divided by its elements."""
    own = dict(model.named_parameters())

    class Called(nn.Module):
        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, inputs: Tensor) -> Tensor:
            made: Tensor = torch.func.functional_call(model, {name: self.weight}, (inputs,))
            return made

    def at(flat: Tensor) -> Tensor:
        return loss(Called(flat.reshape(own[name].shape)))

    hessian = torch.autograd.functional.hessian(at, own[name].detach().reshape(-1))
    return float(torch.trace(hessian)) / own[name].numel()  # type: ignore[arg-type]


def test_of_a_diagonal_hessian_each_draw_is_exact() -> None:
    """No spread, so that it stops at the fewest draws."""
    (found,) = hessian_traces(Quadratic(torch.diag(torch.tensor([1.0, 2.0, 6.0]))), ["weight"], [(lambda m: m(), 1)])
    assert (found.mean, found.error, found.vectors, found.weights) == (3.0, 0.0, 8, 3)


def test_of_any_quadratic_loss_the_trace_is_that_of_its_matrix() -> None:
    """It stops by its own spread, which is an honest one."""
    root = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    curvature = root @ root.T
    (found,) = hessian_traces(Quadratic(curvature), ["weight"], [(lambda m: m(), 1)], spread=Spread(0.03, 2000))
    assert 8 < found.vectors < 2000 and found.error <= 0.03 * found.mean
    assert found.mean == pytest.approx(float(torch.trace(curvature)) / 6, abs=4 * found.error)


def test_traces_of_a_net_are_those_of_its_exact_hessian() -> None:
    """All layers by one vector; of unlike batches the mean by samples; BatchNorm and dropout as in evaluation."""
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one, other = loss_of(30, 2), loss_of(10, 3)
    names = ["0.weight", "4.weight"]
    found = hessian_traces(model, names, [(one, 30), (other, 10)], seed=5, spread=MANY)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    model.eval()
    for trace in found:
        truth = 0.75 * exact(model, trace.name, one) + 0.25 * exact(model, trace.name, other)
        assert trace.mean == pytest.approx(truth, abs=4 * trace.error) and trace.error < 0.2 * truth


def test_an_estimate_goes_on_where_it_was_stopped() -> None:
    """Each draw has a vector of its own, by its number."""
    kept: list[list[list[float]]] = []
    few = Spread(1e-9, 10)
    whole = hessian_traces(
        net(), ["0", "4"], [(loss_of(8, 1), 8)], spread=few, drawn=lambda _, rows: kept.append([*rows])
    )
    again = hessian_traces(net(), ["0", "4"], [(loss_of(8, 1), 8)], spread=few, earlier=kept[3])
    assert whole == again and len(kept) == 10


def test_weights_that_are_zero_do_not_move() -> None:
    """What is pruned stays so: the mean is of the others."""
    model = Quadratic(torch.diag(torch.tensor([1.0, 2.0, 6.0])))
    with torch.no_grad():
        model.weight[2] = 0
    (found,) = hessian_traces(model, ["weight"], [(lambda m: m(), 1)])
    assert (found.mean, found.weights) == (1.5, 2)


def test_what_is_below_zero_counts_as_zero_and_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """At a saddle an estimate may be."""
    with caplog.at_level(logging.WARNING):
        (found,) = hessian_traces(Quadratic(-torch.eye(3)), ["weight"], [(lambda m: m(), 1)])
    assert found.mean == 0 and found.loss(4.0) == 4 * found.error == 0  # no draw differs from another here
    assert caplog.messages == ["hawq: Hessian traces estimated below 0 count as 0: weight, with an error of 0 at most"]


def test_many_traces_below_zero_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """One line for all, however many tensors there are."""
    model = nn.ModuleList(Quadratic(-torch.eye(3)) for _ in range(5))
    with caplog.at_level(logging.WARNING):
        hessian_traces(model, [f"{i}.weight" for i in range(5)], [(lambda m: sum(one() for one in m), 1)])
    (line,) = [one for one in caplog.messages if "below 0" in one]
    assert "count as 0: 0.weight, 1.weight, 2.weight and 2 more, with an error of" in line


def test_a_loss_that_is_not_curved_has_no_trace() -> None:
    """Nor has a tensor on which it does not depend."""
    model = nn.Sequential(nn.Linear(2, 1), nn.Linear(2, 1))
    found = hessian_traces(model, ["0", "1"], [(lambda m: m[0](torch.ones(1, 2)).sum(), 1)])
    assert [one.mean for one in found] == [0, 0]


class Once(torch.autograd.Function):
    """Has one derivative, and no second."""

    @staticmethod
    def forward(context: object, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: object, slope: Tensor) -> Tensor:
        return slope


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([], "there are no samples of the training split"),
        ([(lambda m: m() * float("nan"), 1)], "the loss on the samples is nan"),
        ([(lambda m: Once.apply(m()).square(), 1)], "the loss cannot be differentiated twice: .*by: measured needs no"),
    ],
    ids=["no samples", "nan", "once"],
)
def test_what_has_no_trace_is_told_in_one_line(losses: list[tuple[Loss, int]], words: str) -> None:
    """And what to do."""
    model = Quadratic(torch.eye(3))
    with pytest.raises(StructureError, match=f"^hawq: {words}[^\n]*$"):
        hessian_traces(model, ["weight"], losses)
    assert model.weight.requires_grad


def test_a_perturbation_is_what_rounding_changes() -> None:
    """In squares, and less with more bits; what is zero throughout has none."""
    model = nn.Sequential(nn.Linear(20, 4), nn.Linear(4, 4))
    nn.init.zeros_(parameters(model)["1.weight"])
    state = {name: one.detach() for name, one in model.named_parameters()}
    by_bits = [perturbations(state, table(model, {"0": bits, "1": bits})) for bits in (2, 4, 8)]
    assert all(set(one) == {"0.weight"} for one in by_bits)
    rounded, squares = by_bits[1]["0.weight"]
    assert squares == pytest.approx(float((rounded - state["0.weight"]).double().square().sum()))
    assert by_bits[0]["0.weight"][1] > 4 * squares > 64 * by_bits[2]["0.weight"][1] > 0
