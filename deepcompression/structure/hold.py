"""Structure held while a model trains, by ``torch.nn.utils.parametrize`` modules: ``hold``, then ``bake``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deepcompression.errors import StructureError, ValuesError
from deepcompression.network.names import (
    first_names,
    memory,
    misfit,
    parameters,
    prunable,
    refuse_compiled,
    refuse_overlaps,
)
from deepcompression.network.parametrized import MASK, SOURCE, VALUES, Holder, is_held, join
from deepcompression.structure.constraints import SHARED, Structure, constraint, of_order
from deepcompression.structure.zeros import ZeroMask, zero_mask

log = logging.getLogger(__name__)
Use = tuple[nn.Module, str]
Part = TypeVar("Part", bound=Holder)


@dataclass(frozen=True)
class Held:
    """Names of the tensors whose structure training holds."""

    zeros: list[str]
    shared: list[str]


def hold(
    model: nn.Module, names: Sequence[str] | None = None, *, shared: Sequence[str] | Mapping[str, str] = ()
) -> Held:
    """From now on training keeps the zeros of ``names`` and the sharing of ``shared``; changes ``model``.

    Make the optimizer afterwards: a shared weight's parameter is its codebook (k,), whose gradient is the sum
    of the gradients of the weights that share each centroid (paper, section 3.3). Tied weights get one
    structure at every use.

    Args:
        model: any module.
        names: tensors whose zeros stay; default: the partly zero prunable ones. One that is zero throughout is held
            only if it is named, with a warning: initialisation makes such ones (LoRA, fixup, zero-initialised heads).
        shared: tensors whose equal weights stay equal (their zeros stay too); or by name in which part of a tensor they
            do, in the word of structure: ``shared(0)`` is for each channel on its own.

    Returns:
        What is held, tied tensors under their first name. Undo with ``bake``.

    Raises:
        StructureError: no such parameter, it is held already, or not finite; nothing is held then.
    """
    words = shared if isinstance(shared, Mapping) else dict.fromkeys(shared, SHARED)
    books = {_known(model, [name])[0]: constraint(word).held for name, word in words.items()}
    zeros = _known(model, [*(_partly_zero(model) if names is None else names), *books])
    for name, weight in held_state(model, zeros).items():
        if weight.numel() and not bool(weight.any()):
            log.warning("%s is zero throughout, and is held so: it can never learn; leave it out if it should", name)
    for name in zeros:
        _refuse_held(_uses(model, name), name)
    hold_by(model, {name: books.get(name, zero_mask) for name in zeros})
    return Held(zeros, list(books))


def hold_structure(model: nn.Module, structure: Structure) -> None:
    """From now on training keeps the constraints of each named tensor; ``hold`` for more than zeros and sharing.

    Raises:
        StructureError: as ``hold``; or a tensor has not what is said of it.
    """
    for name, words in structure.items():
        try:
            for make in _makers(words):
                hold_by(model, {name: make})
        except StructureError as error:
            raise type(error)(str(error) if str(error).startswith(f"{name}:") else f"{name}: {error}") from None


def _makers(words: Collection[str]) -> list[Callable[[Tensor], Holder]]:
    """What holds these constraints, in order; a codebook holds zeros too, one mask is enough, and so is the last of
    several codebooks: what shares values in a tensor does so in its channels."""
    sources, masks = of_order(words, SOURCE), of_order(words, MASK)
    return [constraint(word).held for word in (*(sources[-1:] or masks[:1]), *of_order(words, VALUES))]


def hold_by(model: nn.Module, makes: Mapping[str, Callable[[Tensor], Holder]]) -> None:
    """Holds each named tensor by what is made of its weight; as ``hold``, which makes masks and codebooks.

    In one tensor several things can be held, in the order of ``network.parametrized``: what is trained, a mask, values.

    Raises:
        StructureError: as ``hold``; nothing is held then. A tensor holds such a thing, or a later one, already.
    """
    makes = {_known(model, [name])[0]: make for name, make in makes.items()}
    places = {name: _uses(model, name) for name in makes}
    parts = {name: makes[name](getattr(*uses[0]).detach()) for name, uses in places.items()}
    for name, uses in places.items():
        if is_held(*uses[0]) and max(one.order for one in _parts(*uses[0])) >= parts[name].order:
            _refuse_held(uses, name)
    for name, uses in places.items():
        _hold_one(uses, parts[name])


def held_by(model: nn.Module, kind: type[Part]) -> dict[str, tuple[Part, Tensor]]:
    """What holds a tensor, of one kind, and what is trained behind it, by the tensor's name; tied ones once."""
    found: dict[int, tuple[str, tuple[Part, Tensor]]] = {}
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for attribute, parts in module.parametrizations.items():
                for part in parts:
                    if isinstance(part, kind):
                        behind = _original(module, attribute)
                        found.setdefault(id(part), (join(prefix, attribute), (part, behind)))
    return dict(found.values())


