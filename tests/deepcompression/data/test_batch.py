"""Batches of every kind: their types on the way to the device, and how many samples are in them."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, TensorDataset
from trainings import fit

from deepcompression.data.batch import copied, count_of, cut, moved, parts, samples_in
from deepcompression.data.small_images import shift
from deepcompression.distillation.logits import Distillation
from deepcompression.errors import DataError, FactoryError
from deepcompression.training.batches import Batches, some
from deepcompression.training.device import Compute
from deepcompression.training.evaluate import evaluate
from deepcompression.training.problem import Accuracy, Problem, cross_entropy_step, stepped

META = torch.device("meta")
CPU = Compute("cpu")
X, Y = torch.randn(70, 4, generator=torch.Generator().manual_seed(0)), torch.arange(70) % 3


class Pair(NamedTuple):
    image: Any
    label: Any


@dataclass(frozen=True)
class Record:
    image: Any
    label: Any


class Own:
    """A batch of another library."""

    def __init__(self, x: Tensor) -> None:
        self.x = x

    def to(self, device: torch.device) -> Own:
        return Own(self.x.to(device))


class InPlace(Own):
    def to(self, device: torch.device) -> None:  # type: ignore[override]
        self.x = self.x.to(device)


class Tagged(dict[str, Any]):
    tag = "none"


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Own):
        return [value.x]
    if isinstance(value, PackedSequence):
        return [value.data]
    return [value] if isinstance(value, Tensor) else [one for inner in parts(value) or [] for one in _tensors(inner)]


@pytest.mark.parametrize(
    "batch",
    [
        Pair(X, Y),
        Record(X, [Y, "name"]),
        {"path": ["a", "b"], "x": {"deep": (X, None, 3, Pair(Y, b"raw"))}},
        collections.OrderedDict(a=X),
        collections.UserDict(a=X),
        collections.defaultdict(list, a=X),
        MappingProxyType({"a": X}),
        [X, [Y]],
        pack_sequence([X[:3, 0], X[:2, 0]]),
        Own(X),
        InPlace(X.clone()),
        Tagged(a=X),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_batch_keeps_its_types_on_the_way_to_the_device(batch: Any):
    """Every tensor moves; containers, and what is no tensor, are of the types that they were."""
    kinds = [type(one) for one in parts(batch) or []]
    there = moved(batch, META)
    assert type(there) is type(batch) and [type(one) for one in parts(there) or []] == kinds
    assert _tensors(there) and all(one.device == META for one in _tensors(there))


def test_what_else_a_container_holds_is_kept():
    """A default factory, attributes, texts in depth."""
    counted = collections.defaultdict(list, a=X)
    tagged = Tagged(a=X)
    tagged.tag = "mine"
    assert moved(counted, META)["new"] == [] and moved(tagged, META).tag == "mine"
    assert moved({"path": ["a"], "x": X}, META)["path"] == ["a"]
    same = {"x": X}
    assert moved(same, torch.device("cpu")) is same  # nothing moves, nothing is copied


def test_what_cannot_move_is_told_in_a_line():
    """A list that holds itself; a class whose own way to a device fails."""
    endless: list[Any] = [X]
    endless.append(endless)
    with pytest.raises(DataError, match="holds itself"):
        moved(endless, META)

    class Broken:
        def to(self, device: Any) -> None:
            raise OSError("no\nsuch device")

    with pytest.raises(DataError, match=r"does not move to meta: OSError: no such device \(.*test_batch.py, line"):
        moved((X, Broken()), META)


@pytest.mark.parametrize(
    ("outputs", "targets", "expected", "count"),
    [
        (X, Y, None, 70),
        (X, Y, 70, 70),
        (X, torch.zeros(70, 8, 8), None, 70),
        (X, list(Y), None, 70),  # a target a sample, as detectors have them
        (X, [{"boxes": X[:2]}, {"boxes": X[:5]}], None, 2),
        ([X, X], [X[:2], X[:2]], 2, 2),
        (X, (Y, Y), None, 70),  # two outputs
        (X, {"a": Y, "b": Y}, None, 70),
        (X, Pair(Y, Y), None, 70),
        (X, {"a": Y, "b": Y[:5]}, None, 70),
        (X, None, None, 70),
        (X, 3, None, 70),
        (X, torch.tensor(3), None, 70),
        (X, pack_sequence([X[:3, 0], X[:2, 0]]), 2, 2),
        (torch.zeros(12, 7, 5), torch.zeros(12, 7), 7, 7),  # time first
        (torch.zeros(12, 7, 5), None, 7, 7),
        (torch.zeros(200, 3), torch.zeros(200), 8, 200),  # nodes of 8 graphs, tokens of 8 texts
        ({"loss": torch.tensor(1.0)}, None, 9, 9),
        ({"loss": torch.tensor(1.0)}, None, None, None),
        (None, {"a": Y, "b": Y[:5]}, None, None),
    ],
)
def test_samples_are_counted_by_what_the_step_returns(outputs: Any, targets: Any, expected: int | None, count: int):
    """Targets first, outputs next; what the split put into the batch decides between readings; else it stays open."""
    assert count_of(outputs, targets, expected) == count


class OneNumber:
    name = "one"
    higher_is_better = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) == targets).float().mean()


Collate = Callable[[Any], Any]


def _stacked(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.stack([one for one, _ in samples]), torch.stack([one for _, one in samples])


@pytest.mark.parametrize(
    ("first", "size"),
    [
        (lambda x, y: torch.ones(10), 16),
        (lambda x, y: torch.ones(500 // len(x), 2), 16),
        (lambda x, y: torch.tensor(1.0), 16),
        (lambda x, y: 7, 16),
        (lambda x, y: None, 16),
        (lambda x, y: "path.png", 16),
        (lambda x, y: [f"{one}.png" for one in range(len(x))], 16),
        (lambda x, y: {"meta": {"name": "a"}}, 16),
        (lambda x, y: list(x), 16),
        (lambda x, y: x.T.contiguous(), 16),
    ],
    ids=["constant", "nodes", "0-dim", "int", "None", "text", "texts", "nested", "images", "time-first"],
)
@pytest.mark.parametrize("metric", [OneNumber(), Accuracy()], ids=lambda one: one.name)
def test_means_are_over_samples_whatever_comes_first_in_a_batch(first: Any, size: int, metric: Any):
    """One number a batch weighs by its samples, and so does the loss; the last batch is smaller."""

    def collate(samples: list[tuple[Tensor, Tensor]]) -> Any:
        x, y = _stacked(samples)
        return (first(x, y), x, y)

    def step(model: nn.Module, batch: Any) -> Any:
        return cross_entropy_step(model, batch[1:])

    torch.manual_seed(0)
    model, whole = nn.Linear(4, 3), cross_entropy_step
    expected = evaluate(model, (X, Y), whole, Accuracy(), CPU, 70)
    found = evaluate(model, DataLoader(TensorDataset(X, Y), size, collate_fn=collate), step, metric, CPU)
    assert (found.metric, found.loss) == (pytest.approx(expected.metric), pytest.approx(expected.loss, rel=1e-6))
    assert found.total == 70


def _says(step: Any = cross_entropy_step, metric: Any = None, split: Any = (X, Y)) -> str:
    with pytest.raises((FactoryError, DataError)) as caught:
        evaluate(nn.Linear(4, 3), split, step, metric or Accuracy(), CPU)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _returning(answer: Any) -> Any:
    def step(model: nn.Module, batch: Any) -> Any:
        loss, outputs, targets = cross_entropy_step(model, batch)
        return answer(loss, outputs, targets)

    return step


class Metric:
    name = "mine"
    higher_is_better = True

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __call__(self, outputs: Any, targets: Any) -> Any:
        return self.answer(outputs, targets)


class Meter(Metric):
    def reset(self) -> None: ...
    def update(self, outputs: Any, targets: Any) -> None: ...
    def compute(self) -> Any:
        return self.answer(None, None)


def _raises(outputs: Any, targets: Any) -> Any:
    raise ValueError("only one class\nin y_true")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"step": _returning(lambda loss, o, t: (loss, o))},
            r"expected \(loss, outputs, targets\), got \(float32 \(\), ",
        ),
        ({"step": _returning(lambda loss, o, t: {"loss": loss})}, r"got \{loss: float32 \(\)\}"),
        (
            {"step": _returning(lambda loss, o, t: (loss.item(), o, t))},
            "as loss, got float; do not turn it into a number",
        ),
        ({"step": _returning(lambda loss, o, t: (o, o, t))}, r"as loss, got float32 \(70, 3\); take its mean"),
        (
            {"step": _returning(lambda loss, o, t: (loss, {"logits": o}, t))},
            r"accuracy: expected logits.*got \{logits: ",
        ),
        ({"step": _returning(lambda loss, o, t: (loss, o, None))}, r"accuracy: expected logits.*and NoneType"),
        ({"step": _returning(lambda loss, o, t: (loss, o[:, :1], t))}, "two classes at least"),
        ({"step": _returning(lambda loss, o, t: (loss, o, t[:, None]))}, r"and int64 \(70, 1\)"),
        (
            {"step": lambda model, batch: batch["image"]},
            r"step: TypeError: .*test_batch.py, line \d+\); the batch is \(float32",
        ),
        ({"metric": Metric(lambda o, t: o)}, r"metric mine: expected one score a sample .*shape \(70, 3\)"),
        ({"metric": Metric(lambda o, t: torch.ones(3))}, r"shape \(3,\); samples are 70"),
        ({"metric": Metric(lambda o, t: {"f1": 1.0})}, r"metric mine: .*got \{f1: float\}"),
        ({"metric": Metric(lambda o, t: None)}, "metric mine: .*got NoneType"),
        (
            {"metric": Metric(lambda o, t: {}["argmax"])},
            r"metric mine: .*; it was given outputs float32 \(70, 3\) and targets int64 \(70,\), and should return one",
        ),
        ({"metric": Metric(_raises)}, r"metric mine: ValueError: only one class in y_true \("),
        (
            {"metric": Meter(lambda o, t: torch.ones(2))},
            r"metric mine: compute\(\) must return one number, got float32 \(2,\)",
        ),
        ({"metric": Meter(lambda o, t: {"f1": 1.0})}, r"compute\(\) must return one number, got \{f1"),
        ({"metric": Meter(_raises)}, "metric mine: ValueError: only one class"),
        ({"split": [(X[0], Y[0], X[0])] * 3}, r"the default one takes batches \(samples, targets\), got list\("),
        (
            {
                "step": _returning(lambda loss, o, t: (loss, {}, None)),
                "metric": Metric(lambda o, t: 1.0),
                "split": DataLoader(TensorDataset(X, Y), batch_sampler=[[0, 1], [2]]),
            },
            "nothing tells how many samples a batch has",
        ),
    ],
)
def test_what_step_and_metric_return_is_told_in_a_line(arguments: dict[str, Any], words: str):
    """What came, what was expected, whose fault it is."""
    import re

    assert re.search(words, _says(**arguments)), _says(**arguments)


def test_a_list_of_three_and_a_loss_of_one_element_are_fine():
    """What cannot be misunderstood is taken as it is."""
    loss, _, targets = stepped(_returning(lambda loss, o, t: [loss[None], o, t]), nn.Linear(4, 3), (X, Y))
    assert loss.shape == () and targets is Y


def test_tokens_count_as_samples_where_scores_and_targets_are_tokens():
    """A language model's flattened logits: one score a token, the mean over tokens."""
    tokens = (X.reshape(35, 2, 4), Y.reshape(35, 2))

    def step(model: nn.Module, batch: Any) -> Any:
        return cross_entropy_step(model, (batch[0].flatten(0, 1), batch[1].flatten()))

    found = evaluate(nn.Linear(4, 3), tokens, step, Accuracy(), CPU, 16)
    assert found.total == 70 and found.scores is not None and len(found.scores) == 70


@pytest.mark.parametrize("kind", [tuple, list, Pair._make, lambda pair: dict(zip("xy", pair, strict=True))])
def test_shift_moves_the_images_of_a_batch_of_any_kind(kind: Any):
    """Images are found, the container stays what it was; none to be found is told."""
    images = torch.rand(9, 1, 5, 5)
    batch = kind((images, Y[:9]))
    done = shift(1)(batch, torch.Generator().manual_seed(0))
    assert type(done) is type(batch)
    first, second = done.values() if isinstance(done, Mapping) else done
    assert torch.equal(second, Y[:9]) and first.shape == images.shape and not torch.equal(first, images)
    with pytest.raises(DataError, match="no images"):
        shift(1)({"path": "a"}, torch.Generator())


def test_a_step_that_takes_parts_out_of_its_batch_can_be_distilled():
    """Student and teacher each get the whole batch."""

    def popping(model: nn.Module, batch: Any) -> Any:
        labels = batch.pop("y")
        return cross_entropy_step(model, (batch["x"], labels))

    data = {"x": X, "y": Y}
    problem = Problem(data, data, step=popping, batch_size=16)
    optimizer = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.1}}
    methods, teacher = [Distillation()], nn.Linear(4, 3)
    fit(nn.Linear(4, 3), problem, methods, teacher=teacher, epochs=1, optimizer=optimizer, compute=CPU)
    batch = {"x": X, "more": [Y]}
    other = copied(batch)
    assert other["x"] is X and other is not batch and other["more"] is not batch["more"]


