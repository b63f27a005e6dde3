"""How every stage runs: looked up, leased, worked, checked, measured, stored, logged. Knows nothing of Prefect."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from deepcompression._atomic import written
from tasks.console import progress, say, say_some, size
from tasks.execution.bench import Bench, Product
from tasks.execution.helpers import Helpers
from tasks.execution.keys import stage_key
from tasks.execution.measure import measure, measuring_code
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Stage
from tasks.execution.warned import listen, warn, warned

if TYPE_CHECKING:
    from deepcompression.structure.check import Coarsened
    from deepcompression.structure.constraints import Structure

UNDRAWN = ("lr", "seconds")  # of an epoch: they are in the table of all epochs, and are no curves of their own
Work = Callable[[Bench, Any], Product]


def execute(
    run: Run,
    label: str,
    number: int | None,
    settings: Stage,
    source: Reference | None,
    work: Work,
) -> tuple[Reference, bool]:
    """Runs ``work`` unless its result is in the store; logs either way.

    Args:
        run: the run.
        label: the stage's unique label.
        number: its place, MLflow's step; None for what is no stage of the chain.
        settings: the stage's keys of the recipe; they know whether its result depends on the seed, and what else
            decides it.
        source: the stage before, or None.
        work: makes the product of bench and settings; what its module imports is part of the key.

    Returns:
        The reference, and whether the store had it.

    Raises:
        InvariantError: the product lost structure that its input had; nothing is stored.
        StorageError: the store cannot be written.
    """
    started = time.perf_counter()
    run.ready()
    listen()
    key = stage_key(run, label, settings, source, work.__module__)
    entry = _usable(run, key, source)
    cached = entry is not None
    if entry is None:
        entry, cached = _leased(run, key, label, source, _with_others(run, settings, work), started)
    else:
        run.store.used(key, entry)
    for text in entry.get("warnings", ()):  # of a result that is used again, too
        warn(run.folder, label, text)
    seconds = round(time.perf_counter() - started, 3)
    numbers = {**numbers_of(entry), "seconds": seconds, "cached": cached, "stage": label}
    _log(run, label, number, settings, numbers, entry)
    return reference_of(key, entry, numbers), cached


def reference_of(key: str, entry: Mapping[str, Any], numbers: Mapping[str, Any] | None = None) -> Reference:
    """The reference to a stored result."""
    structure = {name: tuple(words) for name, words in entry["structure"].items()}
    return Reference(key, entry["object"], structure, tuple(entry["edits"]), numbers or {})


def _leased(
    run: Run, key: str, label: str, source: Reference | None, work: Callable[[Bench], Product], started: float
) -> tuple[dict[str, Any], bool]:
    """The entry, made here or by whoever held the lease before; whether it was the other."""
    with run.store.lease(key, lambda holder: say(f"{label}: {holder} works on the same thing; waiting for it")):
        if (entry := _usable(run, key, source)) is not None:
            return entry, True
        with run.store.working(key) as folder, warned(run.folder, label) as warnings:
            run.rewind()
            bench = Bench(run, label, source, folder)
            return _store(run, key, label, bench, work(bench), started, warnings), False


def _with_others(run: Run, settings: Stage, work: Work) -> Callable[[Bench], Product]:
    """The work; of a stage that trains on several devices with a process for each of the others."""

    def together(bench: Bench) -> Product:
        if run.devices == 1 or not settings.trains:
            return work(bench, settings)
        with Helpers(run, bench.label, settings, bench.input, work.__module__, bench.folder) as teams:
            return work(replace(bench, teams=teams), settings)

    return together


def numbers_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry's numbers; null is what JSON has for a result that was not a number."""
    numbers = entry["numbers"]
    return {**numbers, **{name: math.nan for name in ("val_metric", "val_loss") if numbers[name] is None}}


