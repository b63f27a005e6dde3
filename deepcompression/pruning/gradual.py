"""Pruning while training: the density falls along a ramp."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import InvariantError, StructureError
from deepcompression.network import names
from deepcompression.network import state as structure
from deepcompression.pruning.prune import (
    Pruned,
    Score,
    _account,
    _check_numbers,
    _count,
    _kept,
    _refresh,
    _scores,
    prune,
)
from deepcompression.structure import hold
from deepcompression.structure.hold import hold_by
from deepcompression.structure.zeros import ZeroMask
from deepcompression.training.dropout import dropout_rates, set_dropout
from deepcompression.training.loop import fit
from deepcompression.training.problem import Problem
from deepcompression.training.ramps import cubic_density

MASK_UPDATES = 200


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
    padding = names.padding_rows(model)
    _refresh(score, model)
    prune(before, density, scope=scope, score=score, padding=padding)  # refuses what is impossible before any training
    rates = dropout_rates(model, dropout or {})
    blank = [name for name in density if name not in zeros and not bool(before[name].any())]
    hold.hold(model, [name for name in (*zeros, *density) if name not in blank], shared=shared)
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
            densities = hold.held_state(model, {rate.tensor for rate in rates.values()})
            set_dropout(model, rates, {name: structure.density(densities, [name]) for name in densities})
            corrected = True

    try:
        # The first epoch at whose end the density is final: the one in which the ramp's last step lies.
        first = min(int(epochs * ramp + 1e-6) + 1, epochs)
        done = fit(model, problem, epochs=epochs, on_step=tighten, track_from=first, **fit_arguments)
    finally:
        set_dropout(model, rates, {})
        hold.bake(model)
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
    masks = hold.masks(model)  # looked up anew: moving a model to a device or memory format replaces them
    state = hold.held_state(model, density)
    if not all(bool(torch.isfinite(weight).all()) for weight in state.values()):
        return  # training diverged: its own check says so at the end of the epoch
    scores = {name: _scores(name, weight, score, padding) for name, weight in state.items()}
    for name, keep in _kept(scores, density, scope).items():
        masks[name].logical_and_(keep.reshape(masks[name].shape))
