"""What is measured of a stage's result."""

from __future__ import annotations

import torch

from tasks.execution.measure import judged


def test_density_is_told_of_every_matrix_that_was_pruned():
    """An embedding that was pruned by name must not leave density at 100 %; biases do not count."""
    state = {"head.weight": torch.ones(2, 2), "embedding.weight": torch.ones(9, 2), "head.bias": torch.ones(2)}
    assert judged(["head.weight"], ["embedding.weight", "head.bias"], state) == ["head.weight", "embedding.weight"]
    assert judged(["head.weight"], ["head.weight"], state) == ["head.weight"]
    assert judged([], ["head.bias"], state) == ["head.bias"]
