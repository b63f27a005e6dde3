"""How much a change of each output of a layer changes what a model says: Fisher information, sample by sample.

What outputs are worth by the divergence of a classifier's softmax from itself, or by the squared change of other
outputs: the Gauss-Newton matrix's diagonal, by one random vector a sample, summed over the inputs of each output. Rows
of a table of vectors count alike, whether a sample looks them up or not: what is lost in each of them is lost where any
of them is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network import names as selection
from deepcompression.network.trace import resting
from deepcompression.reconstruction.calls import Call, Calls

Feed = Callable[[], Iterable[Any]]
Forward = Callable[[nn.Module, Any], Any]


@dataclass
class _Sums:
    """Of a layer's inputs (groups, n): values, squares, places."""

    first: Tensor
    second: Tensor
    count: int


@dataclass(frozen=True)
class Importance:
    """What a squared change of a layer's outputs costs, in the mean over places: ``outputs`` (out,) each; ``inputs``
    (groups, n), the variance of what each weight multiplies. A change of weights costs about outputs x change^2 x
    variance. Of a table (rows, size) ``outputs`` are its rows, all alike, and ``inputs`` (1, size) what they are worth.
    """

    outputs: Tensor
    inputs: Tensor


def importance(
    model: nn.Module, names: Iterable[str], feed: Feed, forward: Forward, *, divergence: bool = True, seed: int = 0
) -> dict[str, Importance]:
    """By weight's name, in nats a sample where it is the divergence; those that no layer multiplies by are left out.

    Args:
        model: with ordinary parameters; in eval mode meanwhile.
        names: of weights.
        feed: gives batches of one sample.
        forward: (model, batch) -> outputs, one tensor.
        divergence: outputs are logits, (n, classes, ...).
        seed: of the random vectors.

    Raises:
        StructureError: outputs are no tensor of floats.
    """
    weights = {name: selection.parameters(model)[name] for name in names}
    learning = {one: one.requires_grad for one in model.parameters()}
    generator = torch.Generator().manual_seed(seed)
    with resting(model):
        model.requires_grad_(False)
        means, called = _means(model, weights, feed, forward)
        for name in called:
            weights[name].requires_grad_(True)
        try:
            found = _gradients(
                model, {name: weights[name] for name in called}, means, feed, forward, generator, divergence
            )
        finally:
            for one, learns in learning.items():
                one.requires_grad_(learns)
                one.grad = None
    return {name: _made(squares, means.get(name), len(weights[name])) for name, squares in found.items()}


def _means(
    model: nn.Module, weights: Mapping[str, Tensor], feed: Feed, forward: Forward
) -> tuple[dict[str, _Sums], list[str]]:
    """Sums of layers' inputs, and which weights are called at all: those of tables too, which have none."""
    sums: dict[str, _Sums] = {}
    called: dict[str, None] = {}

    def see(call: Call) -> None:
        called[call.name] = None
        if call.table:
            return
        columns = call.columns(call.batch).double().cpu()
        first, second = columns.sum(2), columns.square().sum(2)
        if call.name in sums:
            one = sums[call.name]
            one.first, one.second, one.count = one.first + first, one.second + second, one.count + columns.shape[2]
        else:
            sums[call.name] = _Sums(first, second, columns.shape[2])

    with torch.no_grad(), Calls(weights, see):
        for batch in feed():
            forward(model, batch)
    return sums, list(called)


def _gradients(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    means: Mapping[str, _Sums],
    feed: Feed,
    forward: Forward,
    generator: torch.Generator,
    divergence: bool,
) -> dict[str, Tensor]:
    """Mean squares of gradients (groups, rows), each summed over what goes in; a constant of the outputs is free."""
    found = {name: torch.zeros((), dtype=torch.float64) for name in weights}
    count, axes = 0, _Axes({})
    for batch in feed():
        slopes: dict[str, Tensor] = {}
        with torch.enable_grad(), Calls(weights, axes.see, _sloping(slopes)):
            outputs = forward(model, batch)
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            raise StructureError("reconstruct: target needs a model whose outputs are one tensor of floats")
        for one in weights.values():
            one.grad = None
        outputs.backward(_vector(outputs.detach(), generator, divergence))  # type: ignore[no-untyped-call]
        count += 1
        for name, one in weights.items():
            if one.grad is not None and name in means and name in slopes:
                found[name] = found[name] + _squares(one.grad, slopes[name], means[name], axes.of[name])
            elif one.grad is not None and name not in means:
                found[name] = found[name] + one.grad.double().square().sum(0).cpu()
    return {name: one / max(count, 1) for name, one in found.items() if one.ndim}


@dataclass(frozen=True)
class _Axes:
    """Of weights' outputs."""

    of: dict[str, int]

    def see(self, call: Call) -> None:
        """That of one."""
        self.of[call.name] = call.axis


def _sloping(slopes: dict[str, Tensor]) -> Callable[[Call, Tensor], None]:
    """Sums the gradients of outputs over places."""

    def after(call: Call, output: Tensor) -> None:
        if call.table:
            return

        def add(gradient: Tensor) -> None:
            axis = -call.spatial - 1
            total = gradient.movedim(axis, 0).flatten(1).double().sum(1).cpu()
            slopes[call.name] = slopes[call.name] + total if call.name in slopes else total

        if output.requires_grad:
            output.register_hook(add)  # type: ignore[no-untyped-call]

    return after


def _squares(gradient: Tensor, slope: Tensor, sums: _Sums, axis: int) -> Tensor:
    groups = len(sums.first)
    rows = (gradient.T if axis else gradient).double().cpu().reshape(groups, -1, sums.first.shape[1])
    return (rows - slope.reshape(groups, -1, 1) * (sums.first / sums.count)[:, None]).square().sum(2)


def _vector(outputs: Tensor, generator: torch.Generator, divergence: bool) -> Tensor:
    """Random, with the covariance of the loss's curvature in the outputs."""
    drawn = torch.randn(outputs.shape, generator=generator).to(outputs.device, outputs.dtype)
    if not divergence:
        return drawn
    share = outputs.softmax(1)
    spread = share.sqrt() * drawn
    return spread - share * spread.sum(1, keepdim=True)


def _made(squares: Tensor, sums: _Sums | None, rows: int) -> Importance:
    if sums is None:
        return Importance(torch.full((rows,), 1 / rows, dtype=torch.float64), squares[None] / 2)
    variance = (sums.second / sums.count - (sums.first / sums.count).square()).clamp_min(0)
    outputs = squares / 2 / variance.sum(1, keepdim=True).clamp_min(1e-30)
    return Importance(outputs.reshape(-1), variance)
