"""How curved the loss is in each tensor: the average trace of its Hessian, by which few bits hurt much or little.

Dong, Yao, Arfeen, Gholami, Mahoney, Keutzer (2020), "HAWQ-V2", arXiv 1911.03852, section 3.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from deepcompression.errors import StructureError, told
from deepcompression.network.names import parameters, select
from deepcompression.quantization import linear
from deepcompression.quantization.linear import Linear

log = logging.getLogger(__name__)
Loss = Callable[[nn.Module], Tensor]  # the mean over some samples, 0-dim
Floats = NDArray[np.float64]
FEWEST = 8  # by fewer the spread itself is hardly known


@dataclass(frozen=True)
class Trace:
    """The trace of a tensor's part of the loss's Hessian, divided by its weights that are not zero.

    ``mean``: 0 where the estimate is below; ``error``: the standard error of the mean over so many ``vectors``.
    """

    name: str
    weights: int
    mean: float
    error: float
    vectors: int

    def loss(self, squares: float) -> float:
        """What a change of so large a squared norm is predicted to lose, in the unit of twice the loss: the trace is
        taken one standard error higher, so that what is not known does not pass for harmless."""
        return (self.mean + self.error) * squares


@dataclass(frozen=True)
class Spread:
    """When an estimate is good enough: the standard error of each tensor is at most ``tolerance`` times its mean; after
    ``vectors`` at the latest."""

    tolerance: float = 0.2
    vectors: int = 100


def hessian_traces(
    model: nn.Module,
    names: Sequence[str],
    losses: Sequence[tuple[Loss, int]],
    *,
    seed: int = 0,
    spread: Spread | None = None,
    earlier: Iterable[Sequence[float]] = (),
    drawn: Callable[[int, list[list[float]]], object] | None = None,
) -> list[Trace]:
    """The average Hessian trace of each tensor, by Hutchinson's estimate.

    Each draw is a vector of -1 and +1 for all tensors at once, v, and two backward passes: (v H)_i v_i. Weights that
    are zero do not move. The model is in eval mode meanwhile: BatchNorm has its statistics, nothing is dropped.

    Args:
        model: with ordinary parameters, on its device; afterwards as it was.
        names: of tensors, or patterns; those of tied ones are found once, under the first of their names.
        losses: means over some samples, and how many those are; their weighted mean is the loss.
        seed: of the vectors; each draw has its own, so that it matters not where an estimate goes on.
        spread: when to stop.
        earlier: draws (n,) of a run that was stopped, to go on from.
        drawn: called after each draw with how many there are, and all of them.

    Raises:
        StructureError: a name is of no tensor; there are no samples; the loss is not finite, or cannot be
            differentiated twice.
    """
    spread = spread or Spread()
    if not sum(count for _, count in losses):
        raise StructureError("hawq: there are no samples of the training split to estimate Hessian traces by")
    chosen = {name: parameters(model)[name] for name in select(model, names)}
    alive = {name: int(torch.count_nonzero(one)) for name, one in chosen.items()}
    rows = [list(row) for row in earlier]
    with _frozen_but(model, list(chosen.values())):
        while not _settled(rows, spread):
            rows.append(_draw(model, chosen, losses, _seed(seed, len(rows))))
            if drawn:
                drawn(len(rows), rows)
    sums = np.asarray(rows, np.float64).reshape(len(rows), len(chosen)) / np.maximum(list(alive.values()), 1)
    made = [
        Trace(name, alive[name], *_estimate(column), len(rows)) for name, column in zip(chosen, sums.T, strict=True)
    ]
    _warn_below(made, sums)
    rough = [one.name for one in made if one.error > spread.tolerance * one.mean]
    if rough:
        log.warning(
            "hawq: after %d vectors the Hessian traces of %s are not known to within %g of themselves; give more "
            "vectors", len(rows), _named(rough), spread.tolerance,
        )  # fmt: skip
    return made


def perturbations(state: Mapping[str, Tensor], how: Mapping[str, Linear]) -> dict[str, tuple[Tensor, float]]:
    """Each named tensor on its grid, and the squared norm of what that changes: ||Q(w) - w||^2 in float64.

    Args:
        state: tensors by name.
        how: of ``linear.table``. Tensors that are zero throughout are left out.

    Raises:
        StructureError: as ``linear.quantize``.
    """
    done = linear.quantize({name: state[name] for name in how}, how)
    names = [layer.name for layer in done.layers]
    return {
        name: (done.state[name], float((done.state[name].double() - state[name].double()).square().sum()))
        for name in names
    }


def _seed(seed: int, draw: int) -> int:
    return int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0] >> 1)


def _settled(rows: Sequence[Sequence[float]], spread: Spread) -> bool:
    if len(rows) >= spread.vectors:
        return True
    if len(rows) < min(FEWEST, spread.vectors):
        return False
    found = np.asarray(rows, np.float64)
    error = found.std(axis=0, ddof=1) / math.sqrt(len(rows))
    return bool((error <= spread.tolerance * found.mean(axis=0)).all())


def _estimate(column: Floats) -> tuple[float, float]:
    mean = math.fsum(column) / len(column)
    error = float(column.std(ddof=1)) / math.sqrt(len(column)) if len(column) > 1 else math.inf
    return max(mean, 0.0), error


def _warn_below(made: Sequence[Trace], sums: Floats) -> None:
    """One warning for all that are estimated below 0."""
    below = [one for one, column in zip(made, sums.T, strict=True) if math.fsum(column) < 0]
    if below:
        log.warning(
            "hawq: Hessian traces estimated below 0 count as 0: %s, with an error of %.2g at most",
            _named([one.name for one in below]), max(one.error for one in below),
        )  # fmt: skip


def _named(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _draw(
    model: nn.Module, chosen: Mapping[str, nn.Parameter], losses: Sequence[tuple[Loss, int]], seed: int
) -> list[float]:
    """One draw of each tensor's trace."""
    generator = torch.Generator().manual_seed(seed)
    vectors = [_signs(one, generator) for one in chosen.values()]
    total = sum(count for _, count in losses)
    sums = np.zeros(len(chosen))
    for loss, count in losses:
        products = _products(loss(model), list(chosen.values()), vectors)
        sums += (
            count
            / total
            * np.array([float((v.double() * h.double()).sum()) for v, h in zip(vectors, products, strict=True)])
        )
    return [float(one) for one in sums]


