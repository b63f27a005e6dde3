"""Average precision of boxes, as PASCAL VOC has it: a box is right where it covers one of its class well enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcompression.errors import FactoryError


@dataclass(frozen=True)
class _Found:
    """Detections of one class in one picture: scores, and which of them are right."""

    scores: Tensor
    right: Tensor


class AveragePrecision:
    """The area below the curve of precision over recall, averaged over the classes that pictures have; 0 to 1.

    Everingham et al., "The PASCAL Visual Object Classes Challenge" (2010), with all points of the curve.
    """

    higher_is_better = True

    def __init__(self, overlap: float) -> None:
        self.overlap, self.name = overlap, f"ap{round(100 * overlap)}"
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self.found: dict[int, list[_Found]] = {}
        self.wanted: dict[int, int] = {}

    def update(self, outputs: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor]]) -> None:
        """Matches the detections of pictures: ``boxes`` (m, 4), ``scores`` (m,), ``labels`` (m,) against ``boxes`` and
        ``labels``.
        """
        for output, target in zip(outputs, targets, strict=True):
            for label in {*output["labels"].tolist(), *target["labels"].tolist()}:
                mine, its = output["labels"] == label, target["labels"] == label
                self.wanted[label] = self.wanted.get(label, 0) + int(its.sum())
                found = matched(output["boxes"][mine], output["scores"][mine], target["boxes"][its], self.overlap)
                self.found.setdefault(label, []).append(found)

    def compute(self) -> float:
        """The mean over classes; NaN where pictures have no box."""
        each = [_area(self.found[label], count) for label, count in self.wanted.items() if count]
        return sum(each) / len(each) if each else float("nan")


def average_precision(overlap: float = 0.5) -> AveragePrecision:
    """Average precision of boxes.

    Args:
        overlap: intersection over union from which on a box is right.

    Raises:
        FactoryError: it is not between 0 and 1.
    """
    if not 0 < overlap <= 1:
        raise FactoryError(f"metric average_precision: expected an overlap above 0, at most 1, got {overlap}")
    return AveragePrecision(overlap)


def overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4), each x0, y0, x1, y1."""
    low = torch.maximum(one[:, None, :2], other[None, :, :2])
    high = torch.minimum(one[:, None, 2:], other[None, :, 2:])
    both = (high - low).clamp(min=0).prod(2)
    either = _sizes(one)[:, None] + _sizes(other)[None] - both
    return both / either.clamp(min=1e-9)


def matched(boxes: Tensor, scores: Tensor, wanted: Tensor, overlap: float) -> _Found:
    """Which boxes are right: by falling score, each takes the box of the picture that it covers best, once.

    Args:
        boxes: (m, 4), of one class in one picture.
        scores: (m,).
        wanted: (k, 4).
        overlap: from which on a box is right.
    """
    order = scores.argsort(descending=True, stable=True)
    covers = overlaps(boxes[order], wanted)
    right, taken = torch.zeros(len(order), dtype=torch.bool), set[int]()
    for place, row in enumerate(covers if len(wanted) else ()):
        best = int(row.argmax())
        if float(row[best]) >= overlap and best not in taken:
            right[place] = True
            taken.add(best)
    return _Found(scores[order].cpu(), right)


def _area(found: Sequence[_Found], wanted: int) -> float:
    scores, right = torch.cat([one.scores for one in found]), torch.cat([one.right for one in found])
    right = right[scores.argsort(descending=True, stable=True)].double()
    hits = right.cumsum(0)
    precision = hits / torch.arange(1, len(right) + 1)
    best = precision.flip(0).cummax(0).values.flip(0)  # the precision that is reached at this recall or above it
    return float((best * right).sum() / wanted)


def _sizes(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
