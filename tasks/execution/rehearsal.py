"""A recipe's stages with a handful of steps of each training: what they do to every tensor, what bytes come out, and
how long all of it would take. Nothing is logged, and nothing is put into the store."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcompression.errors import (
    DataError,
    DeepCompressionError,
    FactoryError,
    InputError,
    ValuesError,
    one_line,
    told,
)
from deepcompression.training.method import Method, Now
from tasks.execution.allocated import ALLOCATED, with_bits
from tasks.execution.bench import Bench, Product
from tasks.execution.execute import become, plain
from tasks.execution.keys import stage_key
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Stage, Training
from tasks.stages import work_of
from tasks.storage.store import Store

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.data.splits import Splits
    from deepcompression.training.loop import Trained
    from deepcompression.training.problem import Problem

SECONDS = 1.5  # of a training, and of an evaluation, about
STEPS = 2, 20  # of a training, at least and at most
SAMPLES = 8, 512  # of a split, for what is not trained on them
BACKWARDS = 3.0  # times a forward that a step takes
# Stages that few samples and short trainings make short where a model is not large; others search, or are the user's.
SHORT = {"baseline", "prune", "finetune", "train", "share", "quantize", "binarize", "recalibrate", "encode"}
OWN = "custom"  # the user's
Labelled = Sequence[tuple[str, Stage]]


@dataclass(frozen=True)
class Rehearsed:
    """A stage that was rehearsed. ``seconds``: about how long it takes, None where its steps cannot be counted;
    ``bytes`` of its weights, encoded; ``covered``: what it did to each tensor, empty where it does not say; ``file``:
    of an encoded one; ``why_not``: what kept it from being rehearsed; ``wrong``: where that would stop the run too;
    ``reference``: to what it left."""

    label: str
    seconds: float | None = None
    epochs: int = 0
    bytes: int | None = None
    covered: Sequence[Mapping[str, Any]] = ()
    file: Path | None = None
    why_not: str = ""
    wrong: InputError | None = None
    reference: Reference | None = None


@dataclass(frozen=True)
class Few(Run):
    """A run that reads few samples, and keeps what it makes in a store of its own; ``first`` has what was before."""

    first: str = ""
    most: int = SAMPLES[0]

    def splits(self) -> Splits:
        """The beginnings of training and validation data; the test split is read by nobody."""
        whole = super().splits()
        return replace(
            whole, train=_beginning(whole.train, self.most), validation=_beginning(whole.validation, self.most)
        )

    def state(self, reference: Reference) -> Any:
        """The state_dict of a stage's result, of either store."""
        own = self.store.object_path(reference.object).exists()
        return super().state(reference) if own else replace(self, store_folder=self.first, first="").whole(reference)

    def whole(self, reference: Reference) -> Any:
        """The same of the store that this one names."""
        return super().state(reference)