def bake(model: nn.Module) -> nn.Module:
    """Writes held structure into ordinary parameters, tied ones tied again; returns ``model``."""
    baked: dict[nn.Parameter, nn.Parameter] = {}
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            names = [name for name in module.parametrizations if is_held(module, name)]  # type: ignore[union-attr]
            _restore(module, {name: _baked(module, name, baked) for name in names})
    return model


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The live masks of a held model by tensor name, tied once; writing into one changes what is held."""
    return {name: part.mask for name, (part, _) in held_by(model, ZeroMask).items()}


def held_state(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Present values of parameters by name, whether structure is held in them or not."""
    parts = {name: name.rpartition(".") for name in names}
    return {name: getattr(model.get_submodule(part[0]), part[2]).detach() for name, part in parts.items()}


def _hold_one(uses: Sequence[Use], part: Holder) -> None:
    """Registers one structure at every use of a parameter, with one trained tensor behind all of them."""
    if is_held(*uses[0]):
        for module, attribute in uses:
            parametrize.register_parametrization(module, attribute, part)
        return
    weight = getattr(*uses[0])
    for module, attribute in uses:
        module.__dict__.setdefault("_order_before_hold", list(module._parameters))
        # Registering changes the parameter in place: each use has its own until they are tied.
        own = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        module._parameters[attribute] = own
        parametrize.register_parametrization(module, attribute, part)
    for module, attribute in uses[1:]:
        _set_original(module, attribute, _original(*uses[0]))


def _baked(module: nn.Module, attribute: str, baked: dict[nn.Parameter, nn.Parameter]) -> nn.Parameter:
    """The ordinary parameter of one use; the same one for tied uses."""
    original = _original(module, attribute)
    if original not in baked:
        value = getattr(module, attribute).detach().clone(memory_format=torch.contiguous_format)
        baked[original] = nn.Parameter(value, requires_grad=original.requires_grad)
    return baked[original]


def _restore(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    """Puts parameters in place of what holds them, where they stood in the state_dict."""
    if set(parameters) == set(module.parametrizations):  # type: ignore[arg-type]
        # Not remove_parametrizations: it changes the class that parametrize made, and copies share it.
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
    for attribute in parameters if parametrize.is_parametrized(module) else ():
        _set_original(module, attribute, nn.Parameter(_original(module, attribute).detach().clone()))
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
    if parameters:
        order: list[str] = module.__dict__.pop("_order_before_hold")
        known = {**module._parameters, **parameters}
        module._parameters = {name: known[name] for name in order}


def _known(model: nn.Module, names: Collection[str]) -> list[str]:
    """First names of parameters that can be held."""
    first = first_names(model)
    for name in names:
        if name not in first:
            why = misfit(model, name) or "the model has no floating-point parameter of this name to hold"
            raise StructureError(f"{name}: {why}")
    refuse_compiled(model, names)
    return list(dict.fromkeys(first[name] for name in names))


def _partly_zero(model: nn.Module) -> list[str]:
    found = {name: held_state(model, [name])[name] == 0 for name in prunable(model)}
    return [name for name, zero in found.items() if bool(zero.any()) and not bool(zero.all())]


def _uses(model: nn.Module, name: str) -> list[Use]:
    """Every (module, attribute) that is the parameter ``name``, if it can be held."""
    known = parameters(model)
    refuse_overlaps(known)
    weight = known[name]
    if not bool(torch.isfinite(weight).all()):
        raise ValuesError(f"{name}: a value is NaN or infinite; zeros and sharing are held in finite weights")
    same = [other.rpartition(".") for other, parameter in known.items() if memory(parameter) == memory(weight)]
    uses: list[Use] = list(dict.fromkeys((model.get_submodule(part[0]), part[2]) for part in same))
    return uses


def _refuse_held(uses: Sequence[Use], name: str) -> None:
    if any(is_held(*use) for use in uses):
        raise StructureError(f"{name}: is held already; bake the model first")


def _parts(module: nn.Module, attribute: str) -> list[Holder]:
    return list(module.parametrizations[attribute])  # type: ignore[index]


def _original(module: nn.Module, attribute: str) -> nn.Parameter:
    parameter: nn.Parameter = module.parametrizations[attribute].original  # type: ignore[index, union-attr]
    return parameter


def _set_original(module: nn.Module, attribute: str, parameter: nn.Parameter) -> None:
    module.parametrizations[attribute]._parameters["original"] = parameter  # type: ignore[index, union-attr]
