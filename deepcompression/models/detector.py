"""A small single-shot detector with depthwise separable convolutions, SSDLite's kind, to try methods on.

Liu et al. (2016), arXiv 1512.02325; Sandler et al. (2018), arXiv 1801.04381, 6.2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

SCALES = ((0.2, 0.28), (0.32, 0.4), (0.48, 0.6))  # of the picture's side, the boxes of each of three maps
VARIANCES = 0.1, 0.2  # of centres and sizes, as SSD has them
NEGATIVES = 3  # for each box that is matched, so many that are none, those of the largest loss
MOST = 20  # detections of a class in a picture


class SSDLite(nn.Module):
    """Boxes of some classes in pictures (n, 3, size, size), size a multiple of 16; the class 0 is the background."""

    anchors: Tensor

    def __init__(self, classes: int, size: int, width: int) -> None:
        super().__init__()
        self.classes, self.size = classes, size
        self.stem = _separable(3, width, 2)
        self.low = nn.Sequential(_separable(width, 2 * width, 2), _separable(2 * width, 2 * width, 1))
        self.middle = _separable(2 * width, 4 * width, 2)
        self.high = _separable(4 * width, 4 * width, 2)
        widths = (2 * width, 4 * width, 4 * width)
        self.label_heads = nn.ModuleList(_head(one, len(SCALES[0]) * classes) for one in widths)
        self.box_heads = nn.ModuleList(_head(one, len(SCALES[0]) * 4) for one in widths)
        self.register_buffer("anchors", anchors_of(size), persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, anchors, classes) and offsets (n, anchors, 4) of images (n, 3, size, size)."""
        low = self.low(self.stem(images))
        middle = self.middle(low)
        maps = (low, middle, self.high(middle))
        labels = [_listed(head(one), self.classes) for head, one in zip(self.label_heads, maps, strict=True)]
        boxes = [_listed(head(one), 4) for head, one in zip(self.box_heads, maps, strict=True)]
        return torch.cat(labels, 1), torch.cat(boxes, 1)

    def loss_of(self, outputs: tuple[Tensor, Tensor], targets: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """SSD's loss: classes of matched boxes and of the hardest others, offsets of the matched, by their number.

        Args:
            outputs: of forward.
            targets: of each picture ``boxes`` (k, 4), x0, y0, x1, y1 in pixels, and ``labels`` (k,), 1 and more.
        """
        logits, offsets = outputs
        pairs = [matches(self.anchors, one["boxes"] / self.size, one["labels"]) for one in targets]
        labels, wanted = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        found = labels > 0
        each = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        hardest = each.detach().masked_fill(found, -1).argsort(1, descending=True).argsort(1)
        counted = found | (hardest < (NEGATIVES * found.sum(1, keepdim=True)).clamp(min=NEGATIVES))
        apart = functional.smooth_l1_loss(offsets[found], wanted[found], reduction="sum")
        return (each[counted].sum() + apart) / found.sum().clamp(min=1)

    def detections(self, outputs: tuple[Tensor, Tensor]) -> list[dict[str, Tensor]]:
        """Of each picture ``boxes`` (k, 4) in pixels, ``scores`` (k,) and ``labels`` (k,), no two of a class alike.

        Args:
            outputs: of forward.
        """
        shares, boxes = outputs[0].detach().softmax(2), decoded(outputs[1].detach(), self.anchors) * self.size
        return [_chosen(share, box) for share, box in zip(shares, boxes, strict=True)]


def ssd_lite(classes: int = 4, size: int = 64, width: int = 24) -> nn.Module:
    """A small detector, untrained; for ``deepcompression.data:shapes``, and ``step: detection``.

    Args:
        classes: that are told apart, the background (0) among them.
        size: of the pictures' sides, a multiple of 16.
        width: channels behind the first layer.
    """
    return SSDLite(classes, size, width)


def anchors_of(size: int) -> Tensor:
    """Boxes (anchors, 4) as x, y, width, height in parts of the picture: two squares at each place of three maps."""
    made = []
    for level, sides in enumerate(SCALES):
        cells = math.ceil(size / 4 / 2**level)
        along = (torch.arange(cells) + 0.5) / cells
        y, x = torch.meshgrid(along, along, indexing="ij")
        each = [torch.stack([x, y, *[torch.full_like(x, side)] * 2], 2) for side in sides]
        made.append(torch.stack(each, 2).reshape(-1, 4))
    return torch.cat(made)


def matches(anchors: Tensor, boxes: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (anchors,), 0 where there is nothing, and offsets (anchors, 4) of the boxes that anchors stand for.

    Args:
        anchors: (anchors, 4), x, y, width, height.
        boxes: (k, 4), x0, y0, x1, y1, all in parts of the picture.
        labels: (k,).
    """
    if not len(boxes):
        return torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device), torch.zeros_like(anchors)
    covers = _overlaps(_corners(anchors), boxes)
    best, of = covers.max(1)
    own = covers.argmax(0)  # each box has at least one anchor
    best[own], of[own] = 1.0, torch.arange(len(boxes), device=boxes.device)
    matched = boxes[of]
    centre, size = (matched[:, :2] + matched[:, 2:]) / 2, matched[:, 2:] - matched[:, :2]
    shift = (centre - anchors[:, :2]) / anchors[:, 2:] / VARIANCES[0]
    growth = (size / anchors[:, 2:]).clamp(min=1e-6).log() / VARIANCES[1]
    return labels[of] * (best >= 0.5), torch.cat([shift, growth], 1)


def decoded(offsets: Tensor, anchors: Tensor) -> Tensor:
    """Boxes (n, anchors, 4), x0, y0, x1, y1 in parts of the picture, of offsets (n, anchors, 4)."""
    centre = anchors[:, :2] + offsets[..., :2] * VARIANCES[0] * anchors[:, 2:]
    size = anchors[:, 2:] * (offsets[..., 2:] * VARIANCES[1]).exp()
    return _corners(torch.cat([centre, size], -1))


def _chosen(shares: Tensor, boxes: Tensor) -> dict[str, Tensor]:
    """What is left of a picture's boxes where of those of a class that cover each other the surest stays."""
    kept: list[tuple[int, int]] = []
    for label in range(1, shares.shape[1]):
        surest, order = shares[:, label].topk(min(100, len(shares)))
        order = order[surest > 0.05]
        covers = (_overlaps(boxes[order], boxes[order]) > 0.45).tolist()
        taken: list[int] = []
        for place, row in enumerate(covers):
            if len(taken) < MOST and not any(row[one] for one in taken):
                taken.append(place)
        kept += [(at, label) for at in order[taken].tolist()]
    places = torch.tensor([at for at, _ in kept], dtype=torch.int64, device=boxes.device)
    labels = torch.tensor([label for _, label in kept], dtype=torch.int64, device=boxes.device)
    return {"boxes": boxes[places], "scores": shares[places, labels], "labels": labels}


def _corners(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def _overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union (n, m)."""
    low, high = torch.maximum(one[:, None, :2], other[None, :, :2]), torch.minimum(one[:, None, 2:], other[None, :, 2:])
    both = (high - low).clamp(min=0).prod(2)
    sizes = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1) for boxes in (one, other)]
    return both / (sizes[0][:, None] + sizes[1][None] - both).clamp(min=1e-9)


def _listed(maps: Tensor, each: int) -> Tensor:
    """(n, places x boxes, each) of maps (n, boxes x each, h, w)."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, each)


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
    return nn.Sequential(
        first, nn.BatchNorm2d(inputs), nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


def _head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False), nn.BatchNorm2d(inputs), nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1),
    )  # fmt: skip
