"""A given size: kept, nearly used, and shared out by what tensors lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treatments import done, tensor

from deepcompression.datafree.allocate import FINE, chosen, curve_of
from deepcompression.datafree.compress import compress_state, plan_of
from deepcompression.datafree.treatment import Treatment
from deepcompression.errors import StructureError
from deepcompression.structure.counted import counted, narrowed
from deepcompression.structure.cut import cut_at


@given(
    dtype=st.sampled_from(["float32", "bfloat16", "float16", "float8_e4m3fn"]),
    seed=st.integers(0, 2**32 - 1),
    step=st.sampled_from([0.1, 0.3, 1.0, 2.5]),
    density=st.sampled_from([1.0, 0.4]),
)
@settings(max_examples=25, deadline=None)
def test_steps_round_to_means(dtype: str, seed: int, step: float, density: float) -> None:
    """Weights of one multiple of the step take one value among them; those nearest to 0 become zero."""
    before, after, _ = done(tensor(dtype, seed, 5000), Treatment(density, step=step))
    stays = done(tensor(dtype, seed, 5000), Treatment(density))[1] if density < 1 else before
    nearest = np.rint(stays / step)
    sure = np.abs(np.abs(stays / step - nearest) - 0.5) > 1 / 64  # rounding at borders aside
    assert not after[sure & (nearest == 0)].any()
    coarse = np.abs(before) / 8 + step / 2 if "8" in dtype else np.abs(before) / 64
    gap = np.abs(after - stays)
    assert (gap <= step + coarse)[sure].all()


def test_curves_tell_what_is_measured() -> None:
    """Estimated errors are those of the treated tensor; estimated bytes fall as steps grow."""
    raw = tensor("float32", 0, 100_000)
    found = counted(narrowed(raw), "float32")
    for density in (1.0, 0.3):
        cut = cut_at(narrowed(raw), found, density)
        curve = curve_of(found, cut)
        assert curve is not None and (np.diff(curve.costs) <= 0).all()
        for place in (64, 96, 128):
            _, _, loss = done(raw, Treatment(density, step=float(FINE[place] * curve.scale)))
            assert curve.losses[place] == pytest.approx(loss.squared_error / loss.energy, rel=0.02)


def test_larger_tensors_lose_more() -> None:
    """Relative errors are shared out by the bytes that they spare, so a small tensor has finer values."""
    curves = {}
    for name, size in (("large", 200_000), ("small", 5_000)):
        found = counted(narrowed(tensor("float32", 1, size)), "float32")
        curves[name] = curve_of(found, None)
    assert all(curves.values())
    known = {name: curve for name, curve in curves.items() if curve is not None}
    places = chosen(known, dict.fromkeys(known, 1.0), 80_000)
    assert known["large"].losses[places["large"]] > 4 * known["small"].losses[places["small"]]
    assert sum(known[name].costs[place] for name, place in places.items()) <= 80_000


def test_a_size_is_kept_and_used(tmp_path: Path) -> None:
    """The file takes at most the bytes that are asked for, and 95 % of them; a ratio is that of the tensors."""
    random = np.random.default_rng(0)
    state = {f"{i}.weight": random.laplace(size=(64, 200)).astype(np.float32) for i in range(4)}
    nbytes = sum(one.nbytes for one in state.values())
    for how in ({"target_bytes": nbytes // 9}, {"ratio": 9.0}, {"ratio": 20.0, "density": 0.2}):
        told = compress_state(state, tmp_path / "x.dcz", coder="huffman", **how)  # type: ignore[arg-type]
        most = how.get("target_bytes") or nbytes / how["ratio"]
        assert 0.95 * most <= (tmp_path / "x.dcz").stat().st_size <= most
        assert told[1].density is not None and told[1].density <= how.get("density", 1.0)
    assert all("steps" in one.treatment for one in plan_of(state, ratio=9.0))


def test_impossible_sizes_are_one_clear_line(tmp_path: Path) -> None:
    """Each says what was wrong and what to do."""
    state = {"a.weight": np.ones((64, 64), np.float32), "b.bias": np.arange(3000.0)}
    cases = (
        ({"ratio": 0.5}, "ratio 0.5 is impossible; expected how many times smaller, 1 or more"),
        ({"ratio": float("nan")}, "ratio nan is impossible"),
        ({"target_bytes": 0}, "target_bytes 0 is impossible"),
        ({"target_bytes": 5, "ratio": 2.0}, "give one of them"),
        ({"target_bytes": 5000, "bits": 4}, "bits 4 does not go with a size"),
        ({"ratio": 2.0, "per": "row"}, "per row does not go with a size"),
        ({"target_bytes": 300}, "so small a file is out of reach"),
        ({"ratio": 1e6}, "so small a file is out of reach"),
    )
    for settings_, words in cases:
        with pytest.raises(StructureError, match=words):
            compress_state(state, tmp_path / "x.dcz", coder="huffman", **settings_)  # type: ignore[arg-type]
        assert not (tmp_path / "x.dcz").exists()
