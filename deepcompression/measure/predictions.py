"""What classifiers answer, sample by sample: kept while they are evaluated, so that no sample is read twice for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcompression._atomic import written
from deepcompression.data.batch import parts
from deepcompression.training.problem import Step

MOST_PICTURES = 24
SIDE = 64  # pixels of a picture's longer side, at most twice that


class Watched:
    """A step and a metric that do what those that they stand for do, and keep classes that were answered on the way.

    Args:
        step: of (model, batch).
        metric: called with outputs and targets, or with update, compute and reset.
        before: what another model answered for the same samples in the same order: of those that it had right, and
            this one has not, pictures are kept, if samples are such.
    """

    def __init__(self, step: Step, metric: Any, before: Watched | None = None) -> None:
        self._step, self.metric = step, _Metric(metric, self._keep)
        self._before = before.arrays() if before else None
        self._batch: Any = None
        self._found: list[tuple[Tensor, Tensor]] = []
        self._count = 0
        self.pictures: dict[int, NDArray[np.uint8]] = {}

    def step(self, model: Any, batch: Any) -> Any:
        """What the step itself returns."""
        self._batch = batch
        return self._step(model, batch)

    def arrays(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """The right classes (n,) and those answered (n,); None where samples are not told apart by one class each."""
        if not self._found or len(self._found) != self._count:
            return None
        right, answered = (torch.cat(column).numpy() for column in zip(*self._found, strict=True))
        return right, answered

    def _keep(self, outputs: Any, targets: Any) -> None:
        self._count += 1
        if not _are_classes(outputs, targets):
            return
        right, answered = targets.cpu().long(), outputs.argmax(1).cpu()
        if self._before is not None:
            self._picture(sum(len(one) for one, _ in self._found), right.numpy(), answered.numpy())
        self._found.append((right, answered))

    def _picture(self, start: int, right: NDArray[np.int64], answered: NDArray[np.int64]) -> None:
        assert self._before is not None
        known, before = (one[start : start + len(right)] for one in self._before)
        images = images_of(self._batch)
        if images is None or len(images) != len(right) or not np.array_equal(known, right):
            return
        broken = np.flatnonzero((before == right) & (answered != right))
        for place in broken[: MOST_PICTURES - len(self.pictures)]:
            self.pictures[start + int(place)] = picture_of(images[int(place)])


class _Metric:
    """Stands for a metric, and shows another what it is given."""

    def __init__(self, metric: Any, keep: Any) -> None:
        self._metric, self._keep = metric, keep

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._metric, name)
        if name != "update":
            return own

        def update(outputs: Any, targets: Any) -> None:
            own(outputs, targets)
            self._keep(outputs, targets)

        return update

    def __call__(self, outputs: Any, targets: Any) -> Any:
        self._keep(outputs, targets)
        return self._metric(outputs, targets)


def write(path: Path, dense: Watched, final: Watched) -> bool:
    """Writes an ``.npz``: ``right``, ``final`` and, where both models saw the same order, ``dense`` (n,) int32; of
    samples that ``dense`` alone has right, ``broken`` (k,) and, where they are images, ``picture<index>`` (h, w, 1 or
    3) uint8. False, and nothing, where answers are no classes.

    Args:
        path: the file's.
        dense: of the first model.
        final: of the second.
    """
    before, after = dense.arrays(), final.arrays()
    if before is None or after is None:
        return False
    arrays: dict[str, NDArray[Any]] = {"right": after[0].astype(np.int32), "final": after[1].astype(np.int32)}
    if np.array_equal(before[0], after[0]):
        arrays["dense"] = before[1].astype(np.int32)
        arrays["broken"] = np.flatnonzero((before[1] == after[0]) & (after[1] != after[0]))
        arrays |= {f"picture{index}": picture for index, picture in final.pictures.items()}
    with written(path) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return True


def images_of(batch: Any) -> Tensor | None:
    """The images (n, 1 or 3, height, width) of a batch, or (n, 1, height, width) of (n, height, width); None where it
    has none."""
    inside = list(batch.values()) if isinstance(batch, Mapping) else parts(batch) or [batch]
    for one in inside:
        if isinstance(one, Tensor) and one.ndim == 4 and one.shape[1] in (1, 3) and min(one.shape[2:]) > 4:
            return one
        if isinstance(one, Tensor) and one.ndim == 3 and one.is_floating_point() and min(one.shape[1:]) > 4:
            return one.unsqueeze(1)
    return None


def picture_of(image: Tensor) -> NDArray[np.uint8]:
    """An image (channels, height, width) as bytes (height, width, channels), made smaller; its least value is black,
    its greatest white, however it was normalised."""
    values = image.detach().float().cpu()
    if (times := max(values.shape[1:]) // SIDE) > 1:
        values = torch.nn.functional.avg_pool2d(values, times)
    low, high = values.min(), values.max()
    scaled = (values - low) / (high - low).clamp_min(1e-12)
    found: NDArray[np.uint8] = (255 * scaled).nan_to_num().round().to(torch.uint8).permute(1, 2, 0).numpy()
    return found


def _are_classes(outputs: Any, targets: Any) -> bool:
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor):
        return False
    whole = not targets.is_floating_point() and targets.dtype != torch.bool
    return outputs.ndim == 2 and outputs.shape[1] > 1 and targets.ndim == 1 and whole and len(outputs) == len(targets)
