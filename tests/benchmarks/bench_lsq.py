"""Few bits while training, ours beside Brevitas: ResNet-20 on Fashion-MNIST, all from the same float nets.

`python tests/benchmarks/bench_lsq.py FOLDER [--bits 4 3 2] [--seeds 0 1 2] [--ways lsq brevitas] [--device cuda]`, with
rivals.txt installed where Brevitas is wanted. A way is `brevitas`, whose scales are learned too, or a range of ours for
weights and activations, or two, as in `minmax+pact`. All train by the plan of conf/fashion-resnet-20-lsq.yaml: the same
data, epochs, rate and batches; in all the first and the last layer have 8 bits. Ours are read back from a `.dcz`.
FOLDER keeps the float nets (the plan of conf/fashion-resnet-20.yaml, one a seed) and what each net gets right, so that
several processes may share the work and the command goes on; the test split is read once a net.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression import data, models
from deepcompression import torch as files
from deepcompression.measure import significance
from deepcompression.network.state import plain_state
from deepcompression.quantization.in_training import Activations, QuantizedTraining, Weights
from deepcompression.training.device import Compute
from deepcompression.training.loop import train
from deepcompression.training.plan import Plan
from deepcompression.training.problem import Problem
from deepcompression.training.randomness import seed_everything

EDGE_BITS, EPOCHS, RATE = 8, 3, 0.01
Hits = np.ndarray[Any, np.dtype[np.bool_]]


def problem() -> Problem:
    """Fashion-MNIST as in the recipes."""
    splits = data.split_validation(data.fashion_mnist(), 5000)
    return Problem(splits.train, splits.validation, augment=data.shift(2, 0.7), batch_size=128)


def plan(seed: int, device: str, epochs: int = EPOCHS, rate: float = RATE, decay: float = 1e-4) -> Plan:
    """SGD with Nesterov's momentum; the rate falls by a cosine."""
    kwargs = {"lr": rate, "momentum": 0.9, "nesterov": True, "weight_decay": decay}
    optimizer = {"factory": "torch.optim:SGD", "kwargs": kwargs}
    compute = Compute(device, "bfloat16", True)
    return Plan(epochs, optimizer, "cosine", 0.5 if rate > RATE else 0.0, seed=seed, compute=compute)


def float_net(folder: Path, seed: int, task: Problem, device: str) -> dict[str, Tensor]:
    """The state_dict of a seed's float net: read, or trained and kept."""
    path = folder / f"float-{seed}.dcz"
    if not path.exists():
        seed_everything(seed)
        model = models.resnet20()
        train(model, task, plan(seed, device, 12, 0.1, 5e-4))
        files.save(plain_state(model), path)
    return files.load(path)


def right(model: nn.Module, device: str) -> Hits:
    """Whether each image of the test split is recognised, in float32: 1 or 0."""
    images, targets = data.fashion_mnist().test
    model = model.to(device).eval()
    with torch.no_grad():
        found = torch.cat([model(some.to(device)).argmax(1).cpu() for some in images.split(500)])
    return (found == targets).numpy()


def ours(
    model: nn.Module, bits: int, ranges: str, task: Problem, how: Plan, path: Path
) -> tuple[nn.Module, dict[str, Any]]:
    """The net of the file that a training ended in, and what is known of the file."""
    width = {"conv1": EDGE_BITS, "fc": EDGE_BITS, "default": bits}
    of_weights, _, of_values = ranges.partition("+")
    method = QuantizedTraining(Weights(width, of_weights), Activations(width, of_values or of_weights))
    done = train(model, task, how, [method])
    edits = [edit for _, account in done.accounts for edit in account.edits]
    count = files.save(plain_state(model), path, coder="adaptive", edits=edits)
    return files.load_into(models.resnet20(), path), {"bytes": count}


def theirs(model: nn.Module, bits: int, task: Problem, how: Plan) -> nn.Module:
    """The same net with Brevitas' layers, whose scales are learned from the first statistics on, trained alike."""
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
            setattr(model.get_submodule(parent), own, made(layer, EDGE_BITS if name in ("conv1", "fc") else bits))
    train(model, task, how)
    return model


def main() -> None:
    """Prints each net's accuracy, and of each way beside Brevitas' the paired difference over all seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bits", type=int, nargs="+", default=[4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ways", nargs="+", default=["lsq", "brevitas"])
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    hits: dict[tuple[int, str], list[Hits]] = defaultdict(list)
    task = problem()
    for seed in given.seeds:
        state = float_net(given.folder, seed, task, given.device)
        for bits, way in [(32, "float"), *((bits, way) for bits in given.bits for way in given.ways)]:
            row = kept(given.folder / f"{way}-{bits}-{seed}.json", state, bits, way, task, plan(seed, given.device))
            hits[bits, way].append(unpacked(row["right"]))
            print(f"{bits:2} bits {way:14} seed {seed}  {row['accuracy']:.2%}  {row['seconds']:6.1f} s", flush=True)
    for (bits, way), of in hits.items():
        print(f"{bits:2} bits {way:14} mean    {np.mean(of):.2%}")
        for other in ("float", "brevitas"):
            against = hits.get((32 if other == "float" else bits, other))
            if against and way not in (other, "float"):
                both = significance.compare(np.concatenate(against), np.concatenate(of))
                print(f"   errors beside {other}: {significance.interval(both)}")


def kept(path: Path, state: dict[str, Tensor], bits: int, way: str, task: Problem, how: Plan) -> dict[str, Any]:
    """What is known of one net: read, or trained, tested and written."""
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    started, device = time.perf_counter(), how.compute.device
    model, more = models.resnet20(), {}
    model.load_state_dict(state)
    if way == "brevitas":
        model = theirs(model, bits, task, how)
    elif way != "float":
        model, more = ours(model, bits, way, task, how, path.with_suffix(".dcz"))
    seconds, hits = time.perf_counter() - started, right(model, device)
    card = torch.cuda.get_device_name() if device.startswith("cuda") else "CPU"
    row = {"accuracy": float(hits.mean()), "seconds": seconds, "device": card, "torch": torch.__version__, **more}
    path.write_text(json.dumps({**row, "right": np.packbits(hits).tobytes().hex()}))
    return {**row, "right": np.packbits(hits).tobytes().hex()}


def unpacked(text: str) -> Hits:
    """Whether each image was recognised, from its bits in hexadecimal digits."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:10_000].astype(bool)


if __name__ == "__main__":
    sys.exit(main())
