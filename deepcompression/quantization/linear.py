"""Linear quantization of a model's weights after training: integers times a scale, and no data needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.codec import grids
from deepcompression.errors import StructureError, ValuesError
from deepcompression.network import names
from deepcompression.network.channel_axis import channel_axis
from deepcompression.network.parametrized import VALUES
from deepcompression.network.state import normalised, replaced
from deepcompression.quantization.correct_weights import corrected
from deepcompression.quantization.integers import Integers, Range, Rows, Scheme, integers_of
from deepcompression.structure.constraints import SHARED, Structure, of_kind, of_order
from deepcompression.structure.grid import Grid
from deepcompression.structure.rows import from_rows, rows_of

FEWEST_BITS, MOST_BITS = 2, 16
# Of a significand, in bits: integers of more would be rounded to their neighbours when they are multiplied.
DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}

Per = Literal["tensor", "channel", "group"]


@dataclass(frozen=True)
class Linear:
    """How a tensor is quantized: on which grid, with which integers, and how their scale is found; and which axis its
    output channels are on, None where they are on none."""

    grid: Grid
    scheme: Scheme = "symmetric"
    range: Range = "minmax"
    channels: int | None = None


@dataclass(frozen=True)
class QuantizedTensor:
    """What was done to a tensor: the least and the greatest of its scales, the signal-to-noise ratio in decibels (None
    without any noise), the weights that became zero; and what was corrected, in a word for people, if anything was."""

    name: str
    bits: int
    scheme: str
    per: str
    scales: tuple[float, float]
    sqnr: float | None
    new_zeros: int
    corrected: str = ""


@dataclass(frozen=True)
class Quantized:
    """A state_dict with tensors on grids, what is true of them now, what was done, and why tensors were left alone."""

    state: dict[str, Tensor]
    structure: dict[str, tuple[str, ...]]
    layers: list[QuantizedTensor]
    left: dict[str, str]


def table(
    model: nn.Module,
    bits: Mapping[str, int],
    scheme: Scheme = "symmetric",
    per: Per = "channel",
    group: int | None = None,
    range: Range = "minmax",
) -> dict[str, Linear]:
    """How each tensor that is meant is quantized, by its name.

    Args:
        model: with ordinary parameters.
        bits: 2 to 16 by name pattern, as of ``names.resolve``.
        scheme: of the integers.
        per: one scale for a tensor, for each output channel, or for each ``group`` elements of one. Vectors have one.
        group: consecutive elements, along the flattened rest of a channel; it divides that.
        range: what decides a scale: the largest value, or the least squared error.

    Raises:
        StructureError: a pattern matches nothing; bits that a tensor cannot take; it has no axis of channels, or groups
            do not divide these.
    """
    return {
        name: _how(model, name, Linear(Grid(width), scheme, range), per, group)
        for name, width in names.resolve(model, bits).items()
    }


def _how(model: nn.Module, name: str, how: Linear, per: Per, group: int | None) -> Linear:
    weight, axis, why = names.parameters(model)[name], None, ""
    try:
        axis = channel_axis(model, name)
    except StructureError as error:
        why = str(error)
    if why and per != "tensor":
        raise StructureError(why)
    scaled = None if per == "tensor" else axis
    _check_bits(name, weight, how, several=scaled is not None)
    each = weight.numel() // max(weight.shape[scaled], 1) if scaled is not None else 0
    if scaled is not None and per == "group" and (not group or each % group):
        raise StructureError(
            f"{name}: groups of {group} do not divide the {each} elements of a channel; take a divisor of {each}, or "
            "leave it out of bits by name"
        )
    grid = Grid(how.grid.bits, scaled, group if scaled is not None and per == "group" else None)
    return replace(how, grid=grid, channels=axis)


def _check_bits(name: str, weight: Tensor, how: Linear, several: bool) -> None:
    """Asymmetric integers reach twice as far; those of unlike zero points have one alphabet in the file, of 16 bits."""
    bits, less = how.grid.bits, how.scheme == "asymmetric"
    most = min(MOST_BITS - (less and several), DIGITS.get(weight.dtype, 0) - less)
    if isinstance(bits, bool) or not isinstance(bits, int) or not FEWEST_BITS <= bits <= most:
        kind = str(weight.dtype).removeprefix("torch.")
        scales = " with several scales" if less and several else ""
        raise StructureError(
            f"{name}: bits {bits} is impossible, {how.scheme} {kind}{scales} takes {FEWEST_BITS} to {most}"
        )


def refuse_unlike(name: str, how: Linear, words: tuple[str, ...]) -> None:
    """Raise where a tensor cannot be put on a grid without breaking what must stay true of it.

    Args:
        name: of the tensor.
        how: it would be quantized.
        words: its constraints.

    Raises:
        StructureError: it is on another grid, or binary; or its weights share values, and scales of channels would
            drive them apart.
    """
    other = [word for word in of_order(words, VALUES) if word != how.grid.word]
    if other:
        raise StructureError(
            f"{name}: is {other[0]} already, which {how.grid.word} would undo; leave it out of weights"
        )
    if of_kind(words, SHARED) and how.grid.axis is not None:
        raise StructureError(
            f"{name}: shares values, which a scale for each channel would drive apart; per: tensor, or leave it out"
        )


def quantize(
    state: Mapping[str, Tensor], how: Mapping[str, Linear], structure: Structure | None = None, correct: bool = False
) -> Quantized:
    """``state`` with the named tensors on their grids: integers times a float32 scale, in the tensor's own dtype.

    0 is +0.0, and zeros stay zero. Tensors that are zero throughout are left alone: there is no scale to them.

    Args:
        state: tensors by name; not changed.
        how: of ``table``.
        structure: what must stay true of ``state``.
        correct: whether mean and variance of each channel's weights are restored (``correct_weights``).

    Raises:
        StructureError: a tensor is missing or not finite; it is on another grid, or its sharing would be lost; its
            scale does not fit the dtype.
    """
    structure = structure or {}
    clean = normalised(state, how)
    made = Quantized({}, {}, [], {})
    for name, one in how.items():
        refuse_unlike(name, one, structure.get(name, ()))
        if not bool(clean[name].any()):
            made.left[name] = "zero throughout"
            continue
        tensor, layer = _one(name, clean[name], one, correct, bool(of_kind(structure.get(name, ()), SHARED)))
        made.state[name] = tensor
        made.layers.append(layer)
        made.structure[name] = (one.grid.word,)
    return replace(made, state=replaced(clean, made.state))


def _one(name: str, weight: Tensor, how: Linear, correct: bool, shared: bool) -> tuple[Tensor, QuantizedTensor]:
    grid = how.grid
    found = integers_of(_array(rows_of(weight, grid.axis, grid.group)), grid.bits, how.scheme, how.range)
    told = ""
    if correct:
        found, told = _corrected(weight, found, how, free=not shared)
    after = from_rows(multiplied(found, weight.dtype), weight.shape, grid.axis)
    _refuse_inexact(name, after, found, grid)
    scales = float(found.scales.min()), float(found.scales.max())
    per = "tensor" if grid.axis is None else "channel" if grid.group is None else f"group of {grid.group}"
    zeroed = int(((weight != 0) & (after == 0)).sum())
    return after, QuantizedTensor(name, grid.bits, how.scheme, per, scales, _sqnr(weight, after), zeroed, told)


def _corrected(weight: Tensor, found: Integers, how: Linear, free: bool) -> tuple[Integers, str]:
    """The integers and scales, corrected channel by channel, and what was."""
    grid = how.grid
    whole = from_rows(torch.from_numpy(found.integers), weight.shape, grid.axis)
    shape = (1, 1) if grid.axis is None else (weight.shape[grid.axis], -1)
    rows = _array(rows_of(weight, how.channels)), rows_of(whole, how.channels).numpy()
    done = corrected(*rows, found.scales.reshape(shape), found.low.reshape(shape), found.high.reshape(shape), free=free)
    integers = from_rows(torch.from_numpy(done.integers), weight.shape, how.channels)
    back = rows_of(integers, grid.axis, grid.group).numpy()
    return found._replace(integers=back, scales=done.scales.reshape(-1, 1)), done.told


def _array(rows: Tensor) -> Rows:
    """Rows as numpy has them: halves as float32."""
    kept = rows.detach().cpu()
    return kept.to(torch.promote_types(kept.dtype, torch.float32)).contiguous().numpy()


def multiplied(found: Integers, dtype: torch.dtype) -> Tensor:
    """Integers times scales (rows, each) as the file format has it: +0.0 for 0, halves rounded from float32."""
    name = str(dtype).removeprefix("torch.")
    scales = found.scales.astype(np.float64) if name == "float64" else found.scales
    bits = grids.product(found.integers, scales, name)
    signed = np.dtype(f"i{bits.dtype.itemsize}")
    return torch.from_numpy(np.ascontiguousarray(bits).view(signed)).view(dtype)


def _refuse_inexact(name: str, after: Tensor, made: Integers, grid: Grid) -> None:
    kind = str(after.dtype).removeprefix("torch.")
    if not bool(torch.isfinite(after).all()):
        raise ValuesError(
            f"{name}: integers times its scale {float(made.scales.max()):.3g} overflow {kind}; make its weights "
            "smaller, or leave it out of weights"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.rint(_array(rows_of(after, grid.axis, grid.group)) / made.scales)
    if not np.array_equal(found, made.integers):
        raise ValuesError(
            f"{name}: its scale {float(made.scales.min()):.3g} is too small for {kind}, which rounds several of its "
            "integers to one value; give it fewer bits, or leave it out of weights"
        )


def _sqnr(before: Tensor, after: Tensor) -> float | None:
    """The signal-to-noise ratio of quantization, in decibels; None where nothing changed."""
    signal, noise = before.double().square().sum(), (after.double() - before.double()).square().sum()
    return float(10 * torch.log10(signal / noise)) if bool(noise > 0) else None
