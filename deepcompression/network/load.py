"""A state_dict into a model: what fits, and what is told."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deepcompression.errors import WeightsError
from deepcompression.formats.state_dict import is_dense, is_extra, kind_of
from deepcompression.network.names import join, memory
from deepcompression.network.state import bits_of

log = logging.getLogger(__name__)
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")


def load_state(model: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Loads ``state`` into ``model``; every tensor must be there, with its shape.

    A tied parameter may be missing under all of its names but one. What is on the meta device gets memory on the CPU.
    Values go into the model's own dtypes; where that rounds them, a warning says so, as of parameters that hold NaN or
    infinity.

    Args:
        model: filled in place.
        state: tensors by name.
        where: their file, for messages.

    Raises:
        WeightsError: names what is missing, unexpected, of another shape, not dense, of a dtype that does not hold it,
            unlike under two names of one tensor, or left on the meta device, and what to do; the model is as it was.
    """
    own = own_tensors(model)
    whole = fitting(own, state, where)
    found = {name: tensor for name, tensor in whole.items() if tensor is not None}
    check_tensors(own, found, where)
    _give_memory(model, own, where)
    model.load_state_dict(found)


def unwrapped(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` in its order, names that the model does not have without the parts that wrappers put anywhere into them
    (``_orig_mod`` of torch.compile, ``module`` of DataParallel, those of FSDP), where the model has these.

    Args:
        model: its names are looked at.
        state: tensors by name.
    """
    own = own_tensors(model)
    names = {name: name if name in own else _plain_name(name) for name in state}
    taken = Counter(names.values())
    return {new if new in own and taken[new] == 1 else old: state[old] for old, new in names.items()}


def _plain_name(name: str) -> str:
    """A name without the parts that wrappers of modules put in."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a model's state_dict themselves, by name."""
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}


def fitting(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> dict[str, Tensor | None]:
    """What ``state`` has for each of ``own``; only names and shapes are looked at.

    Args:
        own: tensors of a model.
        state: tensors by name, of the meta device too.
        where: their file, for messages.

    Raises:
        WeightsError: names what is missing, unexpected, or of another shape, and what to do.
    """
    whole = {name: _tied(own, name, state) for name in own}
    missing = [name for name, tensor in whole.items() if tensor is None]
    unexpected = [name for name in state if name not in own]
    wrong = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape and not is_extra(name)
    ]
    if missing or unexpected or wrong:
        parts = [
            f"{title} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
            for title, names in (("missing:", missing), ("unexpected:", unexpected), ("shape:", wrong))
            if names
        ]
        raise WeightsError(f"{where}: does not fit the model; {'; '.join(parts)}{_hint(own, unexpected, missing)}")
    return whole


def check_tensors(own: Mapping[str, Tensor], found: Mapping[str, Tensor], where: str) -> None:
    """Raise WeightsError where ``own`` cannot take the values of ``found``; tell of those that are rounded or unusable.

    Args:
        own: tensors of a model.
        found: what they shall hold, of the same shapes.
        where: their file, for messages.
    """
    for name, tensor in found.items():
        if not is_dense(tensor):
            raise WeightsError(f"{where}: {name} is {kind_of(tensor)}; only dense ones with values can be loaded")
    _refuse_unlike(own, found, where)
    _refuse_casts(own, found, where)
    _tell_unusable(own, found, where)


def _tied(own: Mapping[str, Tensor], name: str, state: Mapping[str, Tensor]) -> Tensor | None:
    if name in state:
        return state[name]
    return next((state[other] for other in own if other in state and memory(own[other]) == memory(own[name])), None)


def _refuse_unlike(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """One tensor under two names takes one value: which of two unlike ones were chance."""
    first: dict[object, str] = {}
    for name in own:
        other = first.setdefault(memory(own[name]), name)
        if state[other] is not state[name] and not _same(state[other], state[name]):
            raise WeightsError(
                f"{where}: {other} and {name} are one tensor in the model (tied), but hold unlike values here; "
                "untie them in the model, or drop one of them from the file"
            )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(bits_of(one), bits_of(other))


def _refuse_casts(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """A cast that loses values is refused between kinds of numbers, and told between floating-point types."""
    rounded = []
    for name, tensor in state.items():
        target = own[name].dtype
        if tensor.dtype == target or is_extra(name):
            continue
        complex_ = tensor.is_complex() or target.is_complex
        if not complex_ and _same(tensor.to(target).to(tensor.dtype), tensor):
            continue
        if not (tensor.is_floating_point() and target.is_floating_point) or _overflows(tensor, target):
            raise WeightsError(
                f"{where}: {name} is {_name(tensor.dtype)}, the model's is {_name(target)}, which does not hold its "
                "values"
            )
        rounded.append(f"{name} from {_name(tensor.dtype)} to {_name(target)}")
    if rounded:
        log.warning("%s: the model holds fewer digits than the file: %s rounded", where, _some(rounded))


def _tell_unusable(own: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """A buffer may well be infinite, as masks of attention are; a weight is only after a training that went wrong."""
    bad = [name for name, one in state.items() if isinstance(own[name], nn.Parameter) and not _is_finite(one)]
    if bad:
        log.warning("%s: weights that are NaN or infinite: %s", where, _some(bad).rpartition(" ")[0])


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all()) if tensor.is_floating_point() else True


def _overflows(tensor: Tensor, target: torch.dtype) -> bool:
    """Whether a finite value has no place in a floating-point type."""
    return bool((tensor.isfinite() & ~tensor.to(target).isfinite()).any())


def _give_memory(model: nn.Module, own: Mapping[str, Tensor], where: str) -> None:
    """Puts tensors on the CPU in place of those on the meta device, tied ones tied; the file will fill them."""
    loaded = {id(tensor) for tensor in own.values()}
    made: dict[int, Tensor] = {}
    places = [
        (tensors, join(prefix, attribute), attribute, tensor)
        for prefix, module in model.named_modules()
        for tensors in (module._parameters, module._buffers, vars(module))
        for attribute, tensor in tensors.items()
        if isinstance(tensor, Tensor) and tensor.is_meta
    ]
    empty = [name for _, name, _, tensor in places if id(tensor) not in loaded]
    if empty:
        raise WeightsError(
            f"{where}: {_some(empty)} on the meta device, and not in the state_dict (not persistent), so that no file "
            "brings the values; build the model on the CPU"
        )
    for tensors, _, attribute, tensor in places:
        if id(tensor) not in made:
            real = torch.empty_like(tensor, device="cpu")
            made[id(tensor)] = nn.Parameter(real, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else real
        tensors[attribute] = made[id(tensor)]


def _some(names: Sequence[str]) -> str:
    """A few names and how many more, with their verb."""
    told = f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
    return f"{told} {'is' if len(names) == 1 else 'are'}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _hint(own: Mapping[str, Tensor], unexpected: Sequence[str], missing: Sequence[str]) -> str:
    for name in unexpected[:1]:
        for target in own:
            if name.endswith(f".{target}") and name != target:
                return f"; set model.weights.strip: [{name.removesuffix(target)!r}]"
    return f"; to leave tensors out, set model.weights.ignore: [{unexpected[0]}]" if unexpected and not missing else ""
