"""Magnitude pruning: one-shot (to a density, or by the paper's quality parameter) or gradual."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression import holding, selection, structure
from deepcompression.errors import InvariantError, StructureError
from deepcompression.finetune import dropout_rates, set_dropout
from deepcompression.holding import ZeroMask, hold_by
from deepcompression.problem import Problem
from deepcompression.training import Fit, fit

Score = Callable[[str, Tensor], Tensor]
GLOBAL_FLOOR = 0.01
MASK_UPDATES = 200


@dataclass(frozen=True)
class LayerDensity:
    """What pruning did to one tensor; ``threshold`` is the lowest score that stayed."""

    name: str
    weights: int
    nonzero_before: int
    nonzero: int
    density: float
    threshold: float


@dataclass(frozen=True)
class Pruned:
    """A pruned state_dict and the account of each pruned tensor."""

    state: dict[str, Tensor]
    layers: list[LayerDensity]
    fit: Fit | None = None


def prune(
    state: Mapping[str, Tensor],
    density: Mapping[str, float] | None = None,
    *,
    quality: Mapping[str, float] | None = None,
    scope: str = "layer",
    score: Score | None = None,
    padding: Mapping[str, int] | None = None,
) -> Pruned:
    """``state`` with the least important weights set to +0.0 (Han et al. 2015, section 3.1).

    Args:
        state: tensors by name, any shapes; not changed.
        density: tensor name -> fraction of its weights that stays, in (0, 1]: round(density * weights),
            at least 1, fewer where fewer are non-zero; of equal scores the earlier weight stays.
        quality: instead of density: weights below quality * (standard deviation of the layer's non-zero
            weights) go.
        scope: ``layer``, or ``global``: one ranking over all tensors (which then have one common density), in
            which each keeps at least a hundredth of its weights (or ``density`` of them, where that is less).
        score: (name, weight) -> importance in the weight's shape; default: magnitude.
        padding: tensor name -> row that is left alone.

    Raises:
        StructureError: impossible density or quality, non-finite weights, a layer that would be emptied, a
            score of the wrong shape.
    """
    table = density if quality is None else quality
    if not table or (density is None) == (quality is None):
        raise StructureError("prune: expected exactly one of density and quality, for at least one tensor")
    if scope not in ("layer", "global") or (scope == "global" and quality is not None):
        raise StructureError(f"prune: scope {scope!r}; expected layer, or global with a density")
    _check_numbers(density, quality)
    clean = structure.normalised(state, table)
    scores = {name: _scores(name, clean[name], score, padding or {}) for name in table}
    if quality is not None:
        kept = {name: _above(scores[name], clean[name], quality[name]) for name in table}
    else:
        kept = _kept(scores, density or {}, scope)
    pruned = {name: _cut(name, clean[name], keep) for name, keep in kept.items()}
    layers = [_account(name, clean[name], weight, scores[name]) for name, weight in pruned.items()]
    return Pruned(structure.replaced(clean, pruned), layers)


def round_densities(density: float, rounds: int) -> list[float]:
    """The densities of ``rounds`` rounds down to ``density``, each the same factor below the one before."""
    return [density ** ((number + 1) / rounds) for number in range(rounds)]


def cubic_density(step: int, total: int, start: float, final: float) -> float:
    """Density after ``step`` of ``total`` steps, falling ever slower (Zhu and Gupta 2017, equation 1)."""
    if step >= total:
        return final
    return final + (start - final) * (1 - step / total) ** 3


def prune_gradually(
    model: nn.Module,
    problem: Problem,
    density: Mapping[str, float],
    *,
    zeros: Sequence[str] = (),
    shared: Sequence[str] = (),
    scope: str = "layer",
    start: float = 1.0,
    ramp: float = 0.7,
    score: Score | None = None,
    dropout: Mapping[str, str] | None = None,
    epochs: int,
    **fit_arguments: Any,
) -> Pruned:
    """Trains ``model`` in place while its density falls along a cubic curve (Zhu and Gupta 2017).

    Masks are drawn anew from the present weights up to 200 times, and only shrink. What is zero at first stays so, but
    in a tensor that is zero throughout, as initialisation leaves some: that one learns first. The best state is tracked
    once the final density is reached.

    Args:
        model: changed in place, baked at the end.
        problem: data, step, metric.
        density: tensor name -> final density.
        zeros: further tensors whose zeros stay.
        shared: tensors whose sharing stays; none of them can be pruned here.
        scope: as for ``prune``.
        start: density at the first step.
        ramp: fraction of the steps in which the density falls.
        score: as for ``prune``; one with a method ``refresh`` gets the model before masks are drawn anew.
        dropout: dropout module -> the layer whose sparsity corrects its rate, recomputed with the masks.
        epochs: of the whole training.
        **fit_arguments: of ``training.fit``.

    Raises:
        StructureError: as ``prune``; also for a shared tensor.
    """
    _check_numbers(density, None)
    both = sorted(set(density) & set(shared))
    if both:
        raise StructureError(f"{both[0]}: is shared already; gradual pruning goes before share")
    before = structure.plain_state(model)
    padding = selection.padding_rows(model)
    _refresh(score, model)
    prune(before, density, scope=scope, score=score, padding=padding)  # refuses what is impossible before any training
    rates = dropout_rates(model, dropout or {})
    blank = [name for name in density if name not in zeros and not bool(before[name].any())]
    holding.hold(model, [name for name in (*zeros, *density) if name not in blank], shared=shared)
    hold_by(model, dict.fromkeys(blank, _all_alive))
    corrected = False

    def tighten(step: int, total: int) -> None:
        nonlocal corrected
        falling = min(int(total * ramp), total - 1)
        due = step <= falling and (step % max(falling // MASK_UPDATES, 1) == 0 or step == falling)
        if due:
            now = {name: max(cubic_density(step, falling, start, final), final) for name, final in density.items()}
            _tighten(model, now, scope, score, padding)
        if due or not corrected:  # a resumed loop has masks already
            densities = holding.held_state(model, {rate.tensor for rate in rates.values()})
            set_dropout(model, rates, {name: structure.density(densities, [name]) for name in densities})
            corrected = True

    try:
        # The first epoch at whose end the density is final: the one in which the ramp's last step lies.
        first = min(int(epochs * ramp + 1e-6) + 1, epochs)
        done = fit(model, problem, epochs=epochs, on_step=tighten, track_from=first, **fit_arguments)
    finally:
        set_dropout(model, rates, {})
        holding.bake(model)
    state = structure.plain_state(model)
    layers = [_account(name, before[name], state[name], state[name].abs().reshape(-1)) for name in density]
    for layer in layers if scope == "layer" else ():
        if layer.name not in padding and layer.nonzero > _count(state[layer.name].reshape(-1), density[layer.name]):
            raise InvariantError(f"{layer.name}: density {layer.density:.4g}, asked for {density[layer.name]}")
    return Pruned(state, layers, done)


def _all_alive(weight: Tensor) -> ZeroMask:
    return ZeroMask(torch.ones_like(weight, dtype=torch.bool))


def _tighten(
    model: nn.Module,
    density: Mapping[str, float],
    scope: str,
    score: Score | None,
    padding: Mapping[str, int],
) -> None:
    """Masks of the present weights at ``density``; what is masked already stays so."""
    _refresh(score, model)
    masks = holding.masks(model)  # looked up anew: moving a model to a device or memory format replaces them
    state = holding.held_state(model, density)
    if not all(bool(torch.isfinite(weight).all()) for weight in state.values()):
        return  # training diverged: its own check says so at the end of the epoch
    scores = {name: _scores(name, weight, score, padding) for name, weight in state.items()}
    for name, keep in _kept(scores, density, scope).items():
        masks[name].logical_and_(keep.reshape(masks[name].shape))


def _refresh(score: Score | None, model: nn.Module) -> None:
    refresh = getattr(score, "refresh", None)
    if refresh is not None:
        refresh(model)


def _check_numbers(density: Mapping[str, float] | None, quality: Mapping[str, float] | None) -> None:
    for name, value in (density or {}).items():
        if not 0 < value <= 1:
            raise StructureError(f"{name}: density {value} is impossible; expected a fraction in (0, 1]")
    for name, value in (quality or {}).items():
        if not value > 0:
            raise StructureError(f"{name}: quality {value} is impossible; expected a positive number")


def _scores(name: str, weight: Tensor, score: Score | None, padding: Mapping[str, int]) -> Tensor:
    """Importance (n,); zeros rank below all, a padding row above all."""
    scores = weight.detach().abs() if score is None else score(name, weight)
    if not isinstance(scores, Tensor) or scores.shape != weight.shape:
        came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise StructureError(f"{name}: the score must have the weight's shape {tuple(weight.shape)}, got {came}")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if bool(torch.isnan(scores).any()):
        raise StructureError(f"{name}: the score of {int(torch.isnan(scores).sum())} weights is NaN")
    if name in padding:
        scores = scores.index_fill(0, torch.tensor([padding[name]], device=scores.device), torch.inf)
    return scores.masked_fill(weight == 0, -torch.inf).reshape(-1)


def _count(scores: Tensor, density: float) -> int:
    return max(round(density * len(scores)), 1)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest scores (n,) are, as bool (n,); the earlier of equal ones."""
    if count >= len(scores):
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(len(scores) - count + 1).values
    keep = scores > threshold
    ties = (scores == threshold).nonzero().squeeze(1)
    keep[ties[: count - int(keep.sum())]] = True
    return keep


