"""Samples a second of one process and of several that train together, and what each ends with: LeNet-5 on MNIST.

`python tests/benchmarks/bench_devices.py [--device cpu] [--counts 1 2] [--threads 1] [--epochs 4] [--batch 128]
[--seeds 0 1 2]`.
Needs Lightning Fabric, and cores (or GPUs) that are free. Epochs after the first are timed,
with their validation.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn

from deepcompression.data import mnist
from deepcompression.models import lenet5
from deepcompression.training.device import Compute
from deepcompression.training.loop import train
from deepcompression.training.plan import Fit, Plan
from deepcompression.training.problem import Problem
from deepcompression.training.team import joined

SAMPLES, VALIDATION = 24_000, 2_000
OPTIMIZER = {"factory": "torch.optim:AdamW", "kwargs": {"lr": 1e-3}}


def work(rank: int, count: int, place: str, device: str, threads: int, epochs: int, batch: int, seed: int) -> None:
    """One process of a training; the first one says how long an epoch took, and the best accuracy."""
    torch.set_num_threads(threads)
    images, labels = mnist().train
    cut = Problem((images[:SAMPLES], labels[:SAMPLES]), (images[-VALIDATION:], labels[-VALIDATION:]), batch_size=batch)
    torch.manual_seed(seed)
    done = _trained(
        lenet5(), cut, Plan(epochs, OPTIMIZER, seed=seed, compute=Compute(device=device)), rank, count, place
    )
    if not rank:
        seconds = median(entry["seconds"] for entry in done.history[1:])
        print(
            f"seed {seed}, {count} of {device}: {SAMPLES / seconds:8.0f} samples/s, {done.best_metric:.4f}", flush=True
        )


def _trained(model: nn.Module, problem: Problem, plan: Plan, rank: int, count: int, place: str) -> Fit:
    if count == 1:
        return train(model, problem, plan, []).fit
    with joined(rank, count, Path(place), plan.compute.resolved().type) as team:
        return train(model, problem, plan, [], team=team).fit


def main(given: Sequence[str] | None = None) -> int:
    """Each number of processes for each seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128, help="of a step, over all processes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    how = parser.parse_args(given)
    for seed in how.seeds:
        for count in how.counts:
            with tempfile.TemporaryDirectory() as folder:
                place = str(Path(folder, "place"))
                torch.multiprocessing.spawn(
                    work, (count, place, how.device, how.threads, how.epochs, how.batch, seed), nprocs=count
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
