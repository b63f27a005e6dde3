"""The few samples that models are tried on."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tasks.execution.samples import few


@pytest.mark.parametrize(
    ("shape", "count"), [((8, 8), 64), ((3, 64, 64), 64), ((3, 224, 224), 6), ((3, 1024, 1024), 4), ((), 64)]
)
def test_large_samples_are_fewer(shape: tuple[int, ...], count: int) -> None:
    """A model is run on them for each link or group of channels: 64 pictures a time took half an hour."""
    images = torch.zeros(70, *[1] * len(shape)).expand(70, *shape)
    batch = few((images, torch.zeros(70)))
    assert len(batch[0]) == len(batch[1]) == count


def test_a_loader_gives_its_first_batch() -> None:
    """Its batches are its own, and it is asked once: one that draws would give others the second time."""
    loader = DataLoader(TensorDataset(torch.arange(10.0), torch.arange(10.0)), batch_size=5)
    assert torch.equal(few(loader)[0], torch.arange(5.0))