def _above(scores: Tensor, weight: Tensor, quality: float) -> Tensor:
    alive = weight[weight != 0].float()
    threshold = quality * float(alive.std(correction=0)) if alive.numel() else 0.0
    return scores >= threshold


def _kept(scores: Mapping[str, Tensor], density: Mapping[str, float], scope: str) -> dict[str, Tensor]:
    """Which weights (n,) stay at a density, by their scores (n,)."""
    if scope == "global":
        return _globally(scores, density)
    return {name: _largest(one, _count(one, density[name])) for name, one in scores.items()}


def _globally(scores: Mapping[str, Tensor], density: Mapping[str, float]) -> dict[str, Tensor]:
    if len(set(density.values())) != 1:
        raise StructureError("prune: scope global takes one density for all tensors")
    common = next(iter(density.values()))
    ranked = []
    for one in scores.values():
        floor = _largest(one, _count(one, min(GLOBAL_FLOOR, common)))
        # What each tensor keeps in any case ranks first.
        ranked.append(one.masked_fill(floor & (one > -torch.inf), torch.inf))
    whole = torch.cat(ranked)
    kept = torch.split(_largest(whole, _count(whole, common)), [len(one) for one in ranked])
    return dict(zip(scores, kept, strict=True))


def _cut(name: str, weight: Tensor, keep: Tensor) -> Tensor:
    """The weight where ``keep`` (n,), +0.0 elsewhere; refuses to empty it."""
    alive = keep.reshape(weight.shape) & (weight != 0)
    if bool((weight != 0).any()) and not bool(alive.any()):
        raise StructureError(
            f"{name}: pruning would empty the layer (largest magnitude {float(weight.abs().max()):.3g}); "
            "raise its density or lower its quality"
        )
    return torch.where(alive, weight, torch.zeros_like(weight))


def _account(name: str, before: Tensor, after: Tensor, scores: Tensor) -> LayerDensity:
    alive = int((after != 0).sum())
    kept = scores[(after != 0).reshape(-1)]
    threshold = float(kept.min()) if alive else 0.0
    return LayerDensity(name, after.numel(), int((before != 0).sum()), alive, alive / max(after.numel(), 1), threshold)
