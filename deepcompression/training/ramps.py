"""How a number moves from its start to its end."""

from __future__ import annotations


def round_densities(density: float, rounds: int) -> list[float]:
    """The densities of ``rounds`` rounds down to ``density``, each the same factor below the one before."""
    return [density ** ((number + 1) / rounds) for number in range(rounds)]


def cubic_density(step: int, total: int, start: float, final: float) -> float:
    """Density after ``step`` of ``total`` steps, falling ever slower (Zhu and Gupta 2017, equation 1).

    Args:
        step: now.
        total: steps until the final density.
        start: density at step 0.
        final: density from `total` on.
    """
    if step >= total:
        return final
    return final + (start - final) * (1 - step / total) ** 3


def exponential_density(step: int, total: int, start: float, final: float) -> float:
    """Density after ``step`` of ``total`` steps, each the same factor below the one before.

    Args:
        step: now.
        total: steps until the final density.
        start: density at step 0, above 0.
        final: density from `total` on, above 0.
    """
    return final if step >= total else start * (final / start) ** (step / total)
