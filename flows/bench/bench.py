"""Each way to run a finished run's model, measured beside the dense net: time, CPU, memory, energy, and FLOPs."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcompression.errors import RecipeError, one_line
from deepcompression.measure import energy
from deepcompression.measure.latency import Plan, Timing, interleaved, ratio
from flows.bench.fresh import footprint_of
from flows.bench.ways import COMPILED, DECODED, DENSE, Inputs, Ready, Way, dense_model, final_model, ways
from flows.runs import Finished
from tasks.console import say
from tasks.secrets import masked

if TYPE_CHECKING:
    from deepcompression.measure.flops import Flops
    from deepcompression.measure.load import Load

BENCH_VERSION = 1
BATCHES = (1, 8, 64)
LEFT_OUT = "left out: compiling takes up to minutes; --compile measures it too"


@dataclass(frozen=True)
class Asked:
    """What the command line says; ``watts``: a power to assume where nothing counts energy."""

    batches: Sequence[int] = BATCHES
    threads: int = 1
    rounds: int | None = None
    seconds: float = 1.0
    watts: float | None = None
    compiled: bool = False
    inputs: Sequence[str] = ()

    def __post_init__(self) -> None:
        for option, value in (("batch", min(self.batches)), ("threads", self.threads), ("rounds", self.rounds)):
            if value is not None and value < 1:
                raise RecipeError(f"bench: --{option} {value}: expected 1 or more")
        for option, amount in (("seconds", self.seconds), ("watts", self.watts)):
            if amount is not None and not 0 < amount < float("inf"):
                raise RecipeError(f"bench: --{option} {amount:g}: expected more than 0")


def bench(done: Finished, asked: Asked) -> dict[str, Any]:
    """Measures every way, and says of each that cannot be measured why; all on this machine's CPU.

    Args:
        done: a run that is over.
        asked: how it is measured.

    Returns:
        What ``bench.json`` holds.

    Raises:
        WeightsError: the dense weights are gone from the store.
        DataError: the samples are not what a model takes by position.
        FormatError: the file is damaged.
    """
    import torch

    done.run.ready()
    torch.set_num_threads(asked.threads)
    done.baseline()  # told before anything is measured
    sizes = sorted(set(asked.batches))
    sample, repeated = _sample(done, asked.inputs, sizes[-1])
    batches = {size: [one[:size].contiguous() for one in sample] for size in sizes}
    counted = _flops(done, _first(sample))
    ready, rows = _loaded(done, asked, batches)
    _compare(ready, batches, rows)
    load = _timed(ready, batches, asked, rows)
    _remember(done, asked, _first(sample), ready, rows)
    said = _spend(ready, batches, asked, rows)
    return {
        "bench_version": BENCH_VERSION,
        "run": done.folder.name,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": {**_machine(asked.threads), **asdict(load), "busy": load.busy},
        "batches": sizes,
        "samples": {"shapes": [list(one.shape[1:]) for one in sample], "repeated": repeated},
        "flops": {name: _told(one) for name, one in counted.items()},
        "energy": said,
        "ways": list(rows.values()),
    }


def _sample(done: Finished, named: Sequence[str], count: int) -> tuple[list[Any], bool]:
    """The first samples of the validation split as the model takes them; whether they had to be repeated."""
    import numpy as np
    import torch

    from tasks.execution.example import example_of

    said = [one.inputs for one in (*done.recipe.export, done.recipe.promote) if one is not None and one.inputs]
    inputs = list(named) or next(iter(said), None)
    example = example_of(done.run, inputs, key="bench --input", count=count)
    arrays = list(example.values()) if isinstance(example, dict) else [example]
    whole = [np.resize(one, (count, *one.shape[1:])) for one in arrays]
    return [torch.from_numpy(one) for one in whole], any(len(one) < count for one in arrays)


def _first(sample: Inputs) -> list[Any]:
    return [one[:1].contiguous() for one in sample]


def _flops(done: Finished, sample: Inputs) -> dict[str, Flops]:
    from deepcompression.measure.flops import count

    return {name: count(make(done), sample) for name, make in (("dense", dense_model), ("final", final_model))}


def _told(flops: Flops) -> dict[str, Any]:
    layers = [{**asdict(one), "density": one.density} for one in flops.layers]
    totals = {"macs": flops.macs, "nonzero": flops.nonzero, "flops": flops.flops}
    return {**totals, "layers": layers, "left_out": dict(flops.left_out)}


def _loaded(
    done: Finished, asked: Asked, batches: Mapping[int, Inputs]
) -> tuple[dict[str, Ready], dict[str, dict[str, Any]]]:
    """Ways that ran once on every batch, and a row for each way; the dense net and the decoded file must run."""
    ready, rows = dict[str, Ready](), dict[str, dict[str, Any]]()
    for name, way in ways(done).items():
        rows[name] = {"way": name, "what": way.words, "of": way.of, "why": None}
        try:
            if name == COMPILED and not asked.compiled:
                raise NotImplementedError(LEFT_OUT)
            ready[name] = one = _tried(done, way, asked.threads, batches)
            rows[name] |= {"bytes": one.bytes, "weights_bytes": one.weights, "note": one.note, "batches": {}}
        except Exception as error:
            if name in (DENSE, DECODED):
                raise
            rows[name]["why"] = _reason(error)
    return ready, rows


def _tried(done: Finished, way: Way, threads: int, batches: Mapping[int, Inputs]) -> Ready:
    ready = way.load(done, threads, batches[max(batches)])
    for size, batch in batches.items():
        if ready.fixed_batch in (None, size):
            ready.call(batch)
    return ready


def _reason(error: Exception) -> str:
    known = isinstance(error, NotImplementedError) or type(error).__module__.startswith("deepcompression.")
    words = one_line(str(error).strip().partition("\n")[0])
    return masked(words if known and words else f"{type(error).__name__}: {words}")[:300]


def _compare(ready: Mapping[str, Ready], batches: Mapping[int, Inputs], rows: Mapping[str, dict[str, Any]]) -> None:
    """Adds to a row how far its outputs are from those that they should be: the largest difference of a number."""
    for name, one in ready.items():
        of = rows[name]["of"]
        size = one.fixed_batch or max(batches)
        if of and size in batches:
            rows[name]["difference"] = difference(one.call(batches[size]), ready[of].call(batches[size]))


def difference(outputs: object, wanted: object) -> float | None:
    """The largest difference of a number in two models' outputs, however these are nested; None of other shapes.

    Args:
        outputs: tensors or arrays, in lists, mappings and the like.
        wanted: the same of another model.
    """
    import torch
    from torch.utils import _pytree

    pairs = [
        [torch.as_tensor(one).double() for one in _pytree.tree_leaves(some) if hasattr(one, "shape")]
        for some in (outputs, wanted)
    ]
    if [one.shape for one in pairs[0]] != [one.shape for one in pairs[1]]:
        return None
    apart = [(a - b).abs().max() for a, b in zip(*pairs, strict=True) if a.numel()]
    return float(torch.stack(apart).max()) if apart else 0.0  # NaN, where one is


def _timed(
    ready: Mapping[str, Ready], batches: Mapping[int, Inputs], asked: Asked, rows: Mapping[str, dict[str, Any]]
) -> Load:
    """Adds to each row its times on each batch; how busy the machine was meanwhile."""
    from deepcompression.measure.load import watched

    plan = Plan(seconds=asked.seconds, rounds=asked.rounds)
    with watched() as load:
        for size, batch in batches.items():
            rivals = {name: one.call for name, one in ready.items() if one.fixed_batch in (None, size)}
            say(f"batch {size}: {', '.join(rivals)}")
            times = interleaved(rivals, batch, plan)
            for name, one in times.items():
                rows[name]["batches"][str(size)] = _figures(size, one, times[DENSE])
    return load


def _figures(size: int, one: Timing, dense: Timing) -> dict[str, Any]:
    return {
        "median_ms": 1e3 * one.median,
        "p10_ms": 1e3 * one.p10,
        "p99_ms": None if one.p99 is None else 1e3 * one.p99,
        "iqr_ms": 1e3 * one.iqr,
        "cpu_ms": 1e3 * one.cpu,
        "per_second": size / one.median,
        "to_dense": ratio(one, dense),
        "calls": one.calls,
        "rounds": len(one.by_round),
    }


def _remember(
    done: Finished, asked: Asked, sample: Inputs, ready: Mapping[str, Ready], rows: Mapping[str, dict[str, Any]]
) -> None:
    """Adds to each row what it takes of memory, in a process of its own."""
    from safetensors.torch import save_file

    say("memory, each in a process of its own")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sample.safetensors"
        for name, one in ready.items():
            size = one.fixed_batch or 1
            tensors = {str(place): tensor.repeat_interleave(size, 0) for place, tensor in enumerate(sample)}
            save_file(tensors, path)
            rows[name]["memory"] = footprint_of(done.folder, name, asked.threads, path)


def _spend(
    ready: Mapping[str, Ready], batches: Mapping[int, Inputs], asked: Asked, rows: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Adds to each row the energy of a call on the smallest batch, where it can be known; by what, or why not."""
    size = min(batches)
    meter = energy.cpu_meter()
    for name, one in ready.items():
        if str(size) not in rows[name]["batches"]:
            continue
        if not isinstance(meter, str):
            found = energy.measured(_again(one, batches[size]), meter, asked.seconds)
        elif asked.watts is not None:
            found = energy.assumed(asked.watts, rows[name]["batches"][str(size)]["median_ms"] / 1e3)
        else:
            continue
        rows[name]["energy"] = {"mj": 1e3 * found.joules / size, "by": found.by, "assumed": found.assumed}
    return {"why": f"not measurable here: {meter}"} if isinstance(meter, str) else {"by": meter.name}


def _again(ready: Ready, batch: Inputs) -> Callable[[], object]:
    return lambda: ready.call(batch)


def _machine(threads: int) -> dict[str, Any]:
    import torch

    named = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), named)
    except OSError:
        pass
    return {"cpu": named, "system": platform.platform(), "torch": torch.__version__, "threads": threads}
