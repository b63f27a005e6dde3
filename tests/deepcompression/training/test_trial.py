"""What does not work together is told before anything trains, and trying it changes nothing."""

from __future__ import annotations

import itertools
import logging
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, get_worker_info
from trainings import fit

from deepcompression.data.splits import Splits
from deepcompression.distillation.logits import divergence
from deepcompression.errors import DataError, FactoryError, InputError
from deepcompression.training.device import Compute
from deepcompression.training.evaluate import evaluate
from deepcompression.training.identity import identify
from deepcompression.training.optimizers import make_optimizer
from deepcompression.training.problem import Accuracy, Problem, cross_entropy_step, metric_of
from deepcompression.training.trial import Plan, attempt

CPU = Compute("cpu")
SGD = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.1}}
X, Y = torch.randn(33, 4, generator=torch.Generator().manual_seed(0)), torch.arange(33) % 3
PLAN = Plan("train", 16, optimizer=SGD)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(), nn.Linear(5, 3))


def norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def known(**changes: Any) -> Problem:
    return Problem(**{"train": (X, Y), "validation": (X, Y), **changes})


def says(problem: Problem, *plans: Plan, make: Any = net, test: Any = (X, Y), teacher: Any = None) -> str:
    with pytest.raises(InputError) as caught:
        attempt(problem, test, make, plans or [PLAN], compute=CPU, teacher=teacher)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Noisy(TensorDataset):
    """Draws from every generator that there is, and from its own."""

    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.own, self.other, self.third = np.random.default_rng(1), random.Random(1), [np.random.RandomState(1)]

    def __getitem__(self, index: int) -> Any:
        self.drawn = (
            torch.rand(1).item(), np.random.rand(), random.random(),
            self.own.random(), self.other.random(), self.third[0].rand(),
        )  # fmt: skip
        return super().__getitem__(index)


def test_afterwards_everything_is_drawn_as_if_nothing_had_been_tried():
    """torch, numpy, Python, the generators of loader, sampler and data set, those in a step's closure."""
    generator, sampling, closed = (torch.Generator().manual_seed(seed) for seed in (1, 2, 3))
    data = Noisy(X, Y)
    loader = DataLoader(data, 8, sampler=RandomSampler(data, generator=sampling), generator=generator)

    def step(model: nn.Module, batch: Any) -> Any:
        return cross_entropy_step(model, (batch[0] + torch.rand(1, generator=closed), batch[1]))

    def draws() -> list[Any]:
        ours = [torch.rand(1, generator=one).item() for one in (generator, sampling, closed)]
        return [*ours, list(loader.sampler), data[0] and data.drawn]

    def rewind() -> None:
        for one, seed in ((generator, 1), (sampling, 2), (closed, 3)):
            one.manual_seed(seed)
        data.__init__(X, Y)
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    rewind()
    expected = draws()
    rewind()
    attempt(known(train=loader, validation=data, step=step), loader, net, [PLAN], compute=CPU)
    assert draws() == expected


def test_a_loader_is_left_alone():
    """Its workers are not started for good, and what it was made with is used: its collate_fn, its sampler."""

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            assert get_worker_info() is not None
            return iter(zip(X, Y, strict=True))

    calls = []

    def collate(samples: Any) -> Any:
        calls.append(len(samples))
        return torch.utils.data.default_collate(samples)

    stream = DataLoader(Stream(), 16, num_workers=2, persistent_workers=True)
    custom = DataLoader(TensorDataset(X, Y), batch_sampler=[[4, 5, 6]] * 3, collate_fn=collate)
    attempt(known(train=stream, validation=custom), custom, net, [PLAN], compute=CPU)
    assert stream._iterator is None and calls == [3, 3, 2, 2]  # two to judge, one of each to compare
    ready = DataLoader([(X, Y), (X[:3], Y[:3])], batch_size=None)
    attempt(known(train=ready, validation=ready), ready, net, [PLAN], compute=CPU)


def failing(model: nn.Module, batch: Any) -> Any:
    raise KeyError("argmax")


def without_gradient(model: nn.Module, batch: Any) -> Any:
    loss, outputs, targets = cross_entropy_step(model, batch)
    return loss.detach(), outputs, targets


