"""How a number moves from its start to its end: curves by their names in recipes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

STEPS = 4  # of the curve of this name


def _polynomial(power: float) -> Callable[[float, float, float], float]:
    """The start less ever smaller parts of the way (Zhu and Gupta 2017, equation 1, with power 3)."""
    return lambda part, start, final: final + (start - final) * float((1 - part) ** power)


def _exponential(part: float, start: float, final: float) -> float:
    """Each step the same factor below the one before (of NNCF)."""
    return start * float((final / start) ** part)


def _steps(part: float, start: float, final: float) -> float:
    """Equal steps, the first at once."""
    taken = (int(part * STEPS) + 1) / STEPS
    return final if taken == 1 else start + (final - start) * taken


CURVES: Mapping[str, Callable[[float, float, float], float]] = {
    "cubic": _polynomial(3.0),
    "quadratic": _polynomial(2.0),
    "linear": _polynomial(1.0),
    "exponential": _exponential,
    "steps": _steps,
    "constant": lambda part, start, final: final,
}


def ramped(curve: str, step: int, total: int, start: float, final: float) -> float:
    """A number after ``step`` of ``total`` steps on its way from ``start`` to ``final``.

    Args:
        curve: one of ``CURVES``.
        step: now.
        total: steps until the end of the way.
        start: at step 0; above 0 of an exponential one, as final is.
        final: from `total` on.
    """
    return final if step >= total else CURVES[curve](step / total, start, final)


def round_densities(density: float, rounds: int) -> list[float]:
    """The densities of ``rounds`` rounds down to ``density``, each the same factor below the one before."""
    return [density ** ((number + 1) / rounds) for number in range(rounds)]
