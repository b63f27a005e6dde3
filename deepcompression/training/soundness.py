"""Is a model's state_dict all that it is? Training, the file and a fresh process carry nothing else of it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from deepcompression.codec.dtypes import DTYPES
from deepcompression.errors import FactoryError
from deepcompression.network.names import join, memory, refuse_overlaps
from deepcompression.network.state import plain_state
from deepcompression.training.randomness import seed_everything

log = logging.getLogger(__name__)
TRAINABLE = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
CLOSE = 1e-4  # of the outputs' norm: what another order of sums may change, far below what another value does

Forward = Callable[[nn.Module], Any]


def refuse_unfit(model: nn.Module, other: nn.Module) -> None:
    """Refuses a model whose tensors cannot be trained, stored and brought back, or that is not new each time.

    Args:
        model: what a factory returned; not changed.
        other: what it returned for another seed.

    Raises:
        FactoryError: names the tensor or module, and what to do.
        StructureError: two tensors are unlike views of one memory.
    """
    _refuse_old(model, other)
    _refuse_lazy(model)
    state = model.state_dict(keep_vars=True)
    for name, value in state.items():
        _refuse_value(name, value)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        _refuse_parameter(name, parameter, state)
    if not any(parameter.numel() for parameter in model.parameters() if parameter.is_floating_point()):
        raise FactoryError("has no floating-point parameter: there is nothing to compress")
    half = [name for name, one in model.named_parameters() if one.requires_grad and one.dtype == torch.float16]
    if half:
        log.warning(
            "%s is float16, in which what Adam and its kin divide by becomes zero: training may end in NaN; float32 "
            "weights with precision: bfloat16 train as fast",
            half[0],
        )
    _refuse_ties(model)
    _refuse_unlike(state, other.state_dict())


def refuse_hidden_state(model: nn.Module, other: nn.Module, forward: Forward) -> None:
    """Refuses a model that does not compute the same once another one has its state_dict.

    Tried by one forward in training mode, and one of each in eval mode.

    Args:
        model: what a factory returned; its buffers change as in training.
        other: what it returned for another seed; gets the state_dict of ``model``.
        forward: what a model gives for some samples, in the mode that it is in.

    Raises:
        FactoryError: forward makes, replaces or reshapes what is trained; or the outputs are others.
    """
    _refuse_changes(model, forward)
    try:
        other.load_state_dict(plain_state(model))
    except (RuntimeError, KeyError) as error:
        raise FactoryError(f"a new model does not take its state_dict: {' '.join(str(error).split())[:200]}") from None
    first, again, came = (_outputs(one, forward) for one in (model, model, other))
    if not _close(first, again):
        log.warning(
            "the model's outputs for the same samples differ, in eval mode and by one seed: so will all metrics"
        )
    elif not _close(first, came):
        names = ", ".join(_hidden(model, other))
        told = (
            f"such as {names}: register_buffer(..., persistent=True) puts a tensor there" if names else "see __init__"
        )
        raise FactoryError(
            "a new model with the same state_dict gives other outputs: something that is drawn at random when it is "
            f"built, or changes while it runs, is not in the state_dict, {told}"
        )


def _refuse_old(model: nn.Module, other: nn.Module) -> None:
    """A factory must make all of a model anew: stages would train and measure one object under two names."""
    if model is other:
        raise FactoryError("returned the same object on two calls; it must build a new model each time (no cache)")
    seen = {id(one) for one in [*other.modules(), *other.parameters()]}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in seen]
    names += [name for name, one in model.named_modules() if id(one) in seen and any(True for _ in one.buffers())]
    if names:
        raise FactoryError(f"{names[0]} is the same object in two models that it returned; it must build all anew")


def _refuse_lazy(model: nn.Module) -> None:
    for prefix, module in model.named_modules():
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and is_lazy(tensor):
                raise FactoryError(
                    f"{join(prefix, name)} ({type(module).__name__}) has no shape before the first forward; give all "
                    "sizes, or call the model once on a sample in the factory"
                )


def _refuse_value(name: str, value: object) -> None:
    """What stands in a state_dict is stored as it is, or not at all."""
    module, _, own = name.rpartition(".")
    if not isinstance(value, Tensor):
        what = f"{join(module, 'get_extra_state')}" if own == "_extra_state" else f"{name}: state_dict"
        raise FactoryError(
            f"{what} returns a {type(value).__name__}, and files hold tensors alone; return a tensor there, or "
            "register a buffer"
        )
    if value.is_meta:
        raise FactoryError(f"{name} is on the meta device and has no values; build the model on the CPU")
    if value.layout != torch.strided or value.is_quantized:
        raise FactoryError(f"{name} is a {value.layout} tensor of {value.dtype}; only dense ones can be stored")
    if _dtype(value) not in DTYPES:
        raise FactoryError(
            f"{name} is {_dtype(value)}, which files do not hold; real numbers, such as torch.view_as_real makes of "
            "complex ones, are trained and stored"
        )
    if any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True)):
        raise FactoryError(f"{name} is an expanded view, into which nothing can be loaded; make it one by .clone()")


def _refuse_parameter(name: str, parameter: nn.Parameter, state: Mapping[str, object]) -> None:
    if parameter.is_floating_point() and parameter.requires_grad and parameter.dtype not in TRAINABLE:
        raise FactoryError(f"{name} is {_dtype(parameter)}, in which nothing trains; build the model in bfloat16")
    if name not in state:
        raise FactoryError(f"{name} is a parameter that state_dict() leaves out: what is learnt in it would be lost")


def _refuse_ties(model: nn.Module) -> None:
    """Two Parameters on one memory are stepped twice, and come apart on their way to another device."""
    first: dict[object, tuple[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known, same = first.setdefault(memory(parameter), (name, parameter))
        if same is not parameter:
            raise FactoryError(f"{known} and {name} are two Parameters on one memory; tie them by {name} = {known}")
    refuse_overlaps({**dict(model.named_parameters()), **dict(model.named_buffers())})


def _refuse_unlike(state: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    names = [name for name in dict.fromkeys([*state, *other]) if name not in state or name not in other]
    if names:
        raise FactoryError(f"two calls return different models: {names[0]} is in one of them alone")
    for name in state:
        if state[name].shape != other[name].shape or state[name].dtype != other[name].dtype:
            ways = " and ".join(f"{_dtype(one[name])} {tuple(one[name].shape)}" for one in (state, other))
            raise FactoryError(f"two calls return different models: {name} is {ways}")


def _refuse_changes(model: nn.Module, forward: Forward) -> None:
    """A forward may change values, and nothing else of what an optimizer and a file know."""
    model.train()
    parameters, shapes = dict(model.named_parameters()), _shapes(model)
    trained = {name: one.requires_grad for name, one in parameters.items()}
    _run(model, forward)
    now, then = dict(model.named_parameters()), _shapes(model)
    for name in dict.fromkeys([*then, *shapes]):
        if name not in shapes or name not in then:
            verb = "makes" if name in then else "removes"
            raise FactoryError(f"its forward {verb} {name}; make all layers in __init__")
        if shapes[name] != then[name]:
            raise FactoryError(
                f"its forward changes {name} from {shapes[name]} to {then[name]}; keep shapes and dtypes"
            )
    for name, one in now.items():
        if one is not parameters.get(name):
            raise FactoryError(f"its forward puts a new Parameter in place of {name}, which no optimizer knows of")
        if one.requires_grad != trained[name]:
            raise FactoryError(f"its forward sets requires_grad of {name} to {one.requires_grad}; do so in the factory")


def _shapes(model: nn.Module) -> dict[str, tuple[tuple[int, ...], str]]:
    state = model.state_dict().items()
    return {
        name: (tuple(one.shape), _dtype(one))
        for name, one in state
        if isinstance(one, Tensor) and not name.endswith("_extra_state")
    }


def _outputs(model: nn.Module, forward: Forward) -> list[Tensor]:
    """All tensors that come out in eval mode."""
    found = pytree.tree_leaves(_run(model.eval(), forward))
    return [one.detach() for one in found if isinstance(one, Tensor)]


def _run(model: nn.Module, forward: Forward) -> Any:
    seed_everything(0)
    with torch.no_grad():
        return forward(model)


def _close(ones: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    return all(_near(one, other) for one, other in zip(ones, others, strict=True))


def _near(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    one, other = (part.to(torch.complex128 if one.is_complex() else torch.float64).cpu() for part in (one, other))
    known = torch.isfinite(one)
    gap = (one[known] - other[known]).norm()
    return bool(torch.equal(known, torch.isfinite(other)) and gap <= CLOSE * one[known].norm() + 1e-8)


def _hidden(model: nn.Module, other: nn.Module) -> Iterator[str]:
    """Names of tensors and numbers that are in no state_dict, and differ."""
    state = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    for (prefix, one), two in zip(model.named_modules(), other.modules(), strict=False):
        for name, value in {**vars(one), **one._buffers}.items():
            twin = {**vars(two), **two._buffers}.get(name)
            if isinstance(value, Tensor) and id(value) not in state:
                differs = not isinstance(twin, Tensor) or not _near(value.detach(), twin.detach())
            else:
                differs = name != "training" and isinstance(value, int | float) and value != twin
            if differs:
                yield join(prefix, name)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
