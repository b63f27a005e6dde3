"""What a split may be, and how it is divided, counted and cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from trainings import Watch, fit

from deepcompression.allocation.sensitivity import sensitivity
from deepcompression.data.splits import Columns, Rows, Splits, as_split, as_splits, drawn, split_validation
from deepcompression.errors import DataError, FactoryError
from deepcompression.network.state import plain_state
from deepcompression.training import batches as problem
from deepcompression.training.batches import Batches
from deepcompression.training.device import Compute
from deepcompression.training.evaluate import evaluate
from deepcompression.training.problem import Accuracy, Problem, cross_entropy_step
from deepcompression.training.recalibrate import recalibrate

CPU = Compute("cpu")
SGD = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.1}}
X, Y = torch.randn(33, 4, generator=torch.Generator().manual_seed(0)), torch.arange(33) % 3


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


class Long(Stream):
    """It never ends, and says how long an epoch is."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield from zip(X, Y, strict=True)

    def __len__(self) -> int:
        return 33


class HuggingFace:
    """datasets.Dataset, as far as it is used: columns, a length, rows by number, whole batches of rows."""

    def __len__(self) -> int:
        return len(Y)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"id": f"row {index}", "pixel": X[index].numpy(), "label": int(Y[index])}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


class Frame:
    """pandas' DataFrame and Series, as far as they are used."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def to_numpy(self) -> Any:
        return self.values.numpy()


def by_name(model: nn.Module, batch: Any) -> Any:
    return cross_entropy_step(model, (batch["pixel"], batch["label"]))


@pytest.mark.parametrize(
    ("split", "step"),
    [
        ((X.numpy(), Y.numpy()), cross_entropy_step),
        ([X.numpy(), Y.numpy()], cross_entropy_step),
        ((list(X), list(Y)), cross_entropy_step),
        ((list(X.numpy()), Y.tolist()), cross_entropy_step),
        ([list(X), list(Y)], cross_entropy_step),
        ((X, Y.numpy()), cross_entropy_step),
        ((Frame(X), Frame(Y)), cross_entropy_step),
        ({"x": X, "y": Y.numpy()}, cross_entropy_step),
        ({"pixel": X, "name": [str(one) for one in range(33)], "label": Y}, by_name),
        ([(x, y) for x, y in zip(X, Y, strict=True)], cross_entropy_step),
        (HuggingFace(), by_name),
        (DataLoader(HuggingFace(), 8), by_name),
        (Stream(), cross_entropy_step),
        (DataLoader(Stream(), 8), cross_entropy_step),
    ],
    ids=[
        *(
            "arrays",
            "list-of-arrays",
            "lists",
            "lists-of-arrays",
            "list-of-lists",
            "mixed",
            "pandas",
            "dict",
            "texts",
            "samples",
        ),
        *("rows", "rows-loader", "stream", "stream-loader"),
    ],
)
def test_every_form_of_a_split_trains_and_evaluates_as_tensors_do(split: Any, step: Any):
    """The same samples, the same numbers; one epoch of training runs."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    expected = evaluate(model, (X, Y), cross_entropy_step, Accuracy(), CPU)
    found = evaluate(model, split, step, Accuracy(), CPU, 8)
    assert (found.correct, found.total, found.loss) == (expected.correct, 33, pytest.approx(expected.loss, rel=1e-6))
    made = fit(model, Problem(split, split, step=step, batch_size=8), epochs=1, optimizer=SGD, compute=CPU)
    assert made.history[0]["loss"] > 0


@pytest.mark.parametrize(
    ("split", "words"),
    [
        ((X, None), "part 2 is None"),
        ((X, 3), "part 2 is a int"),
        ((X, torch.tensor(3)), "part 2 is a Tensor"),
        ({"x": X, "y": "text"}, "y is a str"),
        ((X, Y[:5]), r"unequal lengths \[33, 5\] \(part 1 33, part 2 5\)"),
        ({"x": X.numpy(), "y": list(Y[:5])}, r"x 33, y 5"),
        ((X[:0], Y[:0]), "no samples"),
        ((), "no samples"),
        ([], "no samples"),
        (TensorDataset(X[:0]), "no samples"),
        (3, "got int"),
        (None, "got NoneType"),
        ("train", "got str"),
        (torch.tensor(3.0), "got Tensor"),
        (iter([1, 2]), "got list_iterator"),
        ((one for one in X), "got generator"),
    ],
)
def test_what_is_no_split_is_refused_with_what_it_may_be(split: Any, words: str):
    """One line: what came, which part of it, what is expected."""
    with pytest.raises(DataError, match=words):
        as_split(split)


