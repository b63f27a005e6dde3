"""Precision of codebooks and the rest; ``finetune`` with sharing held trains the centroids before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.state import normalised, plain_state, replaced
from deepcompression.quantization.rounding import INT8, PRECISIONS, lost_ratio, lost_sum, lost_values, narrows, rounded
from deepcompression.training.device import Compute
from deepcompression.training.evaluate import evaluate
from deepcompression.training.problem import Problem

BY_EFFECT = (INT8, "bfloat16", "float16")  # from the fewest bytes on
AUTO = "auto"
IN_RANGE = ("float16", "bfloat16")  # what auto tries: the first is more exact, the second has the range of float32
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Rounded:
    """A rounded state_dict.

    ``kept``: why tensors stayed; ``merged``: how many centroids became equal; ``instead``: which tensors got another
    precision than the one asked for, and why; ``coarse``: which ones rounding changed much, and how much.
    """

    state: dict[str, Tensor]
    kept: dict[str, str]
    merged: dict[str, int]
    instead: dict[str, str] = field(default_factory=dict)
    coarse: dict[str, str] = field(default_factory=dict)


def round_precision(
    state: Mapping[str, Tensor],
    *,
    shared: Iterable[str] = (),
    codebook: str = "float32",
    rest: str = "float32",
    left: Mapping[str, str] | None = None,
) -> Rounded:
    """``state`` with values that a narrower type holds exactly; tensors keep their own dtype.

    The file then stores them at that precision. Rounding to a floating-point type never makes a value non-finite, zero
    or subnormal: such a tensor stays as it is. int8 is an evenly spaced grid, whose error is a part of the *largest*
    value of the tensor. That serves weights and biases, which are summed, but not what is used by ratio. So a tensor is
    rounded to float16 instead (bfloat16 where that has not the range) where int8 would change one of its values by more
    than a twentieth, if all have one sign, as variances and scales; a ``mean`` by more than a twentieth of the standard
    deviation that the ``var`` or ``std`` beside it tells; or more than an eighth of a vector's values to zero.
    ``coarse`` names what rounding changed by more than a twentieth all in all, or by ratio at 16 bits.

    Args:
        state: tensors by name; not changed. Integers and float64 stay.
        shared: tensors whose values are centroids.
        codebook: float32, float16 or bfloat16, for the shared tensors; or auto: float16, bfloat16 where that has not
            the range.
        rest: float32, float16 or bfloat16, for every other float32 (or narrower) tensor; or int8: multiples of a
            127th of the largest magnitude, which the file stores as integers and a scale; for float32 alone.
        left: why other tensors are not to be rounded, by name: they are on a grid already.

    Raises:
        StructureError: an unknown precision, a shared tensor that is missing or not finite.
    """
    for precision, known in ((codebook, [*PRECISIONS, AUTO]), (rest, [*PRECISIONS, INT8])):
        if precision not in known:
            raise StructureError(f"quantize: precision {precision!r}; expected one of {', '.join(known)}")
    shared = list(shared)
    clean = normalised(state, shared)
    books = {id(clean[name]) for name in shared}  # by object: tied names are one codebook
    exact = {id(clean[name]): why for name, why in (left or {}).items()}
    made = Rounded({}, {}, {}, {}, {})
    for name, tensor in clean.items():
        wanted = codebook if id(tensor) in books else rest
        if id(tensor) in exact:
            made.kept.update({name: exact[id(tensor)]} if wanted != "float32" else {})
        elif wanted != "float32" and tensor.dtype == torch.float64:
            made.kept[name] = "float64 is not rounded"
        elif wanted == INT8 and tensor.is_floating_point():
            _to_int8(made, name, tensor, _variance(clean, name))
        elif wanted != INT8 and narrows(tensor, IN_RANGE[0] if wanted == AUTO else wanted):
            _to_float(made, name, tensor, IN_RANGE if wanted == AUTO else (wanted,), _variance(clean, name))
            if name in shared and name in made.state:
                made.merged[name] = len(torch.unique(tensor)) - len(torch.unique(made.state[name]))
    return replace(made, state=replaced(clean, made.state))


def _to_int8(made: Rounded, name: str, tensor: Tensor, variance: Tensor | None) -> None:
    """Rounds one tensor, to the grid where that serves it; puts it and what there is to say into ``made``."""
    grid, reason = rounded(tensor, INT8)
    if reason:
        made.kept[name] = reason
        return
    lost = lost_ratio(tensor, grid, variance) or (lost_values(tensor, grid) if tensor.ndim < 2 else "")
    if not lost:
        made.state[name] = grid
        made.coarse.update(_told(name, "int8", lost_values(tensor, grid) or lost_sum(tensor, grid)))
        return
    tries = {one: rounded(tensor, one) for one in IN_RANGE}
    fitting = [one for one, (after, harm) in tries.items() if not harm and not lost_ratio(tensor, after, variance)]
    made.instead[name] = f"is {(fitting or ['float32'])[0]}: by int8 {lost}"
    if fitting:
        made.state[name] = tries[fitting[0]][0]


def _to_float(made: Rounded, name: str, tensor: Tensor, tries: Sequence[str], variance: Tensor | None) -> None:
    """Rounds one tensor to the first type that does it no harm; puts it and what there is to say into ``made``."""
    for precision in tries:
        after, reason = rounded(tensor, precision)
        if not reason:
            made.state[name] = after
            made.coarse.update(_told(name, precision, lost_ratio(tensor, after, variance)))
            return
    made.kept[name] = reason


def _told(name: str, precision: str, lost: str) -> dict[str, str]:
    return {name: f"is {precision}, by which {lost}"} if lost else {}


def _variance(state: Mapping[str, Tensor], name: str) -> Tensor | None:
    """The variances that belong to means, by the names of BatchNorm and its kin, and of what normalises inputs."""
    if not name.endswith("mean"):
        return None
    variance, deviation = (state.get(name.removesuffix("mean") + end) for end in ("var", "std"))
    return deviation.square() if variance is None and deviation is not None else variance


def round_by_effect(
    model: nn.Module,
    problem: Problem,
    *,
    shared: Iterable[str] = (),
    codebook: str = "float32",
    tolerance: float = TOLERANCE,
    left: Mapping[str, str] | None = None,
    compute: Compute | None = None,
) -> tuple[Rounded, dict[str, str]]:
    """As ``round_precision``, each of the other tensors at the precision of fewest bytes that the model does not feel.

    Tensor by tensor, int8, bfloat16 and float16 are tried, in this order, on all that was rounded before; the first at
    which the loss on validation is at most ``tolerance`` (a fraction) above that before any rounding stays. int8 is
    passed over for a tensor whose ratios it would not keep (``round_precision``), whatever the loss; so is bfloat16.

    Args:
        model: left with the rounded weights.
        problem: its validation split and step.
        shared: tensors whose values are centroids; they get ``codebook`` first.
        codebook: as of ``round_precision``.
        tolerance: 0 or more.
        left: as of ``round_precision``.
        compute: where the model is evaluated.

    Returns:
        The rounded state, and each other tensor's precision by name.

    Raises:
        StructureError: as ``round_precision``.
    """
    shared, chosen = set(shared), {}

    def loss() -> float:
        return evaluate(model, problem.validation, problem.step, problem.metric, compute).loss

    most = loss() * (1 + tolerance)
    books = round_precision(plain_state(model), shared=shared, codebook=codebook, left=left)
    model.load_state_dict(books.state)
    state, kept = books.state, dict(books.kept)
    centroids, exact = ({id(state[name]) for name in some} for some in (shared, left or {}))
    kept |= {name: why for name, why in (left or {}).items() if id(state[name]) not in centroids}
    for name, tensor in list(state.items()):
        if id(tensor) in centroids | exact or not tensor.is_floating_point():
            continue
        if tensor.dtype != torch.float32:
            kept[name] = f"only float32 is rounded by effect, it is {str(tensor.dtype).removeprefix('torch.')}"
            continue
        felt = False
        for precision in BY_EFFECT:
            after, reason = rounded(tensor, precision)
            if reason or lost_ratio(tensor, after, _variance(state, name)):
                continue
            felt = True
            trial = replaced(state, {name: after})
            model.load_state_dict(trial)
            if loss() <= most:
                state, chosen[name] = trial, precision
                break
        else:
            model.load_state_dict(state)
            kept[name] = "its rounding is felt" if felt else reason or "its ratios need all digits"
    return replace(books, state=state, kept=kept), chosen