def left_alone(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a stored stage left alone: tensor, elements, bytes, reason. Empty in entries of older releases."""
    rows = (entry.get("report") or {}).get("covered") or []
    return [{name: row[name] for name in ("tensor", "elements", "bytes", "reason")} for row in rows if not row["done"]]


@contextlib.contextmanager
def shown(run: Run, label: str) -> Iterator[Any]:
    """The progress callback of a training stage."""
    with progress(label, str(run.metric_object().name)) as show:
        yield show


def plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as what JSON holds."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(one) for one in value]
    return value


def _usable(run: Run, key: str, source: Reference | None) -> dict[str, Any] | None:
    """The stored result, its object whole; measured anew where the code that measures has changed since."""
    entry = run.store.find(key)
    if entry is None or not run.store.intact(entry["object"]):
        return None
    if entry["measured_by"] == measuring_code():
        return entry
    file = run.store.object_path(entry["object"]) if entry["encoded"] else None
    reference = reference_of(key, entry)
    state = None if file else run.state(reference)
    numbers = {**entry["numbers"], **measure(run, source, state, file, reference.structure, reference.edits)}
    return run.store.commit(key, {**entry, "numbers": numbers, "measured_by": measuring_code()})


def _store(
    run: Run, key: str, label: str, bench: Bench, product: Product, started: float, warnings: Sequence[str]
) -> dict[str, Any]:
    """Checks, measures and stores what a stage made."""
    structure, edits = become(bench.input, product)
    measured = measure(run, bench.input, product.state, product.file, structure, edits)
    numbers = {"coarsened": plain(_coarsened(bench, product, structure)), **measured}
    seconds = time.perf_counter() - started
    part = product.file
    if part is None:
        from safetensors.torch import save

        assert product.state is not None
        part = bench.folder / "state.safetensors"
        with written(part) as file:
            # a tied tensor is one object under two names, which safetensors refuses
            file.write(save({name: tensor.clone() for name, tensor in product.state.items()}))
    say_some(label, product.notes)
    return run.store.commit(
        key,
        {
            "stage": label,
            "input": bench.input.key if bench.input else None,
            "object": run.store.put(part),
            "encoded": product.file is not None,
            "measured_by": measuring_code(),
            "structure": structure,
            "edits": plain(edits),
            "numbers": {**numbers, "worked_seconds": round(seconds, 3)},
            "report": plain(product.report),
            "figures": plain(product.figures),
            "history": plain(product.history),
            "notes": list(product.notes),
            "warnings": list(dict.fromkeys([*warnings, *product.warnings])),
        },
    )


def become(source: Reference | None, product: Product) -> tuple[Structure, tuple[Mapping[str, Any], ...]]:
    """Structure and edits of what a stage made: those of its input, and its own."""
    from deepcompression.structure.constraints import together

    old, edits = (source.structure, source.edits) if source else ({}, ())
    gone = [name for name in old if product.state is not None and name not in product.state]  # with their modules
    kept = {name: words for name, words in old.items() if name not in gone}
    return together(kept, product.structure), (*edits, *product.edits)


def _coarsened(bench: Bench, product: Product, structure: Structure) -> Coarsened | None:
    """How structure grew; InvariantError where some was lost, or a tensor changed that the stage did not select."""
    from deepcompression.structure import check
    from deepcompression.structure.constraints import SHARED

    if bench.input is None or product.state is None:
        return None
    # What this stage pruned or shared counts too: there, all that was zero or equal before must still be so.
    kept = {
        name: tuple(word for word in words if word != SHARED or name not in product.regrouped)
        for name, words in structure.items()
    }
    before = bench.state() if product.compared is None else product.compared
    if product.selected is not None:
        check.refuse_changes(before, product.state, product.selected)
    return check.check(before, product.state, kept)


def _log(
    run: Run,
    label: str,
    number: int | None,
    settings: Stage,
    numbers: Mapping[str, Any],
    entry: Mapping[str, Any],
) -> None:
    """The same to people (one line) and to MLflow: a column a stage, steps by the stage's number, and figures of the
    stage's own; what else there is of a stage is in the table ``stages.json``."""
    metric = f"val_{run.metric_object().name}"
    stage = str(getattr(settings, "stage", label)).replace(":", ".")
    columns = {"size_bytes": numbers["size_bytes"], metric: numbers["val_metric"]}
    steps = {**columns, **{name: numbers[name] for name in ("compression_ratio", "density", "bits_per_weight")}}
    named = {f"{name}/{stage}": value for name, value in columns.items()}
    stepped = {f"stages/{name}": value for name, value in steps.items()} if number is not None else {}
    own = {f"{label}/{name}": value for name, value in entry.get("figures", {}).items()}
    run.tracker.metrics({**named, **stepped, **own}, step=number or 0)
    if entry["history"]:
        run.tracker.curve(label, [{name: one[name] for name in one if name not in UNDRAWN} for one in entry["history"]])
    of_all = "" if numbers.get("model_density") is None else f" (of all weights {numbers['model_density']:.1%})"
    reused = "reused" if numbers["cached"] else f"{numbers['seconds']:.1f} s"
    say(
        f"[bold]{label:<12}[/] {size(numbers['size_bytes']):>9}  {numbers['compression_ratio']:6.1f}x  "
        f"density {numbers['density']:6.1%}{of_all}  {metric} {numbers['val_metric']:.4f}  [dim]{reused}[/]"
    )
    if told := entry["report"].get("told"):
        say(f"{label}: {escape(told)}")
