"""Bytes of a net whose weights are rounded, shared or pruned alone, without training; what that loses, with data.

    python tests/benchmarks/bench_three_nets.py torchvision:mobilenet_v2 torchvision:resnet50 torchvision:squeezenet1_1
    python tests/benchmarks/bench_three_nets.py torchvision:mobilenet_v2 --weights mobilenet_v2.pth --pictures FOLDER
    python tests/benchmarks/bench_three_nets.py imagenet_sample:model --sample FOLDER
    python tests/benchmarks/bench_three_nets.py imagenet_sample:model --sample FOLDER --labels labels.csv
    python tests/benchmarks/bench_three_nets.py imagenet_sample:model --sample FOLDER --sweep artifacts/runs --out F

Without weights they are random, and columns of what is lost stay empty. FOLDER of --pictures: docs/models-and-data.md
(of ImageNet with --classes); of --sample: see imagenet_sample.py, whose weights these are; test pictures are read.
Agreement is how often the net says what the dense one says, KL the divergence of its softmax from the dense one's.
--labels writes the sample as a table for conf/sweeps/three-nets.yaml; --sweep judges the files of that sweep's runs,
and times the nets that they exported, in CPU milliseconds of a picture in onnxruntime, which other processes disturb
less, in turns with the dense net.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import imagenet_sample
from bench_reconstruct import judged

from deepcompression import factory
from deepcompression.formats.checkpoint import read_state
from deepcompression.network.names import prunable
from deepcompression.pruning.prune import prune
from deepcompression.quantization.linear import quantize, table
from deepcompression.quantization.precision import round_precision
from deepcompression.sharing.share import share
from deepcompression.torch import save

ROOT = Path(__file__).parents[2]
WAYS = [
    "16 bits",
    "8 bits",
    *(f"sharing, {bits} bits" for bits in (8, 6, 5, 4, 3, 2)),
    "pruned, 90 %",
    "pruned, 70 %",
]


def done(model: nn.Module, state: dict[str, Tensor], way: str) -> dict[str, Tensor]:
    """A model's state after one of the ways; whatever else it has is float16."""
    names = list(prunable(model))
    if way.startswith("sharing"):
        state = share(state, dict.fromkeys(names, int(way.split()[1])), init="optimal").state
    elif way in ("16 bits", "8 bits"):
        state = {**state, **quantize(state, table(model, dict.fromkeys(names, int(way.split()[0])))).state}
    elif way.startswith("pruned"):
        state = prune(state, dict.fromkeys(names, float(way.split()[1]) / 100)).state
    kept = set() if way.startswith("pruned") else set(names)
    rest = round_precision({name: one for name, one in state.items() if name not in kept}, rest="float16").state
    return {name: rest.get(name, one) for name, one in state.items()}


def logits(model: nn.Module, images: Tensor) -> Tensor:
    """Of images (n, 3, h, w): (n, classes)."""
    model = model.eval().to(memory_format=torch.channels_last)
    with torch.no_grad():
        return torch.cat([model(some.to(memory_format=torch.channels_last)) for some in images.split(16)])


def pictures(given: argparse.Namespace) -> tuple[Tensor, Tensor] | None:
    """Images and classes, where some were named."""
    if given.sample:
        return imagenet_sample.data(given.sample).test  # type: ignore[no-any-return]
    if not given.pictures:
        return None
    from deepcompression.data import images

    norm = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    split = images(given.pictures, classes=given.classes, resize=256, crop=224, **norm).test
    samples = [split[at] for at in range(len(split))]
    return torch.stack([one for one, _ in samples]), torch.tensor([label for _, label in samples])


