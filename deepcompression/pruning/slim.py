"""Units that compute nothing are removed, and units are put in the order that codes smallest; the function stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from deepcompression.errors import InvariantError
from deepcompression.network.chains import Chain
from deepcompression.network.state import normalised, plain_state
from deepcompression.network.trace import chains, resting, shapes
from deepcompression.pruning.kept_units import wanted
from deepcompression.pruning.ordering import MEASURED_WHOLE, Ordering, best_order

State = Mapping[str, Tensor]
NARROWER = (torch.float16, torch.bfloat16)
TOLERANCE = 0.05  # of the outputs' norm: units in wrong places are far beyond it, the rounding of a bias far below


@dataclass(frozen=True)
class LayerUnits:
    """What became of one layer's units.

    ``dead_before`` and ``dead``: units without any weight that is not zero, in both layers; ``cut``: those that were
    given up on purpose; ``folded``: constants that went into the consumer's bias; ``constant``: units whose constant
    had no place to go, and which stay; bytes are those of ``Ordering``; ``through``: depthwise layers between.
    """

    name: str
    consumer: str
    units: int
    dead_before: int
    dead: int
    cut: int
    folded: int
    constant: int
    reordered: bool
    bytes_before: int | None
    bytes_after: int | None
    through: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slimmed:
    """What was done to a model.

    ``arranged``: the state_dict as it came, but for the order of units: that with which structure is compared;
    ``zeroed``: names of the weights in which units are zero; ``left``: layers that begin no chain, and why.
    """

    layers: list[LayerUnits]
    arranged: dict[str, Tensor]
    zeroed: list[str]
    left: dict[str, str]
    notes: list[str]


def slim(
    model: nn.Module,
    *,
    units: Mapping[str, int | float] | None = None,
    reorder: bool = True,
    shared: Collection[str] = (),
    outputs: Callable[[nn.Module], Tensor] | None = None,
) -> Slimmed:
    """Removes dead units from ``model``, in place, and puts the rest in a good order; shapes and outputs stay.

    A unit is an output channel of one layer that is an input channel of the next, with all that takes it by itself on
    the way (depthwise convolutions, BatchNorm). One that nothing reads becomes +0.0 throughout: its row, bias and
    BatchNorm, and the next layer's columns. So does one whose row is zero, once
    the constant that it gives is in the next layer's bias. That repeats until nothing changes. Outputs (in eval mode)
    are those of before but for the rounding of sums; a bias that float16 or bfloat16 held exactly is rounded to that
    type again.

    Args:
        model: with ordinary parameters; its inputs are batches.
        units: layer names or patterns -> how many units stay (a count, or a fraction in (0, 1]): those with the
            largest product of the norms of row and columns. This alone does change outputs; ``default`` is for all
            layers that have units to remove.
        reorder: whether units may change places.
        shared: tensors whose equal values stay equal: such a bias takes no constants in.
        outputs: what the model gives for some samples; compared before and after, once units are cut. Without it,
            layers are left alone where only the shape of samples tells what their units are (``units.chains``).

    Raises:
        StructureError: a layer in ``units`` has none to remove, or not so many; a value is NaN or infinite.
        InvariantError: outputs changed: the graph misled about what the units are. The model is spoilt then.
    """
    seen = shapes(model, outputs) if outputs else None
    counts = wanted(model, units, seen) if units else {}
    found, left = chains(model, seen)
    found = [replace(chain, bias=None) if chain.bias in shared else chain for chain in found]
    arranged = plain_state(model)
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with resting(model), torch.no_grad():
        _normalise(state, found)
        before = {chain.producer: int(_dead(state, chain).sum()) for chain in found}
        cut = _cut(state, found, counts)
        expected = outputs(model) if outputs else None
        folded, notes = _remove(state, found)
        orders = _arrange(state, found) if reorder else {}
        if outputs and expected is not None:
            _compare(expected, outputs(model))
    for chain in found:
        if chain.producer in orders:
            _permute(arranged, chain, orders[chain.producer].order.cpu())
    layers = [
        _account(
            state,
            chain,
            before[chain.producer],
            cut[chain.producer],
            folded[chain.producer],
            orders.get(chain.producer),
        )
        for chain in found
    ]
    zeroed = [name for chain, layer in zip(found, layers, strict=True) if layer.dead for name in chain.weights]
    notes = [_told(layers), *notes, *(f"{name} is left alone: {reason}" for name, reason in left.items())]
    return Slimmed(layers, arranged, list(dict.fromkeys(zeroed)), left, notes)


def _normalise(state: State, found: Sequence[Chain]) -> None:
    """Makes each -0.0 in the chains' tensors +0.0; refuses what is not finite."""
    names = list(dict.fromkeys(name for chain in found for name in chain.tensors))
    clean = normalised(state, names)
    for name in names:
        state[name].copy_(clean[name])


