"""A few samples as the model takes them: for what runs the model without the recipe's step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deepcompression.errors import DataError
from tasks.execution.run import Run


def example_of(
    run: Run, inputs: Sequence[str] | None, *, key: str = "promote.inputs", count: int = 2, training: bool = False
) -> Any:
    """Samples as the model takes them: an array (count, ...), or name -> array where samples are mappings.

    Args:
        run: the run.
        inputs: of mappings, what the model takes, in the order of its arguments.
        key: the recipe's key that says so.
        count: how many samples, where the split, or the first batch of a DataLoader, has so many.
        training: drawn from all of the training split, for what is made by them; else the first of validation.

    Raises:
        DataError: ``inputs`` is missing, not wanted, or names what no sample has.
    """
    from torch import Tensor

    from deepcompression.data.splits import drawn
    from deepcompression.training.batches import Batches
    from deepcompression.training.device import Compute

    run.ready()
    problem = run.problem()
    split = drawn(problem.train, count, run.stage_seed("example")) if training else problem.validation
    batch = next(iter(Batches(split, count, Compute("cpu"))))
    sample = batch[0] if isinstance(batch, tuple | list) else batch
    if isinstance(sample, Tensor) and not inputs:
        return sample[:count].numpy()
    tensors = (
        [name for name, value in sample.items() if isinstance(value, Tensor)] if isinstance(sample, Mapping) else []
    )
    if inputs and set(inputs) <= set(tensors):
        return {name: sample[name][:count].numpy() for name in inputs}
    samples = f"mappings of the tensors {', '.join(tensors)}" if tensors else f"of type {type(sample).__name__}"
    raise DataError(
        f"{key}: samples are {samples}; expected, of mappings, the names of the tensors that the model takes "
        f"in the order of its arguments, else no names; got {list(inputs or [])}"
    )
