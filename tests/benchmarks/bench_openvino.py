"""Files for OpenVINO beside the float file in the same runtime: bytes, agreement, latency, time of loading.

`python tests/benchmarks/bench_openvino.py [compressed|weights|resnet]`, all without; one thread, batch 1, floats
as float32, shapes known. Rounds as in bench_onnx.py. `.xml` and `.bin` of the same graph, as it is and with constants
folded, as OpenVINO's converter does, are there for their bytes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import openvino
import torch
from openvino.passes import ConstantFolding, Manager
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import bench_onnx as base

from deepcompression.export import openvino as target
from deepcompression.export.exported import Array
from deepcompression.export.onnx import fixed
from deepcompression.formats.state_dict import save
from deepcompression.models import lenet5, resnet20
from deepcompression.pruning.prune import prune
from deepcompression.quantization import linear
from deepcompression.quantization.calibrate import Plan
from deepcompression.sharing.share import share


def known(path: Path) -> Path:
    """The file, for a batch of one."""
    model = onnx.load(path)
    fixed(model, 1)
    onnx.save(model, path)
    return path


def timed(paths: Mapping[str, Path], batch: Tensor) -> None:
    """Latencies and times of loading."""
    one = batch[:1].numpy()
    base.timed({name: _call(target.load(path, 1), one) for name, path in paths.items()}, "float")
    print("  loading:")
    base.timed({name: lambda path=path: target.load(path, 1) for name, path in paths.items()}, "float", 1.0)  # type: ignore[misc]


def _call(session: target.OpenVinoSession, one: Array) -> Callable[[], object]:
    return lambda: session([one])


def as_ir(path: Path, place: Path) -> None:
    """Prints the bytes of ``.xml`` and ``.bin``."""
    model, passes = openvino.Core().read_model(path), Manager()
    openvino.serialize(model, place / "as-is.xml")
    passes.register_pass(ConstantFolding())
    passes.run_passes(model)
    openvino.serialize(model, place / "folded.xml")
    for name in ("as-is", "folded"):
        sizes = [(place / f"{name}.{end}").stat().st_size for end in ("xml", "bin")]
        print(f"  {name}: .xml {sizes[0]:,}, .bin {sizes[1]:,}")


def nets() -> dict[str, tuple[nn.Module, Tensor]]:
    """LeNet-5, and a net of 5 million weights, with Laplace weights."""
    wide = nn.Sequential(nn.Linear(784, 2000), nn.ReLU(), nn.Linear(2000, 1600), nn.ReLU(), nn.Linear(1600, 150))
    made = {"LeNet-5": (lenet5().eval(), torch.rand(2, 1, 28, 28)), "5M": (wide.eval(), torch.rand(2, 784))}
    for model, _ in made.values():
        base.laplace(model)
    return made


def compressed(place: Path) -> None:
    """Pruned to 10 %, 16 values a tensor."""
    for name, (model, sample) in nets().items():
        weights = [key for key in model.state_dict() if key.endswith("weight")]
        pruned = prune(model.state_dict(), dict.fromkeys(weights, 0.1))
        model.load_state_dict(share(pruned.state, dict.fromkeys(weights, 4)).state)
        _row(name, model, sample, place)


def weights(place: Path) -> None:
    """Weights alone on grids of a channel."""
    for bits in (8, 4):
        name, (model, sample) = list(nets().items())[1]
        table = linear.table(model, dict.fromkeys(base.layers(model), bits))
        model.load_state_dict(linear.quantize(model.state_dict(), table).state)
        _row(f"{name}, {bits} bits", model, sample, place)


def _row(name: str, model: nn.Module, sample: Tensor, place: Path) -> None:
    count = base.float_file(model, [sample], place / "float.onnx")
    dcz = save(model.state_dict(), place / "model.dcz", coder="huffman")
    made = target.export(model, [sample], place / "small.onnx")
    print(f"{name}: {made.bytes:,} bytes, .dcz {dcz:,} ({made.bytes / dcz:.2f}x), float {count:,}")
    print(f"  largest difference {made.max_difference:.1e}; " + "; ".join(made.notes))
    as_ir(place / "small.onnx", place)
    timed({"float": known(place / "float.onnx"), "small": place / "small.onnx"}, sample)


def resnet(place: Path) -> None:
    """ResNet-20, 8 bits, with statistics of its own."""
    model, images = resnet20().train(), torch.randn(128, 1, 28, 28)
    with torch.no_grad():
        model(images)
    base.float_file(model, [images[:2]], place / "float.onnx")
    made = target.export(base.quantized(model, images, Plan(observer="minmax")), [images[:64]], place / "int8.onnx")
    base.told(made, place / "float.onnx")
    as_ir(place / "int8.onnx", place)
    session = target.load(place / "int8.onnx", 1)
    got = [int(session([one[None].numpy()])[0].argmax()) for one in images]
    same = base.logits(model, images).argmax(1) == torch.tensor(got)
    print(f"  same class as the model on {int(same.sum())} of {len(same)}")
    timed({"float": known(place / "float.onnx"), "int8": place / "int8.onnx"}, images)


def main() -> None:
    """Prints the row that is asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__)
    rows = {"compressed": compressed, "weights": weights, "resnet": resnet}
    parser.add_argument("row", choices=[*rows], nargs="?")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        for row in [given.row] if given.row else rows:
            rows[row](Path(place))


if __name__ == "__main__":
    main()