def _rows(state: State, chain: Chain) -> Tensor:
    """The weights that make a unit and take it by itself, a unit a row, (units, n)."""
    return torch.cat([state[name].flatten(1) for name in (chain.weight, *chain.through)], 1)


def _columns(state: State, chain: Chain) -> Tensor:
    """The consumer's weight by units, (outputs, units, m)."""
    weight = state[chain.columns]
    return weight.reshape(len(weight), chain.units, -1)


def _speaks(state: State, chain: Chain) -> Tensor:
    """Units that say something: with a weight in each of their rows, (units,) bool."""
    alive = [(state[name].flatten(1) != 0).any(1) for name in (chain.weight, *chain.through)]
    return torch.stack(alive).all(0)


def _heard(state: State, chain: Chain) -> Tensor:
    """Units with a weight in their columns, (units,) bool."""
    return (_columns(state, chain) != 0).any(2).any(0)


def _dead(state: State, chain: Chain) -> Tensor:
    return ~_speaks(state, chain) & ~_heard(state, chain)


def _blank(state: State, chain: Chain, dead: Tensor) -> bool:
    """Makes units (units,) wholly +0.0; whether anything was something else."""
    blanks = {name: 1.0 if name.endswith("running_var") else 0.0 for name in chain.rows}
    changed = any(bool((state[name][dead] != blank).any()) for name, blank in blanks.items())
    for name, blank in blanks.items():
        state[name][dead] = blank
    columns = state[chain.columns]
    across = dead.repeat_interleave(columns.shape[1] // chain.units)  # (columns,)
    changed |= bool((columns[:, across] != 0).any())
    columns[:, across] = 0.0
    return changed


def _permute(state: State, chain: Chain, order: Tensor) -> None:
    """Puts units in an order, (units,), everywhere."""
    for name in chain.rows:
        state[name].copy_(state[name][order])
    columns = state[chain.columns]
    block = columns.shape[1] // chain.units
    across = (order[:, None] * block + torch.arange(block, device=order.device)).reshape(-1)  # (columns,)
    columns.copy_(columns[:, across])


def _cut(state: State, found: Sequence[Chain], counts: Mapping[str, int]) -> Counter[str]:
    """Blanks all but the ``counts`` most important units of each producer; how many died by it."""
    chosen = [(chain, _least(state, chain, counts[chain.producer])) for chain in found if chain.producer in counts]
    cut = Counter({chain.producer: int((drop & ~_dead(state, chain)).sum()) for chain, drop in chosen})
    for chain, drop in chosen:
        _blank(state, chain, drop)
    return cut


def _least(state: State, chain: Chain, keep: int) -> Tensor:
    """All units but the ``keep`` with the largest product of norms, (units,) bool; of equal ones the earlier stay."""
    score = _columns(state, chain).double().norm(dim=2).norm(dim=0)
    for name in (chain.weight, *chain.through):
        score = score * state[name].double().flatten(1).norm(dim=1)
    drop = torch.ones_like(score, dtype=torch.bool)
    drop[score.argsort(descending=True, stable=True)[:keep]] = False
    return drop


def _remove(state: State, found: Sequence[Chain]) -> tuple[Counter[str], list[str]]:
    """Blanks dead units until there is no other; how many constants were folded for it, and what to say."""
    types = {chain.bias: _narrowest(state[chain.bias]) for chain in found if chain.bias}
    folded: Counter[str] = Counter()
    while sum(_remove_from(state, chain, folded) for chain in found):
        pass
    notes = []
    for chain in found:
        if chain.bias and folded[chain.producer] and (target := types[chain.bias]):
            notes.append(f"{chain.bias}: took constants in, {_narrow(state[chain.bias], target)}")
    return folded, notes


def _remove_from(state: State, chain: Chain, folded: Counter[str]) -> bool:
    """Blanks one chain's dead units; whether there were any new ones."""
    speaks, heard, constant = _speaks(state, chain), _heard(state, chain), chain.constants(state)
    folds = ~speaks & heard & (constant != 0) & ~constant.isnan()
    moved = _folded(state, chain, constant, folds)
    if moved is None:
        folds = torch.zeros_like(folds)
    dead = ~heard | (~speaks & (constant == 0)) | folds
    if _empties(speaks, dead) or _empties(heard, dead):
        return False  # what is left computes nothing: a matter for whoever pruned, not to be hidden
    if moved is not None and chain.bias:
        state[chain.bias].copy_(moved)
        folded[chain.producer] += int(folds.sum())
    return _blank(state, chain, dead)


def _folded(state: State, chain: Chain, constant: Tensor, folds: Tensor) -> Tensor | None:
    """The consumer's bias with the constants of some units, in its own type; None where there is no place for them."""
    if chain.bias is None or not bool(folds.any()):
        return None
    bias = state[chain.bias]
    taken = _columns(state, chain)[:, folds].double().sum(2) @ constant[folds]  # (outputs,)
    moved = (bias.double() + taken).to(bias.dtype)
    return moved + 0.0 if bool(moved.isfinite().all()) else None  # adding makes -0.0 +0.0


def _empties(alive: Tensor, dead: Tensor) -> bool:
    return bool(alive.any()) and not bool((alive & ~dead).any())


def _narrowest(bias: Tensor) -> torch.dtype | None:
    """The narrower type that holds a bias exactly; None where none does, or all is zero, which tells nothing."""
    fitting = [
        one for one in NARROWER if one.itemsize < bias.element_size() and torch.equal(bias.to(one).to(bias), bias)
    ]
    return fitting[0] if fitting and bool(bias.any()) else None


def _narrow(bias: Tensor, target: torch.dtype) -> str:
    """Rounds a bias to the type that held it before, unless a value becomes non-finite or subnormal; what was done."""
    rounded, name = bias.to(target).to(bias.dtype), str(target).removeprefix("torch.")
    harmed = ~rounded.isfinite() | (rounded.abs() < torch.finfo(target).smallest_normal)
    if bool((harmed & (rounded != bias)).any()):
        return f"which {name} holds no more"
    bias.copy_(rounded)
    return f"rounded to {name} again"


def _arrange(state: State, found: Sequence[Chain]) -> dict[str, Ordering]:
    """Puts the units of each chain in the best order, which comes back by producer."""
    weights = sum(state[name].numel() for name in {name for chain in found for name in chain.weights})
    orders = {}
    for chain in found:
        ordering = best_order(_rows(state, chain), _columns(state, chain), weights <= MEASURED_WHOLE)
        _permute(state, chain, ordering.order)
        orders[chain.producer] = ordering
    return orders


def _compare(expected: Tensor, came: Tensor) -> None:
    gap, norm = float((came.double() - expected.double()).norm()), float(expected.double().norm())
    if gap > TOLERANCE * norm + 1e-6:
        raise InvariantError(
            f"slim: outputs differ by {gap:.3g} (their norm is {norm:.3g}); the model does more than its graph says: "
            "leave this stage out"
        )


def _account(state: State, chain: Chain, before: int, cut: int, folded: int, ordering: Ordering | None) -> LayerUnits:
    ordering = ordering or Ordering(torch.arange(chain.units))
    stuck = ~_speaks(state, chain) & _heard(state, chain)
    return LayerUnits(
        chain.producer,
        chain.consumer,
        chain.units,
        dead_before=before,
        dead=int(_dead(state, chain).sum()),
        cut=cut,
        folded=folded,
        constant=int(stuck.sum()),
        reordered=bool((ordering.order.diff() < 0).any()),
        bytes_before=ordering.bytes_before,
        bytes_after=ordering.bytes_after,
        through=tuple(name.removesuffix(".weight") for name in chain.through),
    )


def _told(layers: Sequence[LayerUnits]) -> str:
    """All that was done, in a line."""
    if not layers:
        return "there are no two layers whose units belong together; nothing changed"
    dead, before = sum(layer.dead for layer in layers), sum(layer.dead_before for layer in layers)
    parts = [f"{dead} of {sum(layer.units for layer in layers)} units are dead, {before} were"]
    for word in ("cut", "folded", "constant"):
        count = sum(getattr(layer, word) for layer in layers)
        parts += [f"{count} {word}"] if count else []
    moved = [layer for layer in layers if layer.reordered]
    if moved:
        gained = sum((layer.bytes_before or 0) - (layer.bytes_after or 0) for layer in moved)
        parts.append(f"{', '.join(layer.name for layer in moved)} reordered: {gained} bytes less in adaptive code")
    return "; ".join(parts)
