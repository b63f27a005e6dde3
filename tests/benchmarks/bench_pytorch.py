"""PyTorch's own ways to int8 beside ours: dynamic, static, in training (torchao's pt2e), ResNet-20 on Fashion-MNIST.

`python tests/benchmarks/bench_pytorch.py --weights FILE [--epochs 1] [--out FILE.json]`, with rivals.txt installed.
All start from one float net (conf/fashion-resnet-20.yaml), calibrate on the same 512 samples of the training split,
and are judged on the test split. Bytes are of what each writes: our `.dcz`, theirs a state_dict by torch.save.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SAMPLES, BATCH = 512, 128
Model = Callable[[Tensor], Tensor]


def accuracy(model: Model, images: Tensor, targets: Tensor) -> float:
    """Of images (n, 1, 28, 28)."""
    with torch.no_grad():
        found = torch.cat([model(some).argmax(1) for some in images.split(BATCH)])
    return float((found == targets).double().mean())


def size(model: nn.Module) -> int:
    """Bytes of the state_dict as torch.save writes it."""
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue())


def exported(model: nn.Module, example: Tensor) -> nn.Module:
    """The graph that pt2e works on."""
    made: nn.Module = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("n")},)).module()
    return made


def quantizer(qat: bool) -> Any:
    """int8 weights by channel and uint8 activations, as for x86."""
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86

    return x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config(is_qat=qat))


def static(model: nn.Module, calibrate: Tensor) -> nn.Module:
    """After training, observed on samples."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    ready = prepare_pt2e(exported(model.eval(), calibrate[:2]), quantizer(qat=False))
    with torch.no_grad():
        for some in calibrate.split(BATCH):
            ready(some)
    made: nn.Module = convert_pt2e(ready)
    return made


def trained(model: nn.Module, images: Tensor, targets: Tensor, epochs: int) -> nn.Module:
    """In training: SGD, a rate that falls from 0.01 by a cosine."""
    import torchao.quantization.pt2e as pt2e
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e

    ready = prepare_qat_pt2e(exported(model.train(), images[:2]), quantizer(qat=True))
    pt2e.move_exported_model_to_train(ready)
    optimizer = torch.optim.SGD(ready.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    steps = epochs * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for part in torch.randperm(len(images), generator=generator).split(BATCH)[: steps // epochs]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(ready(images[part]), targets[part]).backward()
            optimizer.step()
            schedule.step()
    made: nn.Module = convert_pt2e(ready)
    pt2e.move_exported_model_to_eval(made)
    return made


def ours(weights: str, folder: str, **stage: Any) -> tuple[nn.Module, int]:
    """The net of the file that a run wrote, and the file's bytes."""
    from deepcompression import models
    from deepcompression.torch import load_into
    from flows.compress import compress

    recipe = {
        "name": "int8",
        "threads": 1,
        "model": {"factory": "deepcompression.models:resnet20", "weights": {"path": weights}},
        "data": {"factory": "deepcompression.data:fashion_mnist", "validation": 5000},
        "stages": [{"stage": "quantize", "weights": {"bits": 8}, **stage}, {"stage": "encode"}],
        "runs": f"{folder}/runs",
        "store": f"{folder}/store",
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        "test": False,
    }
    summary: Any = compress(recipe)
    return load_into(models.resnet20(), summary["file"]).eval(), int(summary["file_bytes"])


def main() -> None:
    """Prints a row for each way."""
    from deepcompression import data, models
    from deepcompression.formats.checkpoint import read_state

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--epochs", type=int, default=1, help="of training with int8; 0 leaves it out")
    parser.add_argument("--out")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    splits = data.split_validation(data.fashion_mnist(), 5000)
    (images, targets), (test, classes) = splits.train, splits.test
    calibrate = images[:SAMPLES]

    def dense() -> nn.Module:
        model = models.resnet20()
        model.load_state_dict(read_state(given.weights))
        return model.eval()

    def by_torch() -> tuple[nn.Module, int]:
        made = torch.ao.quantization.quantize_dynamic(dense(), {nn.Linear}, torch.qint8)
        return made, size(made)

    def of(model: nn.Module) -> tuple[nn.Module, int]:
        return model, size(model)

    with tempfile.TemporaryDirectory() as folder:
        weights = str(Path(given.weights).resolve())
        values = {"bits": 8, "samples": SAMPLES}
        ways: dict[str, Callable[[], tuple[nn.Module, int]]] = {
            "float": lambda: of(dense()),
            "torch.ao, dynamic": by_torch,
            "torchao pt2e, static": lambda: of(static(dense(), calibrate)),
            "ours, dynamic": lambda: ours(weights, folder, activations={"bits": 8, "range": "dynamic"}),
            "ours, static, mse": lambda: ours(weights, folder, activations={**values, "observer": "mse"}),
        }
        if given.epochs:
            name = f"torchao pt2e, {given.epochs} epochs"
            ways[name] = lambda: of(trained(dense(), images, targets, given.epochs))
        rows = []
        for name, way in ways.items():
            started = time.perf_counter()
            model, count = way()
            seconds = time.perf_counter() - started
            rows.append({"of": name, "accuracy": accuracy(model, test, classes), "bytes": count, "seconds": seconds})
            print(f"{name:24} {rows[-1]['accuracy']:7.2%} {count:10,} bytes {seconds:7.1f} s", flush=True)
    if given.out:
        Path(given.out).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    sys.exit(main())