class Stopwatch(Method):
    """Notes when each step of a training ended."""

    name = "stopwatch"

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_step(self, model: nn.Module, now: Now) -> None:
        """The time."""
        self.times.append(time.perf_counter())

    def a_step(self) -> float | None:
        """Seconds, the first step and the slower half left out; None where there was but one."""
        found = sorted(after - before for before, after in zip(self.times, self.times[1:], strict=False))
        return statistics.fmean(found[: len(found) // 2 + 1]) if found else None


class TooLong(Exception):
    """What comes next takes longer than there is time for."""


@dataclass
class Timed:
    """One training of a rehearsal: what it took here, and what it would take."""

    epochs: int
    here: float
    whole: float | None


@dataclass
class Rehearsing(Bench):
    """A bench on which trainings have a handful of steps; ``run`` is a ``Few``, ``whole`` what it stands for."""

    whole: Run | None = None
    a_look: float = 0.0  # seconds of an evaluation on all of validation
    trainings: list[Timed] = field(default_factory=list)
    seconds: float = SECONDS  # of a training, about
    until: float = math.inf  # by the clock of ``time.perf_counter``, when a training must have ended

    def problem(self, lesson: Any) -> Problem:
        """What a training learns, from a few batches."""
        assert self.whole is not None
        found = self.whole.problem(lesson.batch_size, lesson.drop_last)
        few = self.run.splits()
        a_step = BACKWARDS * found.batch_size * self.a_look / (samples(self.whole.splits().validation) or 1)
        if time.perf_counter() + STEPS[0] * a_step > self.until:
            raise TooLong
        steps = _within(self.seconds / max(a_step, 1e-9), *STEPS)
        return replace(found, train=_beginning(found.train, steps * found.batch_size, steps), validation=few.validation)

    def train(self, model: nn.Module, training: Training, methods: Sequence[Method] = ()) -> Trained:
        """The training's first steps, as if they were all of it."""
        watch, started = Stopwatch(), time.perf_counter()
        short = training.model_copy(update={"epochs": 1, "warmup": 0.0, "patience": None})
        done = super().train(model, short, [*methods, watch])
        self.trainings.append(Timed(training.epochs, time.perf_counter() - started, self._whole(training, watch)))
        return done

    def _whole(self, training: Training, watch: Stopwatch) -> float | None:
        """Seconds of all its epochs."""
        steps = self._steps(training)
        a_step = watch.a_step()
        if steps is None or (a_step is None and steps > len(watch.times)):
            return None
        return training.epochs * (steps * (a_step or 0.0) + self.a_look)

    def _steps(self, training: Training) -> int | None:
        from deepcompression.training.batches import Batches

        assert self.whole is not None
        problem = self.whole.problem(training.batch_size, training.drop_last)
        batches = Batches(problem.train, problem.batch_size, self.whole.compute(), drop_last=problem.drop_last)
        return None if batches.known() is None else -(-len(batches) // training.accumulate)


def rehearse(
    run: Run, stages: Labelled, source: Reference | None, folder: Path, limit: float = math.inf
) -> Iterator[Rehearsed]:
    """Rehearses stage after stage, until one cannot be.

    Args:
        run: the run; of a recipe with a teacher of its own, with it in ``taught_by``.
        stages: labels and keys, as they will run, the baseline first where it is to be made.
        source: what the first one begins with; None of the baseline.
        folder: for what is made, which nobody needs afterwards.
        limit: seconds after which no other stage is begun, nor one of which it is seen, or not known, that it takes
            longer; with one, trainings are as short as they can be.
    """
    seconds, until, longest = min(SECONDS, limit / 20), time.perf_counter() + limit, 0.0
    few = Few(**{**{one.name: getattr(run, one.name) for one in fields(Run)}, "store_folder": str(folder / "store")},
              first=run.store_folder)  # fmt: skip
    bits: Mapping[str, int] = {}
    a_look = None
    for label, settings in stages:
        name = settings_name(settings)
        if time.perf_counter() + longest > until or (limit < math.inf and name not in SHORT):
            return
        settings = with_bits(settings, bits)
        bench = Rehearsing(
            few, label, source, folder / label, whole=run, a_look=a_look or 0.0, seconds=seconds, until=until
        )
        bench.folder.mkdir(parents=True)
        try:
            if a_look is None:
                few, a_look = _measured(few, run, source, seconds)
                bench.run, bench.a_look = few, a_look
            started = time.perf_counter()
            product = work_of(name)(bench, settings)
            spent = time.perf_counter() - started
            source = _kept(few, label, source, product)
        except TooLong:
            return
        except DeepCompressionError as error:
            yield Rehearsed(label, why_not=one_line(error), wrong=_wrong(label, error))
            return
        except Exception as error:
            if name != OWN:
                raise
            yield Rehearsed(label, why_not=told(error), wrong=FactoryError(f"stage {label}: {told(error)}"))
            return
        longest = max(longest, spent)
        few = few if few.taught_by else replace(few, taught_by=source)
        bits = product.report.get(ALLOCATED) or bits
        yield replace(_told(label, bench, product, spent + a_look), reference=source)


def _wrong(label: str, error: DeepCompressionError) -> InputError | None:
    """What is wrong with the input whatever is learnt, and of whichever samples; None of what a run may not meet."""
    sure = isinstance(error, InputError) and not isinstance(error, DataError | ValuesError)
    if not sure or (
        isinstance(error, FactoryError) and not str(error).startswith("stage ")
    ):  # a metric, of few samples
        return None
    text = str(error)
    return type(error)(text if text.startswith("stage ") else f"stage {label}: {text}")


def settings_name(settings: Stage) -> str:
    """The stage's name in the list of stages; of what no recipe says by a word, its module's."""
    from tasks.stages import name_of

    said = getattr(settings, "stage", None)
    return name_of(said) if said else type(settings).__module__.rpartition(".")[2]


def found(run: Run, stages: Labelled) -> list[tuple[str, Reference, Mapping[str, Any]]]:
    """The first stages whose results the store has: label, reference and entry of each.

    Args:
        run: the run; without a teacher where that was not made yet.
        stages: labels and keys, as they will run, the baseline first.
    """
    from tasks.execution.execute import numbers_of, reference_of

    known: list[tuple[str, Reference, Mapping[str, Any]]] = []
    bits: Mapping[str, int] = {}
    source = None
    for label, settings in stages:
        settings = with_bits(settings, bits)
        try:
            key = stage_key(run, label, settings, source, work_of(settings_name(settings)).__module__)
        except AssertionError:  # it learns from a teacher that is not there yet
            return known
        entry = run.store.find(key)
        if entry is None:
            return known
        source = reference_of(key, entry, numbers_of(entry))
        bits = (entry.get("report") or {}).get(ALLOCATED) or bits
        known.append((label, source, entry))
        run = run if run.taught_by or run.teacher else replace(run, taught_by=source)
    return known


def _measured(few: Few, run: Run, source: Reference | None, seconds: float) -> tuple[Few, float]:
    """The run with as many samples as there is time for, and the seconds of an evaluation on all of validation."""
    model = few.model_with(source) if source else few.blank_model()
    a_sample = min(_of_a_sample(few, model) for _ in range(2))
    few = replace(few, most=_within(seconds / max(a_sample, 1e-9), *SAMPLES))
    a_sample = min(_of_a_sample(few, model) for _ in range(2))
    return few, a_sample * (samples(run.splits().validation) or SAMPLES[1])


def _of_a_sample(few: Few, model: nn.Module) -> float:
    """Seconds of an evaluation, by sample."""
    from deepcompression.training.evaluate import evaluate

    problem, started = few.problem(), time.perf_counter()
    total = evaluate(model, problem.validation, problem.step, problem.metric, few.compute()).total
    return (time.perf_counter() - started) / max(total, 1)


def samples(split: Any) -> int | None:
    """How many a split has; None where it does not say."""
    from deepcompression.training.batches import Batches
    from deepcompression.training.device import Compute

    known = Batches(split, 1, Compute("cpu")).known()
    return known[0] if known else None


def _told(label: str, bench: Rehearsing, product: Product, spent: float) -> Rehearsed:
    other = max(spent - sum(one.here for one in bench.trainings), 0.0)
    wholes = [one.whole for one in bench.trainings]
    seconds = None if None in wholes else other + sum(one for one in wholes if one is not None)
    size = product.file.stat().st_size if product.file else _packed(product)
    epochs = sum(one.epochs for one in bench.trainings)
    return Rehearsed(label, seconds, epochs, size, plain(product.report.get("covered") or []), product.file)


def _packed(product: Product) -> int:
    from deepcompression.formats import state_dict as files

    assert product.state is not None
    return len(files.encode(product.state, "packed"))


def _kept(run: Run, label: str, source: Reference | None, product: Product) -> Reference:
    """What a stage made, in the rehearsal's store, as later stages find it."""
    structure, edits = become(source, product)
    if product.state is None:
        return Reference(label, "", structure, edits)
    from safetensors.torch import save_file

    path = Path(run.store_folder) / f"{label}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone() for name, tensor in product.state.items()}, path)
    return Reference(label, Store(run.store_folder).put(path), structure, edits)


def _within(count: float, least: int, most: int) -> int:
    return int(min(max(count, least), most))


def _beginning(split: Any, count: int, batches: int | None = None) -> Any:
    """So many samples of a split; of a DataLoader so many batches."""
    from torch.utils.data import DataLoader

    from deepcompression.data.splits import Begun, Stream, as_split, drawn
    from deepcompression.training.trial import beginning

    split = as_split(split)
    if isinstance(split, DataLoader):
        return beginning(split, count, batches or max(count // (split.batch_size or 1), 1))
    return Begun(split, count) if isinstance(split, Stream) else drawn(split, count)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Nothing is said meanwhile, and no bars are drawn."""
    from tasks.console import console

    before, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = before
