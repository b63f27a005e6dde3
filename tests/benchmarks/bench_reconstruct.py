"""Bytes against loss of EfficientNet-Lite0 after `reconstruct`, on 128 pictures of ImageNet without labels.

`python tests/benchmarks/bench_reconstruct.py FOLDER [--ratios 6 8 12] [--split test] [--inputs dense] [--out FILE]`.
FOLDER: see imagenet_sample.py. What is judged is read back from the `.dcz` that a run wrote: its bytes, the mean
Kullback-Leibler divergence of its softmax from the dense net's, and how often both give the same answer, with the 95 %
bootstrap interval over pictures. Choose by `--split validation`; test once. Beside them is what the same pictures are
worth without reconstruction, weights shared at as many bytes; onnxruntime's static int8 takes 5,100,074
(bench_ptq.py, the same pictures).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import imagenet_sample
from bench_ptq import divergence, logits

ROUNDED = {"stage": "quantize", "rest": "float16"}
SHARED: dict[str, list[dict[str, Any]]] = {
    "share, 6 bits": [{"stage": "share", "bits": 6, "init": "optimal"}, ROUNDED],
    "share, 5 bits": [{"stage": "share", "bits": 5, "init": "optimal"}, ROUNDED],
}


def stages_of(ratio: float, weights: str = "linear", inputs: str = "dense", together: int = 64) -> list[dict[str, Any]]:
    """The stages that reach a ratio."""
    keys = {"weights": weights, "bits": 10, "inputs": inputs, "together": together}
    return [ROUNDED, {"stage": "reconstruct", "target": {"ratio": ratio}, **keys}]


def compressed(folder: str, stages: list[dict[str, Any]], images: Tensor, place: Path) -> tuple[Tensor, int]:
    """Logits of the file that a run wrote, and its bytes."""
    from deepcompression.torch import load_into
    from flows.compress import compress

    recipe = {
        "name": "reconstruct",
        "threads": 1,
        "channels_last": True,
        "model": {"factory": "imagenet_sample:model", "weights": {"path": imagenet_sample.weights()}},
        "data": {"factory": "imagenet_sample:data", "kwargs": {"folder": folder}},
        "stages": [*stages, {"stage": "encode", "coder": "adaptive"}],
        "python_path": [str(Path(__file__).parent)],
        "runs": str(place / "runs"),
        "store": str(place / "store"),
        "tracking": {"uri": f"sqlite:///{place}/mlflow.db"},
        "test": False,
    }
    summary: Any = compress(recipe)
    return logits(load_into(imagenet_sample.model(), summary["file"]), images), int(summary["file_bytes"])


def interval(values: Tensor, draws: int = 10_000) -> tuple[float, float]:
    """The 95 % bootstrap interval of a mean over pictures."""
    numbers = values.double().numpy()
    drawn = np.random.default_rng(0).integers(0, len(numbers), (draws, len(numbers)))
    low, high = np.quantile(numbers[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def judged(dense: Tensor, other: Tensor, classes: Tensor) -> dict[str, Any]:
    """The figures of some logits."""
    lost, same = divergence(dense, other), (other.argmax(1) == dense.argmax(1)).double()
    return {
        "divergence": float(lost.mean()),
        "divergence_interval": interval(lost),
        "agreement": float(same.mean()),
        "agreement_interval": interval(same),
        "accuracy": float((other.argmax(1) == classes).double().mean()),
    }


def main() -> None:
    """Prints a row for each ratio, and for sharing alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--ratios", type=float, nargs="*", default=[6.0, 8.0, 12.0])
    parser.add_argument("--weights", default="linear", choices=["linear", "kmeans"])
    parser.add_argument("--inputs", default="dense", choices=["compressed", "dense"])
    parser.add_argument(
        "--together", type=int, default=64, help="layers in one pass; 1 takes longest, and least memory"
    )
    parser.add_argument("--split", default="test", choices=["validation", "test"])
    parser.add_argument("--alone", action="store_true", help="reconstruct alone")
    parser.add_argument("--out", help="a JSON file of all figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    images, classes = getattr(imagenet_sample.data(given.folder), given.split)
    model = imagenet_sample.model()
    model.load_state_dict(torch.load(imagenet_sample.weights(), weights_only=True))
    dense = logits(model, images)
    size = sum(one.numel() * one.element_size() for one in model.state_dict().values())
    ways = {
        f"reconstruct, {ratio:g}x": stages_of(ratio, given.weights, given.inputs, given.together)
        for ratio in given.ratios
    }
    rows: dict[str, dict[str, Any]] = {}
    print(f"{'':20} {'bytes':>11} {'ratio':>6} {'KL':>8} {'same answer':>24} {'right':>7} {'CPU s':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for name, stages in {**ways, **({} if given.alone else SHARED)}.items():
            started = time.process_time()
            found, count = compressed(given.folder, stages, images, Path(folder))
            row = {"bytes": count, "ratio": size / count, "seconds": time.process_time() - started}
            rows[name] = row | judged(dense, found, classes)
            low, high = rows[name]["agreement_interval"]
            same = f"{rows[name]['agreement']:.2%} ({low:.1%} to {high:.1%})"
            print(
                f"{name:20} {count:11,} {size / count:5.2f}x {rows[name]['divergence']:8.4f} {same:>24} "
                f"{rows[name]['accuracy']:7.2%} {row['seconds']:6.0f}",
                flush=True,
            )
    if given.out:
        Path(given.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