class Broken(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        raise KeyError(index)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"step": failing}, "validation: step: KeyError: 'argmax' ("),
        ({"step": without_gradient}, "train: step: the loss has no gradient"),
        ({"train": Broken(X)}, "train: data: Broken does not give a batch: KeyError: 0"),
        ({"validation": Broken(X)}, "validation: data: Broken does not give a batch: KeyError: 0"),
        ({"augment": lambda batch, generator: batch["x"]}, "train: augment: TypeError"),
        ({"augment": lambda batch, generator: None}, "train: augment: returned None"),
        ({"train": (X.double(), Y)}, "train: step: RuntimeError: "),
        ({"train": (X, Y.float())}, "train: step: RuntimeError: "),
        ({"train": DataLoader(TensorDataset(X[:9], Y[:9]), 16, drop_last=True)}, "train: data: a split has no samples"),
        ({"train": (X,)}, "train: step: the default one takes batches (samples, targets)"),
    ],
)
def test_what_does_not_work_is_told_with_its_split(changes: dict[str, Any], words: str):
    """The user's own error and place, in one line that says where it came from."""
    assert says(known(**changes)).startswith(words)


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (
            Plan("finetune", 16, optimizer={"factory": "torch.optim:SGD", "kwargs": {"rate": 1}}),
            "finetune: factory torch",
        ),
        (
            Plan("finetune", 16, optimizer={"factory": "torch.optim:LBFGS", "kwargs": {}}),
            "finetune: optimizer torch.optim:LBFGS: TypeError",
        ),
        (replace(PLAN, label="share", schedule={"factory": "torch:rand", "kwargs": {}}), "share: factory torch:rand"),
        (
            Plan("prune", 32, optimizer=SGD),
            "prune: 33 training samples in batches of 32 leave one for the last, and BatchNorm cannot train on a "
            "batch of one sample: set drop_last: true",
        ),
        (Plan("share", 40, True, SGD), "share: drop_last leaves nothing: 33 training samples, batches of 40"),
        (Plan("recalibrate", 16), "recalibrate: 33 training samples in batches of 16 leave one"),
    ],
)
def test_every_training_to_come_is_tried(plan: Plan, words: str):
    """An optimizer, a schedule, a last batch of one sample, of a stage that comes hours later."""
    first = replace(PLAN, batch_size=10)
    assert says(known(), first, plan, make=norm).startswith(words)


def test_a_last_batch_of_one_is_told_of_loaders_and_only_where_it_is_so():
    """BatchNorm with drop_last, another batch size, or no BatchNorm: nothing is wrong."""
    data = TensorDataset(X, Y)
    assert "33 training samples in batches of 16 leave one" in says(known(train=DataLoader(data, 16)), make=norm)
    for train, plan, make in (
        (DataLoader(data, 16, drop_last=True), PLAN, norm),
        ((X, Y), replace(PLAN, drop_last=True), norm),
        ((X, Y), replace(PLAN, batch_size=10), norm),
        ((X, Y), PLAN, net),
    ):
        attempt(known(train=train), None, make, [plan], compute=CPU)


def test_a_metric_that_needs_more_samples_gets_them():
    """Eight samples of one class are no reason to refuse an AUC."""

    class Auc:
        name, higher_is_better = "auc", True

        def __call__(self, outputs: Tensor, targets: Tensor) -> float:
            if len(set(targets.tolist())) < 3:
                raise ValueError("only one class")
            return 0.5

    ordered = (X, Y.sort().values)
    attempt(known(validation=ordered, metric=Auc()), None, net, [PLAN], compute=CPU)
    assert "validation: metric auc: ValueError: only one class" in says(known(validation=(X, Y * 0), metric=Auc()))


def test_distillation_needs_logits_of_the_same_classes():
    """Student and teacher are compared before either trains."""

    def flat(model: nn.Module, batch: Any) -> Any:
        loss, outputs, targets = cross_entropy_step(model, batch)
        return loss, outputs.argmax(1), targets

    class Right:
        name, higher_is_better = "right", True

        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return outputs == targets

    taught = replace(PLAN, label="finetune", compare=partial(divergence, temperature=1.0))
    assert "finetune: distil: the step's outputs must be logits" in says(known(step=flat, metric=Right()), taught)
    wider = says(known(), taught, teacher=lambda: nn.Linear(4, 7))
    assert "teacher: distil: " in wider and "[(8, 3), (8, 7)]" in wider


def test_the_test_split_is_put_together_and_not_measured(caplog: pytest.LogCaptureFixture):
    """A broken one is refused, as is one of another make that the step does not take; else that is warned of."""
    seen: list[int] = []

    class Accurate(Accuracy):
        def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
            seen.extend(targets.tolist())
            return super().__call__(outputs, targets)

    def step(model: nn.Module, batch: Any) -> Any:
        return cross_entropy_step(model, batch[:2])

    assert says(known(), test=Broken(X)).startswith("test: data: Broken does not give a batch")
    assert says(known(), test=(X,)).startswith(
        "test: data: batches of the test split are (float32 of 2 dimensions), those"
    )
    with caplog.at_level(logging.WARNING):
        two = known(step=step, metric=Accurate(), validation=(X, Y % 2))
        attempt(two, (X, Y * 0 + 2, Y), net, [PLAN], compute=CPU)
    assert "batches of the test split are (float32 of 2 dimensions, int64 of 1 dimensions, int64" in caplog.text
    assert seen and 2 not in seen


