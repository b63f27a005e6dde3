"""What is measured of a stage's result."""

from __future__ import annotations

import torch

from tasks.execution.measure import judged, left


def test_density_is_told_of_every_matrix_that_was_pruned():
    """An embedding that was pruned by name must not leave density at 100 %; biases do not count."""
    state = {"head.weight": torch.ones(2, 2), "embedding.weight": torch.ones(9, 2), "head.bias": torch.ones(2)}
    assert judged(["head.weight"], ["embedding.weight", "head.bias"], state) == ["head.weight", "embedding.weight"]
    assert judged(["head.weight"], ["head.weight"], state) == ["head.weight"]
    assert judged([], ["head.bias"], state) == ["head.bias"]


def test_what_was_removed_is_as_little_there_as_what_is_zero():
    """A layer of which half is removed, and half of the rest zero, has a quarter left; one that is gone has nothing."""
    dense = {"a": torch.ones(4, 2), "b": torch.ones(8)}
    thin = {"a": torch.tensor([[1.0, 0.0], [2.0, 0.0]]), "a.step": torch.ones(100)}
    zeroed = {**dense, "a": torch.zeros(4, 2).index_fill(0, torch.tensor([0]), 1.0), "b": torch.zeros(8)}
    assert left(thin, ["a"], dense) == left(zeroed, ["a"], dense) == 0.25
    assert left(thin, dense, dense) == left(zeroed, dense, dense) == 0.125
    assert left(dense, dense, dense) == left(dense, [], dense) == 1.0
