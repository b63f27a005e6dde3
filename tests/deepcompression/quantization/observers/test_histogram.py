"""The histogram of a stream: exact where it says so, of constant memory, the same however the stream is cut."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deepcompression.quantization.observers.histogram import BINS, KEPT, Histogram


def histogram(*batches: Tensor) -> Histogram:
    seen = Histogram()
    for batch in batches:
        seen.add(batch)
    return seen


def stream(scale: float, signed: bool) -> Tensor:
    """Growing values, some of them zero, some at edges of bins."""
    value = torch.randn(60, 50, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 2, 60)[:, None] * scale
    value[:, ::7], value[3:5] = 0.0, -0.0
    value[7] = torch.arange(50) * scale / 4
    return value if signed else value.abs()


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e-38, 1e36])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bins_are_those_of_numpy(dtype: torch.dtype, scale: float, signed: bool) -> None:
    """Bins of all values in one go, whatever came first; zeros apart; ends exact."""
    value = stream(scale, signed).to(dtype)
    seen, plain = histogram(*value.split(7)), value.double().numpy().ravel()
    places = np.ceil(np.abs(plain) / seen.width) * np.sign(plain)
    expected = np.bincount(places.astype(int) + BINS, minlength=2 * BINS + 1)
    assert seen.counts.tolist() == expected.tolist()
    assert (seen.least, seen.most) == (plain.min(), plain.max())
    assert (seen.zeros, seen.number, seen.signed) == ((plain == 0).sum(), plain.size, signed)
    assert np.frexp(seen.width)[0] == 0.5
    assert BINS / 2 <= np.abs(plain).max() / seen.width <= BINS


def test_order_and_cut_do_not_matter() -> None:
    """Batches of one, all at once, or backwards: the same counts; the average alone goes by order."""
    value = stream(1.0, True)
    whole = histogram(value)
    for other in (histogram(*value), histogram(*value.flip(0).split(13)), histogram(value[:0], value)):
        assert torch.equal(other.counts, whole.counts)
        assert (other.width, other.least, other.most) == (whole.width, whole.least, whole.most)
    mirrored = histogram(-value)
    assert torch.equal(mirrored.counts.flip(0), whole.counts)


def test_averages_follow_samples() -> None:
    """One sample after the other, however they are cut into batches; the first one begins."""
    value = stream(1.0, True)
    low, high = float(value[0].min()), float(value[0].max())
    for row in value[1:]:
        low, high = KEPT * low + (1 - KEPT) * float(row.min()), KEPT * high + (1 - KEPT) * float(row.max())
    for cut in (1, 7, 60):
        assert histogram(*value.split(cut)).average == pytest.approx((low, high))


def test_what_is_no_number_is_refused_and_what_is_nothing_is_not() -> None:
    """Not finite: ValueError. Zeros alone, a number, no value: no bins."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            histogram(torch.tensor([[0.0, bad]]))
    zeros = histogram(torch.zeros(3, 2), torch.zeros(0, 2), torch.tensor(0.0))
    assert (zeros.zeros, zeros.number, zeros.width, zeros.least, zeros.most) == (7, 7, 0.0, 0.0, 0.0)
    later = histogram(torch.zeros(3, 2), torch.tensor(-3.0))
    assert (later.zeros, later.number, later.least) == (6, 7, -3.0)
