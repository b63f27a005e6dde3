"""Pictures of shapes, made."""

from __future__ import annotations

import pytest
import torch

from deepcompression.data import shapes
from deepcompression.data.splits import as_splits
from deepcompression.errors import DataError


def test_boxes_masks_and_classes_speak_of_the_same_pictures():
    """One seed gives one set: a pixel of a class lies in a box of that class."""
    boxed, masked = (shapes(task, size=24, train=12, test=2) for task in ("detection", "segmentation"))
    assert torch.equal(boxed.train["images"], masked.train[0]) and boxed.classes[1] == "square"
    for boxes, labels, mask in zip(boxed.train["boxes"], boxed.train["labels"], masked.train[1], strict=True):
        assert int(labels[0]) > 0 and not boxes[labels == 0].any()
        covered = torch.zeros(4, 24, 24, dtype=torch.bool)
        for (x0, y0, x1, y1), label in zip(boxes.int().tolist(), labels.tolist(), strict=True):
            covered[label, y0:y1, x0:x1] = True
        assert all(covered[int(mask[y, x]), y, x] for y, x in mask.nonzero().tolist())
    one = shapes("classification", size=24, train=30, test=5)
    assert set(one.train[1].tolist()) == {0, 1, 2} and one.classes == ("square", "disc", "cross")
    assert as_splits(one, "x").classes == one.classes
    with pytest.raises(DataError, match="shapes takes a task"):
        shapes("boxes")
