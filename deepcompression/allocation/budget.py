"""A budget: how much of the metric may be lost, or how large the file may be; and where to look for it next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepcompression.errors import BudgetError

if TYPE_CHECKING:
    from deepcompression.allocation.sensitivity import TensorSensitivity

FIRST_RATIO = 24.0
FASTEST = 2.5  # how many times smaller the next step may be
SLOWEST = 1.3  # how many times larger it is at least where nothing has been kept yet
NEAR = 1.5  # times the loss that is allowed: so near, training on may be enough
AGAIN = 1.15  # how many times larger a candidate that is trained on may become
CLOSE = 1.1  # what is between a result that is kept and one that is not, so near that a step would gain nothing
LEAST_SAMPLES = 1  # right or wrong; their loss, which goes into what is expected, tells more
LARGER = 1.5  # from one size of the first candidate to the next larger one, until one is predicted to keep
LEFT_OVER = 0.1  # of what pruning and sharing cost before any training, how much training leaves
OVERHEAD = 1.4  # seconds of a step's epoch to those of the dense model's: masks, a teacher asked, files encoded
LOOKS = 10  # evaluations at all else in a step


@dataclass(frozen=True)
class Budget:
    """What a file must keep to. At least one of ``metric_loss`` and ``most_bytes`` is given; where both are, files
    become smaller for as long as they keep to the loss, and the smallest of these must keep to the bytes.

    Attributes:
        metric_loss: most by which the metric may be worse than the dense model's, on validation; percentage points
            where samples are right or wrong, else the metric's own unit.
        most_bytes: of the file.
        margin: of ``metric_loss``, kept back: the best of many candidates looks better than it is.
    """

    metric_loss: float | None = None
    most_bytes: int | None = None
    margin: float = 0.0

    @property
    def bytes_alone(self) -> int | None:
        """``most_bytes``, where they are all that is given."""
        return self.most_bytes if self.metric_loss is None else None

    def fits(self, file_bytes: int) -> bool:
        """Whether so many bytes are no more than are allowed."""
        return self.most_bytes is None or file_bytes <= self.most_bytes


@dataclass(frozen=True)
class Candidate:
    """One file: its bytes, by how much its metric is worse than the dense model's, whether it keeps to the budget.

    ``expected``: the loss on new samples, where it is known; ``start``: the candidate whose weights it went on from.
    """

    file_bytes: int
    loss: float
    kept: bool
    expected: float | None = None
    start: int | None = None

    @property
    def worst(self) -> float:
        """The larger of the loss that was observed and the one that is expected; infinite where one is no number."""
        losses = [self.loss] if self.expected is None else [self.loss, self.expected]
        return max(map(_known, losses))


@dataclass(frozen=True)
class Clock:
    """What takes how long, in seconds, known before the first step.

    Attributes:
        an_epoch: a pass over the training split, forwards and backwards.
        a_look: an evaluation on validation.
        tensors: how many are pruned and shared.
        others: how many are only rounded.
        samples: of validation.
        cut: whether the first so many of them can be looked at alone.
    """

    an_epoch: float
    a_look: float
    tensors: int
    others: int
    samples: int
    cut: bool

    def sensitivity(self, points: int, most_samples: int, every: int = 1) -> float:
        """Seconds that trying tensors takes.

        Args:
            points: at which each is tried.
            most_samples: on which, at most.
            every: of tensors every so many-th is tried.
        """
        share = min(1.0, most_samples / max(self.samples, 1)) if self.cut else 1.0
        return math.ceil(self.tensors / every) * points * self.a_look * share

    def by_effect(self) -> float:
        """Three precisions of each other tensor tried."""
        return 3 * self.others * self.a_look

    def training(self, epochs: int) -> float:
        """So many epochs of a step."""
        return OVERHEAD * epochs * self.an_epoch + LOOKS * self.a_look


@dataclass(frozen=True)
class Next:
    """How large the next candidate should be, and from which earlier one (its place) it goes on; None is the dense."""

    target_bytes: int
    start: int | None


@dataclass(frozen=True)
class Stop:
    """Why no further candidate is worth its time."""

    reason: str


def loss_of(metric: float, dense: float, *, higher_is_better: bool, in_points: bool) -> float:
    """By how much ``metric`` is worse than ``dense``; percentage points where samples are right or wrong.

    Args:
        metric: of the candidate, on validation.
        dense: of the dense model.
        higher_is_better: whether the metric is.
        in_points: whether it is a share of samples, told in points.
    """
    worse = dense - metric if higher_is_better else metric - dense
    return 100 * worse if in_points else worse


def expected_loss(
    observed: float, *, wrong_before: int, wrong_after: int, total: int, loss_before: float, loss_after: float
) -> float:
    """By how many points accuracy is likely to be worse on new samples: what was observed, and what the loss says.

    A few hundred samples say little by right and wrong alone, while their loss rises long before they turn wrong. As
    the loss grows by a factor, so do errors, roughly: half of that estimate is taken as its standard error. Both are
    weighted by their precision, so that of many samples it is the observed loss that counts.

    Args:
        observed: points of accuracy lost on these samples.
        wrong_before: by the dense model, of ``total``; wrong_after: by the candidate.
        loss_before: mean training loss (such as cross-entropy) of the dense model; loss_after: of the candidate.
    """
    by_loss = 100 * (wrong_before + 1) / (total + 2) * (loss_after / max(loss_before, 1e-12) - 1)
    by_count = (100 / total) ** 2 * max(wrong_before + wrong_after, 1)
    weights = 1 / by_count, 1 / max((by_loss / 2) ** 2, by_count / 100)
    return (weights[0] * observed + weights[1] * by_loss) / sum(weights)


def margin_of(metric_loss: float, correct: int | None, total: int) -> float:
    """What is kept back of a loss, unless the user says: one standard error of the dense metric, at most a quarter.

    Args:
        metric_loss: what may be lost, in points.
        correct: samples that the dense model has right, where scores are 0/1.
        total: validation samples.

    Raises:
        BudgetError: the loss is less than one sample of the validation split; the smallest usable one is told.
    """
    if correct is None:
        return metric_loss / 4
    if metric_loss * total / 100 < LEAST_SAMPLES * (1 - 1e-9):
        smallest = math.ceil(1e4 * LEAST_SAMPLES / total) / 100
        raise BudgetError(
            f"budget.metric_loss {metric_loss:g} points are {metric_loss * total / 100:.2g} of {total:,} validation "
            f"samples, too few to be told from chance; the smallest usable is {smallest:g}"
        )
    error = 1 - correct / total
    return min(metric_loss / 4, 100 * math.sqrt(max(error * (1 - error), 1 / total) / total))


def keeps(budget: Budget, file_bytes: int, loss: float, expected: float | None = None) -> bool:
    """Whether a candidate keeps to the budget: what it lost, and, less the margin, what it is expected to lose; its
    bytes where these alone are given, for of those that lost no more it is the smallest that must fit.

    Where the loss that is expected on new samples is not known, it is the one that was observed. What is not a number
    keeps to nothing.

    Args:
        budget: what is asked for.
        file_bytes: of the candidate.
        loss: of the metric, observed on validation.
        expected: the loss that is expected on new samples, if known.
    """
    if not math.isfinite(loss):
        return False
    if budget.metric_loss is not None:
        likely = loss if expected is None else expected
        return loss <= budget.metric_loss + 1e-9 and likely <= budget.metric_loss - budget.margin + 1e-9
    return file_bytes <= (budget.most_bytes or 0)


def best_of(budget: Budget, candidates: Sequence[Candidate]) -> int:
    """The place of the best candidate: of those that keep to the budget the smallest, or the one of least loss where
    bytes are what is given; of none that does the one that comes nearest.
    """
    kept = [place for place, one in enumerate(candidates) if one.kept]
    by_size = [(one.file_bytes, _known(one.loss)) for one in candidates]
    by_loss = [(loss, size) for size, loss in by_size]
    if budget.metric_loss is not None:
        return min(kept, key=by_size.__getitem__) if kept else min(range(len(candidates)), key=by_loss.__getitem__)
    return min(kept, key=by_loss.__getitem__) if kept else min(range(len(candidates)), key=by_size.__getitem__)


def _known(loss: float) -> float:
    """Infinite where it is not a number: nothing is worse."""
    return math.inf if math.isnan(loss) else loss


def first_sizes(dense_bytes: int) -> list[int]:
    """Bytes that the first candidate may have, smallest first."""
    sizes = [dense_bytes / FIRST_RATIO]
    while sizes[-1] * LARGER < dense_bytes / 2:
        sizes.append(sizes[-1] * LARGER)
    return [int(size) for size in sizes]


def predicted_loss(
    density: Mapping[str, float],
    bits: Mapping[str, int],
    tensors: Sequence[TensorSensitivity],
    metric: float,
    *,
    higher_is_better: bool,
    in_points: bool,
) -> float:
    """By how much the metric is likely to be worse after training, in the unit of ``loss_of``.

    What each tensor's pruning and sharing alone cost before any training is added up; of that, training leaves a
    tenth. Coarse: it tells 24 times smaller from what a small network can bear, no more.

    Args:
        density: of each tensor, as allocated; bits: of each.
        tensors: what was measured of each.
        metric: the unchanged model's.
    """

    def cost(changed: float) -> float:
        loss = loss_of(changed, metric, higher_is_better=higher_is_better, in_points=in_points)
        return max(_known(loss), 0.0)

    costs = [
        cost(point.metric)
        for one in tensors
        for point in (
            min(one.by_density, key=lambda point: abs(math.log(point.density / density[one.name])), default=None)
            if density[one.name] < one.density * (1 - 1e-6)
            else None,
            next((point for point in one.by_bits if point.bits == bits[one.name]), None),
        )
        if point is not None
    ]
    return LEFT_OVER * math.fsum(costs) if all(map(math.isfinite, costs)) else math.inf


def next_step(
    budget: Budget, candidates: Sequence[Candidate], dense_bytes: int, most_steps: int, first_bytes: int | None = None
) -> Next | Stop:
    """Where to go from all candidates so far: 2.5 times smaller at most, then between what is kept and what is not.

    Args:
        budget: what to keep to.
        candidates: in the order in which they were made.
        dense_bytes: of the dense model.
        most_steps: candidates at most.
        first_bytes: of the first candidate, where a loss is what is given; default: 24 times smaller.
    """
    if len(candidates) >= most_steps:
        return Stop(f"{most_steps} of {most_steps} steps are done")
    if budget.metric_loss is None:
        return _towards_bytes(budget.most_bytes or 0, candidates, dense_bytes)
    first = first_bytes or int(dense_bytes / FIRST_RATIO)
    return _towards_loss(budget.metric_loss - budget.margin, candidates, dense_bytes, first)


def _towards_loss(most: float, candidates: Sequence[Candidate], dense_bytes: int, first: int) -> Next | Stop:
    kept = [place for place, one in enumerate(candidates) if one.kept]
    made_up = {candidates[place].start for place in kept}  # what was trained on, and then kept to the budget
    lost = [one.file_bytes for place, one in enumerate(candidates) if not one.kept and place not in made_up]
    again = _nearly(most, candidates)
    if again is not None:
        return Next(int(candidates[again].file_bytes * AGAIN), again)
    if not kept:
        target = _larger(most, candidates) if candidates else first
        return Next(int(target), None) if target < dense_bytes else Stop("no candidate kept to the budget")
    start = min(kept, key=lambda place: candidates[place].file_bytes)
    smallest = candidates[start].file_bytes
    worse = [size for size in lost if size < smallest]
    if not worse:
        return Next(int(smallest / FASTEST), start)
    if smallest / max(worse) < CLOSE:
        return Stop(f"between {max(worse):,} bytes, too many lost, and {smallest:,}, kept, is nothing left to gain")
    return Next(int(math.sqrt(smallest * max(worse))), start)


def _larger(most: float, candidates: Sequence[Candidate]) -> float:
    """Bytes to try after the largest candidate lost too much: the more it lost, the more of them."""
    largest = max(candidates, key=lambda one: one.file_bytes)
    return largest.file_bytes * min(max(math.sqrt(largest.worst / max(most, 1e-9)), SLOWEST), FASTEST)


def _nearly(most: float, candidates: Sequence[Candidate]) -> int | None:
    """The last candidate, if it lost hardly too much: its weights are trained on, once, at nearly its size."""
    if not candidates or candidates[-1].kept or candidates[-1].worst > NEAR * most:
        return None
    if any(one.kept and one.file_bytes <= candidates[-1].file_bytes for one in candidates):
        return None
    start = candidates[-1].start
    return len(candidates) - 1 if start is None or candidates[start].kept else None


def _towards_bytes(most: int, candidates: Sequence[Candidate], dense_bytes: int) -> Next | Stop:
    if any(one.kept for one in candidates):
        return Stop(f"a candidate has {min(one.file_bytes for one in candidates if one.kept):,} bytes of {most:,}")
    if not candidates:
        return Next(int(max(most, dense_bytes / FIRST_RATIO)), None)
    start = min(range(len(candidates)), key=lambda place: candidates[place].file_bytes)
    return Next(int(max(most, candidates[start].file_bytes / FASTEST)), start)
