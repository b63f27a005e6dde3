"""BatchNorm statistics against the plain mean and variance of what reaches the layer."""

from __future__ import annotations

import torch
from torch import nn

from deepcompression.network import state
from deepcompression.training.problem import Problem
from deepcompression.training.recalibrate import recalibrate


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def problem(batch_size: int) -> Problem:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    return Problem((x, x[:, :3].argmax(1)), None, batch_size=batch_size)


def test_statistics_are_those_of_the_training_data_and_nothing_else_changes():
    """One whole batch: mean and unbiased variance of the layer's input, dropout at rest."""
    model, data = net(), problem(batch_size=96)
    before = state.plain_state(model)
    assert recalibrate(model, data) == ["2"]
    inputs = model[0](data.train[0])
    torch.testing.assert_close(model[2].running_mean, inputs.mean(0))
    torch.testing.assert_close(model[2].running_var, inputs.var(0))
    after = state.plain_state(model)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["2.running_mean", "2.running_var", "2.num_batches_tracked"]


def test_several_batches_are_averaged_and_the_momentum_comes_back():
    """A cumulative average over all batches, not an exponential one that remembers the last."""
    model, data = net(), problem(batch_size=32)
    model.eval()
    recalibrate(model, data)
    torch.testing.assert_close(model[2].running_mean, model[0](data.train[0]).mean(0))
    assert (model[2].momentum, model.training, model[2].training) == (0.1, False, False)
    assert int(model[2].num_batches_tracked) == 3


def test_batches_limit_the_work():
    """A large data set need not be read whole."""
    model = net()
    recalibrate(model, problem(batch_size=8), batches=2)
    assert int(model[2].num_batches_tracked) == 2


def test_a_model_without_statistics_is_left_alone():
    """Nothing to do is no error."""
    assert recalibrate(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3, track_running_stats=False)), problem(8)) == []
