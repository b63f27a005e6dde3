"""Quantization while training, beside pruning, in a whole run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

import deepcompression
from deepcompression import torch as files
from deepcompression.data.small_images import digits
from deepcompression.models.paper import digits_net
from flows.compress import compress

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_pruned_and_quantized_in_one_training(tiny: Callable[..., dict[str, Any]]) -> None:
    """By bits that a stage before found; held by the stage that follows, verified, and brought back into the user's
    model with its quantizers.
    """
    bits = {"weights": {"bits": "allocated"}, "activations": {"bits": 8}}
    methods = [{"prune": {"density": 0.3}}, {"quantize": bits}]
    stages = [
        {"stage": "allocate", "bits": {"default": [3, 4], "fc2": [4]}, "ratio": 2.2, "samples": 64, "vectors": 8},
        {"stage": "train", "epochs": 3, "lr": 1e-3, "methods": methods},
        {"stage": "finetune", "epochs": 1, "lr": 1e-3},
        {"stage": "encode"},
    ]
    summary = compress(tiny(stages=stages))
    assert summary["stages"][3]["density"] == pytest.approx(0.3, abs=0.02)
    assert summary["ratio"] > 12 and summary["final"]["accuracy"] > 0.8
    trained = summary["stages"][2]["methods"]
    assert [one["method"] for one in trained] == ["prune", "quantize"] and trained[0]["layers"] and trained[1]["grids"]
    page = (Path(summary["folder"]) / "report.html").read_text()
    assert "<h3>train: prune, " in page and "<h3>train: quantize, " in page
    assert "<h3>allocate: hawq, " in page and (Path(summary["folder"]) / "figures" / "allocation.svg").is_file()
    found = {one["name"]: one["bits"] for one in trained[1]["grids"]}
    assert set(found.values()) == {3, 4} and found["fc2.weight"] == 4
    logged = MlflowClient(summary["tracking_uri"]).get_run(summary["mlflow_run_id"]).data.metrics
    assert {"train/prune/density", "train/quantize/bits"} <= logged.keys()
    state = deepcompression.load(Path(summary["file"]))
    assert max(len(set(state[f"{name}.weight"].ravel().tolist())) for name in ("conv1", "fc1")) <= 15
    model = files.load_into(digits_net(), summary["file"]).eval()
    images, labels = digits().test
    with torch.no_grad():
        right = (model(images).argmax(1) == labels).sum()
    assert int(right) == summary["final"]["correct"]
