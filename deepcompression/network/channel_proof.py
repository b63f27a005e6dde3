"""Whether a model runs without some of its channels, and gives what it gives while nothing takes them in."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.errors import told
from deepcompression.network.resizing import Group, resize

# Of the outputs' norm: a size in a formula is far beyond it, the rounding of sums (TF32 on one side only) far below.
TOLERANCE = 0.01
NARROW_TOLERANCE = 0.05  # where a tensor is float16 or bfloat16

Run = Callable[[nn.Module], Any]


def proved(model: nn.Module, run: Run, groups: Sequence[Group]) -> tuple[list[Group], list[tuple[Group, str]]]:
    """The groups that copies of ``model`` run without every third channel of, and the others with the reason.

    Operations do not show all that a forward does with a size: a view to a size that is written in the code, a split
    by a number, a mean that divides by a count. What runs, and gives the same as with zeros, has none of it.

    Args:
        model: not changed; in the mode that ``run`` is for.
        run: calls its argument on samples.
        groups: to be proved, all together; looked at in halves where that fails.
    """
    failed: list[tuple[Group, str]] = []
    awake = _awake(model)

    def survivors(base: list[Group], more: Sequence[Group]) -> list[Group]:
        why = _failure(awake, run, [*base, *more]) if more else None
        if why is None:
            return [*base, *more]
        if len(more) == 1:
            failed.append((more[0], why))
            return base
        half = len(more) // 2
        return survivors(survivors(base, more[:half]), more[half:])

    return survivors([], groups), failed


def _awake(model: nn.Module) -> nn.Module:
    """The model, or a copy with noise for parameters that are zero throughout, behind which nothing could be seen."""
    asleep = [name for name, one in model.named_parameters() if one.is_floating_point() and not one.any()]
    double = copy.deepcopy(model) if asleep else model
    noise = torch.Generator().manual_seed(0)
    for name in asleep:
        parameter = double.get_parameter(name).data
        parameter.copy_(torch.randn(parameter.shape, generator=noise) * 0.02)
    return double


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Whatever the block draws, after it everything is drawn as if it had not run."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


def _failure(model: nn.Module, run: Run, groups: Sequence[Group]) -> str | None:
    """Why the model cannot be without every third channel of some groups; None: it can."""
    kept = [(group, [channel for channel in range(group.channels) if channel % 3]) for group in groups]
    try:
        came = _outputs(_thinned(model, resize(model, kept)), run)
    except Exception as error:  # a model's forward is anybody's code
        return f"without a third of its channels a copy does not run: {told(error)}"
    expected = _outputs(_masked(model, kept), run)
    if [one.shape for one in came] != [one.shape for one in expected]:
        return "without a third of its channels a copy gives outputs of another shape: a size is written in its code"
    gap = sum(float((one.double() - other.double()).norm()) for one, other in zip(came, expected, strict=True))
    norm = sum(float(one.double().norm()) for one in expected)
    narrow = any(one.is_floating_point() and one.itemsize < 4 for one in (*model.parameters(), *expected))
    if gap <= (NARROW_TOLERANCE if narrow else TOLERANCE) * norm:
        return None
    return (
        f"without a third of its channels a copy gives other outputs than with zeros for them (by {gap:.2g} of "
        f"{norm:.2g}): its code computes with sizes, or takes channels by number"
    )


def _outputs(model: nn.Module, run: Run) -> list[Tensor]:
    with undrawn():
        return [one.detach() for one in _tensors(run(model))]


def _tensors(value: Any) -> Iterator[Tensor]:
    """All floating-point tensors in what a model returned, in order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _tensors(one)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


def _masked(model: nn.Module, kept: Sequence[tuple[Group, Sequence[int]]]) -> nn.Module:
    """A copy in which weights that take removed channels in are zero."""
    double = copy.deepcopy(model)
    state = {**dict(double.named_parameters()), **dict(double.named_buffers())}
    for group, channels in kept:
        for member in group.members:
            if member.role == "in":
                gone = [place for place, one in enumerate(member.index) if one >= 0 and one not in channels]
                where = torch.tensor(gone, dtype=torch.long, device=state[member.tensor].device)
                state[member.tensor].data.index_fill_(member.axis, where, 0.0)
    return double


def _thinned(model: nn.Module, record: Mapping[str, Any]) -> nn.Module:
    """A copy without the channels that a record of ``resize`` removes; a tied tensor stays one."""
    double = copy.deepcopy(model)
    thin: dict[int, Tensor] = {}
    for name, axes in record["tensors"].items():
        prefix, _, own = name.rpartition(".")
        module = double.get_submodule(prefix)
        held: Any = module._parameters if own in module._parameters else module._buffers
        old = held[own]
        held[own] = thin.setdefault(id(old), _cut(old, axes))
    for prefix, attributes in record["modules"].items():
        for attribute, value in attributes.items():
            setattr(double.get_submodule(prefix), attribute, value)
    return double


def _cut(tensor: Tensor, axes: Sequence[tuple[int, Sequence[int]]]) -> Tensor:
    """Some places of some axes."""
    cut = tensor.detach()
    for axis, places in axes:
        cut = cut.index_select(axis, torch.tensor(places, device=cut.device))
    return nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut
