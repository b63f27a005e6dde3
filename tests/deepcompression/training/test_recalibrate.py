"""BatchNorm statistics against the plain mean and variance of what reaches the layer."""

from __future__ import annotations

import torch
from torch import nn

from deepcompression.network import state
from deepcompression.training.device import Compute
from deepcompression.training.problem import Problem
from deepcompression.training.recalibrate import BLENDS, recalibrate, recalibrate_best


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


def judged(samples: torch.Tensor) -> Problem:
    """Trains and is judged on different samples, so that new statistics may be worse."""
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
    return Problem((samples, samples[:, :3].argmax(1)), (x, x[:, :3].argmax(1)), batch_size=32)


def sound() -> nn.Sequential:
    """A net that is right where its statistics are those of a standard normal distribution."""
    model = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3, bias=False))
    with torch.no_grad():
        model[1].weight.copy_(4 * torch.eye(6)[:3])
    return model.eval()


def test_statistics_that_are_worse_on_validation_are_not_kept():
    """A few odd samples do not spoil a net: the old statistics stay to the bit, and the note says so."""
    model = sound()
    before = state.plain_state(model)
    odd = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * 30 + torch.arange(6.0) * 50
    done = recalibrate_best(model, judged(odd), compute=Compute("cpu"))
    assert done.part == 0 and list(done.losses) == list(BLENDS)
    assert all(torch.equal(one, before[name]) for name, one in state.plain_state(model).items())
    assert "of 40 samples, which are few" in done.notes[0] and "kept the statistics as they were" in done.notes[-1]


def test_statistics_that_are_better_are_kept_and_are_those_of_before():
    """A net whose statistics are wrong takes the new ones, bit for bit as without a choice."""
    models = [sound(), sound()]
    for model in models:
        model[0].running_mean += torch.arange(6.0)
    data = judged(torch.randn(1500, 6, generator=torch.Generator().manual_seed(0)))
    done = recalibrate_best(models[0], data, compute=Compute("cpu"))
    recalibrate(models[1], data, compute=Compute("cpu"))
    assert done.part >= 0.75 and "best on validation" in done.notes[0]
    assert recalibrate_best(models[0], data, parts=[1.0], compute=Compute("cpu")).losses == {}
    assert all(
        torch.equal(one, state.plain_state(models[1])[name]) for name, one in state.plain_state(models[0]).items()
    )


def test_a_blend_has_the_moments_of_a_mixture():
    """Half of samples around -1, half around 3: mean 1, and a variance that knows of the gap."""
    model = nn.Sequential(nn.BatchNorm1d(1))
    model[0].running_mean.fill_(-1.0)
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)) + 3
    recalibrate_best(model, Problem((x, torch.zeros(2000).long()), None), parts=[0.5], compute=Compute("cpu"))
    assert abs(float(model[0].running_mean) - 1) < 0.05 and abs(float(model[0].running_var) - 5) < 0.3


def test_data_that_comes_ordered_by_class_is_told():
    """A loader that does not shuffle gives one class after the other."""
    x = torch.randn(1200, 6, generator=torch.Generator().manual_seed(0))
    for labels, told in ((torch.arange(1200) // 120, True), (torch.arange(1200) % 10, False)):
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, labels), 40)

        def step(model, batch):
            return model(batch[0]).mean(), batch[0], batch[1]

        done = recalibrate_best(net(), Problem(loader, None, step=step), parts=[1.0], compute=Compute("cpu"))
        assert any("ordered by class" in note for note in done.notes) is told
