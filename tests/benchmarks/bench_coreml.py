"""Core ML packages: bytes beside those of the float package and of the `.dcz`.

`python tests/benchmarks/bench_coreml.py`. Latency is not measured: Core ML runs on Apple's systems alone.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))

import bench_onnx as base

from deepcompression.export import coreml as target
from deepcompression.formats.state_dict import save
from deepcompression.models import lenet5, resnet20
from deepcompression.pruning.prune import prune
from deepcompression.quantization.calibrate import Plan
from deepcompression.sharing.share import share


def row(name: str, model: nn.Module, sample: Tensor, place: Path) -> None:
    """Prints what one net takes."""
    dcz = save(model.state_dict(), place / "model.dcz", coder="huffman")
    made = target.export(model, [sample], place / target.FILE)
    print(
        f"{name}: {made.bytes:,} bytes, float {made.float_bytes:,}, .dcz {dcz:,} ({made.bytes / dcz:.2f}x)\n"
        f"  {'; '.join(made.notes)}"
    )


def compressed(model: nn.Module) -> nn.Module:
    """Laplace weights, pruned to 10 %, 16 values a tensor."""
    base.laplace(model)
    weights = base.layers(model)
    pruned = prune(model.state_dict(), dict.fromkeys(weights, 0.1))
    model.load_state_dict({**model.state_dict(), **share(pruned.state, dict.fromkeys(weights, 4)).state})
    return model.eval()


def main() -> None:
    """Prints all rows."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(784, 2000), nn.ReLU(), nn.Linear(2000, 1600), nn.ReLU(), nn.Linear(1600, 150))
    images = torch.randn(64, 1, 28, 28)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        row("LeNet-5", compressed(lenet5()), images[:2], place)
        row("5M", compressed(wide), torch.rand(2, 784), place)
        row("ResNet-20", compressed(resnet20()), images[:2], place)
        row("ResNet-20, 8 bits", base.quantized(resnet20().eval(), images, Plan(observer="minmax")), images[:2], place)


if __name__ == "__main__":
    main()
