"""Pictures of squares, discs and crosses on noise, made here: a set to try detectors and segmenters on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from deepcompression.data.splits import Splits
from deepcompression.errors import DataError

CLASSES = ("background", "square", "disc", "cross")
MOST = 3  # shapes in a picture


def shapes(task: str = "detection", size: int = 64, train: int = 1024, test: int = 256, seed: int = 0) -> Splits:
    """Pictures (n, 3, size, size) float32 in [0, 1] with one to three shapes, that may overlap.

    Of ``detection`` batches are mappings: ``images``, ``boxes`` (n, 3, 4) float32 as x0, y0, x1, y1, ``labels`` (n, 3)
    int64, 0 where there is no shape. Of ``segmentation`` pairs: images and the class of each pixel (n, size, size)
    int64. Of ``classification`` pairs: images with one shape, and its class less 1 (n,).

    Args:
        task: one of these three.
        size: pixels of a side, 16 or more.
        train: pictures to train with.
        test: pictures to test with.
        seed: of all pictures.

    Raises:
        DataError: another task, or an impossible number.
    """
    if task not in ("detection", "segmentation", "classification") or size < 16 or min(train, test) < 1:
        raise DataError(
            "data.kwargs: shapes takes a task of detection, segmentation or classification, a size of 16 or more, "
            f"train and test of 1 or more, got {task}, {size}, {train}, {test}"
        )
    generator = torch.Generator().manual_seed(seed)
    names = CLASSES[1:] if task == "classification" else CLASSES
    return Splits(_made(task, size, train, generator), None, _made(task, size, test, generator), names)


def _made(task: str, size: int, count: int, generator: torch.Generator) -> Any:
    images = 0.3 * torch.rand(count, 3, size, size, generator=generator)
    boxes, labels = torch.zeros(count, MOST, 4), torch.zeros(count, MOST, dtype=torch.int64)
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    for number in range(count):
        for place in range(1 if task == "classification" else int(_drawn(1, MOST, generator))):
            label, box = int(_drawn(1, 3, generator)), _box(size, generator)
            inside = _inside(size, label, box)
            images[number] = torch.where(inside, 0.5 + 0.5 * torch.rand(3, 1, 1, generator=generator), images[number])
            masks[number][inside] = label
            boxes[number, place], labels[number, place] = box, label
    if task == "detection":
        return {"images": images, "boxes": boxes, "labels": labels}
    return (images, masks) if task == "segmentation" else (images, labels[:, 0] - 1)


def _drawn(low: int, high: int, generator: torch.Generator) -> Tensor:
    return torch.randint(low, high + 1, (), generator=generator)


def _box(size: int, generator: torch.Generator) -> Tensor:
    """x0, y0, x1, y1 of a square that lies in the picture, a fifth to a half of it wide."""
    side = int(_drawn(size // 5, size // 2, generator))
    left, top = (int(_drawn(0, size - side, generator)) for _ in range(2))
    return torch.tensor([left, top, left + side, top + side], dtype=torch.float32)


def _inside(size: int, label: int, box: Tensor) -> Tensor:
    """Which pixels (size, size) a shape covers."""
    x0, y0, x1, y1 = box.tolist()
    along = torch.arange(size) + 0.5
    x, y = along[None] - (x0 + x1) / 2, along[:, None] - (y0 + y1) / 2
    half = (x1 - x0) / 2
    square: Tensor = (x.abs() < half) & (y.abs() < half)
    disc: Tensor = x**2 + y**2 < half**2
    cross: Tensor = square & ((x.abs() < half / 3) | (y.abs() < half / 3))
    return {1: square, 2: disc, 3: cross}[label]
