"""``bits: allocated`` in a stage's keys: the bits that an earlier stage found for each tensor take its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

from pydantic import BaseModel

from tasks.execution.run import Reference, Run
from tasks.execution.settings import Stage, parts

ALLOCATED: Literal["allocated"] = "allocated"
Keys = TypeVar("Keys", bound=BaseModel)


def asks(settings: BaseModel) -> bool:
    """Whether some bits in a stage's keys are those that an earlier stage finds."""
    return any(getattr(part, "bits", None) == ALLOCATED for _, part in parts(settings))


def with_bits(settings: Keys, bits: Mapping[str, int]) -> Keys:
    """The same keys with these bits, by tensor name; defaults that follow from bits are found anew."""
    if not asks(settings):
        return settings
    filled = _filled(settings, bits)
    return type(settings).model_validate({name: getattr(filled, name) for name in filled.model_fields_set})


def with_found(run: Run, settings: Stage, references: Sequence[Reference]) -> Stage:
    """The keys of a stage as it runs, after these: with the bits that the last allocation among them found."""
    return with_bits(settings, found_by(run, references)) if asks(settings) else settings


def found_by(run: Run, references: Sequence[Reference]) -> Mapping[str, int]:
    """What the last allocation of a chain found, by tensor name; empty where it has none."""
    for reference in reversed(references):
        report = (run.store.find(reference.key) or {}).get("report") or {}
        if ALLOCATED in report:
            bits: Mapping[str, int] = report[ALLOCATED]
            return bits
    return {}


def _filled(value: Any, bits: Mapping[str, int]) -> Any:
    if isinstance(value, BaseModel):
        given = {name: getattr(value, name) for name in value.model_fields_set}
        new = {
            name: dict(bits) if (name, one) == ("bits", ALLOCATED) else _filled(one, bits)
            for name, one in given.items()
        }
        return value.model_copy(update=new)
    return [_filled(one, bits) for one in value] if isinstance(value, list) else value
