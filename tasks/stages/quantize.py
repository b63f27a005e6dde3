"""Trained quantization and the precision of what remains, one tracked task."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.states import State

from tasks.execution.bench import Bench, Product, covering
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.secrets import sealed
from tasks.stages.finetune import train

if TYPE_CHECKING:
    from torch import Tensor

NAMED = 3  # tensors that a sentence names


@task(name="quantize", **TASK)
@sealed
def quantize(
    run: Run, label: str, number: int, config: dict[str, Any], source: Reference
) -> State[Reference] | Reference:
    """Centroids of ``source`` trained by their summed gradient, then codebooks and the rest rounded."""
    draws = bool(config["train"])
    return perform(run, label, number, config, source, lambda bench: _work(bench, config), draws=draws)


def _work(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.network.coverage import coverage
    from deepcompression.network.state import plain_state
    from deepcompression.quantization import precision as library

    assert bench.input is not None
    trained = train(bench, config["train"]) if config["train"] else None
    product = trained or Product(plain_state(bench.model()), zeros=bench.input.zeros, shared=bench.input.shared)
    assert product.state is not None
    precisions: dict[str, str] = {}
    if config["rest"] == "auto":
        model = bench.run.blank_model()
        model.load_state_dict(dict(product.state))
        rounded, precisions = library.round_by_effect(
            model,
            bench.run.problem(),
            shared=bench.input.shared,
            codebook=config["codebook"],
            compute=bench.run.compute(),
        )
    else:
        rounded = library.round_precision(
            product.state, shared=bench.input.shared, codebook=config["codebook"], rest=config["rest"]
        )
    notes = [*_kept(rounded.kept)]
    notes += [f"{name} {what}" for name, what in {**rounded.instead, **rounded.coarse}.items()]
    report = {**product.report, "kept": rounded.kept, "precisions": precisions}
    why = {**unrounded(product.state, bench.input.shared, config), **rounded.kept}
    rows = coverage(bench.run.blank_model(), [name for name in product.state if name not in why], why)
    return covering(replace(product, state=rounded.state, notes=notes, report=report), rows)


def _kept(reasons: Mapping[str, str]) -> Iterator[str]:
    """A sentence for all tensors that keep their precision for one reason."""
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, why in reasons.items() if why == reason]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        verb = "keeps its" if len(names) == 1 else "keep their"
        yield f"{', '.join(names[:NAMED])}{more} {verb} precision: {reason}"


def unrounded(state: Mapping[str, Tensor], shared: Collection[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Why the recipe's keys leave tensors of ``state`` as they are, by name; a trained codebook is not among them."""
    books = {id(state[name]) for name in shared}
    found = {}
    for name, tensor in state.items():
        key = "codebook" if id(tensor) in books else "rest"
        asked, kind = config[key], str(tensor.dtype).removeprefix("torch.")
        if kind not in ("float32", "float16", "bfloat16"):
            found[name] = f"{kind} is not rounded"
        elif asked == "float32" and not (key == "codebook" and config["train"]):
            found[name] = f"stays as it is: {key} is float32"
        elif kind != "float32" and asked not in ("float32", "auto"):
            found[name] = f"has {kind} already" if asked != "int8" else f"{kind} is not rounded to int8"
    return found
