"""Residual blocks left out: those without which a model loses least."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.names import is_layer
from deepcompression.network.trace import resting

Run = Callable[[nn.Module], Any]
NORMS = (nn.LayerNorm, nn.RMSNorm)
LEVELS = (2.0, 3.0)  # of what goes into a block without weights: a shortcut adds their difference to what comes out
SHORTCUT, ALIKE = 0.9, 0.5  # part of the values that differ by it; correlation where a norm follows the addition


@dataclass(frozen=True)
class Dropped:
    """A block that is left out, in the order in which they went; ``loss`` of the model without it and those before."""

    name: str
    weights: int
    loss: float


def residual_blocks(model: nn.Module, run: Run) -> list[str]:
    """The names of modules with a shortcut from input to output, of one shape; the innermost, in the model's order.

    That there is a shortcut is tried: with all matrices of the module at 0 its output still follows its input.

    Args:
        model: not changed: a copy of it runs, in eval mode, without gradients.
        run: calls its argument on a few samples.
    """
    double = copy.deepcopy(model)
    calls = _calls(double, run)
    found = [name for name, given in calls.items() if _is_shortcut(double.get_submodule(name), *given)]
    return [name for name in found if not any(other.startswith(f"{name}.") for other in found)]


def _calls(model: nn.Module, run: Run) -> dict[str, tuple[tuple[Any, ...], dict[str, Any]]]:
    """With what the modules are called that hold layers and return a tensor of their first input's shape."""
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: Any, named: Any, output: Any) -> None:
            if _same_form(inputs[:1], output):
                calls.setdefault(name, (inputs, named))

        return hook

    handles = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name and not is_layer(module) and any(is_layer(one) for one in module.modules())
    ]
    try:
        with resting(model), torch.no_grad():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _same_form(inputs: tuple[Any, ...], output: object) -> bool:
    """Whether what comes first and what comes out are floats of one shape."""
    given: Any = inputs[0] if inputs else None
    if not isinstance(given, Tensor) or not isinstance(output, Tensor):
        return False
    return given.shape == output.shape and given.is_floating_point()


def _is_shortcut(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether a module's output follows its first input without its matrices, which are put back."""
    kept = {name: one.detach().clone() for name, one in module.named_parameters()}
    normed = any(isinstance(one, NORMS) for one in module.modules())
    try:
        with resting(module), torch.no_grad():
            for one in module.parameters():
                if one.ndim > 1:
                    one.zero_()
            if _adds(module, inputs, named):
                return True
            return normed and _correlated(module(*inputs, **named), inputs[0]) > ALIKE
    finally:
        with torch.no_grad():
            for name, one in module.named_parameters():
                one.copy_(kept[name])


def _adds(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Whether what goes in is added to what comes out, at two levels of it far from what an activation cuts."""
    low, high = (module(torch.full_like(inputs[0], level), *inputs[1:], **named) for level in LEVELS)
    step = LEVELS[1] - LEVELS[0]
    return bool(((high - low - step).abs() < 1e-3).float().mean() > SHORTCUT)


def _correlated(one: Tensor, other: Tensor) -> float:
    both = torch.stack([one.flatten().double(), other.flatten().double()])
    return float(torch.corrcoef(both)[0, 1].nan_to_num())


@contextmanager
def without(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """While it lasts, modules give what they are given."""
    handles = [model.get_submodule(name).register_forward_hook(_first) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first(module: nn.Module, inputs: tuple[Any, ...], output: object) -> Any:
    return inputs[0]


def choose(
    model: nn.Module,
    blocks: Sequence[str],
    enough: Callable[[Sequence[str]], bool],
    loss: Callable[[nn.Module], float],
) -> list[Dropped]:
    """The blocks to leave out, one after the other: each time the one without which the loss is least.

    Args:
        model: not changed.
        blocks: of ``residual_blocks``.
        enough: of the blocks that are left out, whether these are all that are to go.
        loss: of a model, on some samples.

    Raises:
        StructureError: not enough can be left out, even where one block alone stays.
    """
    gone: list[Dropped] = []
    while not enough([one.name for one in gone]):
        rest = [name for name in blocks if name not in {one.name for one in gone}]
        if len(rest) < 2:
            raise StructureError(f"prune: one of {len(blocks)} residual blocks must stay, which is more than asked for")
        gone.append(min((_tried(model, name, gone, loss) for name in rest), key=lambda one: one.loss))
    return gone


def _tried(model: nn.Module, name: str, gone: Sequence[Dropped], loss: Callable[[nn.Module], float]) -> Dropped:
    weights = sum(one.numel() for one in model.get_submodule(name).parameters())
    with without(model, [*(one.name for one in gone), name]):
        return Dropped(name, weights, loss(model))


def edits_of(gone: Sequence[Dropped]) -> list[Mapping[str, str]]:
    """A record for each block."""
    return [{"kind": "bypass", "module": one.name} for one in gone]