def main() -> None:
    """Prints a row for each net and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="+", help="package.module:callable, or a hub's name")
    parser.add_argument("--weights", help="a checkpoint of the one net")
    parser.add_argument("--pictures", help="a folder by class")
    parser.add_argument("--classes", help="a file with a name in each line")
    parser.add_argument("--sample", help="the sample of ImageNet")
    parser.add_argument("--only", default="", help="ways with this word")
    parser.add_argument("--coder", default="huffman")
    parser.add_argument("--out", help="a JSON file of all figures")
    parser.add_argument("--labels", help="writes the sample's splits as this CSV file, and nothing else")
    parser.add_argument("--sweep", help="runs of conf/sweeps/three-nets.yaml; what --out has is not judged again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.labels:
        Path(given.labels).write_text(imagenet_sample.labels(given.sample))
        return
    if given.sweep:
        swept(Path(given.sweep), given)
        return
    data, rows = pictures(given), []
    print(f"{'':30} {'':18} {'bytes':>12} {'ratio':>7} {'KL':>8} {'same answer':>24} {'right':>7}")
    for net in given.nets:
        torch.manual_seed(0)
        model = factory.build(net)
        weights = imagenet_sample.weights() if given.sample else given.weights
        if weights:
            model.load_state_dict(read_state(weights))
        rows += list(_rows(net, model, data if weights else None, given))
    if given.out:
        Path(given.out).write_text(json.dumps(rows, indent=1))


def swept(runs: Path, given: argparse.Namespace) -> None:
    """A row for each run of a sweep that is done: bytes, what is lost, CPU milliseconds beside the dense net's."""
    from bench_ptq import float_onnx

    from deepcompression.torch import load_into

    images, classes = imagenet_sample.data(given.sample).test
    dense = logits(imagenet_sample.filled(), images)
    out = Path(given.out)
    rows: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        float_onnx(imagenet_sample.filled(), images, Path(folder) / "dense.onnx")
        for file in sorted(runs.glob("*/exports/model.onnx")):
            run = file.parents[1]
            if run.name in rows or not (run / "summary.json").exists():
                continue
            summary = json.loads((run / "summary.json").read_text())
            found = logits(load_into(imagenet_sample.model(), run / "model.dcz"), images)
            count = summary["file_bytes"]
            milliseconds = cpu_milliseconds([Path(folder) / "dense.onnx", file], images)
            rows[run.name] = {
                "way": way_of(run),
                "bytes": count,
                "ratio": summary["dense_bytes"] / count,
                "cpu_ms": milliseconds[1],
                "dense_cpu_ms": milliseconds[0],
                **judged(dense, found, classes),
            }
            print(run.name, json.dumps(rows[run.name]), flush=True)
            out.write_text(json.dumps(rows, indent=1))


def way_of(run: Path) -> str:
    """What the shipped sweep calls a run's stages, whichever of its rows were run, in whichever order."""
    sweep = yaml.safe_load((ROOT / "conf" / "sweeps" / "three-nets.yaml").read_text())
    stages = yaml.safe_load((run / "recipe.yaml").read_text())["stages"]
    fits = [
        (len(str(wanted)), label)
        for label, wanted in zip(sweep["labels"]["stages"], sweep["parameters"]["stages"], strict=True)
        if _within(wanted, stages)
    ]
    return max(fits)[1] if fits else run.name


def _within(wanted: Any, found: Any) -> bool:
    """Whether all that is wanted is found, among what a stored recipe says besides."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(key in found and _within(one, found[key]) for key, one in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(wanted) == len(found) and all(map(_within, wanted, found))
    return bool(wanted == found)


def cpu_milliseconds(files: list[Path], images: Tensor, rounds: int = 40) -> list[float]:
    """The median CPU time of a picture of each net in onnxruntime, one thread, in turns."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    nets = [onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for file in files]
    times: list[list[float]] = [[] for _ in nets]
    for at in range(rounds):
        for net, taken in zip(nets, times, strict=True):
            started = time.process_time()
            net.run(None, {net.get_inputs()[0].name: images[at : at + 1].numpy()})
            taken.append(1000 * (time.process_time() - started))
    return [statistics.median(taken[2:]) for taken in times]


def _rows(net: str, model: nn.Module, data: Any, given: argparse.Namespace) -> Any:
    state = {name: one.clone() for name, one in model.state_dict().items()}
    size = sum(one.numel() * one.element_size() for one in state.values())
    dense = logits(model, data[0]) if data else None
    for way in (one for one in WAYS if given.only in one):
        made = done(model, state, way)
        with tempfile.TemporaryDirectory() as folder:
            save(made, Path(folder) / "net.dcz", coder=given.coder)
            count = (Path(folder) / "net.dcz").stat().st_size
        row = {"net": net, "way": way, "bytes": count, "ratio": size / count}
        lost = ""
        if data and dense is not None:
            model.load_state_dict(made)
            row |= judged(dense, logits(model, data[0]), data[1])
            low, high = row["agreement_interval"]
            same = f"{row['agreement']:.2%} ({low:.1%} to {high:.1%})"
            lost = f"{row['divergence']:8.4f} {same:>24} {row['accuracy']:7.2%}"
        print(f"{net:30} {way:18} {count:12,} {size / count:6.2f}x {lost}", flush=True)
        yield row


if __name__ == "__main__":
    main()
