"""The training loop: its best state, its schedules, its errors, and going on after SIGKILL."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from trainings import Watch, fit

from deepcompression.distillation.logits import Distillation
from deepcompression.errors import DataError, DivergedError, FactoryError, StorageError
from deepcompression.network.state import plain_state
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.pruning.l0 import L0
from deepcompression.quantization.binarize import Binarize
from deepcompression.quantization.binary import asked
from deepcompression.quantization.in_training import Activations, QuantizedTraining, Weights
from deepcompression.quantization.ranges import RANGES
from deepcompression.sharing.centroids import Centroids
from deepcompression.sharing.reassign import TrainedSharing
from deepcompression.structure.constraints import Structure, structured
from deepcompression.training.batches import Batches
from deepcompression.training.device import Compute
from deepcompression.training.dropout import DropoutCorrection
from deepcompression.training.evaluate import evaluate
from deepcompression.training.method import Method
from deepcompression.training.optimizers import make_optimizer
from deepcompression.training.plan import Progress
from deepcompression.training.problem import Accuracy, Problem

SGD = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.1, "momentum": 0.9}}
CPU = Compute(device="cpu")


def tensors() -> tuple[Tensor, Tensor]:
    x = torch.randn(90, 6, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


def problem(**changes: Any) -> Problem:
    return Problem(**{"train": tensors(), "validation": tensors(), "batch_size": 16, **changes})


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Dropout(0.2), nn.Linear(10, 3))


def run(model: nn.Module, **arguments: Any) -> Any:
    given = {"problem": problem(), "epochs": 4, "optimizer": SGD, "compute": CPU, **arguments}
    return fit(model, given.pop("problem"), **given)


class Scripted:
    """A metric whose value is told beforehand, one for each validation."""

    name = "scripted"
    higher_is_better = True

    def __init__(self, values: list[float]) -> None:
        self.values = iter(values)

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        return next(self.values)


def scripted(values: list[float], higher: bool = True) -> Problem:
    metric = Scripted(values)
    metric.higher_is_better = higher
    return problem(metric=metric, validation=tuple(part[:16] for part in tensors()))


def test_a_net_learns_and_its_best_state_is_kept():
    """The model that comes out has the metric that the history promises."""
    model = net()
    made = run(model, epochs=8)
    assert made.best_metric == max(entry["val_accuracy"] for entry in made.history) > 0.8
    assert evaluate(model, tensors(), *_how()).metric == made.best_metric
    assert [entry["epoch"] for entry in made.history] == list(range(1, 9))


@pytest.mark.parametrize(
    ("values", "higher", "settled", "best"),
    [
        ([0.1, 0.5, 0.3], True, 0.0, 2),
        ([0.5, 0.1, 0.3], False, 0.0, 2),
        ([0.9, 0.1, 0.3], True, 0.4, 3),
        ([float("nan"), 0.1, float("nan")], True, 0.0, 2),
    ],
)
def test_the_best_epoch_follows_the_metrics_direction(values: list[float], higher: bool, settled: float, best: int):
    """Errors are minimised, epochs in which a method is not settled do not count, NaN is never best."""
    made = run(net(), problem=scripted(values, higher), epochs=3, methods=[Watch(settled=settled)])
    assert made.best_epoch == best


def test_patience_stops_early():
    """Epochs that bring nothing are not trained."""
    made = run(net(), problem=scripted([0.5, 0.4, 0.3, 0.9]), patience=2)
    assert (len(made.history), made.best_epoch) == (3, 1)
    assert "2 epochs" in made.stopped


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0, [0.1, 0.1, 0.1, 0.1]),
        ("linear", 0, [0.1, 0.075, 0.05, 0.025]),
        ("cosine", 0, [0.1 * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in range(4)]),
        ("constant", 1, [0.1 / 7, 0.1, 0.1, 0.1]),
        ({"shape": "constant", "start": 0.5, "power": 2}, 0, [0.1, 0.1, 0.1, 0.025]),
        ({"shape": "linear", "start": 0.5, "power": 1}, 0, [0.1, 0.075, 0.05, 0.0125]),
        (
            {"factory": "torch.optim.lr_scheduler:StepLR", "kwargs": {"step_size": 1}},
            0,
            [0.1, 0.01, 0.001, 0.0001],
        ),
    ],
)
def test_the_learning_rate_follows_its_schedule(schedule: Any, warmup: float, expected: list[float]):
    """Rates at the start of each epoch of six steps, worked out by hand."""
    made = run(net(), schedule=schedule, warmup=warmup)
    assert [entry["lr"] for entry in made.history] == pytest.approx(expected)


def test_the_same_seed_gives_the_same_bytes_and_another_one_others():
    """Everything that is drawn comes from the seed."""
    models = [net(), net(), net()]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        run(model, seed=seed, problem=problem(augment=noise))
    states = [plain_state(model) for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["0.weight"], states[2]["0.weight"])


def test_a_loss_that_is_not_finite_stops_with_the_last_good_state(tmp_path: Path):
    """The error says where and what to do; what was good is kept, in the model and on disk."""
    calls = []

    def step(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        calls.append(model.training)
        outputs = model(batch[0])
        loss = nn.functional.cross_entropy(outputs, batch[1])
        return loss * (torch.nan if sum(calls) > 8 else 1), outputs, batch[1]

    model = net()
    good = {}

    def remember(progress: Progress) -> None:
        if progress.step == progress.steps:
            good.update(plain_state(model))

    with pytest.raises(DivergedError, match=r"nan in epoch 2 at learning rate .*lower lr"):
        run(model, problem=problem(step=step), checkpoint=tmp_path / "c.pt", progress=remember)
    assert all(torch.equal(good[name], tensor) for name, tensor in plain_state(model).items())
    assert torch.load(tmp_path / "c.pt", weights_only=True)["epoch"] == 1


def test_weights_that_were_never_set_are_named():
    """A smaller learning rate would not help a model that begins with NaN; nor is there an epoch to keep."""
    model = net()
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(DivergedError, match=r"in epoch 1 .*; 0.weight held NaN before any training") as raised:
        run(model, epochs=1)
    assert "is kept" not in str(raised.value)


def test_progress_is_told_at_the_end_of_each_epoch():
    """A progress bar knows how far it is and what was reached."""
    told: list[Progress] = []
    run(net(), epochs=2, progress=told.append)
    ends = [one for one in told if one.step == one.steps and one.metric is not None]
    assert [one.epoch for one in ends][-2:] == [1, 2]
    assert len(told) < 2 * ends[0].steps


def noise(batch: Any, generator: torch.Generator) -> Any:
    x, y = batch
    return x + 0.1 * torch.randn(x.shape, generator=generator), y


def loader() -> Problem:
    """A user's own DataLoader, with a generator of its own, in random order."""
    generator = torch.Generator().manual_seed(5)
    data = DataLoader(TensorDataset(*tensors()), 16, shuffle=True, generator=generator)
    return problem(train=data)


