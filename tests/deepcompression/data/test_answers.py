"""Answers of a dense model as targets: accuracy is agreement with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from deepcompression import data
from deepcompression.data import answers
from deepcompression.data.splits import Splits
from deepcompression.errors import DataError, FactoryError, WeightsError
from deepcompression.training.evaluate import evaluate
from deepcompression.training.identity import identify
from deepcompression.training.problem import Accuracy, cross_entropy_step


class Points(Dataset):
    """Points whose labels are all wrong."""

    digest = "points"

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(index)), 9


class Net(nn.Sequential):
    asked = 0

    def forward(self, x):
        Net.asked += 1
        return super().forward(x)


def net():
    return Net(nn.Flatten(), nn.Linear(12, 4))


@pytest.fixture
def dense(tmp_path, monkeypatch):
    """A net and its weights in a file; the cache is the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(data, "points", lambda: Splits(Points(), None, Points()), raising=False)
    monkeypatch.setattr(data, "net", net, raising=False)
    made = net()
    torch.save(made.state_dict(), tmp_path / "net.pth")
    return made, {"factory": "deepcompression.data:net", "weights": {"path": str(tmp_path / "net.pth")}}


POINTS = {"factory": "deepcompression.data:points"}


def test_the_dense_model_agrees_with_itself_and_is_asked_once(dense):
    """Its own accuracy is 1, another's is less; a second call reads what the first found."""
    made, model = dense
    splits = answers(POINTS, model)
    assert evaluate(made, splits.train, cross_entropy_step, Accuracy()).metric == 1
    assert evaluate(net(), splits.test, cross_entropy_step, Accuracy()).metric < 1
    before = Net.asked
    again = answers(POINTS, model)
    assert Net.asked == before and again.train.labels == splits.train.labels
    assert identify(again) == identify(splits) and identify(again).certain
    torch.save({name: one + 1 for name, one in net().state_dict().items()}, model["weights"]["path"])
    assert identify(answers(POINTS, model)) != identify(again)


def test_what_is_missing_is_one_line(dense):
    """Weights, their file, and data whose contents nobody tells."""
    _, model = dense
    with pytest.raises(FactoryError, match="expected weights, with a path"):
        answers(POINTS, {"factory": "deepcompression.data:net"})
    with pytest.raises((WeightsError, DataError), match=r"absent\.pth"):
        answers(POINTS, {**model, "weights": {"path": "absent.pth"}})
    with pytest.raises(DataError, match="answers takes data sets with a digest, such as images"):
        answers({"factory": "deepcompression.data:digits"}, model)
