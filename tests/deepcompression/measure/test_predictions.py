from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepcompression.measure.predictions import MOST_PICTURES, Watched, images_of, picture_of, write
from deepcompression.training.evaluate import evaluate
from deepcompression.training.problem import Accuracy, cross_entropy_step

CLASSES = 3


def split(count: int = 50) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.rand(count, 1, 8, 8), torch.arange(count) % CLASSES


class Fixed(nn.Module):
    """Answers the class that the first pixel says."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0, 0, 0].long() % CLASSES, CLASSES).float()


def watched(answers: Tensor, metric: Any = None, before: Watched | None = None) -> tuple[Watched, Any]:
    """An evaluation in which samples were answered so."""
    x, y = split()
    x[:, 0, 0, 0] = answers.float()
    found = Watched(cross_entropy_step, metric or Accuracy(), before)
    return found, evaluate(Fixed(), (x, y), found.step, found.metric, batch_size=20)


def test_answers_are_kept_and_the_evaluation_is_the_same(tmp_path: Path) -> None:
    """Right and answered classes of all batches, the samples that broke, and pictures of the first of these."""
    y = split()[1]
    dense, _ = watched(y)
    final, result = watched((y + (torch.arange(50) < 30)) % CLASSES, before=dense)
    assert (result.correct, result.total) == (20, 50)
    assert write(tmp_path / "made.npz", dense, final)
    with np.load(tmp_path / "made.npz", allow_pickle=False) as file:
        assert file["broken"].tolist() == list(range(30)) and (file["dense"] == y.numpy()).all()
        assert int((file["final"] == file["right"]).sum()) == 20
        pictures = [name for name in file.files if name.startswith("picture")]
        assert pictures == [f"picture{place}" for place in range(MOST_PICTURES)]
        assert file["picture0"].shape == (8, 8, 1) and file["picture0"].dtype == np.uint8


def test_metrics_of_whole_splits_are_watched_too(tmp_path: Path) -> None:
    """An object with update, compute and reset is asked as before."""

    class Share:
        name, higher_is_better = "share", True

        def reset(self) -> None:
            self.right = self.total = 0

        def update(self, outputs: Tensor, targets: Tensor) -> None:
            self.right += int((outputs.argmax(1) == targets).sum())
            self.total += len(targets)

        def compute(self) -> float:
            return self.right / self.total

    found, result = watched(split()[1], Share())
    assert result.metric == 1.0 and found.metric.name == "share" and len(found.arrays()[0]) == 50
    assert write(tmp_path / "made.npz", found, found)


def test_what_is_no_class_is_not_written(tmp_path: Path) -> None:
    """Of a regression nothing is kept."""

    class Error:
        name, higher_is_better = "error", False

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return (outputs[:, 0] - targets).abs()

    def step(model: nn.Module, batch: Any) -> Any:
        outputs = batch[0].flatten(1)[:, :1]
        return outputs.mean(), outputs, batch[1].float()

    found = Watched(step, Error())
    evaluate(nn.Linear(1, 1), split(), found.step, found.metric)
    assert found.arrays() is None and not write(tmp_path / "made.npz", found, found)
    assert not (tmp_path / "made.npz").exists()


@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        ((torch.rand(2, 3, 200, 100), torch.zeros(2)), (66, 33, 3)),
        ({"ids": torch.zeros(2, 7), "pixels": torch.randn(2, 1, 28, 28)}, (28, 28, 1)),
        ((torch.rand(2, 16, 16), torch.zeros(2)), (16, 16, 1)),
        ((torch.rand(2, 7), torch.zeros(2)), None),
    ],
)
def test_pictures_are_found_and_made_small(batch: Any, shape: tuple[int, ...] | None) -> None:
    """In tuples and mappings, of one channel or three; everything else has none. Black to white is used up."""
    images = images_of(batch)
    if shape is None:
        assert images is None
        return
    picture = picture_of(images[0])
    assert picture.shape == shape and picture.min() == 0 and picture.max() == 255
