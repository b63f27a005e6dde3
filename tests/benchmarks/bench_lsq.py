"""Few bits while training, ours beside Brevitas: ResNet-20 on Fashion-MNIST, both from one float net.

`python tests/benchmarks/bench_lsq.py --weights FILE [--bits 4] [--seeds 0 1 2] [--out FILE.json]`, in an environment
with rivals.txt. Ours is conf/fashion-resnet-20-lsq.yaml, read back from the `.dcz` that a run wrote; the rival learns
its scales too, and trains by the same loop: same data, epochs, rate, batches. In both the first and the last layer have
8 bits. The float net is that of conf/fashion-resnet-20.yaml.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "conf" / "fashion-resnet-20-lsq.yaml"
EDGE_BITS = 8


def right(model: nn.Module, images: Tensor, targets: Tensor) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each of the images (n, 1, 28, 28) is recognised."""
    with torch.no_grad():
        found = torch.cat([model.eval()(some).argmax(1) for some in images.split(500)])
    return (found == targets).numpy()


def ours(bits: int, seed: int, changes: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The net of the file that a run wrote, and what the run says of itself."""
    from deepcompression import models
    from deepcompression.torch import load_into
    from flows.compress import compress

    where = "stages.train.methods.0.quantize"
    width = {"conv1.weight": EDGE_BITS, "fc.weight": EDGE_BITS, "default": bits}
    both = {f"{where}.weights.bits": width, f"{where}.activations.bits": width}
    summary: Any = compress(str(RECIPE), {**changes, **both, "seed": seed, "test": False})
    return load_into(models.resnet20(), summary["file"]), summary


def rival(model: nn.Module, bits: int) -> nn.Module:
    """The same net with Brevitas' layers, scales learned from the first statistics on."""
    import brevitas.nn as qnn
    from brevitas.quant import Int8WeightPerTensorFloat, Uint8ActPerTensorFloat

    class Weight(Int8WeightPerTensorFloat):  # type: ignore[misc]
        scaling_impl_type = "parameter_from_stats"

    def made(layer: nn.Conv2d | nn.Linear, width: int) -> nn.Module:
        keys = {
            "weight_quant": Weight, "weight_bit_width": width, "input_quant": Uint8ActPerTensorFloat,
            "input_bit_width": width, "bias": layer.bias is not None,
        }  # fmt: skip
        if isinstance(layer, nn.Linear):
            new = qnn.QuantLinear(layer.in_features, layer.out_features, **keys)
        else:
            new = qnn.QuantConv2d(
                layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, **keys
            )
        new.load_state_dict(layer.state_dict(), strict=False)
        return new

    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            parent, _, own = name.rpartition(".")
            width = EDGE_BITS if name in ("conv1", "fc") else bits
            setattr(model.get_submodule(parent), own, made(layer, width))
    return model


def theirs(bits: int, seed: int, state: dict[str, Tensor], changes: dict[str, Any]) -> nn.Module:
    """The rival's net, trained by the recipe's own plan."""
    from deepcompression import data, models
    from deepcompression.training.device import Compute
    from deepcompression.training.loop import Plan, train
    from deepcompression.training.problem import Problem
    from flows.recipe import load as recipes

    parsed = recipes.load(str(RECIPE), {**changes, "seed": seed})
    training: Any = next(one for one in parsed.stages if one.stage == "train")
    splits = data.split_validation(data.fashion_mnist(), parsed.data.validation)
    augment = parsed.data.augment
    assert augment is not None
    problem = Problem(
        splits.train, splits.validation, augment=data.shift(**augment.arguments()), batch_size=training.batch_size
    )
    plan = Plan(
        training.epochs, training.optimizer_with_rate(), training.plain_schedule(), training.warmup, training.patience,
        training.gradient_clip, seed, Compute("cpu", parsed.precision, parsed.channels_last),
    )  # fmt: skip
    model = models.resnet20()
    model.load_state_dict(state)
    made = rival(model, bits)
    train(made, problem, plan)
    return made


def changes_of(given: argparse.Namespace) -> dict[str, Any]:
    """The recipe's changes: its float net read from a file, and what the command line says."""
    from flows.recipe.merge import parse_overrides

    return {"model.weights": {"path": str(Path(given.weights).resolve())}, **parse_overrides(given.set)}


def main() -> None:
    """Prints what both get right for each seed, and the paired difference over all."""
    from deepcompression import data, models
    from deepcompression.formats.checkpoint import read_state
    from deepcompression.measure import significance

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="the float net, as the recipe's model.weights takes it")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--alone", action="store_true", help="ours alone")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the recipe")
    parser.add_argument("--out", help="a JSON file of all figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    changes = changes_of(given)
    images, targets = data.fashion_mnist().test
    dense = models.resnet20()
    dense.load_state_dict(read_state(given.weights))
    base = right(dense, images, targets)
    print(f"float: {base.mean():.2%}", flush=True)
    rows: list[dict[str, Any]] = []
    hits: dict[str, list[Any]] = {"ours": [], "Brevitas": []}
    for seed in given.seeds:
        for name in ("ours",) if given.alone else ("ours", "Brevitas"):
            started = time.perf_counter()
            if name == "ours":
                model, summary = ours(given.bits, seed, changes)
                extra = {"file_bytes": summary["file_bytes"], "ratio": summary["ratio"]}
            else:
                model, extra = theirs(given.bits, seed, read_state(given.weights), changes), {}
            hits[name].append(right(model, images, targets))
            rows.append({"of": name, "seed": seed, "accuracy": float(hits[name][-1].mean()), **extra})
            rows[-1]["seconds"] = time.perf_counter() - started
            print(rows[-1], flush=True)
    if not given.alone:
        both = significance.compare(*(np.concatenate(hits[name]).astype(float) for name in ("Brevitas", "ours")))
        print(f"ours compared with Brevitas: {significance.sentence(both)} ({significance.interval(both)})")
    if given.out:
        Path(given.out).write_text(
            json.dumps({"bits": given.bits, "float": float(base.mean()), "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    sys.exit(main())