def coarse() -> tuple[nn.Sequential, Structure]:
    """A model whose first weights are shared."""
    model = net()
    with torch.no_grad():
        model[0].weight.copy_(torch.where(model[0].weight > 0, 0.25, -0.25))
    return model, structured([], ["0.weight"])


def taught() -> list[Method]:
    return [GradualPruning(0.3), Distillation(), DropoutCorrection({"3": "4"})]


def quantized(first: str, second: str) -> list[Method]:
    """Two ranges, one on each layer; 0 moves where it can; BatchNorm stands still from the middle on."""
    return [_quantized("4.weight", first), _quantized("0.weight", second)]


def _quantized(name: str, word: str) -> QuantizedTraining:
    scheme = "asymmetric" if RANGES[word].asymmetric else "symmetric"
    weights = Weights({name: 3}, word, scheme=scheme) if RANGES[word].weights else None
    return QuantizedTraining(weights, Activations({name: 4}, word, scheme), freeze_bn=0.5)


PAIRS = list(zip_longest(list(RANGES)[::2], list(RANGES)[1::2], fillvalue="lsq"))
THRESHOLDS, PHASES = (asked.Weights("dorefa"), asked.Activations("scaled_threshold")), asked.Phases(0.25, 0.5, 0.75)


def test_methods_see_the_model_where_it_will_train() -> None:
    """Some run it once when they are attached, on samples that lie there."""

    class Looks(Watch):
        def attach(self, model: nn.Module, context: Any) -> Any:
            self.seen = model[0].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index, union-attr, operator]
            return super().attach(model, context)

    looks, x = Looks(), torch.randn(32, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    data = problem(train=(x, x[:, :, 0, 0].argmax(1)), validation=(x, x[:, :, 0, 0].argmax(1)))
    run(model, problem=data, methods=[looks], epochs=1, compute=Compute(device="cpu", channels_last=True))
    assert looks.seen


def test_what_methods_put_in_has_the_memory_format_of_the_model():
    """Else a validation changes the format of gates, whose optimizer's state keeps the old one: torch's fused steps go
    by memory, and take the momentum of another gate from then on, without an error."""
    x = torch.randn(64, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    data = problem(train=(x, x[:, :, 0, 0].argmax(1)), validation=(x, x[:, :, 0, 0].argmax(1)))

    def gated(fused: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3))
        adam = {"factory": "torch.optim:AdamW", "kwargs": {"lr": 0.01, "fused": fused}}
        compute = Compute(device="cpu", channels_last=True)
        run(model, problem=data, methods=[L0(0.5)], epochs=4, optimizer=adam, compute=compute)
        return plain_state(model)

    one, other = gated(fused=True), gated(fused=False)
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_parameter_may_get_its_first_gradient_late(momentum: float):
    """torch's fused SGD fails there; the other one does not, and both come to the same."""

    def stepped_to(fused: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))
        kwargs = {"lr": 0.1, "momentum": momentum, "fused": fused}
        optimizer = make_optimizer(model, {"factory": "torch.optim:SGD", "kwargs": kwargs})
        for step in range(4):
            optimizer.zero_grad()
            model[1].weight.requires_grad_(step > 1)
            model(torch.ones(2, 6)).square().sum().backward()
            optimizer.step()
        return [one.detach() for one in model.parameters()]

    for one, other in zip(stepped_to(fused=True), stepped_to(fused=False), strict=True):
        torch.testing.assert_close(one, other)