def test_an_error_of_a_data_set_or_augmentation_is_one_line_that_names_it():
    """Wherever it is iterated, in a worker's traceback too."""

    class Holes(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            return {}[index]

    for workers in (0, 1):
        loader = DataLoader(Holes(X), 4, num_workers=workers)
        with pytest.raises(DataError, match=r"^data: Holes does not give a batch: KeyError: .*0") as caught:
            next(iter(Batches(loader, 4, CPU)))
        assert "\n" not in str(caught.value)
    batches = Batches((X, Y), 4, CPU, torch.Generator(), augment=lambda batch, generator: batch["x"])
    with pytest.raises(FactoryError, match=r"^augment: TypeError: .*the batch is \(float32 \(4, 4\), int64 \(4,\)\)"):
        next(iter(batches))


@pytest.mark.parametrize(
    "batch",
    [
        (X, Y),
        [X, Y],
        {"x": X, "y": Y, "none": None, "scale": torch.tensor(2.0)},
        Pair(X.numpy(), Y),
        Record(X, [str(one) for one in Y.tolist()]),
        (X, (Y, {"again": X})),
    ],
)
def test_a_batch_is_cut_to_its_first_samples(batch: Any) -> None:
    """All that counts samples is cut alike, whatever holds it, and keeps its type."""
    assert samples_in(batch) == 70
    done, count = cut(batch, 20)
    assert (samples_in(done), count, type(done)) == (20, 20, type(batch))
    first = parts(done)
    assert first and torch.equal(torch.as_tensor(first[0]), X[:20])
    assert cut(batch, 70)[0] is batch


@pytest.mark.parametrize("batch", [(torch.zeros(30, 70), Y), pack_sequence([X, X[:3]]), (X, Y, torch.zeros(9))])
def test_a_batch_whose_samples_have_no_end_is_left_whole(batch: Any) -> None:
    """Time that comes first, or a graph's nodes, is not cut for samples."""
    done, count = cut(batch, 1)
    assert done is batch and count == samples_in(batch)


def _dicts(rows: list[Any]) -> dict[str, Tensor]:
    return {"x": torch.stack([x for x, _ in rows]), "y": torch.stack([y for _, y in rows])}


@pytest.mark.parametrize("size", [1, 30, 64, 70])
@pytest.mark.parametrize("count", [1, 31, 64, 70])
def test_so_many_samples_come_as_were_asked_for(size: int, count: int) -> None:
    """Samples are counted, not batches, whoever cuts these."""
    data = TensorDataset(X, Y)
    splits = [
        (X, Y),
        data,
        DataLoader(data, size),
        DataLoader(data, size, collate_fn=_dicts),
        DataLoader(_Stream(), size),
    ]
    for split in splits:
        assert sum(samples_in(batch) for batch in some(split, count, size, CPU)) == count


class _Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(zip(X, Y, strict=True))


def test_more_samples_than_asked_for_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is silent where a batch cannot be cut."""
    packed = DataLoader(TensorDataset(X), 70, collate_fn=lambda rows: pack_sequence([row[0][:, None] for row in rows]))
    assert len(list(some(packed, 8, 8, CPU))) == 1
    assert caplog.messages == [
        "data: 70 samples come instead of 8: a batch is PackedSequence, and where a sample of it ends cannot be told"
    ]
