"""Prices against the codec on what prune and share themselves make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepcompression.allocation import pricing
from deepcompression.allocation.pricing import price, prices
from deepcompression.codec import encoder
from deepcompression.errors import StructureError
from deepcompression.pruning.prune import prune
from deepcompression.sharing.share import share


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, shape) / 20).astype(np.float32)


@pytest.mark.parametrize("coder", ["packed", "huffman", "adaptive"])
@pytest.mark.parametrize(("density", "bits"), [(1.0, 4), (0.3, 1), (0.02, 5)])
def test_a_price_is_the_blob_of_the_pruned_and_shared_tensor(density: float, bits: int, coder: str) -> None:
    """The stages themselves, rounded to float16 and encoded, take exactly these bytes."""
    made = share(prune({"w": torch.from_numpy(weights(30, 5, 3))}, {"w": density}).state, {"w": bits}, init="optimal")
    flat = made.state["w"].half().float().numpy().reshape(-1).view(np.uint32)
    expected = len(encoder.encode_tensor(flat, "float32", (30, 5, 3), coder))
    assert price(weights(30, 5, 3), density, bits, coder) == expected


def test_zeros_stay_zeros_and_ties_keep_the_earlier() -> None:
    """Asking for more than is left changes nothing; constant weights reach the density."""
    sparse = weights(40, 40)
    sparse[np.abs(sparse) < 0.05] = 0
    assert price(sparse, 1.0, 3, "huffman") == price(sparse, np.count_nonzero(sparse) / 1600, 3, "huffman")
    flat, distinct = pricing._compressed(np.ones(10, np.float32), 0.3, 4)
    assert flat.tolist() == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0] and distinct == 1
    assert price(np.zeros((5, 5), np.float32), 0.5, 4, "huffman") < 10 and price(np.zeros(0), 0.5, 4, "huffman") == 0


def test_weights_too_small_for_float16_stay_weights() -> None:
    """A centroid that float16 would make zero or infinite is kept in float32."""
    for scale in (1e-12, 1e9):
        flat, _ = pricing._compressed(weights(100) * np.float32(scale), 0.5, 2)
        assert np.count_nonzero(flat) == 50 and np.isfinite(flat).all()


def test_a_large_tensor_is_priced_by_its_middle_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixth of alike rows tells the whole to a hundredth or two, the codebook counted once."""
    large = weights(384, 300)
    exact = {where: price(large, *where, "huffman") for where in ((0.5, 2), (0.1, 4), (0.2, 8))}
    monkeypatch.setattr(pricing, "BLOCK", 1 << 15)
    for (density, bits), size in exact.items():
        assert price(large, density, bits, "huffman") == pytest.approx(size, rel=0.03)


def test_a_grid_of_prices_needs_few_encodings_and_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 20 are measured; the ends are exact, the rest is near what measuring all gives."""
    calls = []
    encode = encoder.encode_tensor
    monkeypatch.setattr(encoder, "encode_tensor", lambda *given: calls.append(1) or encode(*given))
    tensor, densities, bits = weights(60, 80), np.geomspace(1, 0.01, 7).tolist(), [6, 4, 3, 2, 1]
    found = prices(tensor, densities, bits, "huffman")
    assert found.shape == (7, 5) and 12 <= len(calls) <= 20
    exact = np.array([[price(tensor, density, width, "huffman") for width in bits] for density in densities])
    error = np.abs(found / exact - 1)
    assert (found[[0, 0, -1, -1], [0, -1, 0, -1]] == exact[[0, 0, -1, -1], [0, -1, 0, -1]]).all()
    assert error.mean() < 0.03 and error.max() < 0.15


@pytest.mark.parametrize(
    ("density", "bits", "rule"), [(0.0, 4, "density 0.0"), (1.1, 4, "density 1.1"), (0.5, 0, "bits 0"), (0.5, 17, "17")]
)
def test_impossible_numbers_are_refused(density: float, bits: int, rule: str) -> None:
    """The message tells which one."""
    with pytest.raises(StructureError, match=rule):
        price(weights(9), density, bits, "packed")
    with pytest.raises(StructureError, match=rule):
        prices(weights(9), [density], [bits], "packed")


def test_a_weight_that_is_not_finite_is_refused() -> None:
    """As by the stages."""
    with pytest.raises(StructureError, match="finite"):
        price(np.array([1.0, np.nan, 2.0], np.float32), 1.0, 1, "packed")