def test_parameters_with_gaps_in_memory_are_not_stepped_by_memory():
    """torch's fused steps would move what lies between, an element for another."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    model.weight = nn.Parameter(torch.randn(4, 12)[:, :6])
    assert not make_optimizer(model, SGD).defaults["fused"]
    model.weight = nn.Parameter(torch.randn(6, 4).T)
    assert make_optimizer(model, SGD).defaults["fused"]


KILLED: dict[str, tuple[Callable[[], Problem], Callable[[], list[Method]], Callable[[], tuple[nn.Module, Any]]]] = {
    "tensors": (lambda: problem(augment=noise), lambda: [], lambda: (net(), None)),
    "loader": (loader, lambda: [], lambda: (net(), None)),
    "pruning": (problem, lambda: [GradualPruning(0.3)], lambda: (net(), structured(["0.weight"], []))),
    "sharing": (problem, lambda: [TrainedSharing(2, 0.1)], lambda: (net(), None)),
    "centroids": (problem, lambda: [Centroids()], coarse),
    "gates": (problem, lambda: [L0(1.0)], lambda: (net(), None)),
    "pruning, learned steps": (problem, lambda: [GradualPruning(0.3), QuantizedTraining(3, 4)], lambda: (net(), None)),
    **{f"ranges {' '.join(pair)}": (problem, partial(quantized, *pair), lambda: (net(), None)) for pair in PAIRS},
    "binary, in phases": (problem, lambda: [Binarize(*THRESHOLDS, 6, [], PHASES)], lambda: (net(), None)),
    "pruning, distillation, dropout": (problem, taught, lambda: (net(), None)),
}


def killed_at(step: int, work: Callable[[list[Method]], Any]) -> int:
    """How a fork of this process ends that does the work and gets a real SIGKILL before a step."""
    if not (child := os.fork()):
        try:
            work([Watch(lambda now, steps: os.kill(os.getpid(), signal.SIGKILL) if now == step else None)])
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(("step", "epoch"), [(9, 1), (27, 4)], ids=["early", "late"])
@pytest.mark.parametrize("how", KILLED)
def test_a_killed_training_goes_on_and_ends_in_the_same_bytes(how: str, step: int, epoch: int, tmp_path: Path):
    """SIGKILL in the middle of an epoch, then the same call again: whatever methods are at work, and however far."""
    data, methods, begin = KILLED[how]

    def work(more: Sequence[Method] = (), checkpoint: Path | None = tmp_path / "checkpoint.pt") -> Any:
        model, structure = begin()
        given = {"epochs": 5, "checkpoint": checkpoint, "structure": structure, "teacher": net()}
        made = run(model, problem=data(), methods=[*methods(), *more], **given)
        return plain_state(model), [{**row, "seconds": 0} for row in made.history]

    assert killed_at(step, work) == -signal.SIGKILL
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["epoch"] == epoch
    (state, history), (other, whole) = work([Watch()]), work([Watch()], None)
    assert all(torch.equal(state[name], tensor) for name, tensor in other.items()) and history == whole
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 half a file", b"something else"])
def test_an_unreadable_checkpoint_is_as_good_as_none(content: bytes, tmp_path: Path):
    """A disk that lost the file's end must not block the run."""
    (tmp_path / "c.pt").write_bytes(content)
    model, fresh = net(), net()
    run(model, checkpoint=tmp_path / "c.pt")
    run(fresh)
    assert all(torch.equal(plain_state(fresh)[name], tensor) for name, tensor in plain_state(model).items())