def test_errors_keep_their_kind():
    """Data is data's, code is code's."""
    with pytest.raises(DataError):
        attempt(known(train=Broken(X)), None, net, [PLAN], compute=CPU)
    with pytest.raises(FactoryError):
        attempt(known(step=failing), None, net, [PLAN], compute=CPU)


class Once(IterableDataset[Any]):
    """A stream that holds its samples as an iterator."""

    def __init__(self, wrapped: bool = False) -> None:
        self.samples, self.wrapped = zip(X, Y, strict=True), wrapped

    def __iter__(self) -> Iterator[Any]:
        return (one for one in self.samples) if self.wrapped else self.samples


class Anew(IterableDataset[Any]):
    """A stream that is its own iterator, and begins again."""

    def __iter__(self) -> Iterator[Any]:
        self.samples = iter(list(zip(X, Y, strict=True)))
        return self

    def __next__(self) -> Any:
        return next(self.samples)


@pytest.mark.parametrize(
    "split",
    [
        Once(),
        Once(wrapped=True),
        DataLoader(Once(), 4),
        DataLoader(TensorDataset(X, Y), 4, sampler=iter(range(len(X)))),  # type: ignore[arg-type]
        DataLoader(TensorDataset(X, Y), batch_sampler=([at, at + 1] for at in range(8))),  # type: ignore[arg-type]
    ],
    ids=["stream", "wrapped", "loader", "sampler", "batches"],
)
def test_what_can_be_read_only_once_is_refused(split: Any):
    """Trial and identity would use it up, and every epoch after the first would train on nothing."""
    with pytest.raises(DataError, match=r"train: data: .* can be read only once"):
        attempt(known(train=split), None, net, [PLAN], compute=CPU)
    attempt(known(train=Anew()), None, net, [PLAN], compute=CPU)


class Lazy(Dataset[Any]):
    """Opens something when it is first read, and counts."""

    opened, reads = None, 0

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        self.opened, self.reads = object(), self.reads + 1
        return X[index], Y[index]


def test_the_trial_leaves_no_trace_in_a_data_set():
    """A file that was opened here would be shared by workers; a counter would begin elsewhere."""
    data = Lazy()
    attempt(known(train=data, validation=DataLoader(data, 4)), None, net, [PLAN], compute=CPU)
    assert vars(data) == {} and identify(Splits(data, None, None)).certain and vars(data) == {}


class Short(Lazy):
    def __getitem__(self, index: int) -> Any:
        return [(X[index], Y[index])][index // 10]


def test_samples_that_are_not_there_are_told():
    """A length beyond the samples fails before an epoch does; so does a batch sampler's own drop_last, rightly."""
    with pytest.raises(DataError, match=r"train: data: of .* samples in Short the last fails: IndexError"):
        attempt(known(train=Short()), None, net, [PLAN], compute=CPU)
    data = TensorDataset(X[:9], Y[:9])
    batches = torch.utils.data.BatchSampler(range(9), 4, drop_last=True)  # type: ignore[arg-type]
    attempt(known(train=DataLoader(data, batch_sampler=batches)), None, norm, [PLAN], compute=CPU)


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(zip(X, Y, strict=True))

    def __len__(self) -> int:
        return len(X)


def test_an_endless_stream_is_judged_by_the_length_that_it_tells(caplog: pytest.LogCaptureFixture):
    """Validation ends, as an epoch does, and says so; a split that yields nothing is no epoch."""
    assert evaluate(net(), Endless(), cross_entropy_step, Accuracy(), CPU, batch_size=11).total == len(X)
    assert "goes on after the 3 batches" in caplog.text
    empty = DataLoader(Anew(), 64, drop_last=True)
    with pytest.raises(DataError, match="epoch 1 has no batch"):
        fit(net(), known(train=empty), epochs=1, optimizer=SGD, compute=CPU)


def test_a_metric_that_is_a_bare_function_is_told_what_it_lacks() -> None:
    """A function of outputs and targets is not called without them."""
    with pytest.raises(FactoryError, match=r"metric torch.nn.functional:l1_loss: has no 'name'; expected an object"):
        metric_of({"factory": "torch.nn.functional:l1_loss", "kwargs": {}})


def test_a_model_that_is_frozen_throughout_is_told_so() -> None:
    """Torch's own words are of an empty list."""
    with pytest.raises(FactoryError, match="no parameter with requires_grad: there is nothing to train"):
        make_optimizer(nn.Linear(2, 2).requires_grad_(False), {"factory": "torch.optim:AdamW"})
