"""Optimizers and learning-rate schedules, made from their names in a recipe."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression import factory
from deepcompression.errors import FactoryError

SHAPES: dict[str, Callable[[float], float]] = {  # fraction of the steps done -> fraction of the rate
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


class Schedule:
    """A torch scheduler that knows whether steps or epochs drive it."""

    def __init__(self, scheduler: Any, by_step: bool) -> None:
        self._scheduler, self._by_step = scheduler, by_step

    def step_done(self) -> None:
        """After each optimizer step."""
        if self._by_step:
            self._scheduler.step()

    def epoch_done(self) -> None:
        """After the last step of an epoch."""
        if not self._by_step:
            self._scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {key: value for key, value in self._scheduler.state_dict().items() if not key.startswith("_get_lr")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        self._scheduler.load_state_dict(state)


def make_optimizer(
    model: nn.Module, spec: Mapping[str, Any], groups: Sequence[Mapping[str, Any]] = ()
) -> torch.optim.Optimizer:
    """The optimizer ``{factory, kwargs}`` of all parameters that are trained.

    Args:
        model: whose parameters these are.
        spec: the factory gets them as ``params``, and the kwargs.
        groups: parameter groups with settings of their own; the rest comes first. A ``scale`` in one is a factor of the
            learning rate of kwargs.

    Raises:
        FactoryError: it does not import, cannot be made, or is no optimizer; or nothing is trained.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise FactoryError("the model has no parameter with requires_grad: there is nothing to train")
    kwargs = {**_fused(spec["factory"], parameters), **spec.get("kwargs", {})}
    params = grouped(parameters, groups, kwargs.get("lr")) if groups else parameters
    made: Any = factory.build(spec["factory"], {"params": params, **kwargs})
    if not isinstance(made, torch.optim.Optimizer):
        raise FactoryError(f"optimizer {spec['factory']}: expected a torch optimizer, got {type(made).__name__}")
    if isinstance(made, torch.optim.SGD) and made.defaults["momentum"] and made.defaults["fused"]:
        made.register_step_pre_hook(_begin_late)
    optimizer: torch.optim.Optimizer = made
    return optimizer


def grouped(
    parameters: Iterable[nn.Parameter], groups: Sequence[Mapping[str, Any]], lr: float | None
) -> list[dict[str, Any]]:
    """Parameter groups as an optimizer takes them: what is in none of ``groups`` first, then these.

    A ``scale`` in one becomes a learning rate of its own, that multiple of ``lr``.

    Args:
        parameters: all that train.
        groups: as optimizers take them, or with a ``scale``.
        lr: the optimizer's, if it has one.
    """
    apart = {id(one) for group in groups for one in group["params"]}
    made: list[dict[str, Any]] = [{"params": [one for one in parameters if id(one) not in apart]}]
    for group in groups:
        own = {name: value for name, value in group.items() if name != "scale"}
        made.append({**({"lr": lr * group["scale"]} if "scale" in group and lr is not None else {}), **own})
    return made


def make_schedule(
    optimizer: torch.optim.Optimizer, spec: str | Mapping[str, Any], warmup: float, epochs: int, steps: int
) -> Schedule:
    """A schedule by shape (constant, linear, cosine), one that falls at the end, or ``{factory, kwargs}``.

    Args:
        optimizer: whose rate it drives.
        spec: shape: by step, from the optimizer's rate to zero or constant; ``{shape, start, power}``: from the
            fraction ``start`` on it falls to zero too, as that power of what is left; factory: a torch scheduler, by
            epoch.
        warmup: epochs in which the rate of a shape rises linearly.
        epochs: of the whole loop.
        steps: of one epoch.

    Raises:
        FactoryError: unknown shape, or the factory fails.
    """
    shape, start, power = _parts(spec)
    if not isinstance(shape, str):
        assert not isinstance(spec, str)
        made = factory.build(spec["factory"], {"optimizer": optimizer, **spec.get("kwargs", {})})
        return Schedule(made, by_step=False)
    if shape not in SHAPES:
        raise FactoryError(f"schedule {shape!r}: expected {', '.join(SHAPES)}, or a factory of a scheduler")
    total, rising = epochs * steps, warmup * steps

    def scale(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return SHAPES[shape](min((step - rising) / max(total - rising, 1), 1.0)) * float(
            _left(step / max(total, 1), start) ** power
        )

    return Schedule(torch.optim.lr_scheduler.LambdaLR(optimizer, scale), by_step=True)


def _parts(spec: str | Mapping[str, Any]) -> tuple[str | Mapping[str, Any], float, float]:
    """A shape (or the ``{factory, kwargs}``), where it falls, and with which power."""
    if isinstance(spec, str) or "shape" not in spec:
        return spec, 1.0, 1.0
    return str(spec["shape"]), float(spec["start"]), float(spec["power"])


def _left(done: float, start: float) -> float:
    """What is left of the fall to zero that begins at the fraction ``start`` of the training."""
    return 1.0 if done <= start else max((1 - done) / (1 - start), 0.0)


def _fused(spec: str, parameters: list[nn.Parameter]) -> dict[str, bool]:
    """torch's own optimizers step in one kernel where they can, much faster for small nets."""
    if not spec.startswith("torch.optim") or "fused" not in inspect.signature(factory.load(spec)).parameters:
        return {}
    return {"fused": all(_goes_fused(one) for one in parameters)}


def _goes_fused(one: nn.Parameter) -> bool:
    return one.is_floating_point() and one.device.type in {"cpu", "cuda"} and dense(one)


def dense(one: Tensor) -> bool:
    """Whether its memory has no gaps: torch's fused steps, and FSDP, take what lies there."""
    return torch.empty_like(one, device="meta").stride() == one.stride()


def divide_gradients(optimizer: torch.optim.Optimizer, count: int) -> None:
    """The mean of ``count`` gradients, from their sum."""
    for one in (one for group in optimizer.param_groups for one in group["params"] if one.grad is not None):
        one.grad /= count


def _begin_late(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """torch's fused SGD fails where parameters of a group get their first gradients at different steps."""
    for group in optimizer.param_groups:
        graded = [one for one in group["params"] if one.grad is not None]
        begun = [one for one in graded if optimizer.state[one].get("momentum_buffer") is not None]
        for one in graded if begun and len(begun) < len(graded) else ():
            if optimizer.state[one].get("momentum_buffer") is None:
                optimizer.state[one]["momentum_buffer"] = torch.zeros_like(one)
