"""Grids of values: from and to integers times a scale, and the grid that holds what comes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def levels(bits: int, scheme: str) -> tuple[int, int]:
    """The lowest and the highest integer of a grid."""
    return (0, 2**bits - 1) if scheme == "asymmetric" else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def on_grid(value: Tensor, scale: Tensor, zero_point: Any, low: int, high: int) -> Tensor:
    """``value`` rounded (ties to even) to ``scale`` times an integer, and cut to the grid's ends; 0 stays 0.

    Gradients pass the rounding as if it were none; beyond the ends they reach the scale alone. With a scale that is
    trained this is LSQ's gradient (Esser et al. 2019, arXiv 1902.08153, section 2.1).

    Args:
        value: floats, any shape.
        scale: one, or one that broadcasts.
        zero_point: integers, likewise.
        low: the least integer of the grid.
        high: its greatest.
    """
    steps = (value / scale).clamp(low - zero_point, high - zero_point)
    return (steps + (steps.round() - steps).detach()) * scale


def range_of(value: Tensor, bits: int, scheme: str, kind: str = "dynamic") -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) of the smallest grid that holds all of ``value``, and 0.

    Args:
        value: floats, of one site.
        bits: of an integer.
        scheme: symmetric or asymmetric.
        kind: of range: dynamic; or dynamic_row or dynamic_token, whose grids have the value's dimensions, of size 1
            where they span them.
    """
    low, high = levels(bits, scheme)
    flat = value.detach().float()
    over, kept = _spanned(flat, kind), kind != "dynamic"
    least, most = flat.amin(over, keepdim=kept).clamp(max=0), flat.amax(over, keepdim=kept).clamp(min=0)
    wide = (most - least) / (high - low) if scheme == "asymmetric" else torch.maximum(most, -least) / high
    scale = torch.where(wide > 0, wide, torch.ones_like(wide))
    zero = (-least / scale).round() if scheme == "asymmetric" else torch.zeros_like(scale)
    return scale, zero.clamp(low, high).to(torch.int32)


def _spanned(value: Tensor, kind: str) -> list[int]:
    """The dimensions that one grid spans; all of them where there are fewer than two."""
    every = list(range(value.ndim))
    if value.ndim < 2 or kind == "dynamic":
        return every
    return every[1:] if kind == "dynamic_row" else every[-1:]
