"""What channels are worth: one number for each of a group, by criteria of filters or of single weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from deepcompression import factory
from deepcompression.errors import StructureError, ValuesError
from deepcompression.network.resizing import Group, Member
from deepcompression.pruning.criteria import CRITERIA, FILTERS, MEASURED, of_filters
from deepcompression.pruning.prune import Score, refresh
from deepcompression.training.method import Context

Criterion = Callable[[Tensor], Tensor]  # filters (n, weights), float64 -> importance (n,)
Worth = Callable[[Group, Mapping[str, Tensor]], Tensor]  # a group, tensors by name -> (channels,), float64
NORM_EVERY = 4  # of so many filters that go one goes by its norm, as of the paper's 40 % a quarter do


def fpgm(filters: Tensor) -> Tensor:
    """Mean distance of each filter to the others: one near the geometric median can be given by them.

    The paper's sum (He et al. 2019, arXiv 1811.00250, equation 6), divided by their number, so that weights with
    different numbers of filters compare.
    """
    return torch.cdist(filters, filters).sum(1) / max(len(filters) - 1, 1)


def fpgm_mix(filters: Tensor) -> Tensor:
    """The order in which filters go, from 0 to 1: of every four one has the smallest norm of those left, and three are
    nearest to the geometric median of these.

    The mixture of the paper (section 4.2), whatever part of the filters goes.
    """
    distances, norms = torch.cdist(filters, filters), l2(filters)
    sums, order = distances.sum(1), torch.empty(len(filters), dtype=torch.float64, device=filters.device)
    left = torch.ones(len(filters), dtype=torch.bool, device=filters.device)
    for number in range(len(filters)):
        by = norms if number % NORM_EVERY == 0 else sums
        next_ = int(by.masked_fill(~left, torch.inf).argmin())
        order[next_], left[next_] = number, False
        sums = sums - distances[next_]
    return order / max(len(filters) - 1, 1)


def l1(filters: Tensor) -> Tensor:
    """The sum of magnitudes (Li et al. 2017, arXiv 1608.08710)."""
    return filters.abs().sum(1)


def l2(filters: Tensor) -> Tensor:
    """The Euclidean norm (He et al. 2018, arXiv 1808.06866)."""
    return filters.square().sum(1).sqrt()


def criterion_of(name: str) -> Criterion:
    """The criterion of filters alone of this name.

    Raises:
        StructureError: there is none.
    """
    _refuse_unknown(name)
    found: Criterion = factory.load(FILTERS[name])
    return found


def worth_of(name: str, context: Context) -> Worth:
    """What makes channels important, by the name in recipes; some of it measures a model first (``refresh``).

    Args:
        name: one of ``criteria.of_filters()``.
        context: samples, and where models run.

    Raises:
        StructureError: there is none of this name.
    """
    _refuse_unknown(name)
    if name in FILTERS:
        return by_filters(criterion_of(name))
    spec = MEASURED.get(name)
    if spec is None:
        return Summed(factory.load(CRITERIA[name] or "")(context))
    made: Worth = factory.load(spec)(context)
    return made


def _refuse_unknown(name: str) -> None:
    if name not in of_filters():
        known = ", ".join(of_filters())
        raise StructureError(f"prune: criterion {name!r} is not known for filters; expected one of {known}")


def by_filters(criterion: Criterion) -> Worth:
    """The mean of a criterion over all weights that make a channel."""
    return partial(importance, criterion=criterion)


@dataclass(frozen=True)
class Summed:
    """A score of single weights, summed over each filter; or one number a filter, where the score gives that.

    Args:
        score: (name, weight) -> importance, in the weight's shape or (filters,).
    """

    score: Score

    def refresh(self, model: nn.Module) -> None:
        """Lets the score look at the model."""
        refresh(self.score, model)

    def __call__(self, group: Group, state: Mapping[str, Tensor]) -> Tensor:
        """The mean over all weights that make a channel, (channels,)."""
        return mean_over(group, {one: self._of(one, state[one.tensor]) for one in group.makers})

    def _of(self, member: Member, weight: Tensor) -> Tensor:
        scores = self.score(member.tensor, weight)
        if not isinstance(scores, Tensor) or scores.shape not in (weight.shape, weight.shape[member.axis :][:1]):
            came = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise StructureError(f"{member.tensor}: the score's shape is {came}, expected {tuple(weight.shape)}")
        if scores.shape != weight.shape:
            scores = scores.reshape([-1 if axis == member.axis else 1 for axis in range(weight.ndim)])
        return filters_of(scores.cpu(), member)[1].sum(1)


def importance(group: Group, state: Mapping[str, Tensor], criterion: Criterion) -> Tensor:
    """What each channel of a group is worth, (channels,) float64: the mean over all weights that make it.

    Where every weight makes every channel, as in most nets, the order is that of the sum.

    Args:
        group: its members that make channels are looked at.
        state: tensors by name.
        criterion: of a weight matrix (filters, weights), what each filter is worth.
    """
    return mean_over(group, {one: criterion(filters_of(state[one.tensor], one)[1]) for one in group.makers})


def mean_over(group: Group, scores: Mapping[Member, Tensor]) -> Tensor:
    """The mean of what members say of those channels that each of them has, (channels,) float64.

    Args:
        group: the channels.
        scores: of each member, of the channels that it has a place for, (n,).
    """
    total, said = (torch.zeros(group.channels, dtype=torch.float64) for _ in range(2))
    for member, score in scores.items():
        channels = channels_of(member)
        total[channels] += score.double().cpu()
        said[channels] += 1
    return total / said.clamp(min=1)


def ranked(group: Group, state: Mapping[str, Tensor], worth: Worth) -> Tensor:
    """What channels are worth, (channels,) float64; one of nothing but zeros less than any other.

    Args:
        group: the channels.
        state: tensors by name.
        worth: what makes them important.

    Raises:
        StructureError: it is not a number.
    """
    found, alive = worth(group, state), torch.zeros(group.channels, dtype=torch.bool)
    if bool(found.isnan().any()):
        raise ValuesError(f"{group.makers[0].tensor}: the criterion gives NaN for some of its channels")
    for member in group.makers:
        channels, filters = filters_of(state[member.tensor], member)
        alive[channels] |= (filters != 0).any(1).cpu()
    return found.masked_fill(~alive, -torch.inf)


def channels_of(member: Member) -> Tensor:
    """The channels that a member has a place for, (n,), ascending."""
    return torch.tensor(sorted({channel for channel in member.index if channel >= 0}))


def by_channel(member: Member, values: Tensor) -> Tensor:
    """The mean of some values, one a place on the member's axis, over the places of each of its channels, (n,)."""
    numbers, index = values.detach().double().cpu(), torch.tensor(member.index)
    return torch.stack([numbers[index == one].mean() for one in channels_of(member).tolist()])


def filters_of(weight: Tensor, member: Member) -> tuple[Tensor, Tensor]:
    """The channels that a weight makes, (n,), and all that makes each in a row, (n, weights) float64."""
    rows, index = weight.detach().movedim(member.axis, 0).flatten(1).double(), torch.tensor(member.index)
    channels = channels_of(member)
    filters = [rows[index == channel] for channel in channels.tolist()]
    return channels, pad_sequence(filters, batch_first=True).flatten(1)
