"""Pruning while training: the density falls along a ramp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deepcompression import factory
from deepcompression.errors import InvariantError, StructureError
from deepcompression.network import names
from deepcompression.network.state import density as density_of
from deepcompression.network.state import plain_state
from deepcompression.pruning.criteria import maker
from deepcompression.pruning.prune import Score, accounts_of, check_numbers, count_of, kept, prune, refresh, scores_of
from deepcompression.structure.constraints import SHARED, ZEROS, Structure, having, structured
from deepcompression.structure.hold import held_by, held_state, hold_by
from deepcompression.structure.zeros import ZeroMask, zero_mask
from deepcompression.training.method import SPARSITY, Account, Claim, Context, Method, Now
from deepcompression.training.ramps import TOLERANCE, Ramp, Ramped

MASK_UPDATES = 200


@dataclass(eq=False)
class GradualPruning(Ramped, Method):
    """The density of each tensor falls along a curve while the model trains.

    Masks are drawn anew from the present weights up to 200 times, and only shrink. What is zero at first stays so, but
    in a tensor that is zero throughout, as initialisation leaves some: that one learns first. The best state is looked
    for once the final density is reached.

    Args:
        density: fraction of weights that stays; one for all prunable tensors, or by name pattern.
        scope: ``layer``, or ``global``: one ranking over all tensors.
        start: density at the first step.
        ramp: fraction of the steps in which the density falls.
        criterion: what makes a weight important, see ``pruning.criteria``.
        curve: along which it falls, see ``training.ramps``. With ``adaptive`` zeros come back where the metric is lost.
        score: a criterion of your own instead: (name, weight) -> importance, or ``{factory, kwargs}`` of one. A method
            ``refresh`` of it gets the model before masks are drawn anew.
        tolerance: of ``adaptive``: part of the metric that may be lost.

    Zhu and Gupta (2017), arXiv 1710.01878.
    """

    name: ClassVar[str] = "prune"
    density: float | Mapping[str, float]
    scope: Literal["layer", "global"] = "layer"
    start: float = 1.0
    ramp: float = 0.7
    criterion: str = "magnitude"
    score: Score | Mapping[str, Any] | None = None
    curve: str = "cubic"
    tolerance: float = TOLERANCE

    @property
    def settled(self) -> float:
        """Where the ramp ends."""
        return self.ramp

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """The zeros of each tensor that gets a density."""
        return {(name, SPARSITY) for name in self._densities(model)}

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Puts masks on.

        Raises:
            StructureError: impossible densities, an unknown criterion, a shared tensor, as ``prune``.
        """
        self._final = self._densities(model)
        check_numbers(self._final, None)
        self._ramp = Ramp(self.curve, self.ramp, self.start, self.tolerance, context.higher_is_better)
        both = sorted(set(self._final) & set(having(context.structure, SHARED)))
        if both:
            raise StructureError(f"{both[0]}: is shared already; gradual pruning goes before share")
        self._padding, self._score = names.padding_rows(model), self._made_score(context)
        self._before = {name: one.cpu().clone() for name, one in held_state(model, self._final).items()}
        refresh(self._score, model)
        # refuses what is impossible before any training
        prune(self._before, self._final, scope=self.scope, score=self._score, padding=self._padding)
        zeros = set(having(context.structure, ZEROS))
        self._blank = {name for name in self._final if name not in zeros and not bool(self._before[name].any())}
        hold_by(model, {name: _all_alive if name in self._blank else zero_mask for name in self._final})
        return []

    def before_step(self, model: nn.Module, now: Now) -> None:
        """Draws masks anew where that is due."""
        if self._ramp.due(now, max(self._ramp.last(now) // MASK_UPDATES, 1)):
            self._tighten(model, {name: self._ramp.level(now, one) for name, one in self._final.items()})
            now.changed = True

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The density of all that is pruned."""
        return {"density": density_of(held_state(model, self._final), self._final)}

    def finish(self, model: nn.Module) -> Account:
        """The account of each tensor.

        Raises:
            InvariantError: a density is above what was asked for.
        """
        state = plain_state(model)
        layers = accounts_of(self._before, state)
        for layer in layers if self.scope == "layer" and not self._ramp.adaptive else ():
            asked = self._final[layer.name]
            if layer.name not in self._padding and layer.nonzero > count_of(state[layer.name].reshape(-1), asked):
                raise InvariantError(f"{layer.name}: density {layer.density:.4g}, asked for {asked}")
        # What is zero throughout has no structure yet: held so, it could never learn.
        alive = [layer.name for layer in layers if layer.nonzero]
        notes = self._ramp.short_of("prune: the density that was asked for")
        return Account(structured(alive), report={"layers": layers}, notes=notes)

    def _densities(self, model: nn.Module) -> dict[str, float]:
        return names.resolve(model, names.table_of(self.density))

    def _made_score(self, context: Context) -> Score | None:
        if isinstance(self.score, Mapping):
            made: Score = factory.function(self.score["factory"], self.score.get("kwargs"))
            return made
        make = maker(self.criterion)
        return self.score or (make(context) if make else None)

    def _tighten(self, model: nn.Module, density: Mapping[str, float]) -> None:
        """Masks of the present weights at ``density``; what is masked already stays so, unless the way may go back."""
        refresh(self._score, model)
        # looked up anew: moving a model to a device or memory format replaces masks
        held = {name: pair for name, pair in held_by(model, ZeroMask).items() if name in density}
        state = {name: self._free(*held[name], name) for name in density}
        if not all(bool(torch.isfinite(weight).all()) for weight in state.values()):
            return  # training diverged: its own check says so at the end of the epoch
        scores = {name: scores_of(name, weight, self._score, self._padding) for name, weight in state.items()}
        for name, keep in kept(scores, density, self.scope).items():
            mask = held[name][0].mask
            mask.copy_((state[name] != 0 if self._ramp.adaptive else mask) & keep.reshape(mask.shape))

    def _free(self, part: ZeroMask, behind: Tensor, name: str) -> Tensor:
        """The weights that may stay: those that do, or on a way that may go back all that were not zero at first."""
        before = self._before[name]
        if self._ramp.adaptive:
            return behind.detach() * ((before != 0) | (name in self._blank)).to(behind.device)
        stays: Tensor = part(behind)
        return stays.detach()


def _all_alive(weight: Tensor) -> ZeroMask:
    return ZeroMask(torch.ones_like(weight, dtype=torch.bool))