def test_what_must_not_be_written_to_is_copied():
    """A step that writes into its batch must not crash the process on a read-only array."""
    fixed = np.zeros((3, 2), np.float32)
    fixed.flags.writeable = False
    read = as_split((fixed, np.arange(3)))
    read[0][0] = 1
    assert fixed.sum() == 0 and read[1].dtype == torch.int64


def test_three_splits_come_as_tuple_list_dict_or_splits():
    """A data factory of Hugging Face's returns a dict of splits."""
    pair = (X.numpy(), Y.numpy())
    for made in ((pair, None, pair), [pair, None, pair], {"train": pair, "test": pair}, Splits(pair, None, pair)):
        splits = as_splits(made, "mine:made")
        assert isinstance(splits.train[0], Tensor) and splits.validation is None
    with pytest.raises(FactoryError, match="mine:made: expected three splits"):
        as_splits({"x": X, "y": Y}, "mine:made")
    with pytest.raises(FactoryError, match=r"got tuple of 2$"):
        as_splits((pair, pair), "mine:made")
    with pytest.raises(DataError, match=r"^data.factory mine:made: test: .*unequal lengths"):
        as_splits((pair, None, (X, Y[:3])), "mine:made")
    with pytest.raises(DataError, match="train: expected"):
        as_splits((None, None, pair), "mine:made")


@pytest.mark.parametrize(
    "train",
    [(X.numpy(), Y.numpy()), (list(X), Y.tolist()), {"y": Y, "x": X}, {"x": X, "n": ["a"] * 33}, HuggingFace(), (X,)],
    ids=["arrays", "lists", "dict", "texts", "rows", "alone"],
)
def test_validation_is_taken_from_any_split_in_memory(train: Any):
    """Nothing is lost, nothing is on both sides, the form stays."""
    split = split_validation(Splits(train, None, train), 0.3)
    sizes = [sum(1 for _ in Batches(part, 1, CPU)) for part in (split.train, split.validation)]
    assert sizes == [23, 10]
    if isinstance(split.train, Columns):
        assert split.train.names == ("y", "x") and torch.bincount(split.validation.tensors[0]).tolist() == [4, 3, 3]


def test_a_stream_cannot_be_divided():
    """Its factory must return a validation split."""
    with pytest.raises(DataError, match=r"streams .* must return its own validation split"):
        split_validation(Splits(Stream(), None, Stream()), 3)


@pytest.mark.parametrize("split", [Stream(), DataLoader(Stream(), 8)], ids=["bare", "loader"])
def test_a_stream_without_a_length_is_counted_once_and_says_so(split: Any, caplog: pytest.LogCaptureFixture):
    """The schedule and the progress bar know its steps; nothing that is drawn changes by the counting."""
    torch.manual_seed(3)
    batches = Batches(split, 8, CPU, torch.Generator())
    before = torch.get_rng_state()
    assert len(batches) == len(batches) == 5 and torch.equal(torch.get_rng_state(), before)
    assert [record.message[:52] for record in caplog.records] == [
        "data: Stream tells no length; it was read once to co"
    ]
    steps = []
    made = fit(
        nn.Linear(4, 3),
        Problem(split, (X, Y), batch_size=8),
        epochs=2,
        optimizer=SGD,
        compute=CPU,
        methods=[Watch(lambda step, total: steps.append((step, total)))],
    )
    assert steps == [(step, 10) for step in range(10)] and made.history[1]["lr"] == pytest.approx(0.05)


