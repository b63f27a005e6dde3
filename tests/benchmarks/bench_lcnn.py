"""Dictionaries and lookups (LCNN): LeNet-5 on MNIST with a third of the operations, counted and timed.

`python tests/benchmarks/bench_lcnn.py --weights LENET5.safetensors [--epochs 3] [--rate 1e-3]`; without weights the
dense net is trained first, by the plan of conf/lenet-5.yaml. Each of a few dictionaries is trained for some epochs;
which one is told by validation among those with at most a third of the multiplications (`--operations`), and the test
split is read once, by the net that a new LeNet-5 became with the `.dcz`. Times are of this machine, one thread, in
turns.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression import data, models
from deepcompression import torch as files
from deepcompression.export import onnx
from deepcompression.measure.flops import count
from deepcompression.measure.latency import Plan as Timed
from deepcompression.measure.latency import interleaved
from deepcompression.network.state import plain_state
from deepcompression.network.trace import shapes
from deepcompression.sharing.lcnn import look_up, wanted
from deepcompression.structure.constraints import structured
from deepcompression.training.device import Compute
from deepcompression.training.evaluate import evaluate
from deepcompression.training.loop import train
from deepcompression.training.plan import Plan
from deepcompression.training.problem import Problem
from deepcompression.training.randomness import seed_everything

# Vectors of conv2's dictionary and of fc1's, and how many a column of each is the sum of. conv1 has one input channel,
# for which a dictionary is a number.
TRIED = ((8, 2, 64, 4), (10, 3, 64, 4), (12, 4, 64, 4), (8, 2, 96, 8))
SAMPLE = torch.zeros(1, 1, 28, 28)


def problem() -> Problem:
    """MNIST as conf/lenet-5.yaml has it."""
    splits = data.split_validation(data.mnist(), 5000)
    return Problem(splits.train, splits.validation, augment=data.shift(1, 0.5), batch_size=128)


def plan(epochs: int, seed: int, rate: float = 1e-3) -> Plan:
    """AdamW; the rate falls by a cosine."""
    optimizer = {"factory": "torch.optim:AdamW", "kwargs": {"lr": rate}}
    return Plan(epochs, optimizer, "cosine", seed=seed, compute=Compute("cpu", "bfloat16", True))


def dense(weights: Path | None, task: Problem, seed: int) -> dict[str, Tensor]:
    """The dense net's state_dict: read, or trained."""
    if weights is not None:
        return files.load_state(models.lenet5(), _read(weights), where=str(weights)) or _read(weights)
    seed_everything(seed)
    model = models.lenet5()
    train(model, task, plan(20, seed))
    return plain_state(model)


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def looked_up(state: dict[str, Tensor], tried: tuple[int, ...], seed: int, fit: Any) -> tuple[nn.Module, Any, Any]:
    """A net with dictionaries, the edits that made it, and what became of its layers."""
    model = models.lenet5()
    model.load_state_dict(state)
    size, nonzero = {"conv2": tried[0], "fc1": tried[2]}, {"conv2": tried[1], "fc1": tried[3]}
    layers, _ = wanted(model, size, nonzero, shapes(model, lambda one: one(SAMPLE)))
    edits, rows = look_up(model, layers, fit, seed)
    return model, edits, rows


def right(model: nn.Module) -> int:
    """How many images of the test split are recognised."""
    images, targets = data.mnist().test
    with torch.no_grad():
        found = torch.cat([model.eval()(some).argmax(1) for some in images.split(500)])
    return int((found == targets).sum())


def trained(state: dict[str, Tensor], tried: tuple[int, ...], task: Problem, given: Any) -> dict[str, Any]:
    """A net with dictionaries after its training, with its operations and what validation says."""
    model, edits, rows = looked_up(state, tried, given.seed, given.fit)
    before = evaluate(model, task.validation, task.step, task.metric)
    started = time.process_time()
    structure = structured([f"{row.name}.lookup.weight" for row in rows])
    train(model, task, plan(given.epochs, given.seed, given.rate), [], structure=structure)
    after = evaluate(model, task.validation, task.step, task.metric)
    model.load_state_dict(plain_state(model))
    return {
        "tried": tried,
        "errors": {row.name: round(row.error, 4) for row in rows},
        "operations": count(model, [SAMPLE]).nonzero,
        "validation_before": before.metric,
        "validation": after.metric,
        "loss": after.loss,
        "cpu_seconds": round(time.process_time() - started, 1),
        "model": model,
        "edits": edits,
    }


def timed(state: dict[str, Tensor], path: Path, folder: Path) -> dict[str, float]:
    """Milliseconds a call of one image, and of 32: dense, decoded, from the file's codes, and as ONNX."""
    net, decoded = models.lenet5().eval(), files.load_into(models.lenet5(), path).eval()
    net.load_state_dict(state)
    coded = files.run(models.lenet5(), path, SAMPLE)
    found: dict[str, float] = {}
    for one, name in ((net, "dense"), (decoded, "decoded")):
        onnx.export(one, [torch.rand(16, 1, 28, 28)], folder / f"{name}.onnx")
    for size in (1, 32):
        batch = torch.rand(size, 1, 28, 28)
        calls: dict[str, Any] = {"dense": net, "decoded": decoded, "codes": coded}
        rivals: dict[str, Any] = {name: lambda given, one=one: one(given) for name, one in calls.items()}
        for name in ("dense", "decoded"):
            session = onnx.load(folder / f"{name}.onnx", 1)
            rivals[f"{name}, onnxruntime"] = lambda given, one=session: one([given.numpy()])
        with torch.inference_mode():
            for name, one in interleaved(rivals, batch, Timed(seconds=1.0)).items():
                found[f"{name}, {size}"] = round(1e3 * one.median, 4)
    return found


def main() -> None:
    """Prints what was tried, and of the net that validation chose its test accuracy, bytes and times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--fit", choices=("kmeans", "learned"), default="kmeans")
    parser.add_argument("--operations", type=float, default=1 / 3, help="of the dense net's, at most")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = problem()
    state = dense(given.weights, task, given.seed)
    net = models.lenet5()
    net.load_state_dict(state)
    most = count(net, [SAMPLE]).macs
    print(json.dumps({"dense": most, "validation": evaluate(net, task.validation, task.step, task.metric).metric}))
    rows = []
    for tried in TRIED:
        rows.append(trained(state, tried, task, given))
        print(json.dumps({name: one for name, one in rows[-1].items() if name not in ("model", "edits")}), flush=True)
    fitting = [row for row in rows if row["operations"] <= given.operations * most]
    best = max(fitting, key=lambda row: (row["validation"], -row["loss"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "model.dcz"
        size = files.save(plain_state(best["model"]), path, coder="adaptive", edits=best["edits"])
        read = files.load_into(models.lenet5(), path)
        print(
            json.dumps(
                {
                    "chosen": best["tried"],
                    "times_fewer": round(most / best["operations"], 2),
                    "test": right(read),
                    "dense_test": right(net),
                    "bytes": size,
                    "milliseconds": timed(state, path, folder),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
