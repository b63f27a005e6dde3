"""Filter pruning while a model trains: channels go little by little, or as zeros that may come back until the end."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as tree

from deepcompression import factory
from deepcompression.data.batch import moved
from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.network.channel_proof import undrawn
from deepcompression.network.channels import channel_groups
from deepcompression.network.edits.apply import apply
from deepcompression.network.resizing import Group
from deepcompression.pruning import filters as library
from deepcompression.pruning.filters import Choice, Limit
from deepcompression.pruning.limits import density_within, refuse_out_of_reach
from deepcompression.pruning.prune import Score, refresh
from deepcompression.pruning.worth import Summed, Worth, worth_of
from deepcompression.structure.constraints import SHARED, ZEROS, Structure, having, structured
from deepcompression.structure.hold import bake, held_by, held_state, hold_by
from deepcompression.structure.zeros import ZeroMask, zero_mask
from deepcompression.training.method import ACTIVATION, SPARSITY, UNITS, VALUES, Account, Claim, Context, Method, Now
from deepcompression.training.ramps import TOLERANCE, Ramp, Ramped

FEW = 16  # samples by which channels are followed through the model
UPDATES = 20  # times that channels are chosen, if nobody says how often


@dataclass(eq=False)
class FilterPruning(Ramped, Method):
    """The part of the channels that stays falls along a curve while the model trains.

    Channels are chosen anew from time to time, by the weights of that moment. A channel that goes is zero in all that
    makes it, takes it in, and lies between, and stays so. Where it is ``soft``, its filters become zero and learn on,
    so that it may be among those that stay the next time, until the last choice, at the end of the ramp. The best state
    is looked for after that.

    Args:
        density: fraction of the channels that stays; one for all, or by name pattern; None where ``limit`` is given.
        limit: what a thin model may cost: the one density for all channels that keeps to it is looked for at first.
        criterion: what makes a channel important, see ``pruning.worth``.
        score: a criterion of your own instead, as of ``GradualPruning``; summed over a filter.
        start: density at the first step.
        ramp: fraction of the steps in which the density falls.
        curve: along which it falls, see ``training.ramps``.
        soft: whether zeros may come back.
        updates: how many times channels are chosen.
        remove: whether the model ends thin, by an edit; else with zeros.
        tolerance: of the curve ``adaptive``: part of the metric that may be lost.
        multiple: of which as many channels stay in each group, where it has so many: processors take 8 or 16 at once.

    He, Kang, Dong, Fu, Yang (2018), "Soft filter pruning", arXiv 1808.06866; He et al. (2019), arXiv 1811.00250.
    """

    name: ClassVar[str] = "prune"
    density: float | Mapping[str, float] | None = None
    limit: Limit | None = None
    criterion: str = "fpgm"
    score: Score | Mapping[str, Any] | None = None
    start: float = 1.0
    ramp: float = 0.7
    curve: str = "cubic"
    soft: bool = False
    updates: int = UPDATES
    remove: bool = False
    tolerance: float = TOLERANCE
    multiple: int = 1

    @property
    def settled(self) -> float:
        """Where the last choice is made."""
        return self.ramp

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """Channels and zeros of all layers: which of them make or take in channels a run of the model tells later."""
        return {(name, role) for name in names.prunable(model) for role in (UNITS, SPARSITY)}

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Follows channels, and puts masks on all that they lie on.

        Raises:
            StructureError: densities or a limit that are impossible, an unknown criterion or one that cannot tell of
                some channels, a shared tensor, values on grids beside ``remove``, or no samples.
        """
        self._check(context)
        self._ramp = Ramp(self.curve, self.ramp, self.start, self.tolerance, context.higher_is_better)
        self._context, self._worth = context, self._made_worth(context)
        self._batch = next(iter(context.batches("pruning of filters", FEW)))
        # Operations on channels_last are others: of some nothing is known.
        plain = bake(copy.deepcopy(model)).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self._wanted, self._left = self._resolved(plain)
        library.refuse_unfit(self._worth, plain, [group for group, one in self._wanted if one < 1])
        self._choices = [Choice(group, tuple(range(group.channels))) for group, _ in self._wanted]
        self._hold(model, context.structure)
        return []

    def before_step(self, model: nn.Module, now: Now) -> None:
        """Chooses channels anew where that is due."""
        last = self._ramp.last(now)
        if self._ramp.due(now, max(last // max(self.updates - 1, 1), 1)):
            self._choose(model, [(group, self._ramp.level(now, one)) for group, one in self._wanted])
            self._mask(model, free=self.soft and now.step < last)
            now.changed = True

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The part of the channels that stayed by the last choice."""
        channels = sum(one.group.channels for one in self._choices)
        return {"density": sum(len(one.kept) for one in self._choices) / max(channels, 1)}

    def finish(self, model: nn.Module) -> Account:
        """Zeros for channels that went, or a thin model.

        Raises:
            InvariantError: the thin model does not give what the one with zeros gives.
        """
        state, zeroed = library.masked(model, self._choices)
        model.load_state_dict(state)
        report = {"layers": library.account_of(self._choices), **self._costs(model)}
        notes = [*self._ramp.short_of("prune: the density that was asked for"), *self._told(report)]
        places = library.cut(model, self._choices) if self.remove else None
        if places is None:
            return Account(structured(zeroed), report=report, notes=notes, left=self._left)
        masked, edit = copy.deepcopy(model), library.edit_of(model, places)
        apply(model, edit)
        model.load_state_dict(library.cut_state(state, places))
        gap = library.refuse_unlike(copy.deepcopy(model).cpu(), masked.cpu(), self._outputs)
        arranged = partial(library.cut_state, places=places)
        report = {**report, "gap": gap}
        return Account(edits=[edit], report=report, notes=notes, left=self._left, arranged=arranged)

    def state_dict(self) -> dict[str, Any]:
        """The last choice."""
        return {"kept": [list(one.kept) for one in self._choices], "ramp": self._ramp.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from it."""
        pairs = zip(self._choices, state["kept"], strict=True)
        self._choices = [Choice(one.group, tuple(kept)) for one, kept in pairs]
        self._ramp.load_state_dict(state["ramp"])

    def _check(self, context: Context) -> None:
        if (self.density is None) == (self.limit is None):
            raise StructureError("prune: expected either a density of filters or a limit")
        if self.updates < 1 or self.multiple < 1:
            got = f"{self.updates} and {self.multiple}"
            raise StructureError(f"prune: expected updates and a multiple of 1 or more, got {got}")
        grids = sorted(target for target, role in context.claimed if role in (VALUES, ACTIVATION))
        if self.remove and grids:
            raise StructureError(
                f"prune: remove: true goes without a method that changes values, as of {grids[0]}; let that come after"
            )

    def _made_worth(self, context: Context) -> Worth:
        if isinstance(self.score, Mapping):
            return Summed(factory.function(self.score["factory"], self.score.get("kwargs")))
        return Summed(self.score) if self.score else worth_of(self.criterion, context)

    def _resolved(self, plain: nn.Module) -> tuple[list[tuple[Group, float]], dict[str, str]]:
        """The density in the end of each group, and why other layers lose no channels."""
        groups, left = channel_groups(plain, self._outputs)
        reasons = {name if name in plain.state_dict() else f"{name}.weight": why for name, why in left.items()}
        if self.limit is None:
            return library.densities(plain, names.table_of(self.density or {}), groups, left), reasons
        refuse_out_of_reach(plain, self.limit, groups, left, self._outputs, self.multiple)
        density = density_within(plain, self.limit, groups, _in_order, self._outputs, self.multiple)
        return [(group, density) for group in groups], reasons

    def _hold(self, model: nn.Module, structure: Structure) -> None:
        known, zeros = names.parameters(model), set(having(structure, ZEROS))
        on_them = {one.tensor for group, _ in self._wanted for one in group.members} & set(known)
        both = sorted(on_them & set(having(structure, SHARED)))
        if both:
            raise StructureError(f"{both[0]}: is shared already; filters are pruned before share")
        self._names = sorted(on_them | zeros & set(names.prunable(model)))
        self._base = {name: one.cpu() != 0 for name, one in held_state(model, self._names).items() if name in zeros}
        hold_by(model, {name: zero_mask if name in zeros else _whole for name in self._names})

    def _choose(self, model: nn.Module, wanted: Sequence[tuple[Group, float]]) -> None:
        state = {name: one.cpu() for name, one in self._free(model).items()}
        if all(bool(one.isfinite().all()) for one in state.values()):  # else training's own check says so
            refresh(self._worth, model)
            self._choices = library.chosen(state, wanted, self._worth, self.multiple)

    def _free(self, model: nn.Module) -> dict[str, Tensor]:
        """The weights that may stay: those that do, or on a way that may go back all that were not zero at first."""
        if not self._ramp.adaptive:
            return held_state(model, self._names)
        behind = {name: pair[1].detach() for name, pair in held_by(model, ZeroMask).items() if name in self._names}
        return {
            name: one * self._base[name].to(one.device) if name in self._base else one for name, one in behind.items()
        }

    @torch.no_grad()
    def _mask(self, model: nn.Module, free: bool) -> None:
        """Holds what went as zeros; or, where it is ``free``, makes its filters zero now, and lets them learn on."""
        # looked up anew: moving a model to a device or memory format replaces masks
        held = {name: pair for name, pair in held_by(model, ZeroMask).items() if name in self._names}
        shapes = {name: tuple(part.mask.shape) for name, (part, _) in held.items()}
        stays = library.staying(shapes, self._choices, makers=free)
        whole = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items() if self._ramp.adaptive}
        for name, keep in {**whole, **stays}.items():
            part, behind = held[name]
            if free:
                behind.mul_(keep.to(behind.device))
            else:
                part.mask.copy_(keep & self._base.get(name, keep))

    def _told(self, report: Mapping[str, Any]) -> list[str]:
        """What stays, and which layers lose no channels."""
        units = {"parameters": "parameters"} | ({self.limit.key: self.limit.unit} if self.limit else {})
        stays = " and ".join(f"{report[key]:.3g} of the {unit}" for key, unit in units.items())
        left = [f"{name.removesuffix('.weight')} loses no channels: {why}" for name, why in self._left.items()]
        return [f"prune: without the channels that go {stays} stay", *left]

    def _costs(self, model: nn.Module) -> dict[str, float]:
        """The parts of the parameters, and of what the limit is of, that stay without the channels that went."""
        ends = [one.cpu() for one in (copy.deepcopy(model), library.thinned(model, self._choices))]
        whole, thin = map(library.parameters_of, ends)
        found = {"parameters": thin / max(whole, 1)}
        if self.limit is not None:
            whole, thin = (self.limit.cost(one, self._outputs) for one in ends)
            found[self.limit.key] = thin / max(whole, 1)
        return found

    def _outputs(self, model: nn.Module) -> Tensor:
        """What a model on the CPU gives for a few samples, in a row for each; all of its tensors beside each other."""
        with undrawn():
            torch.manual_seed(0)
            given = self._context.forward(model, moved(self._batch, torch.device("cpu")))
        leaves = [one for one in tree.tree_leaves(given) if isinstance(one, Tensor) and one.is_floating_point()]
        if not leaves:
            raise StructureError("prune: the model gives no tensor by which its channels could be followed")
        return torch.cat([one.flatten() for one in leaves]) if len(leaves) > 1 else leaves[0]


def _in_order(group: Group, state: Mapping[str, Tensor]) -> Tensor:
    """Any order will do where channels are only counted."""
    return torch.arange(group.channels, 0, -1, dtype=torch.float64)


def _whole(weight: Tensor) -> ZeroMask:
    return ZeroMask(torch.ones_like(weight, dtype=torch.bool))
