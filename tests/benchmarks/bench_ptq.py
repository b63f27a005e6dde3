"""int8 after training, ours beside onnxruntime's static quantization and NNCF's on ONNX: EfficientNet-Lite0, ImageNet.

`python tests/benchmarks/bench_ptq.py FOLDER [--only WORD] [--alone] [--out FILE.json]`. FOLDER: see imagenet_sample.py.
All see the same 128 pictures without labels, and are judged on 272 others by the Kullback-Leibler divergence of their
softmax from the dense net's: mean, and the bootstrap interval of ours minus theirs, picture by picture. Ours are read
back from the `.dcz` that a run wrote.
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

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import imagenet_sample

OURS: dict[str, list[dict[str, Any]]] = {
    "per channel, minmax": [{"weights": {"bits": 8}, "activations": {"bits": 8, "observer": "minmax"}}],
    "per channel, mse": [{"weights": {"bits": 8}, "activations": {"bits": 8, "observer": "mse"}}],
    "per channel, mse, corrected": [
        {"weights": {"bits": 8}, "activations": {"bits": 8, "observer": "mse"}, "correct": ["bias"]}
    ],
    "per channel, auto": [{"weights": {"bits": 8}, "activations": {"bits": 8, "observer": "auto"}}],
    "per tensor": [
        {"weights": {"bits": 8, "per": "tensor"}, "activations": {"bits": 8, "observer": "mse"}}
    ],
    "per tensor, corrected": [
        {
            "weights": {"bits": 8, "per": "tensor"},
            "activations": {"bits": 8, "observer": "mse"},
            "correct": ["bias", "weights"],
            "equalize": True,
        }
    ],
}  # fmt: skip


def ours(folder: str, name: str, stages: list[dict[str, Any]], images: Tensor, place: Path) -> tuple[Tensor, int]:
    """Logits of the file that a run wrote, and its bytes."""
    from deepcompression.torch import load_into
    from flows.compress import compress

    recipe = {
        "name": "ptq",
        "threads": 1,
        "model": {"factory": "imagenet_sample:model", "weights": {"path": imagenet_sample.weights()}},
        "data": {"factory": "imagenet_sample:data", "kwargs": {"folder": folder}},
        "stages": [*({"stage": "quantize", **one} for one in stages), {"stage": "encode", "coder": "huffman"}],
        "python_path": [str(Path(__file__).parent)],
        "runs": str(place / "runs"),
        "store": str(place / "store"),
        "tracking": {"uri": f"sqlite:///{place}/mlflow.db"},
        "test": False,
    }
    summary: Any = compress(recipe)
    return logits(load_into(imagenet_sample.model(), summary["file"]), images), int(summary["file_bytes"])


def logits(model: torch.nn.Module, images: Tensor) -> Tensor:
    """Of images (n, 3, 224, 224): (n, 1000)."""
    with torch.no_grad():
        return torch.cat([model.eval()(some) for some in images.split(16)])


def float_onnx(model: torch.nn.Module, images: Tensor, path: Path) -> None:
    """The float net as both rivals take it."""
    axes = {"images": {0: "n"}, "logits": {0: "n"}}
    torch.onnx.export(
        model.eval(), (images[:1],), str(path), dynamo=False, opset_version=17, dynamic_axes=axes,
        input_names=["images"], output_names=["logits"],
    )  # fmt: skip


def run_onnx(path: Path, images: Tensor) -> Tensor:
    """Logits that onnxruntime gives, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {"images": some.numpy()})[0] for some in images.split(16)]
    return torch.from_numpy(np.concatenate(parts))


def by_onnxruntime(
    source: Path, target: Path, calibrate: Tensor, per_channel: bool, method: str, name: str = "images"
) -> None:
    """onnxruntime's static quantization, QDQ, weights int8, activations uint8."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.parts = iter([{name: some.numpy()} for some in calibrate.split(8)])

        def get_next(self) -> Any:
            return next(self.parts, None)

    ready = target.with_suffix(".ready.onnx")
    quant_pre_process(str(source), str(ready))
    quantize_static(
        str(ready), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=per_channel,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        calibrate_method=getattr(CalibrationMethod, method),
    )  # fmt: skip


def by_nncf(source: Path, target: Path, calibrate: Tensor) -> None:
    """NNCF's post-training quantization of the ONNX graph, as its documentation calls it."""
    import nncf
    import onnx

    data = nncf.Dataset([some.numpy() for some in calibrate.split(1)], lambda some: {"images": some})
    onnx.save(nncf.quantize(onnx.load(source), data, subset_size=len(calibrate)), target)


