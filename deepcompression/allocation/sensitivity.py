"""How much each tensor matters: metric and loss when it alone is pruned, or shared, to one degree after the other."""

from __future__ import annotations

import contextlib
import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.data.splits import as_split, columns_of, like
from deepcompression.errors import StructureError
from deepcompression.network import state as structure
from deepcompression.network.names import first_names, padding_rows, parameters
from deepcompression.pruning.prune import Score, prune
from deepcompression.sharing.share import share
from deepcompression.training.device import Compute
from deepcompression.training.evaluate import evaluate
from deepcompression.training.evaluated_batch import evaluated_batch
from deepcompression.training.problem import Problem

Progress = Callable[[int, int, str], None]
BITS = (8, 6, 5, 4, 3, 2, 1)
STEPS, LOWEST = 10, 0.003


@dataclass(frozen=True)
class Result:
    """Metric and mean loss on the validation split."""

    metric: float
    loss: float


@dataclass(frozen=True)
class DensityPoint:
    """The result when so large a fraction of one tensor's weights is left."""

    density: float
    metric: float
    loss: float


@dataclass(frozen=True)
class BitsPoint:
    """The result when one tensor's non-zero weights share 2**bits values."""

    bits: int
    metric: float
    loss: float


@dataclass(frozen=True)
class TensorSensitivity:
    """One tensor's points, densities and bits falling; ``density`` is the one that it has now."""

    name: str
    weights: int
    density: float
    by_density: tuple[DensityPoint, ...]
    by_bits: tuple[BitsPoint, ...]


@dataclass(frozen=True)
class Sensitivity:
    """Each tensor's points, and ``base``, the unchanged model's; measured on so many ``samples``."""

    base: Result
    samples: int
    tensors: tuple[TensorSensitivity, ...]


def sensitivity(
    model: nn.Module,
    problem: Problem,
    names: Sequence[str],
    *,
    densities: Sequence[float] | None = None,
    points: int = STEPS,
    down_to: float = LOWEST,
    bits: Sequence[int] = BITS,
    compute: Compute | None = None,
    score: Score | None = None,
    most_samples: int | None = None,
    progress: Progress | None = None,
) -> Sensitivity:
    """Metric and loss on the validation split, of each tensor at each density and number of bits.

    One tensor is changed at a time; the others are as they are. Nothing is retrained. Points that change no weight
    take the unchanged model's result; the others take an evaluation each.

    Args:
        model: with ordinary parameters; afterwards as it was, though on ``compute``'s device.
        problem: validation split, step and metric.
        names: tensors; a tied one under any of its names is one, under the first. All-zero ones are skipped.
        densities: fractions of a tensor's weights, those below its present density are tried. Points tell the density
            that results.
        points: without ``densities``: so many, by equal factors, fewer where that leaves the same number of weights.
        down_to: the lowest of them, as a fraction of a tensor's present density.
        bits: tried with ``share(init="optimal")``, which keeps zeros and equal weights.
        compute: where and how the model is evaluated.
        score: as for ``prune``; default: magnitude.
        most_samples: the first so many validation samples are enough; only of splits that are tensors.
        progress: called after each point with how many are done, how many there are, and the tensor's name.

    Raises:
        StructureError: no such tensor, an impossible density or number of bits, a tensor that cannot be shared.
    """
    _check(densities if densities is not None else [down_to])
    compute = compute or Compute()
    compute.place(model)
    chosen = _first(model, names)
    state, padding = structure.plain_state(model), padding_rows(model)
    split = _cut(problem.validation, most_samples, compute)
    compute = replace(compute, evaluate_batch=evaluated_batch(model, split, problem.step, compute))
    whole = evaluate(model, split, problem.step, problem.metric, compute)
    base = Result(whole.metric, whole.loss)
    grids = {name: _falling(state[name], densities, points, down_to) for name in chosen if bool(state[name].any())}
    done, total = 0, sum(len(grid) + len(set(bits)) for grid in grids.values())

    def result(name: str, trial: Tensor) -> Result:
        nonlocal done
        found = base
        if not torch.equal(trial, state[name]):
            with _replaced(model, name, trial):
                changed = evaluate(model, split, problem.step, problem.metric, compute)
            found = Result(changed.metric, changed.loss)
        done += 1
        if progress:
            progress(done, total, name)
        return found

    def by_density(name: str, density: float) -> DensityPoint:
        made = prune({name: state[name]}, {name: density}, score=score, padding=padding)
        found = result(name, made.state[name])
        return DensityPoint(made.layers[0].density, found.metric, found.loss)

    def by_bits(name: str, width: int) -> BitsPoint:
        made = share({name: state[name]}, {name: width}, init="optimal", padding=padding)
        found = result(name, made.state[name])
        return BitsPoint(width, found.metric, found.loss)

    tensors = [
        TensorSensitivity(
            name,
            state[name].numel(),
            structure.density(state, [name]),
            tuple(by_density(name, density) for density in grid),
            tuple(by_bits(name, width) for width in sorted(set(bits), reverse=True)),
        )
        for name, grid in grids.items()
    ]
    return Sensitivity(base, whole.total, tuple(tensors))


