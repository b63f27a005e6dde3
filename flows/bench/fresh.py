"""``python -m flows.bench.fresh``, in a new process: the memory that one way to run a model takes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deepcompression.errors import one_line
from tasks.root import ROOT
from tasks.secrets import masked

SECONDS = 600.0


def footprint_of(folder: Path, way: str, threads: int, sample: Path) -> dict[str, Any]:
    """What ``way`` takes in a process of its own: a ``memory.Footprint``, or ``why`` it could not be measured.

    Args:
        folder: a finished run's.
        way: one of ``ways``.
        threads: of an op.
        sample: a batch of one, as safetensors: the tensors that the model takes, by number.
    """
    asked = {"folder": str(folder), "way": way, "threads": threads, "sample": str(sample)}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "flows.bench.fresh"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
            timeout=SECONDS,
        )
    except subprocess.TimeoutExpired:
        return {"why": f"it took more than {SECONDS:.0f} s"}
    if done.returncode:
        last = (masked(done.stderr).strip().splitlines() or ["no message"])[-1]
        return {"why": f"exit code {done.returncode}: {one_line(last)[:200]}"}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def measure(asked: Mapping[str, Any]) -> dict[str, int]:
    """The footprint of loading a way and running it on one sample.

    Args:
        asked: ``folder``, ``way``, ``threads``, ``sample``, as in ``footprint_of``.
    """
    import torch
    from safetensors.torch import load_file

    from deepcompression.measure.memory import footprint
    from flows import history
    from flows.bench.ways import ways
    from flows.runs import finished

    torch.set_num_threads(asked["threads"])
    done = finished(history.find(asked["folder"], ""))
    done.run.ready()
    tensors = load_file(asked["sample"])
    inputs = [tensors[str(number)] for number in range(len(tensors))]
    way = ways(done)[asked["way"]]

    def load() -> Callable[[], object]:
        ready = way.load(done, asked["threads"], inputs)
        return lambda: ready.call(inputs)

    return asdict(footprint(load))


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