def _signs(weight: Tensor, generator: torch.Generator) -> Tensor:
    """-1 or +1 for each weight, 0 where it is zero."""
    drawn = torch.randint(0, 2, weight.shape, generator=generator, dtype=torch.int8)
    return (2 * drawn - 1).to(weight.device, weight.dtype) * (weight.detach() != 0)


def _products(loss: Tensor, weights: Sequence[Tensor], vectors: Sequence[Tensor]) -> list[Tensor]:
    """The Hessian times the vectors; zeros of what the loss is not curved in."""
    if not bool(torch.isfinite(loss)):
        raise StructureError(
            f"hawq: the loss on the samples is {loss.item()}; look at the samples, the step, the weights"
        )
    zeros = [torch.zeros_like(one) for one in weights]
    try:
        slopes = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        along = sum(
            ((g * v).sum() for g, v in zip(slopes, vectors, strict=True) if g is not None and g.requires_grad),
            torch.zeros((), device=loss.device),
        )
        if not along.requires_grad:
            return zeros
        found = _gradients(along, weights)
    except RuntimeError as error:
        raise StructureError(
            f"hawq: the loss cannot be differentiated twice: {told(error)}; by: measured needs no derivatives"
        ) from None
    return [zero if one is None else one for zero, one in zip(zeros, found, strict=True)]


def _gradients(value: Tensor, weights: Sequence[Tensor]) -> list[Tensor | None]:
    """As ``torch.autograd.grad``, but what has no derivative is an error; there it is left out without a word."""
    before = [one.grad for one in weights]
    for one in weights:
        one.grad = None
    try:
        value.backward()  # type: ignore[no-untyped-call]
        return [one.grad for one in weights]
    finally:
        for one, grad in zip(weights, before, strict=True):
            one.grad = grad


@contextlib.contextmanager
def _frozen_but(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[None]:
    """In eval mode, with gradients of these parameters alone, by kernels that can be differentiated twice."""
    modes = {module: module.training for module in model.modules()}
    learning = {one: one.requires_grad for one in model.parameters()}
    recurrent = any(isinstance(module, nn.RNNBase) for module in modes)
    model.eval().requires_grad_(False)
    for one in chosen:
        one.requires_grad_(True)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=not recurrent), torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for one, learns in learning.items():
            one.requires_grad_(learns)
