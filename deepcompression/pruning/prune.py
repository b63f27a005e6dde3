"""Pruning at once: to a density, or by the paper's quality parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError, ValuesError
from deepcompression.formats.state_dict import to_raw
from deepcompression.network.state import normalised, replaced
from deepcompression.structure.counted import SLICE, counted
from deepcompression.structure.cut import cut_at, gone, seen_before

Score = Callable[[str, Tensor], Tensor]
GLOBAL_FLOOR = 0.01


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
    check_numbers(density, quality)
    clean = normalised(state, table)
    plain = score is None and quality is None and scope == "layer" and len({id(clean[n]) for n in table}) == len(table)
    many = {name for name in table if plain and name not in (padding or {}) and _countable(clean[name])}
    layers = {name: _prune_by_counting(name, clean[name], (density or {})[name]) for name in many}
    scores = {name: scores_of(name, clean[name], score, padding or {}) for name in table if name not in many}
    if quality is not None:
        stays = {name: _above(scores[name], clean[name], quality[name]) for name in scores}
    else:
        stays = kept(scores, density or {}, scope)
    pruned = {name: cut(name, clean[name], keep) for name, keep in stays.items()}
    layers |= {name: account_of(name, clean[name], weight, scores[name]) for name, weight in pruned.items()}
    return Pruned(replaced(clean, pruned), [layers[name] for name in table])


def _countable(weight: Tensor) -> bool:
    kinds = (torch.float32, torch.float16, torch.bfloat16)
    return weight.dtype in kinds and weight.is_contiguous() and weight.device.type == "cpu"


def _prune_by_counting(name: str, weight: Tensor, density: float) -> LayerDensity:
    """Prunes `weight` in place, by magnitude: as by scores, without the memory of these."""
    raw = to_raw(weight)
    flat = raw.bits.reshape(-1)
    found = counted(flat, raw.dtype)
    cut = cut_at(flat, found, density)
    before = flat.size - found.zeros
    if cut is not None:
        for number, seen in enumerate(seen_before(flat, cut, 1)):
            part = flat[number * SLICE : (number + 1) * SLICE]
            part[gone(part, cut, seen)] = 0
    alive = before if cut is None else max(round(density * flat.size), 1)
    pieces = torch.split(weight.detach().reshape(-1), SLICE)
    least = min((float(one[one != 0].abs().min()) for one in pieces if bool((one != 0).any())), default=0.0)
    return LayerDensity(name, flat.size, before, alive, alive / max(flat.size, 1), least)


def refresh(score: object, model: nn.Module) -> None:
    """Lets a score that has a method ``refresh`` look at the model's present weights."""
    look = getattr(score, "refresh", None)
    if look is not None:
        look(model)


def check_numbers(density: Mapping[str, float] | None, quality: Mapping[str, float] | None) -> None:
    """Raises StructureError where a density or a quality is impossible."""
    for name, value in (density or {}).items():
        if not 0 < value <= 1:
            raise StructureError(f"{name}: density {value} is impossible; expected a fraction in (0, 1]")
    for name, value in (quality or {}).items():
        if not value > 0:
            raise StructureError(f"{name}: quality {value} is impossible; expected a positive number")


def scores_of(name: str, weight: Tensor, score: Score | None, padding: Mapping[str, int]) -> Tensor:
    """Importance (n,); zeros rank below all, a padding row above all.

    Args:
        name: of the tensor.
        weight: of n elements, any shape.
        score: gives importance, of the weight's shape; None is the magnitude.
        padding: numbers of padding rows, by tensor.

    Raises:
        StructureError: a score is NaN, or of another shape.
    """
    scores = weight.detach().abs() if score is None else score(name, weight)
    if not isinstance(scores, Tensor) or scores.shape != weight.shape:
        came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise StructureError(f"{name}: the score must have the weight's shape {tuple(weight.shape)}, got {came}")
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if bool(torch.isnan(scores).any()):
        raise ValuesError(f"{name}: the score of {int(torch.isnan(scores).sum())} weights is NaN")
    if name in padding:
        scores = scores.index_fill(0, torch.tensor([padding[name]], device=scores.device), torch.inf)
    return scores.masked_fill(weight == 0, -torch.inf).reshape(-1)


def count_of(scores: Tensor, density: float) -> int:
    """How many of the weights with these scores (n,) stay at a density; one at least."""
    return max(round(density * len(scores)), 1)


def largest(scores: Tensor, count: int) -> Tensor:
    """Where the ``count`` largest scores (n,) are, as bool (n,); of equal ones the earlier."""
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


def kept(scores: Mapping[str, Tensor], density: Mapping[str, float], scope: str) -> dict[str, Tensor]:
    """Which weights (n,) stay at a density, by their scores (n,).

    Args:
        scores: (n,) by name.
        density: shares that stay, by name.
        scope: `global`: scores of all tensors are compared; else each tensor alone.

    Raises:
        StructureError: densities differ, and the scope is global.
    """
    if scope == "global":
        return _globally(scores, density)
    return {name: largest(one, count_of(one, density[name])) for name, one in scores.items()}


def _globally(scores: Mapping[str, Tensor], density: Mapping[str, float]) -> dict[str, Tensor]:
    if len(set(density.values())) != 1:
        raise StructureError("prune: scope global takes one density for all tensors")
    common = next(iter(density.values()))
    ranked = []
    for one in scores.values():
        floor = largest(one, count_of(one, min(GLOBAL_FLOOR, common)))
        # What each tensor keeps in any case ranks first.
        ranked.append(one.masked_fill(floor & (one > -torch.inf), torch.inf))
    whole = torch.cat(ranked)
    stays = torch.split(largest(whole, count_of(whole, common)), [len(one) for one in ranked])
    return dict(zip(scores, stays, strict=True))


def cut(name: str, weight: Tensor, keep: Tensor) -> Tensor:
    """The weight where ``keep`` says so, +0.0 elsewhere.

    Args:
        name: of the tensor, for the message.
        weight: of n elements, any shape.
        keep: bool (n,).

    Raises:
        StructureError: nothing would be left of it.
    """
    alive = keep.reshape(weight.shape) & (weight != 0)
    if bool((weight != 0).any()) and not bool(alive.any()):
        raise ValuesError(
            f"{name}: pruning would empty the layer (largest magnitude {float(weight.abs().max()):.3g}); "
            "raise its density or lower its quality"
        )
    return torch.where(alive, weight, torch.zeros_like(weight))


def account_of(name: str, before: Tensor, after: Tensor, scores: Tensor) -> LayerDensity:
    """The account of one tensor; ``scores`` (n,) are those by which it was pruned.

    Args:
        name: of the tensor.
        before: its weights before, of any shape.
        after: its weights, of that shape.
        scores: (n,) of all of them.
    """
    alive = int((after != 0).sum())
    stayed = scores[(after != 0).reshape(-1)]
    threshold = float(stayed.min()) if alive else 0.0
    return LayerDensity(name, after.numel(), int((before != 0).sum()), alive, alive / max(after.numel(), 1), threshold)


def accounts_of(before: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[LayerDensity]:
    """The accounts of tensors that were pruned while they trained, by their magnitudes in the end.

    Args:
        before: each as it was, by name.
        state: the same in the end, among others.
    """
    return [account_of(name, one, state[name], state[name].abs().reshape(-1)) for name, one in before.items()]
