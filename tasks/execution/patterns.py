"""Keys that hold names or patterns of the model's: how each kind is looked for in it, before anything trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from tasks.execution.run import Run


@dataclass(frozen=True)
class Matched:
    """Stands in the annotation of such a key. ``by(run, model, value)`` raises StructureError where the value, which is
    neither empty nor None, names what the model has not."""

    by: Callable[[Run, nn.Module, Any], object]


def _selected(run: Run, model: nn.Module, value: Any) -> None:
    from deepcompression.network.coverage import selected
    from tasks.execution.settings import table_of

    selected(model, table_of(value))


def _resolved(run: Run, model: nn.Module, value: Any) -> None:
    from deepcompression.network.names import resolve
    from tasks.execution.settings import table_of

    resolve(model, table_of(value))


def _named(run: Run, model: nn.Module, value: Any) -> None:
    from deepcompression.network.names import select

    select(model, value)


def _dropouts(run: Run, model: nn.Module, value: Any) -> None:
    from deepcompression.training.dropout import dropout_rates

    dropout_rates(model, value)


SELECTED = Matched(_selected)  # a value for tensors by pattern, which must mean at least one
RESOLVED = Matched(_resolved)  # the same for what another key has selected
NAMED = Matched(_named)  # a list of patterns
DROPOUTS = Matched(_dropouts)  # dropout module -> layer
