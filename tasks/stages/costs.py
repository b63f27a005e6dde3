"""What bits of tensors cost, and the limit that the stage ``allocate`` keeps to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tasks.execution.settings import Strict, TensorName
from tasks.root import ROOT

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.allocation.integer_program import Choices
    from deepcompression.training.method import Context
    from tasks.stages.allocate import Settings

Milliseconds = dict[TensorName, dict[int, Annotated[float, Field(ge=0)]]]
Rounded = Mapping[str, Mapping[int, "tuple[Tensor, float]"]]
Costs = Mapping[str, Mapping[int, float]]  # by tensor and bits
EIGHT = 8  # the bits that a ratio is against, as NNCF's
UNITS = {"file_bytes": "bytes", "flops": "operations x bits", "latency": "ms"}


class Measured(Strict):
    """A table of milliseconds in a JSON file: {tensor: {bits: ms}}."""

    path: str


def costs_of(
    settings: Settings, model: nn.Module, choices: Mapping[str, Sequence[int]], context: Context, rounded: Rounded
) -> Costs:
    """What each tensor costs with each of its bits; and with 8, where a ratio is asked for.

    Args:
        settings: which cost.
        model: whose forward is counted.
        choices: bits by tensor.
        context: of the samples of which one goes through the forward.
        rounded: each tensor with each of its bits; of ``file_bytes``.

    Raises:
        RecipeError, StructureError: a table lacks something; a tensor's operations are not known.
    """
    from deepcompression.allocation import bit_costs

    if settings.cost == "file_bytes":
        return {
            name: {bits: bit_costs.coded_bytes(tensor, settings.coder) for bits, (tensor, _) in some.items()}
            for name, some in rounded.items()
        }
    if settings.cost == "latency":
        assert settings.latency is not None
        return bit_costs.milliseconds(measured_in(settings.latency), choices)
    batch = next(iter(context.batches("allocate", 1)))
    counts = bit_costs.operations(context.compute.place(model), list(choices), lambda one: context.forward(one, batch))
    return {name: {one: float(one * counts[name]) for one in {*bits, EIGHT}} for name, bits in choices.items()}


def measured_in(latency: Measured | Milliseconds) -> Milliseconds:
    """The table itself, from its file where it is in one; RecipeError where that is none."""
    from pydantic import TypeAdapter, ValidationError

    from deepcompression.errors import RecipeError

    if not isinstance(latency, Measured):
        return latency
    try:
        found: Milliseconds = TypeAdapter(Milliseconds).validate_json((ROOT / latency.path).read_bytes())
    except OSError as error:
        raise RecipeError(f"latency.path {latency.path}: cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise RecipeError(
            f"latency.path {latency.path}: {where}: {first['msg']}; expected {{tensor: {{bits: milliseconds}}}}"
        ) from None
    return found


def limit_of(settings: Settings, tensors: Sequence[Choices], costs: Costs) -> float:
    """What the tensors may cost together.

    Args:
        settings: with one limit.
        tensors: what each can get.
        costs: of each.

    Raises:
        StructureError: none of the choices keeps to it; what they do reach is told.
    """
    from deepcompression.allocation.integer_program import cheapest
    from deepcompression.errors import ValuesError

    limit, least = _limit(settings, tensors, costs), cheapest(tensors, ordered=settings.order).cost
    if least <= limit:
        return limit
    ordered = " with order: true" if settings.order else ""
    if settings.ratio is not None:
        raise ValuesError(
            f"ratio: {settings.ratio:g} is out of reach{ordered}; the most that these tensors reach by their bits is "
            f"{limit * settings.ratio / least:.4g}"
        )
    key = "like" if settings.like is not None else "most"
    raise ValuesError(
        f"{key}: {amount(settings, limit)} are too few{ordered}; the least that these tensors reach by their bits is "
        f"{amount(settings, least)}"
    )


def _limit(settings: Settings, tensors: Sequence[Choices], costs: Costs) -> float:
    from deepcompression.allocation.integer_program import uniform

    if settings.like is not None:
        return uniform(tensors, settings.like).cost
    if settings.most is not None:
        return settings.most
    assert settings.ratio is not None
    return sum(costs[one.name][EIGHT] for one in tensors) / settings.ratio


def amount(settings: Settings, value: float) -> str:
    """A cost with its unit, for people."""
    shown = f"{value:,.0f}" if settings.cost == "file_bytes" else f"{value:.6g}"
    return f"{shown} {UNITS[settings.cost]}"
