"""An exported file in a model's place."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import ExportError
from deepcompression.export.exported import Array
from deepcompression.export.ran import InRuntime


class Two(nn.Module):
    """Takes two tensors and gives a mapping, of which one value is no tensor."""

    def forward(self, one: Tensor, two: Tensor) -> dict[str, object]:
        return {"sum": one + two, "kept": "a word", "first": one}


class Fake:
    """What a runtime would give: the sum, doubled, and the first argument."""

    def __init__(self, fixed_batch: int | None = None) -> None:
        self.fixed_batch, self.sizes = fixed_batch, list[int]()

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        self.sizes.append(len(inputs[0]))
        return [2 * (inputs[0] + inputs[1]), inputs[0]]


@pytest.mark.parametrize(("fixed", "sizes"), [(None, [5]), (5, [5]), (2, [2, 2, 2]), (8, [8])])
def test_answers_come_in_the_models_structure_whatever_batch_the_file_takes(
    fixed: int | None, sizes: list[int]
) -> None:
    """A recipe's step reads the outputs of a file as those of its model; a padded batch must not add samples."""
    session, one, two = Fake(fixed), torch.rand(5, 3), torch.rand(5, 3)
    ran = InRuntime(session, Two(), [one[:2], two[:2]])
    found = ran(two=two, one=one)
    assert session.sizes == sizes
    assert list(found) == ["sum", "kept", "first"]
    assert found["kept"] == "a word"
    assert torch.equal(found["sum"], 2 * (one + two))
    assert torch.equal(found["first"], one)


def test_what_no_file_takes_is_named() -> None:
    """A step that hands more than tensors to a model would else fail inside the runtime."""
    ran = InRuntime(Fake(), Two(), [torch.rand(2, 3), torch.rand(2, 3)])
    with pytest.raises(ExportError, match="takes tensors alone"):
        ran(torch.rand(2, 3), None)
