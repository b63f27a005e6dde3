"""A student of a quarter of the width, alone and taught in several ways: ResNet-20 on Fashion-MNIST.

`python tests/benchmarks/bench_distillation.py FOLDER [--seeds 0 1 2] [--epochs 4] [--ways alone distil ...]`; there is
`--device`. FOLDER is that of bench_lsq.py: the teacher is its float net of the same seed, made where it is not there,
and what each student gets right is kept, so that the command goes on. All students of a seed begin with the same
weights and see the same batches. The test split is read once a student.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import bench_lsq
import numpy as np
import torch

from deepcompression import models
from deepcompression.distillation.attention import Attention
from deepcompression.distillation.hints import Hints
from deepcompression.distillation.logits import Distillation
from deepcompression.measure import significance
from deepcompression.training.loop import train
from deepcompression.training.method import Method
from deepcompression.training.randomness import seed_everything

WIDTH, RATE = 4, 0.1
GROUPS = ["layer1", "layer2", "layer3"]


def methods(way: str) -> list[Method]:
    """What teaches, by its words joined with +."""
    known: dict[str, list[Method]] = {
        "alone": [],
        "distil": [Distillation()],
        "hints": [Hints(["layer2"])],
        "stages": [Hints(["layer2"], until=0.25)],
        "attention": [Attention(GROUPS)],
    }
    return [method for word in way.split("+") for method in known[word]]


def student(folder: Path, way: str, seed: int, epochs: int, task: bench_lsq.Problem, device: str) -> dict[str, Any]:
    """What is known of one student: read, or trained, tested and written."""
    path = folder / f"student-{way}-{epochs}-{seed}.json"
    if not path.exists():
        teacher = models.resnet20()
        teacher.load_state_dict(bench_lsq.float_net(folder, seed, task, device))
        seed_everything(seed)
        model, started = models.resnet20(width=WIDTH), time.process_time()
        how = bench_lsq.plan(seed, device, epochs, RATE)
        train(model, task, how, methods(way), teacher=teacher)
        seconds, right = time.process_time() - started, bench_lsq.right(model, device)
        row = {"accuracy": float(right.mean()), "cpu_seconds": seconds, "right": np.packbits(right).tobytes().hex()}
        path.write_text(json.dumps(row))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    """Prints each student's accuracy, and of each way beside the student alone the paired difference over all seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--ways", nargs="+", default=["alone", "distil", "attention", "hints", "attention+distil"])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, hits = bench_lsq.problem(), defaultdict(list)
    count = sum(one.numel() for one in models.resnet20(width=WIDTH).parameters())
    print(f"student: {count:,} parameters, teacher {sum(one.numel() for one in models.resnet20().parameters()):,}")
    for seed in given.seeds:
        for way in given.ways:
            row = student(given.folder, way, seed, given.epochs, task, given.device)
            hits[way].append(bench_lsq.unpacked(row["right"]))
            print(f"{way:18} seed {seed}  {row['accuracy']:.2%}  {row['cpu_seconds']:6.1f} CPU s", flush=True)
    for way, of in hits.items():
        print(f"{way:18} mean    {np.mean(of):.2%}")
        if way != "alone" and "alone" in hits:
            both = significance.compare(np.concatenate(hits["alone"]), np.concatenate(of))
            print(f"   errors beside the student alone: {significance.interval(both)}")


if __name__ == "__main__":
    sys.exit(main())
