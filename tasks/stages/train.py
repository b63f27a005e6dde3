"""One training with several methods at work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model, model_serializer, model_validator

from tasks.execution.bench import Bench, Product, trained
from tasks.execution.settings import Distil, MethodSettings, Stage, Strict, Training
from tasks.methods import METHODS, settings_of
from tasks.methods.quantize import Settings as Quantize

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.training.method import Method
    from tasks.execution.run import Run


COARSE, COOL = 4, 2.0  # below so many bits a temperature above 2 costs accuracy


class One(Strict):
    """One method: its name, and its keys."""

    @model_validator(mode="after")
    def _just_one(self) -> One:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"expected one method in each entry, one of {', '.join(METHODS)}")
        return self

    @model_serializer
    def _plain(self) -> dict[str, Any]:
        """The one method alone: a longer list of methods changes no store key."""
        return {name: getattr(self, name).model_dump(mode="json") for name in self.model_fields_set}

    def settings(self) -> MethodSettings:
        """The method's keys."""
        found: MethodSettings = getattr(self, next(iter(self.model_fields_set)))
        return found


def _with_keys(value: Any) -> Any:
    """``- centroids`` alone, and ``- centroids:``, are a method without keys."""
    if isinstance(value, str):
        return {value: {}}
    return {name: {} if keys is None else keys for name, keys in value.items()} if isinstance(value, Mapping) else value


_KEYS: dict[str, Any] = {name: (settings_of(name) | None, None) for name in METHODS}
Entry = create_model("Entry", __base__=One, __doc__=One.__doc__, **_KEYS)


class Settings(Training, Stage):
    """One training in which several methods work side by side, on the same tensors where they do not collide."""

    stage: Literal["train"]
    epochs: int = Field(10, ge=1)
    lr: float = Field(1e-4, gt=0)
    methods: list[Annotated[Entry, BeforeValidator(_with_keys)]] = Field(  # type: ignore[valid-type]
        min_length=1, description=f"each by its name: {', '.join(METHODS)}"
    )

    @model_validator(mode="after")
    def _temperate(self) -> Settings:
        """Below 4 bits a teacher's temperature is 2 where none is given."""
        if self.is_coarse():
            methods = [_cooled(entry) if "distil" in entry.model_fields_set else entry for entry in self.methods]
            self.__dict__.update(methods=methods, distil=_cool(self.distil))  # it is frozen from here on
        return self

    def is_coarse(self) -> bool:
        """Whether something is quantized to fewer than 4 bits."""
        kinds = [entry.settings() for entry in self.methods]
        widths = [bits for one in kinds if isinstance(one, Quantize) for bits in one.widths()]
        return min(widths, default=COARSE) < COARSE

    def fits(self, run: Run, model: nn.Module) -> None:
        """Each method fits the model, and no two of them claim the same of a tensor."""
        from deepcompression.training.session import claims_of

        claims_of(model, _made(self), {})
        for one in self.methods:
            one.settings().fits(run, model)


def _cooled(entry: Any) -> Any:
    return entry.model_copy(update={"distil": _cool(entry.distil)})


def _cool(distil: Distil | None) -> Distil | None:
    """With the temperature that suits few bits, unless one was given."""
    if distil is None or "temperature" in distil.model_fields_set:
        return distil
    return distil.model_copy(update={"temperature": COOL})


def _made(settings: Settings) -> list[Method]:
    return [one.settings().make() for one in settings.methods]


def work(bench: Bench, settings: Settings) -> Product:
    """The weights of the stage before, trained with methods at work; what was true of them stays so."""
    made = trained(bench, settings, _made(settings))
    return replace(made, notes=[*made.notes, *_told(settings)])


def _told(settings: Settings) -> list[str]:
    """What stands in no key that was written."""
    taught = [settings.distil, *(one for one in (entry.settings() for entry in settings.methods))]
    cool = any(isinstance(one, Distil) and one.temperature == COOL for one in taught)
    return [f"distil: temperature {COOL:g}, the default below {COARSE} bits"] if cool and settings.is_coarse() else []
