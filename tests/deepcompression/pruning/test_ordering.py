"""The order of units is whichever is measured smallest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepcompression import torch as files
from deepcompression.codec import file
from deepcompression.formats import state_dict
from deepcompression.pruning import ordering
from deepcompression.pruning.ordering import best_order


def patterned(units: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two weights of two kinds of units, that look at different inputs, mixed up: (units, 60) and (20, units, 1)."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.arange(units) % 2 == 0
    left = torch.arange(60) < 30
    chance = torch.where(kind[:, None] == left[None], 0.6, 0.02)
    rows = torch.randn(units, 60, generator=generator).sign()
    columns = torch.randn(20, units, 1, generator=generator).sign()
    kept = torch.rand(20, units, 1, generator=generator) < torch.rand(units, 1, generator=generator) ** 2
    return torch.where(torch.rand(units, 60, generator=generator) < chance, rows, 0), torch.where(kept, columns, 0)


def file_bytes(*weights: Tensor) -> int:
    """The same weights in a whole file: all but its header."""
    return len(files.encode({str(i): weight for i, weight in enumerate(weights)}, "adaptive"))


def test_structured_units_code_smaller_in_another_order():
    """Units that look alike come to stand beside each other; what is told is what the file then takes."""
    rows, columns = patterned(120)
    found = best_order(rows, columns)
    assert sorted(found.order.tolist()) == list(range(120))
    assert found.bytes_after < 0.95 * found.bytes_before
    before, after = file_bytes(rows, columns), file_bytes(rows[found.order], columns[:, found.order])
    assert before - after == pytest.approx(found.bytes_before - found.bytes_after, abs=8)
    kinds = found.order % 2
    assert int((kinds.diff() != 0).sum()) < 20


def test_the_present_order_stays_where_no_other_is_smaller():
    """Nothing moves without a gain: not again after the best was found, not in dense weights, not one unit."""
    rows, columns = patterned(60)
    order = best_order(rows, columns).order
    again = best_order(rows[order], columns[:, order])
    assert again.bytes_after <= again.bytes_before
    dense = best_order(torch.randn(30, 20), torch.randn(5, 30, 4))
    assert dense.order.tolist() == list(range(30)) and dense.bytes_before is None
    assert best_order(torch.randn(1, 20), torch.zeros(5, 1, 4)).order.tolist() == [0]


def test_empty_units_come_last_among_those_alike():
    """A dead unit is like no other: it must not stand between two that are alike."""
    rows, columns = patterned(40)
    dead = torch.arange(40) % 3 == 0
    rows[dead], columns[:, dead] = 0, 0
    alike = list(ordering._orders(rows != 0, columns != 0, likeness=True))[2:]
    for order in alike:
        assert dead[order].tolist() == sorted(dead.tolist())


def test_of_large_weights_only_positions_are_measured(monkeypatch: pytest.MonkeyPatch):
    """Values of millions of weights, not yet shared, would take minutes."""
    rows, columns = patterned(80)
    monkeypatch.setattr(ordering, "MEASURED_WHOLE", 100)
    found = best_order(rows, columns)
    raw = [state_dict.to_raw((weight != 0).byte().flatten(1)) for weight in (rows, columns)]
    header = len(file.encode({"a": raw[0], "b": raw[1]}, "adaptive")) - found.bytes_before
    assert 0 < header < 60 and found.bytes_after <= found.bytes_before
    monkeypatch.undo()
    other = best_order(rows, columns, whole=False)  # as of a net of more weights in all
    assert other.bytes_before == found.bytes_before and other.bytes_after <= found.bytes_after
