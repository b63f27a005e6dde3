"""EfficientNet-Lite0 with a tenth of its multiplications removed, filters whole, without training.

`python tests/benchmarks/bench_thin.py FOLDER [--flops 0.9] [--ways l2 fisher/global] [--out FILE.json]`. FOLDER: see
imagenet_sample.py. Each way, a criterion with its scope, removes filters; then BatchNorm's statistics are estimated
anew on 128 pictures. The one that validation (100 pictures) likes best reads the others once. What is judged is read
back from the `.dcz` into the net of the users' class; the stage compared it, before recalibration, with the one whose
filters are zeros instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import imagenet_sample
from bench_ptq import logits
from bench_reconstruct import judged


def thin(folder: str, stages: list[dict[str, Any]], place: Path) -> tuple[Any, dict[str, Any]]:
    """The net of the file that a run wrote, and what is known of it."""
    from deepcompression.measure.flops import count
    from deepcompression.torch import load_into
    from flows.compress import compress
    from tasks.storage.store import Store

    recipe = {
        "name": "thin",
        "threads": 1,
        "model": {"factory": "imagenet_sample:model", "weights": {"path": imagenet_sample.weights()}},
        "data": {"factory": "imagenet_sample:data", "kwargs": {"folder": folder}},
        "stages": [*stages, {"stage": "encode"}],
        "python_path": [str(Path(__file__).parent)],
        "runs": str(place / "runs"),
        "store": str(place / "store"),
        "tracking": {"uri": f"sqlite:///{place}/mlflow.db"},
        "test": False,
    }
    started = time.process_time()
    summary: Any = compress(recipe)
    seconds = time.process_time() - started
    reports = [(Store(str(place / "store")).find(row["key"]) or {}).get("report", {}) for row in summary["stages"]]
    model, picture = load_into(imagenet_sample.model(), summary["file"]).eval(), torch.zeros(1, 3, 224, 224)
    return model, {
        "gap": next((one["gap"] for one in reports if "gap" in one), None),
        "macs": count(model, [picture]).macs,
        "parameters": sum(one.numel() for one in model.parameters()),
        "file_bytes": summary["file_bytes"],
        "cpu_seconds": round(seconds, 1),
    }


def main() -> None:
    """Prints a row for each way on validation, and of the best one on the test pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--flops", type=float, default=0.9)
    parser.add_argument("--ways", nargs="*", default=["l2", "taylor/global", "fisher/global"])
    parser.add_argument("--out", help="a JSON file of all figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    splits = imagenet_sample.data(given.folder)
    net = imagenet_sample.model().eval()
    net.load_state_dict(torch.load(imagenet_sample.weights(), weights_only=True))
    dense = {name: logits(net, getattr(splits, name)[0]) for name in ("validation", "test")}

    def row(model: Any, split: str) -> dict[str, Any]:
        images, classes = getattr(splits, split)
        made: Tensor = logits(model, images)
        return {**judged(dense[split], made, classes), "dense_accuracy": right(dense[split], classes)}

    rows, nets = {}, {}
    with tempfile.TemporaryDirectory() as name:
        for way in given.ways:
            criterion, _, scope = way.partition("/")
            prune = {"stage": "prune", "granularity": "filter", "criterion": criterion, "scope": scope or "layer"}
            stages = [{**prune, "flops": given.flops, "remove": True}, {"stage": "recalibrate", "batch_size": 32}]
            nets[way], known = thin(given.folder, stages, Path(name))
            rows[way] = {**known, **row(nets[way], "validation")}
            print(json.dumps({way: rows[way]}), flush=True)
        best = max(rows, key=lambda one: (rows[one]["agreement"], -rows[one]["divergence"]))
        rows["test"] = {"way": best, **row(nets[best], "test")}
        print(json.dumps(rows["test"]))
    if given.out:
        Path(given.out).write_text(json.dumps(rows, indent=1))


def right(made: Tensor, classes: Tensor) -> float:
    """The part of the answers that is right."""
    return float((made.argmax(1) == classes).double().mean())


if __name__ == "__main__":
    main()
