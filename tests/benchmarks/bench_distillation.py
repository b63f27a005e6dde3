"""A student of a quarter of the width, alone and taught in several ways: ResNet-20 on Fashion-MNIST.

`python tests/benchmarks/bench_distillation.py FOLDER [--seeds 0 1 2] [--epochs 4] [--ways alone distil ...]`; there is
`--device`. FOLDER is that of bench_lsq.py: the teacher is its float net of the same seed, made where it is not there,
and what each student gets right is kept, so that the command goes on. All students of a seed begin with the same
weights and see the same batches. A way is words joined with +, a weight other than the default behind a colon:
`attention:100+distil`. The test split is read once a student; `--validation` leaves it alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bench_lsq
import numpy as np
import torch
from torch import Tensor, nn

from deepcompression import data, models
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
    """What teaches, by its words joined with +, each with its weight, if it is not the default, behind a colon."""
    known: dict[str, Callable[..., Method]] = {
        "distil": Distillation,
        "hints": partial(Hints, ["layer2"]),
        "stages": partial(Hints, ["layer2"], until=0.25),
        "attention": partial(Attention, GROUPS),
    }
    words = [word.partition(":") for word in way.split("+") if word != "alone"]
    return [known[word](**({"weight": float(weight)} if weight else {})) for word, _, weight in words]


def right(model: nn.Module, split: tuple[Tensor, Tensor]) -> bench_lsq.Hits:
    """Whether each image is recognised, in float32."""
    with torch.no_grad():
        found = torch.cat([model.cpu().eval()(some).argmax(1) for some in split[0].split(500)])
    return (found == split[1]).numpy()


def student(folder: Path, way: str, seed: int, given: argparse.Namespace, task: bench_lsq.Problem) -> dict[str, Any]:
    """What is known of one student: read, or trained, judged and written."""
    epochs, device = given.epochs, given.device
    path = folder / f"student-{way}-{epochs}-{seed}{'-val' if given.validation else ''}.json"
    if not path.exists():
        teacher = models.resnet20()
        teacher.load_state_dict(bench_lsq.float_net(folder, seed, task, device))
        seed_everything(seed)
        model, started = models.resnet20(width=WIDTH), time.process_time()
        how = bench_lsq.plan(seed, device, epochs, RATE)
        train(model, task, how, methods(way), teacher=teacher)
        seconds = time.process_time() - started
        hits = right(model, task.validation if given.validation else data.fashion_mnist().test)
        row = {"accuracy": float(hits.mean()), "cpu_seconds": seconds, "right": np.packbits(hits).tobytes().hex()}
        path.write_text(json.dumps({**row, "images": len(hits)}))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def main() -> None:
    """Prints each student's accuracy, and of each way beside the student alone the paired difference over all seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--ways", nargs="+", default=["alone", "distil", "attention", "hints", "attention+distil"])
    parser.add_argument("--validation", action="store_true", help="judge by the validation split, and leave test alone")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    task, hits = bench_lsq.problem(), defaultdict(list)
    count = sum(one.numel() for one in models.resnet20(width=WIDTH).parameters())
    print(f"student: {count:,} parameters, teacher {sum(one.numel() for one in models.resnet20().parameters()):,}")
    for seed in given.seeds:
        for way in given.ways:
            row = student(given.folder, way, seed, given, task)
            hits[way].append(bench_lsq.unpacked(row["right"])[: row["images"]])
            print(f"{way:18} seed {seed}  {row['accuracy']:.2%}  {row['cpu_seconds']:6.1f} CPU s", flush=True)
    for way, of in hits.items():
        print(f"{way:18} mean    {np.mean(of):.2%}")
        if way != "alone" and "alone" in hits:
            both = significance.compare(np.concatenate(hits["alone"]), np.concatenate(of))
            print(f"   errors beside the student alone: {significance.interval(both)}")


if __name__ == "__main__":
    sys.exit(main())
