"""Which layers lose it: signal to noise and cosine of each op, alone and accumulated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.measure.difference import differences
from deepcompression.network.edits.apply import apply


class Chain(nn.Module):
    """Two layers, the first of which is called twice."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.relu = nn.ReLU(inplace=True)
        self.last = nn.Linear(width, 3)

    def forward(self, values: Tensor) -> Tensor:
        hidden = self.relu(self.first(values)) + self.relu(self.first(-values))
        result: Tensor = self.last(hidden)
        return result


def run(model: nn.Module, batch: Tensor) -> Tensor:
    result: Tensor = model(batch)
    return result


def pair(change: float = 0.1, seed: int = 0) -> tuple[Chain, Chain, list[Tensor]]:
    torch.manual_seed(seed)
    dense, other = Chain(), Chain()
    other.load_state_dict(dense.state_dict())
    with torch.no_grad():
        other.first.weight += change * torch.randn(6, 4)
    return dense, other, [torch.randn(5, 4), torch.randn(2, 4)]


def sqnr(dense: list[Tensor], other: list[Tensor]) -> float:
    one, two = (torch.cat([part.flatten() for part in parts]).double() for parts in (dense, other))
    return 10 * math.log10(float((one.square().sum() / (one - two).square().sum()).detach()))


def test_an_op_alone_gets_the_dense_nets_input_and_else_its_own_nets() -> None:
    """The second layer is unchanged: alone it loses nothing, in the net what the first one has lost."""
    dense, other, batches = pair()
    first, last = differences(dense, other, batches, run)
    assert (first.op, first.kind, last.op) == ("first", "Linear", "last")
    calls = [(dense.first(sign * one), other.first(sign * one)) for one in batches for sign in (1, -1)]
    expected = sqnr([one for one, _ in calls], [two for _, two in calls])
    assert first.sqnr_alone == pytest.approx(expected, rel=1e-5)
    assert first.sqnr == pytest.approx(expected, rel=1e-5)  # nothing before it, and ReLU in place has spoilt nothing
    assert (last.sqnr_alone, last.cosine_alone) == (math.inf, 1.0)
    whole = sqnr([dense(one) for one in batches], [other(one) for one in batches])
    assert last.sqnr == pytest.approx(whole, rel=1e-5)
    assert last.cosine is not None and 0.5 < last.cosine < 1
    assert first.clipped is None


def test_equal_nets_lose_nothing() -> None:
    """A table that shows losses where there are none would send its reader to the wrong layer."""
    dense, other, batches = pair(0)
    for one in differences(dense, other, batches, run):
        assert (one.sqnr, one.cosine, one.sqnr_alone, one.cosine_alone) == (math.inf, 1.0, math.inf, 1.0)


def test_what_is_beyond_the_grid_is_counted() -> None:
    """Clipping is what a narrow grid costs beside rounding, and is mended otherwise: by a wider range."""
    dense, other, _ = pair(0)
    apply(other, {"kind": "quantize_values", "sites": ["last:input[0]"], "range": "static", "bits": 4,
                  "scheme": "asymmetric"})  # fmt: skip
    batch = torch.randn(50, 4)
    hidden = dense.relu(dense.first(batch)) + dense.relu(dense.first(-batch))
    scale = float(hidden.max()) / 30
    other.last.input_0_scale.fill_(scale)
    last = differences(dense, other, [batch], run)[1]
    assert last.clipped == pytest.approx(float(((hidden / scale).round() > 15).float().mean()))
    assert 0 < last.clipped < 0.5
    assert last.sqnr_alone == pytest.approx(last.sqnr)


@pytest.mark.parametrize("width", [3, 6])
def test_ops_of_other_shapes_are_named(width: int) -> None:
    """Where units are gone, figures about an op would be about something else; the op is named with the reason."""
    dense, _, batches = pair()
    rows = {one.op: one for one in differences(dense, Chain(width), batches, run)}
    if width == 6:
        assert all(not one.why for one in rows.values())
    else:
        assert rows["first"].why == rows["last"].why == "takes in or makes other shapes than the dense net's"
        assert rows["first"].sqnr is None


def test_an_op_that_is_gone_is_named() -> None:
    """A bypassed or replaced layer gives no figures, and is not left out in silence."""
    dense, other, batches = pair()
    other.last = nn.Identity()  # type: ignore[assignment]
    assert {one.op: one.why for one in differences(dense, other, batches, run)}["last"]


def test_without_batches_there_is_nothing_to_tell() -> None:
    """An empty table would read as: no layer loses anything."""
    dense, other, _ = pair()
    with pytest.raises(StructureError, match="no op could be compared"):
        differences(dense, other, [], run)
