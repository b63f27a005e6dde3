"""Clean-up of dead units, one tracked task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.states import State

from tasks.execution.bench import Bench, Product
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.secrets import sealed
from tasks.stages.prune import table_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.network.coverage import Covered
    from deepcompression.pruning.slim import Slimmed

SAMPLES = 64  # whose outputs are compared


@task(name="slim", **TASK)
@sealed
def slim(run: Run, label: str, number: int, config: dict[str, Any], source: Reference) -> State[Reference] | Reference:
    """``source`` without dead units, the others in the order that codes smallest."""
    return perform(run, label, number, config, source, lambda bench: _work(bench, config), draws=False)


def _work(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.network import state
    from deepcompression.pruning import slim as library

    assert bench.input is not None
    model = bench.model()
    made = library.slim(
        model,
        units=None if config["units"] is None else table_of(config["units"]),
        reorder=config["reorder"],
        shared=bench.input.shared,
        outputs=lambda model: outputs(bench.run, model),
    )
    return Product(
        state.plain_state(model),
        zeros=list(dict.fromkeys([*bench.input.zeros, *made.zeroed])),
        shared=bench.input.shared,
        compared=made.arranged,
        report={"layers": made.layers, "left": made.left, "covered": _covered(model, made)},
        notes=made.notes,
    )


def _covered(model: nn.Module, made: Slimmed) -> list[Covered]:
    """Every tensor: in a chain of units, or why its layer is in none."""
    from deepcompression.network.coverage import coverage

    done = {f"{layer}.weight" for one in made.layers for layer in (one.name, one.consumer)}
    why = {f"{layer}.weight": reason for layer, reason in made.left.items()}
    return coverage(model, done, {**dict.fromkeys(model.state_dict(), "in no chain of units"), **why})


def outputs(run: Run, model: nn.Module) -> Tensor:
    """What the model gives for some samples of the validation split, where it is; its loss if that is no tensor."""
    import torch

    from deepcompression.training.batches import Batches
    from deepcompression.training.device import Compute
    from deepcompression.training.problem import stepped

    problem = run.problem()
    torch.manual_seed(0)
    loss, outputs, _ = stepped(problem.step, model, next(iter(Batches(problem.validation, SAMPLES, Compute("cpu")))))
    return outputs if isinstance(outputs, torch.Tensor) else loss
