"""What can be wrong with a recipe's names is told before any training starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.prune import table_of
from tasks.run import Run


def check(run: Run, stages: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
    """Imports every factory, loads the data, matches every pattern against the model, looks for the weights file.

    Args:
        run: the run.
        stages: labels and their keys of the recipe, as they will run.

    Raises:
        FactoryError, DataError, StructureError, WeightsError: in one line, with the stage's label where there is one.
    """
    from deepcompression import factory
    from deepcompression.errors import InputError, WeightsError

    run.ready()
    weights = run.model["weights"]
    if weights and not Path(weights["path"]).is_file():
        raise WeightsError(f"model.weights.path {weights['path']}: no such file")
    model = run.blank_model()
    run.problem()
    _match(model, "hold", {"zeros": run.hold["zeros"] or [], "shared": run.hold["shared"]})
    for label, config in stages:
        if ":" in config["stage"]:
            factory.load(config["stage"])
        for spec in (config.get("score"), config.get("optimizer"), config.get("schedule")):
            if isinstance(spec, Mapping):
                factory.load(spec["factory"])
        try:
            _match(model, label, config)
        except InputError as error:
            raise type(error)(f"stage {label}: {error}") from None


def _match(model: Any, label: str, config: Mapping[str, Any]) -> None:
    from deepcompression import structure
    from deepcompression.finetune import dropout_rates

    for key in ("density", "quality", "bits"):
        if config.get(key) is not None and ":" not in config.get("stage", ""):
            structure.resolve(model, table_of(config[key]))
    for key in ("zeros", "shared"):
        structure.select(model, config.get(key) or [])
    dropout_rates(model, config.get("dropout") or {})
