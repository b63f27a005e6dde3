"""2:4 sparsity of ResNet-20 on Fashion-MNIST: SR-STE, one-shot and trained on, and as long a training without it.

`python tests/benchmarks/bench_n_m.py FOLDER [--seeds 0 1 2] [--ways sr_ste one-shot none] [--device cuda]`. FOLDER is
that of bench_lsq.py: all begin with its float net of the same seed, train by its plan, and are read back from a `.dcz`;
what each net gets right is kept, so that the command goes on. The test split is read once a net.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import bench_lsq
import numpy as np
import torch
from torch import Tensor

from deepcompression import models
from deepcompression import torch as files
from deepcompression.measure import significance
from deepcompression.network.state import plain_state
from deepcompression.pruning.patterns import fitting, prune_to_patterns
from deepcompression.pruning.sr_ste import SrSte
from deepcompression.structure.constraints import Structure, structured
from deepcompression.structure.patterns import pattern_of
from deepcompression.training.loop import train

PATTERN = "2:4"


def trained(state: dict[str, Tensor], way: str, seed: int, device: str, task: Any, path: Path) -> dict[str, Any]:
    """What is known of one net, the file's bytes and density among it."""
    model = models.resnet20()
    model.load_state_dict(state)
    structure: Structure = {}
    if way == "one-shot":
        pattern = pattern_of(PATTERN)
        names, _ = fitting(model, pattern, None)
        pruned = prune_to_patterns(plain_state(model), names, pattern)
        model.load_state_dict(pruned.state)
        structure = structured(zeros=names)
    how = bench_lsq.plan(seed, device)
    if way != "float":
        train(model, task, how, [SrSte(PATTERN)] if way == "sr_ste" else [], structure=structure)
    count = files.save(plain_state(model), path, coder="adaptive")
    again = files.load_into(models.resnet20(), path)
    weights = [one for one in again.parameters() if one.ndim > 1]
    density = sum(int(one.count_nonzero()) for one in weights) / sum(one.numel() for one in weights)
    hits = bench_lsq.right(again, device)
    right = np.packbits(hits).tobytes().hex()
    return {"accuracy": float(hits.mean()), "bytes": count, "density": density, "device": device, "right": right}


def main() -> None:
    """Prints each net's accuracy, and of each way beside the float net the paired difference over all seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", default=["sr_ste", "one-shot", "none"])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    task, hits = bench_lsq.problem(), defaultdict(list)
    for seed in given.seeds:
        state = bench_lsq.float_net(given.folder, seed, task, given.device)
        for way in ("float", *given.ways):
            path = given.folder / f"n_m-{way}-{seed}.json"
            if not path.exists():
                row = trained(state, way, seed, given.device, task, path.with_suffix(".dcz"))
                path.write_text(json.dumps(row))
            row = json.loads(path.read_text())
            hits[way].append(bench_lsq.unpacked(row["right"]))
            print(
                f"{way:9} seed {seed}  {row['accuracy']:.2%}  {row['bytes']:,} bytes  {row['density']:.1%}", flush=True
            )
    for way, of in hits.items():
        print(f"{way:9} mean    {np.mean(of):.2%}")
        if way != "float":
            both = significance.compare(np.concatenate(hits["float"]), np.concatenate(of))
            print(f"   errors beside float: {significance.interval(both)}")


if __name__ == "__main__":
    sys.exit(main())