def test_a_checkpoint_that_cannot_be_written_stops_the_run(tmp_path: Path):
    """Training for hours without a checkpoint is worse than an error at the first epoch."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"c\.pt: cannot be written"):
        run(net(), checkpoint=tmp_path / "file" / "c.pt")


def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """torch reports a full disk as a RuntimeError; the file of the epoch before must survive."""
    run(net(), checkpoint=tmp_path / "c.pt", epochs=1)
    before = (tmp_path / "c.pt").read_bytes()

    def full(content: object, file: Any) -> None:
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed\nwriting file")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match=r"cannot be written: .*PytorchStreamWriter failed writing file"):
        run(net(), checkpoint=tmp_path / "c.pt", epochs=2)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
    assert (tmp_path / "c.pt").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"optimizer": {"factory": "torch.optim:SGD", "kwargs": {"rate": 1}}}, "rate"),
        ({"optimizer": {"factory": "torch.nn:Linear", "kwargs": {}}}, "Linear"),
        ({"optimizer": {"factory": "torch:is_tensor", "kwargs": {}}}, "is_tensor"),
        ({"schedule": "square"}, "'square': expected constant, linear, cosine"),
        ({"problem": problem(step=lambda model, batch: model(batch[0]).sum())}, "step: expected"),
        ({"problem": scripted([[1.0, 2.0]])}, "metric scripted: expected one score a sample"),
    ],
)
def test_a_factory_that_returns_the_wrong_thing_is_named(arguments: dict[str, Any], rule: str):
    """What the user wrote is named, not an attribute error deep in torch."""
    with pytest.raises(FactoryError, match=rule):
        run(net(), **arguments)


def _how() -> tuple[Any, Any, Compute]:
    whole = problem()
    return whole.step, whole.metric, CPU


@pytest.mark.parametrize("batch_size", [7, 90])
def test_evaluation_is_the_plain_accuracy_and_mean_loss(batch_size: int):
    """Whatever the batches; the model's mode comes back, batch statistics are not touched."""
    model = net().train()
    step, metric, compute = _how()
    before = plain_state(model)
    result = evaluate(model, tensors(), step, metric, compute, batch_size)
    assert model.training
    logits, y = model.eval()(tensors()[0]), tensors()[1]
    assert result.correct == int((logits.argmax(1) == y).sum())
    assert (result.total, result.metric) == (90, result.correct / 90)
    assert result.loss == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-6)
    assert torch.equal(result.scores, logits.argmax(1) == y)
    assert all(torch.equal(before[name], tensor) for name, tensor in plain_state(model).items())


class MeanError:
    name = "error"
    higher_is_better = False

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs.argmax(1) - targets).abs().float()


class WholeError(MeanError):
    """As torchmetrics do it."""

    def reset(self) -> None:
        self.scores: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.scores.append(self(outputs, targets))

    def compute(self) -> Tensor:
        return torch.cat(self.scores).mean()


class OneNumber(MeanError):
    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().__call__(outputs, targets).mean()


