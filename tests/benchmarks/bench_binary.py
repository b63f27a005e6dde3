"""Binary weights and activations: 784-1024-1024-1024-10 on MNIST or Fashion-MNIST, by the library alone.

    python tests/benchmarks/bench_binary.py --root FOLDER [--data fashion_mnist] [--epochs 60] [--ends]

It trains the float net, binarizes it as conf/mnist-binary.yaml does (--ends leaves first and last layer float), writes
the file, loads that into a new model and reads the test split once. --validation leaves both out: for choosing.

    python tests/benchmarks/bench_binary.py --brevitas --lr 0.02 [--data fashion_mnist]    (rivals.txt installed)

trains Brevitas' own net of this shape (LFC, 1 bit) by their loss and optimizer, with the same data, epochs and batches.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

import deepcompression.torch as bridge
from deepcompression import data
from deepcompression.data.small_images import shift
from deepcompression.data.splits import split_validation
from deepcompression.models import binary_mlp
from deepcompression.network.state import plain_state
from deepcompression.quantization.binarize import Binarize
from deepcompression.quantization.binary.asked import Activations, Phases, Weights
from deepcompression.training.device import Compute
from deepcompression.training.evaluate import evaluate
from deepcompression.training.loop import train
from deepcompression.training.plan import Plan
from deepcompression.training.problem import Problem


def main() -> None:
    """Prints one line of JSON."""
    given = arguments()
    torch.manual_seed(given.seed)
    splits = split_validation(getattr(data, given.data)(given.root), 5000)
    problem = Problem(splits.train, splits.validation, batch_size=given.batch_size, augment=shift(1, given.fraction))
    if given.brevitas:
        print(json.dumps({**vars(given), **theirs(problem, splits.test, given)}))
        return
    compute, model, started = Compute(), binary_mlp(dropout=given.dropout), time.perf_counter()
    dense = train(model, problem, plan(given.dense_epochs, 1e-3, "cosine", given.seed, compute)).fit
    phases = Phases(given.phases[0], given.phases[1], given.phases[2])
    falling = {"shape": "constant", "start": phases.decay, "power": given.power}
    method = Binarize(Weights(given.kind), Activations(), None, None if given.ends else [], phases)
    made = train(model, problem, plan(given.epochs, given.lr, falling, given.seed, compute), [method])
    told: dict[str, Any] = {**vars(given), "dense": dense.best_metric, "validation": made.fit.best_metric}
    told |= {"best_epoch": made.fit.best_epoch, "seconds": round(time.perf_counter() - started)}
    if not given.validation:
        told |= delivered(model, made.accounts[0][1].edits, splits.test, problem, compute, given)
    print(json.dumps(told))


def delivered(model: Any, edits: Any, test: Any, problem: Problem, compute: Compute, given: Any) -> dict[str, Any]:
    """The file's bytes, and what a new model that it was loaded into makes of the test split."""
    state = {name: one.cpu() for name, one in plain_state(model).items()}
    bridge.save(state, given.file, coder=given.coder, edits=edits)
    told = {"file_bytes": Path(given.file).stat().st_size}
    told["dense_bytes"] = 4 * sum(one.numel() for one in binary_mlp().parameters())
    loaded = compute.place(bridge.load_into(binary_mlp(), given.file))
    return {**told, "test": evaluate(loaded, test, problem.step, problem.metric, compute).metric}


def hinge_step(model: Any, batch: Any) -> Any:
    """The loss of Brevitas' example: squared hinge of targets -1 and 1."""
    samples, targets = batch
    logits = model(samples)
    signs = 2 * torch.nn.functional.one_hot(targets, 10).to(logits.dtype) - 1
    return torch.relu(1 - signs * logits).square().mean(), logits, targets


def theirs(problem: Problem, test: Any, given: Any) -> dict[str, Any]:
    """Brevitas' net, trained by their loss and Adam, weights clipped, the rate falling by a cosine."""
    from brevitas_examples.bnn_pynq.models.FC import FC

    class Clipped(FC):  # type: ignore[misc]
        def forward(self, images: Any) -> Any:
            if self.training:
                with torch.no_grad():
                    self.clip_weights(-1, 1)
            return super().forward(images)

    model, started = Clipped(10, 1, 1, 1, 1, [1024, 1024, 1024]), time.perf_counter()
    problem = dataclasses.replace(problem, step=hinge_step)
    optimizer = {"factory": "torch.optim:Adam", "kwargs": {"lr": given.lr}}
    made = train(model, problem, Plan(given.epochs, optimizer, "cosine", seed=given.seed)).fit
    told = {"validation": made.best_metric, "best_epoch": made.best_epoch}
    told["seconds"] = round(time.perf_counter() - started)
    if not given.validation:
        told["test"] = evaluate(model, test, problem.step, problem.metric, Compute()).metric
    return told


def plan(epochs: int, lr: float, schedule: Any, seed: int, compute: Compute) -> Plan:
    """One training."""
    optimizer = {"factory": "torch.optim:AdamW", "kwargs": {"lr": lr}}
    return Plan(epochs, optimizer, schedule, seed=seed, compute=compute)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root")
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--kind", default="xnor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--dense-epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--power", type=float, default=1.5)
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--phases", type=float, nargs=3, default=[0.05, 0.1, 0.3])
    parser.add_argument("--file", default="binary.dcz")
    parser.add_argument("--coder", default="adaptive")
    parser.add_argument("--ends", action="store_true")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--brevitas", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