def test_a_stream_that_never_ends_needs_a_length(monkeypatch: pytest.MonkeyPatch):
    """With one, an epoch is as long as it says; without, it is refused, not read for ever."""
    assert sum(1 for _ in Batches(Long(), 8, CPU, torch.Generator())) == 5
    monkeypatch.setattr(problem, "COUNTING_SECONDS", 0.0)
    monkeypatch.delattr(Long, "__len__")
    with pytest.raises(DataError, match="Long tells no length and has not ended after 1 batches"):
        len(Batches(Long(), 8, CPU, torch.Generator()))


def norm() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


@pytest.mark.parametrize("split", [(X, Y), TensorDataset(X, Y), Stream()], ids=["tensors", "dataset", "stream"])
def test_a_last_batch_that_is_smaller_can_be_left_out(split: Any):
    """33 samples in batches of 8: four steps instead of five, in the schedule too; BatchNorm trains."""
    seen: list[int] = []
    known = Problem(split, (X, Y), batch_size=8, drop_last=True)
    model = norm()
    model.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    fit(model, known, epochs=2, optimizer=SGD, compute=CPU)
    # Evaluation runs one and two samples to see what memory they take.
    assert [one for one in seen if 2 < one < 33] == [8] * 8
    assert recalibrate(norm(), known, compute=CPU) == ["1"]
    with pytest.raises(FactoryError, match=r"Expected more than 1 value.*BatchNorm cannot train .* drop_last: true"):
        fit(norm(), Problem(split, (X, Y), batch_size=8), epochs=1, optimizer=SGD, compute=CPU)


def test_dropping_the_only_batch_is_refused():
    """Epochs without a step would pass for a training."""
    for split in ((X, Y), TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), 40, drop_last=True)):
        small = Problem(split, (X, Y), batch_size=40, drop_last=True)
        with pytest.raises(DataError, match="drop_last leaves nothing"):
            fit(norm(), small, epochs=1, optimizer=SGD, compute=CPU)


def test_dropping_nothing_changes_nothing():
    """Where batches come out even, drop_last has no effect on a single bit."""
    even = (X[:32], Y[:32])
    models = [norm(), norm()]
    for model, drop_last in zip(models, (False, True), strict=True):
        fit(model, Problem(even, even, batch_size=8, drop_last=drop_last), epochs=2, optimizer=SGD, compute=CPU)
    one, other = map(plain_state, models)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_sensitivity_takes_the_first_samples_of_named_columns():
    """`most_samples` holds for every split in memory."""
    found = sensitivity(
        nn.Linear(4, 3), Problem({"x": X, "y": Y}, {"x": X, "y": Y}), ["weight"], bits=[2], points=1, most_samples=9
    )
    assert found.samples == 9
    assert isinstance(as_split({"x": ["a"], "y": [1]}), Rows)


@pytest.mark.parametrize(
    "kind",
    [
        lambda x, y: (x, y),
        lambda x, y: {"x": x, "y": y},
        lambda x, y: TensorDataset(x, y),
        lambda x, y: [*zip(x, y, strict=True)],
    ],
)
def test_samples_are_drawn_from_all_of_a_split_that_is_sorted(kind: Any) -> None:
    """Of columns as of samples one by one; each with its own target, the same for the same seed."""
    y = torch.arange(10).repeat_interleave(50)
    split = kind(y[:, None].float(), y)

    def read(part: Any) -> tuple[Any, ...]:
        batch = next(iter(Batches(part, 1000, Compute("cpu"))))
        return tuple(batch.values()) if isinstance(batch, dict) else tuple(batch)

    x, of = read(drawn(split, 64, 3))
    assert len(of) == 64 and len(of.unique()) == 10 and torch.equal(x[:, 0].long(), of)
    assert torch.equal(of, read(drawn(split, 64, 3))[1])
    assert not torch.equal(of, read(drawn(split, 64, 4))[1])
    assert len(read(drawn(split, 500))[1]) == 500


def test_batches_ready_made_are_not_drawn_from() -> None:
    """A DataLoader's own order is the user's."""
    loader: Any = DataLoader(TensorDataset(torch.arange(9.0)), 3)
    assert drawn(loader, 2) is loader