@pytest.mark.parametrize("metric", [MeanError(), WholeError(), OneNumber()], ids=lambda one: type(one).__name__)
def test_metrics_of_three_kinds_agree(metric: Any):
    """Scores a sample, one number a batch (the last batch is smaller), or an object that sees all."""
    model = net().eval()
    x, y = tensors()
    expected = float((model(x).argmax(1) - y).abs().double().mean())
    result = evaluate(model, (x, y), problem().step, metric, CPU, 7)
    assert result.metric == pytest.approx(expected, rel=1e-6)
    assert result.correct is None


class Dicts(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 90

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x, y = tensors()
        return {"x": x[index], "y": y[index]}


def dict_step(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    logits = model(batch["x"])
    return nn.functional.cross_entropy(logits, batch["y"]), logits, batch["y"]


@pytest.mark.parametrize(
    ("split", "step"),
    [
        (tensors(), problem().step),
        (TensorDataset(*tensors()), problem().step),
        (DataLoader(TensorDataset(*tensors()), 16), problem().step),
        (Dicts(), dict_step),
    ],
    ids=["tensors", "dataset", "loader", "dicts"],
)
def test_every_kind_of_split_trains_and_evaluates_alike(split: Any, step: Any):
    """Tensors are the fast path, not another meaning."""
    expected = evaluate(net(), tensors(), problem().step, Accuracy(), CPU, 16)
    result = evaluate(net(), split, step, Accuracy(), CPU, 16)
    assert (result.correct, result.loss) == (expected.correct, pytest.approx(expected.loss, rel=1e-6))
    made = run(net(), problem=problem(train=split, validation=split, step=step), epochs=6)
    assert made.best_metric > 0.7


def test_an_epoch_is_a_permutation_of_the_samples():
    """Every sample once, in an order that the generator decides."""
    data = (torch.arange(90), torch.arange(90))
    batches = list(Batches(data, 16, CPU, torch.Generator().manual_seed(0)))
    order = torch.cat([batch[0] for batch in batches])
    assert torch.equal(order.sort().values, data[0])
    assert not torch.equal(order, data[0])
    assert all(torch.equal(first, second) for first, second in batches)


@pytest.mark.parametrize(
    ("split", "rule"),
    [
        (3, "got int"),
        ((torch.zeros(3), torch.zeros(4)), r"lengths \[3, 4\]"),
        ((torch.zeros(0, 6), torch.zeros(0)), "no samples"),
    ],
)
def test_a_split_that_is_none_is_refused(split: Any, rule: str):
    """The message says what a split may be."""
    with pytest.raises(DataError, match=rule):
        evaluate(net(), split, *_how())


def test_bfloat16_and_channels_last_train_float32_weights():
    """Precision is of the forward pass; masters stay float32 and evaluation is in float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(32, 2, 5, 5)
    model(x)
    y = x[:, 0, :3, 0].argmax(1)
    seen = set()
    model[0].register_forward_hook(lambda module, inputs, output: seen.add((module.training, output.dtype)))
    compute = Compute("cpu", "bfloat16", channels_last=True)
    run(model, problem=problem(train=(x, y), validation=(x, y)), compute=compute, epochs=1)
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_clipped_gradient_bounds_the_step():
    """gradient_clip is the largest norm of the whole gradient."""
    model = nn.Linear(6, 3)
    before = plain_state(model)
    plain = {"factory": "torch.optim:SGD", "kwargs": {"lr": 1.0}}
    run(model, epochs=1, optimizer=plain, schedule="constant", gradient_clip=1e-3)
    moved = sum(float((plain_state(model)[name] - before[name]).square().sum()) for name in before) ** 0.5
    assert 0 < moved <= 6 * 1.01e-3


@pytest.mark.parametrize(
    ("values", "best", "words"),
    [
        ([math.nan, math.inf, math.nan], 3, "in any of 3 epochs; the last epoch's weights are kept"),
        ([math.inf, 0.4, math.nan], 2, "in 2 of 3 epochs; the best of the others is kept"),
    ],
)
def test_a_metric_that_is_not_a_number_never_wins(
    values: list[float], best: int, words: str, caplog: pytest.LogCaptureFixture
):
    """NaN and infinity are no best epoch; where nothing else comes the last state stays, and a warning says so."""
    fitted = run(net(), problem=scripted(values), epochs=3)
    assert fitted.best_epoch == best and f"is not a number {words}" in caplog.text
