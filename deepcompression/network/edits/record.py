"""What the records of all kinds have in common: how their keys are read, and what is said of a misfit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from deepcompression.errors import EditError

Record = Mapping[str, Any]


def misfit(record: Record, why: str) -> EditError:
    """The error to raise: which kind of edit, and why it cannot be made."""
    return EditError(f"edit {record.get('kind')}: {why}")


def check_keys(record: Record, *keys: str) -> None:
    """Raise EditError where a record has not just these keys beside ``kind`` and ``since``."""
    missing = [key for key in keys if key not in record]
    unknown = [key for key in record if key not in (*keys, "kind", "since")]
    if missing or unknown:
        what = f"the key {missing[0]} is missing" if missing else f"the key {unknown[0]!r} is not known here"
        raise misfit(record, f"{what}; expected {', '.join(keys)}")


def text(record: Record, key: str) -> str:
    """The value of a key, a text; EditError where it is none."""
    value = record[key]
    if not isinstance(value, str):
        raise misfit(record, f"{key} is a text, not {value!r}"[:200])
    return value


def whole(record: Record, what: str, value: object) -> int:
    """A value that must be a whole number above 0; ``what`` it is called.

    Args:
        record: for messages.
        what: the value is called.
        value: anything.

    Raises:
        EditError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 53:
        raise misfit(record, f"{what} is a whole number above 0, not {value!r}"[:200])
    return value


def mapping(record: Record, key: str) -> Mapping[str, Any]:
    """The value of a key, a mapping by names; EditError where it is none."""
    value = record[key]
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise misfit(record, f"{key} is a mapping by names, not {value!r}"[:200])
    return value


def module_of(model: nn.Module, record: Record, name: str) -> nn.Module:
    """The module of this name.

    Args:
        model: the user's.
        record: for messages.
        name: of the module.

    Raises:
        EditError: the model has none.
    """
    module: nn.Module | None = dict(model.named_modules(remove_duplicate=False)).get(name)
    if module is None:
        raise misfit(record, f"the model has no module {name!r}")
    return module


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's own parameters and buffers, by its own names."""
    own = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def add_tensor(module: nn.Module, record: Record, where: str, name: str, value: Tensor) -> None:
    """Register a buffer on the device of the module's other tensors; ``where`` is the module's name.

    Args:
        module: gets it.
        record: for messages.
        where: the module's name.
        name: the buffer's, in the module.
        value: its value.

    Raises:
        EditError: there is one of that name.
    """
    if hasattr(module, name):
        raise misfit(record, f"{where} has a {name} already: edits are made once, to a new model")
    near = next(iter(own_tensors(module).values()), value)
    module.register_buffer(name, value if near.is_meta else value.to(near.device))
