"""How a number moves from its start to its end: curves by their words in recipes, and one that waits for the metric."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from deepcompression.errors import StructureError

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.training.method import Now

Curve = Callable[[float, float, float], float]  # part of the way that is done, start, end -> the number
STEPS, POWER = 4, 3.0  # of `steps` and `polynomial` where no number is given
TOLERANCE = 0.01  # part of the metric that may be lost
ADAPTIVE = "adaptive"
_WORD = re.compile(r"(steps|polynomial)\((\d+(?:\.\d+)?)\)")
NUMBERED = {"type": "string", "pattern": f"^{_WORD.pattern}$"}  # as JSON's schema says it


def _polynomial(power: float) -> Curve:
    """The start less ever smaller parts of the way (Zhu and Gupta 2017, equation 1, with power 3)."""
    return lambda part, start, final: final + (start - final) * float((1 - part) ** power)


def _exponential(part: float, start: float, final: float) -> float:
    """Each step the same factor below the one before (of NNCF)."""
    return start * float((final / start) ** part)


def _steps(count: int) -> Curve:
    """Equal steps, the first at once."""

    def level(part: float, start: float, final: float) -> float:
        taken = (int(part * count) + 1) / count
        return final if taken == 1 else start + (final - start) * taken

    return level


CURVES: Mapping[str, Curve] = {
    "cubic": _polynomial(3.0),
    "quadratic": _polynomial(2.0),
    "linear": _polynomial(1.0),
    "exponential": _exponential,
    "steps": _steps(STEPS),
    "polynomial": _polynomial(POWER),
    "constant": lambda part, start, final: final,
    ADAPTIVE: _exponential,  # of the part of the way that the metric allows
}
KNOWN = ", ".join(CURVES).replace("steps,", "steps(N),").replace("polynomial,", "polynomial(POWER),")


def curve_of(word: str) -> Curve:
    """The curve of a word: one of ``CURVES``, ``steps(8)`` or ``polynomial(2.5)``.

    Raises:
        StructureError: there is none, or its number is impossible.
    """
    found = _WORD.fullmatch(word)
    if found:
        number = float(found[2])
        if number > 0 and (found[1] == "polynomial" or number == int(number)):
            return _polynomial(number) if found[1] == "polynomial" else _steps(int(number))
    if word not in CURVES:
        raise StructureError(f"curve {word!r} is not known; expected one of {KNOWN}")
    return CURVES[word]


class Ramp:
    """The way of a method's levels while a model trains, over a first part of the steps.

    ``adaptive`` goes on while the metric of each epoch is not worse than the best so far by more than ``tolerance`` of
    it. The first epoch trains at the start. Then each epoch goes a step further, twice as far as would be needed to
    arrive; where the metric is lost it goes back to where it held, and steps are half as long from then on. At the end
    of the ramp the level stays where the metric held.

    Args:
        curve: see ``curve_of``.
        part: of the steps, in (0, 1].
        start: the level at the first step, above 0.
        tolerance: part of the metric.
        higher_is_better: of the metric.

    Raises:
        StructureError: no such curve.
    """

    def __init__(
        self, curve: str, part: float, start: float, tolerance: float = TOLERANCE, higher_is_better: bool = True
    ) -> None:
        self.curve, self.part, self.start, self.tolerance = curve_of(curve), part, start, tolerance
        self.adaptive, self.sign = curve == ADAPTIVE, 1 if higher_is_better else -1
        self.gone, self.held, self.stride = 0.0, 0.0, 0.0  # parts of the way
        self.best: float | None = None
        self.moved = False  # since levels were last asked for

    def last(self, now: Now) -> int:
        """The step at which the way ends."""
        return min(int(now.steps * self.part), now.steps - 1)

    def level(self, now: Now, final: float) -> float:
        """The level at a step, on the way down to ``final``; never below it.

        Args:
            now: the step.
            final: above 0.
        """
        gone = self._done(now)
        return final if gone >= 1 else max(self.curve(gone, self.start, final), final)

    def _done(self, now: Now) -> float:
        """The part of the way that is done."""
        if now.step < self.last(now):
            return self.gone if self.adaptive else now.step / self.last(now)
        return self.held if self.adaptive else 1.0

    def due(self, now: Now, every: int) -> bool:
        """Whether levels are to be used now: each so many steps until the end of the way, and when they have moved."""
        moved, self.moved = self.moved, False
        return now.step <= self.last(now) and (moved or now.step % every == 0 or now.step == self.last(now))

    def after_epoch(self, now: Now, metric: float) -> None:
        """Goes on or back, by the metric of an epoch.

        Args:
            now: after its last step.
            metric: on the validation split.
        """
        if not self.adaptive or now.step > self.last(now):
            return
        self.moved = True
        if self.best is None:
            left = max(self.last(now) // max(now.step, 1), 1)  # epochs, this one among them
            self.best, self.stride = metric, min(2 / left, 1.0)
        elif self.sign * (metric - self.best) >= -self.tolerance * abs(self.best):
            self.held, self.best = self.gone, self.sign * max(self.sign * metric, self.sign * self.best)
        else:
            self.stride /= 2
            self.gone = self.held
            return
        self.gone = min(self.held + self.stride, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """What the metric has decided so far."""
        return {key: getattr(self, key) for key in ("gone", "held", "stride", "best", "moved")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from it."""
        for key, value in state.items():
            setattr(self, key, value)

    def short_of(self, what: str) -> list[str]:
        """A sentence where the metric did not allow the whole way.

        Args:
            what: the method, and the level that it was to come to.
        """
        if not self.adaptive or self.held >= 1:
            return []
        why = f"beyond {self.held:.0%} of the way the metric fell by more than {self.tolerance:g} of its best"
        return [f"{what} was not reached: {'no metric of an epoch was told' if self.best is None else why}"]


class Ramped:
    """A method whose level goes along ``_ramp``: what an adaptive curve learns of each epoch, and keeps."""

    _ramp: Ramp

    def after_epoch(self, model: nn.Module, now: Now, metric: float) -> None:
        """Goes on, or back, where the curve is adaptive.

        Args:
            model: in training.
            now: the step.
            metric: of the epoch, on validation.
        """
        self._ramp.after_epoch(now, metric)

    def state_dict(self) -> dict[str, Any]:
        """How far an adaptive curve has come."""
        return self._ramp.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what ``state_dict`` gave.

        Args:
            state: that.
        """
        self._ramp.load_state_dict(state)
