"""Exported `.tflite` files beside the float file: bytes, agreement, latency in LiteRT.

`python tests/benchmarks/bench_litert.py lenet|resnet`, with LiteRT's environment (docs/exports.md). One thread, batch
1; latencies as in bench_onnx.py.
"""

from __future__ import annotations

import copy
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.export import litert as target
from deepcompression.formats.state_dict import save
from deepcompression.models import lenet5, resnet20
from deepcompression.pruning.prune import prune
from deepcompression.quantization import linear
from deepcompression.quantization.calibrate import Plan
from deepcompression.sharing.share import share

sys.path.insert(0, str(Path(__file__).parent))

import bench_onnx


def lenet(place: Path) -> None:
    """LeNet-5, Laplace weights: as it is; 10 % dense with 16 values; 10 % dense on grids of 8 bits; these, dense."""
    model, sample = lenet5().eval(), torch.rand(8, 1, 28, 28)
    bench_onnx.laplace(model)
    names = bench_onnx.layers(model)
    pruned = prune(model.state_dict(), dict.fromkeys(names, 0.1)).state
    grids = linear.table(model, dict.fromkeys(names, 8))
    states = {
        "float": model.state_dict(),
        "shared": share(pruned, dict.fromkeys(names, 4)).state,
        "pruned, 8 bits": linear.quantize(pruned, grids).state,
        "8 bits": linear.quantize(model.state_dict(), grids).state,
    }
    for name, state in states.items():
        made = copy.deepcopy(model)
        made.load_state_dict(state)
        written(name, made, sample, place)
    rounds(states, sample, place)


def resnet(place: Path) -> None:
    """ResNet-20, 8 bits, with statistics of its own."""
    torch.manual_seed(0)
    model, images = resnet20().train(), torch.randn(128, 1, 28, 28)
    with torch.no_grad():
        model(images)
    written("float", model.eval(), images[:4], place)
    wanted = bench_onnx.logits(model, images)
    model = bench_onnx.quantized(model, images, Plan(observer="minmax"))
    written("int8", model, images[:16], place)
    rounds(("float", "int8"), images, place)
    session = target.load(place / "int8.tflite", 1)
    got = torch.from_numpy(np.concatenate([session([one[None].numpy()])[0] for one in images]))
    rounded = bench_onnx.logits(model, images)
    print(f"  outputs {float((got - rounded).norm() / rounded.norm()):.2%} apart")
    bench_onnx.agreement("the float model", wanted, rounded, got)


def written(name: str, model: nn.Module, sample: Tensor, place: Path) -> None:
    """Exports, and prints what came out."""
    dcz = save(model.state_dict(), place / "model.dcz", coder="huffman")
    made = target.export(model, [sample], place / f"{name}.tflite")
    print(f"{name}: .dcz {dcz:,} bytes, .tflite {made.bytes:,}, float {made.float_bytes:,}; {made.max_difference:.2g}")
    print("  " + "; ".join(f"{one.tensor}: {one.form}, {one.bytes:,}" for one in made.tensors))
    for note in made.notes:
        print(f"  note: {note}")


def rounds(names: object, sample: Tensor, place: Path) -> None:
    """Times the files in turns."""
    sessions = {name: target.load(place / f"{name}.tflite", 1) for name in list(names)}  # type: ignore[call-overload]
    one = [sample[:1].numpy()]
    bench_onnx.timed({name: lambda some=some: some(one) for name, some in sessions.items()}, "float")  # type: ignore[misc]


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        {"lenet": lenet, "resnet": resnet}[sys.argv[1]](Path(folder))