RIVALS: dict[str, Any] = {
    "onnxruntime, per channel, minmax": lambda a, b, c: by_onnxruntime(a, b, c, True, "MinMax"),
    "onnxruntime, per channel, percentile": lambda a, b, c: by_onnxruntime(a, b, c, True, "Percentile"),
    "NNCF": by_nncf,
    "onnxruntime, per tensor, minmax": lambda a, b, c: by_onnxruntime(a, b, c, False, "MinMax"),
}


def divergence(dense: Tensor, other: Tensor) -> Tensor:
    """KL(dense || other) of each picture, in nats: (n,) float64."""
    of, to = dense.double().log_softmax(1), other.double().log_softmax(1)
    return (of.exp() * (of - to)).sum(1)


def interval(ours: Tensor, theirs: Tensor, draws: int = 10_000) -> tuple[float, float]:
    """The 95 % bootstrap interval of the mean of ours minus theirs, over pictures."""
    difference = (ours - theirs).numpy()
    drawn = np.random.default_rng(0).integers(0, len(difference), (draws, len(difference)))
    low, high = np.quantile(difference[drawn].mean(1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Prints a row for each way, and each of ours against each rival."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--only", default="", help="of ours, those with this word")
    parser.add_argument("--alone", action="store_true", help="ours alone")
    parser.add_argument("--out", help="a JSON file of all figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    splits = imagenet_sample.data(given.folder)
    calibrate, test, classes = splits.train[0], splits.test[0], splits.test[1]
    model = imagenet_sample.model()
    model.load_state_dict(torch.load(imagenet_sample.weights(), weights_only=True))
    dense = logits(model, test)
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        found: dict[str, Tensor] = {}
        for name, stages in OURS.items():
            if given.only in name:
                started = time.perf_counter()
                found[name], count = ours(given.folder, name, stages, test, place)
                rows[name] = {"bytes": count, "seconds": time.perf_counter() - started}
        if not given.alone:
            float_onnx(model, test, place / "float.onnx")
        for name, quantize in RIVALS.items() if not given.alone else ():
            started = time.perf_counter()
            quantize(place / "float.onnx", place / "rival.onnx", calibrate)
            seconds = time.perf_counter() - started
            found[name] = run_onnx(place / "rival.onnx", test)
            rows[name] = {"bytes": (place / "rival.onnx").stat().st_size, "seconds": seconds}
    kept = {name: divergence(dense, one) for name, one in found.items()}
    print(f"{'':38} {'KL':>8} {'agree':>7} {'right':>7} {'bytes':>12} {'s':>6}")
    for name, row in rows.items():
        top = found[name].argmax(1)
        row |= {
            "divergence": statistics.fmean(kept[name].tolist()),
            "agreement": float((top == dense.argmax(1)).double().mean()),
            "accuracy": float((top == classes).double().mean()),
        }
        print(
            f"{name:38} {row['divergence']:8.5f} {row['agreement']:7.2%} {row['accuracy']:7.2%} {row['bytes']:12,} "
            f"{row['seconds']:6.1f}"
        )
    for name in (one for one in rows if one not in RIVALS):
        for rival in RIVALS if not given.alone else ():
            low, high = interval(kept[name], kept[rival])
            margin = 0.1 * rows[rival]["divergence"]
            worse = "not worse" if high <= margin else "worse" if low > 0 else "undecided"
            print(f"{name} minus {rival}: {low:+.5f} to {high:+.5f}, margin {margin:.5f}: {worse}")
            rows[name][f"minus {rival}"] = [low, high]
    if given.out:
        Path(given.out).write_text(
            json.dumps({"dense_accuracy": float((dense.argmax(1) == classes).double().mean()), "rows": rows}, indent=1)
        )


if __name__ == "__main__":
    main()