def losses_alone(
    model: nn.Module,
    problem: Problem,
    name: str,
    trials: Sequence[Tensor],
    *,
    compute: Compute | None = None,
    most_samples: int | None = None,
) -> list[float]:
    """The mean loss on the validation split with each of these values in place of one tensor's, all others as they are.

    Args:
        model: with ordinary parameters; afterwards as it was, though on ``compute``'s device.
        problem: validation split, step and metric.
        name: of the tensor.
        trials: its values.
        compute: where and how the model is evaluated.
        most_samples: the first so many validation samples are enough; only of splits that are tensors.

    Raises:
        StructureError: no such tensor.
    """
    compute = compute or Compute()
    compute.place(model)
    (chosen,) = _first(model, [name])
    split, losses = _cut(problem.validation, most_samples, compute), []
    compute = replace(compute, evaluate_batch=evaluated_batch(model, split, problem.step, compute))
    for trial in trials:
        with _replaced(model, chosen, trial):
            losses.append(evaluate(model, split, problem.step, problem.metric, compute).loss)
    return losses


def borrowed(tried: Sequence[TensorSensitivity], model: nn.Module, names: Sequence[str]) -> list[TensorSensitivity]:
    """Of tensors that were not tried what those tell that are nearest in size; all-zero ones are skipped.

    Args:
        tried: one at least.
        model: with ordinary parameters.
        names: of tensors, by their first names.
    """
    state, known = structure.plain_state(model), {one.name for one in tried}
    found = []
    for name in names:
        if name not in known and bool(state[name].any()):
            size = state[name].numel()
            near = min(tried, key=lambda one, size=size: abs(math.log(one.weights / size)))  # type: ignore[misc]
            found.append(_as(near, name, size, structure.density(state, [name])))
    return found


def _as(near: TensorSensitivity, name: str, weights: int, density: float) -> TensorSensitivity:
    """Another tensor's points, at the same parts of its present weights."""
    points = tuple(replace(one, density=one.density * density / near.density) for one in near.by_density)
    return replace(near, name=name, weights=weights, density=density, by_density=points)


def restored(plain: Mapping[str, Any]) -> Sensitivity:
    """The inverse of ``dataclasses.asdict``, from what JSON holds: null is what was not a number."""
    tensors = [
        TensorSensitivity(
            one["name"],
            one["weights"],
            one["density"],
            tuple(DensityPoint(**_measured(point)) for point in one["by_density"]),
            tuple(BitsPoint(**_measured(point)) for point in one["by_bits"]),
        )
        for one in plain["tensors"]
    ]
    return Sensitivity(Result(**_measured(plain["base"])), plain["samples"], tuple(tensors))


def _measured(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in point.items()}


def _check(densities: Sequence[float] | None) -> None:
    for density in densities or ():
        if not 0 < density <= 1:
            raise StructureError(f"sensitivity: density {density} is impossible; expected a fraction in (0, 1]")


def _first(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The first names of the tensors, each once."""
    first = first_names(model)
    for name in names:
        if name not in first:
            near = difflib.get_close_matches(name, first, 3) or list(first)[:5]
            raise StructureError(f"{name}: no floating-point parameter of the model; the nearest are {', '.join(near)}")
    return list(dict.fromkeys(first[name] for name in names))


def _cut(split: Any, most: int | None, compute: Compute) -> Any:
    """The first samples of a split that is tensors, on the device; any other as it is."""
    split = as_split(split)
    tensors = columns_of(split)
    return like(split, [part[:most].to(compute.resolved()) for part in tensors]) if tensors else split


def _falling(weight: Tensor, densities: Sequence[float] | None, points: int, down_to: float) -> list[float]:
    """Densities below the present one, falling, each of another number of weights."""
    elements, alive = weight.numel(), int((weight != 0).sum())
    if densities is None:
        counts = [round(alive * down_to ** (step / points)) for step in range(1, points + 1)]
    else:
        counts = [round(density * elements) for density in densities]
    return [count / elements for count in sorted({max(one, 1) for one in counts}, reverse=True) if count < alive]


@contextlib.contextmanager
def _replaced(model: nn.Module, name: str, trial: Tensor) -> Iterator[None]:
    """While the block runs, one parameter has other values."""
    parameter = parameters(model)[name]
    before = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.copy_(trial)
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(before)
