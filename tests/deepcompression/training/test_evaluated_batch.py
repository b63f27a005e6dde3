"""How many samples are evaluated at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.training.device import Compute
from deepcompression.training.evaluate import evaluate
from deepcompression.training.evaluated_batch import MOST, MOST_BYTES, evaluated_batch
from deepcompression.training.problem import Accuracy, cross_entropy_step

CPU = Compute("cpu")


def _split(samples: Tensor) -> tuple[Tensor, Tensor]:
    return samples, torch.zeros(len(samples), dtype=torch.int64)


class _Pictures(nn.Module):
    """Its largest tensor has 2 MiB a sample; its weight is as large, and no matter of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.large = nn.Conv2d(1, 8, 1), nn.Parameter(torch.zeros(2**19))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).mean((2, 3)) + (self.large * 2).sum()


def test_memory_bounds_a_batch_and_small_nets_have_large_ones() -> None:
    """The largest result of an operation counts, by samples alone; a parametrized weight is none."""
    assert evaluated_batch(_Pictures(), _split(torch.ones(9, 1, 256, 256)), cross_entropy_step, CPU) == MOST_BYTES >> 21
    small = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(2000, 300)))
    assert evaluated_batch(small, _split(torch.ones(9, 2000)), cross_entropy_step, CPU) == MOST
    assert (
        evaluated_batch(small, _split(torch.ones(9, 2000)), cross_entropy_step, Compute("cpu", evaluate_batch=7)) == 7
    )


def test_a_step_that_takes_no_few_samples_is_left_alone() -> None:
    """What fails on one sample may work on all: then batches are as large as may be."""

    def step(model: nn.Module, batch: Any) -> Any:
        if len(batch[0]) < 3:
            raise ValueError("too few")
        return cross_entropy_step(model, batch)

    assert evaluated_batch(nn.Linear(3, 2), _split(torch.ones(9, 3)), step, CPU) == MOST


def test_nothing_is_drawn_and_the_mode_stays() -> None:
    """Trying samples leaves random states, BatchNorm's statistics and the mode as they were."""
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).train()

    def step(model: nn.Module, batch: Any) -> Any:
        torch.rand(1)
        return cross_entropy_step(model, batch)

    before, state = torch.get_rng_state(), {name: one.clone() for name, one in model.state_dict().items()}
    evaluated_batch(model, _split(torch.rand(9, 3, generator=torch.Generator().manual_seed(0))), step, CPU)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    assert all(torch.equal(one, state[name]) for name, one in model.state_dict().items())


def test_scores_do_not_depend_on_the_batch_and_precision_is_followed() -> None:
    """The same metric in any batch; bfloat16 only where it is asked for."""
    torch.manual_seed(0)
    model, split = nn.Linear(5, 3), (torch.randn(50, 5), torch.randint(0, 3, (50,)))
    found = [evaluate(model, split, cross_entropy_step, Accuracy(), CPU, size) for size in (None, 7, 50)]
    assert len({one.metric for one in found}) == 1 and found[0].loss == pytest.approx(found[1].loss)
    seen = []

    def step(model: nn.Module, batch: Any) -> Any:
        loss, outputs, targets = cross_entropy_step(model, batch)
        seen.append(outputs.dtype)
        return loss, outputs, targets

    evaluate(model, split, step, Accuracy(), Compute("cpu", precision="bfloat16"))
    assert set(seen) == {torch.float32}
    evaluate(model, split, step, Accuracy(), Compute("cpu", evaluate_precision="bfloat16"))
    assert torch.bfloat16 in seen
