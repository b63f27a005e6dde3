"""Edits made: each record by the function of its kind, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression import __version__
from deepcompression.codec.edits import SINCE
from deepcompression.errors import EditError, told
from deepcompression.network.edits import (
    binary,
    bypass,
    dictionary,
    fold,
    quantize_values,
    resize,
    select_inputs,
    threshold,
)
from deepcompression.network.edits.quantize_values import at_sites
from deepcompression.network.edits.record import Record
from deepcompression.network.edits.undo import whole_or_not
from deepcompression.network.trace import resting

KINDS: dict[str, Any] = {
    "resize": resize,
    "select_inputs": select_inputs,
    "bypass": bypass,
    "quantize_values": quantize_values,
    "fold": fold,
    "binary": binary,
    "dictionary": dictionary,
    "threshold": threshold,
}


def apply(model: nn.Module, record: Record) -> None:
    """Make one edit of ``model``; raises as ``apply_all``."""
    apply_all(model, [record])


def apply_all(model: nn.Module, records: Sequence[Record]) -> None:
    """Make edits of ``model`` in their order; the values of tensors come from a state_dict that is loaded afterwards.

    Args:
        model: that of the user's code, new.
        records: plain mappings with a ``kind``; what else each has, the module of its kind says.

    Raises:
        EditError: a kind is unknown here, or an edit does not fit the model, which is then as it was.
    """
    kinds = [_kind(record) for record in records]
    with whole_or_not(model):
        for kind, record in zip(kinds, records, strict=True):
            kind.apply(model, record)


def check_values(model: nn.Module, records: Sequence[Record], state: Mapping[str, Tensor]) -> None:
    """Raise EditError where the tensors that edits brought have values in ``state`` with which nothing can run.

    Args:
        model: edited.
        records: that it was edited by.
        state: by names of the edited model.
    """
    for record in records:
        kind = _kind(record)
        if hasattr(kind, "check_values"):
            kind.check_values(model, record, state)


def values_of(record: Record) -> list[str]:
    """The tensors of the state_dict by which an edit changes values, and which therefore stay exact.

    Raises:
        EditError: its kind is unknown here.
    """
    kind = _kind(record)
    found: list[str] = kind.state_names(record) if hasattr(kind, "state_names") else []
    return found


def check(model: nn.Module, run: Callable[[nn.Module], object]) -> None:
    """Run an edited model once, in eval mode without gradients.

    Args:
        run: calls its argument on a sample, such as ``lambda model: model(images)``.

    Raises:
        EditError: the forward fails, and in which layer; or it never comes by a site of an edit.
    """
    names = {module: name for name, module in model.named_modules()}
    entered: list[nn.Module] = []
    called: set[nn.Module] = set()

    def enter(module: nn.Module, _: object) -> None:
        entered.append(module)
        called.add(module)

    def leave(module: nn.Module, *_: object) -> None:
        while entered and entered.pop() is not module:  # those within it that raised, and were caught
            pass

    handles = [module.register_forward_pre_hook(enter, prepend=True) for module in names]
    handles += [module.register_forward_hook(leave) for module in names]
    try:
        with resting(model), torch.no_grad():
            run(model)
    except Exception as error:  # a model's forward is anybody's code
        where = (entered and names[entered[-1]]) or "the model's own forward"
        raise EditError(
            f"the edited model does not run: {where}: {told(error)}; a size is fixed there, or an edit is missing"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    for module, name in names.items():
        for one in at_sites(module) if module not in called else []:
            raise EditError(f"edit {one.kind}: the forward never comes by {one.site}: {name} is not called")


def _kind(record: Record) -> Any:
    """The functions of a record's kind."""
    kind = record.get("kind") if isinstance(record, Mapping) else None
    if not isinstance(kind, str):
        raise EditError(f"an edit is a mapping with the key kind, not {str(record)[:80]!r}")
    if kind in KINDS:
        return KINDS[kind]
    since = record.get("since")
    needs = f"it needs deep-compression {since}" if since else "no version known here makes it"
    raise EditError(f"edit {kind[:80]}: {needs}; this is {__version__}, which knows {', '.join(SINCE)}")
