"""What bits cost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import deepcompression
from deepcompression.allocation import bit_costs
from deepcompression.allocation.hawq import perturbations
from deepcompression.errors import StructureError
from deepcompression.quantization.linear import table
from deepcompression.torch import save


@pytest.mark.parametrize("coder", ["huffman", "packed"])
def test_coded_bytes_are_those_of_the_file(coder: str, tmp_path: Path) -> None:
    """As `inspect` tells them of the same tensor."""
    model = nn.Linear(64, 50)
    state = {"weight": model.weight.detach()}
    (rounded, _) = perturbations(state, table(model, {"weight": 4}))["weight"]
    save({"weight": rounded}, tmp_path / "one.dcz", coder=coder)
    (row,) = deepcompression.inspect(tmp_path / "one.dcz")["tensors"]
    assert bit_costs.coded_bytes(rounded, coder) == row["bytes"]


def test_bytes_of_a_large_tensor_are_those_of_its_middle_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled up."""
    monkeypatch.setattr(bit_costs, "BLOCK", 1000)
    weight = torch.randint(-7, 8, (100, 200), generator=torch.Generator().manual_seed(0)) * 0.25
    assert bit_costs.coded_bytes(weight, "packed") == pytest.approx(20_000 / 2, rel=0.05)


class Net(nn.Module):
    """A grouped convolution, a layer that is called twice, and a matrix that no layer has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, groups=2)
        self.twice = nn.Linear(8, 8)
        self.own = nn.Parameter(torch.ones(8, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.conv(images).mean((2, 3))
        made: torch.Tensor = self.twice(self.twice(pooled)) @ self.own
        return made


def test_operations_are_counted_by_layer() -> None:
    """Two for each product; a tensor that no layer is called with is named."""
    run = lambda model: model(torch.randn(3, 4, 6, 6))  # noqa: E731
    found = bit_costs.operations(Net().train(), ["conv.weight", "twice.weight"], run)
    assert found == {"conv.weight": 2 * 3 * 8 * 16 * 2 * 9, "twice.weight": 2 * 2 * 3 * 64}
    with pytest.raises(StructureError, match=r"^own: the forward calls no Linear or Conv layer with this weight"):
        bit_costs.operations(Net(), ["own"], run)


def test_a_table_of_latency_must_have_all_that_is_asked_for() -> None:
    """Layers may stand for their weights."""
    given = {"a": {2: 0.5, 4: 1}, "b.weight": {4: 2.0}}
    assert bit_costs.milliseconds(given, {"a.weight": [2, 4], "b.weight": [4]}) == {
        "a.weight": {2: 0.5, 4: 1.0}, "b.weight": {4: 2.0},
    }  # fmt: skip
    with pytest.raises(StructureError, match=r"^latency: the table has no row of c\.weight"):
        bit_costs.milliseconds(given, {"c.weight": [2]})
    with pytest.raises(StructureError, match=r"^latency: b\.weight: the table has no 2 bits, it has 4"):
        bit_costs.milliseconds(given, {"b.weight": [2, 4]})
