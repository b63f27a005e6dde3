"""Before hours are spent: do model, step, metric and data work together? A few samples of each split tell."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from types import GeneratorType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deepcompression.data.batch import copied, parts
from deepcompression.data.splits import Stream, as_split, columns_of, like
from deepcompression.errors import DataError, DeepCompressionError, FactoryError, InputError, in_one_line
from deepcompression.training.batches import Batches
from deepcompression.training.device import Compute
from deepcompression.training.digest import content
from deepcompression.training.evaluate import judged
from deepcompression.training.optimizers import make_optimizer, make_schedule
from deepcompression.training.problem import ONE_SAMPLE, Problem, backward, stepped
from deepcompression.training.randomness import kept, seed_everything

log = logging.getLogger(__name__)
FEW = 8  # samples of a batch are tried; a whole one where these do not work
EVALUATED = 1000  # samples of a whole batch of validation
ONCE = GeneratorType, map, zip, filter, enumerate
NOWHERE = Compute("cpu")  # of batches that are only counted


@dataclass(frozen=True)
class Plan:
    """What is tried of one training: optimizer ``{factory, kwargs}`` (None: it only looks at batches), and the rest."""

    label: str
    batch_size: int
    drop_last: bool = False
    optimizer: Mapping[str, Any] | None = None
    schedule: str | Mapping[str, Any] = "constant"
    warmup: float = 0
    compare: Callable[[Any, Any], object] | None = None  # refuses outputs that cannot be learnt from a teacher's


def attempt(
    problem: Problem,
    test: Any,
    make: Callable[[], nn.Module],
    plans: Sequence[Plan],
    *,
    compute: Compute | None = None,
    teacher: Callable[[], nn.Module] | None = None,
) -> None:
    """Tries the problem on some samples; afterwards everything is drawn as if nothing had been tried.

    Validation goes through step and metric, training through one step of each plan's optimizer, in a last batch of one
    sample too, where there will be one; of the test split a batch is put together, and compared in its types alone.

    Args:
        problem: data, step, metric, augmentation.
        test: the test split, or None.
        make: makes a new model.
        plans: the trainings to come.
        compute: device, precision, memory format.
        teacher: makes the untrained teacher, where a plan distils from a model of another factory.

    Raises:
        FactoryError, DataError: what does not work, in one line.
    """
    compute = compute or Compute()
    users = [problem.train, problem.validation, test, problem.step, problem.metric, problem.augment]
    splits = {"train": as_split(problem.train), "validation": as_split(problem.validation)}
    splits |= {} if test is None else {"test": as_split(test)}
    for place, split in splits.items():
        with _where(place):
            _read_twice(split)
    with kept([], *users):
        model = compute.place(make())
        start = copy.deepcopy(model.state_dict())
        _validated(problem, model, compute)
        if test is not None:
            _alike(problem, test, model, compute)
        compares = [plan.compare for plan in plans if plan.compare is not None]
        if teacher is not None and compares:
            _compared(problem, model, teacher(), compute, compares[0])
        for plan in plans:
            model.train()
            if plan.optimizer is not None:
                _small_then_whole(partial(_step, problem, model, plan, compute))
                model.load_state_dict(start)
            _last_sample(problem, model, plan, compute)
            model.load_state_dict(start)
    for place, split in splits.items():
        with _where(place):
            _read_to_the_end(split)


def _read_twice(split: Any) -> None:
    """Whether what a split, or a loader's sampler, is drawn from begins anew each time, as every epoch needs.

    Raises:
        DataError: it goes on where it was: what it holds is an iterator, which ends once and for all.
    """
    loader = isinstance(split, DataLoader)
    drawn = [split.sampler, split.batch_sampler] if loader else [split]
    drawn += [split.dataset] if loader and not split.num_workers else []  # each worker begins with one of its own
    for source in drawn:
        if not isinstance(source, Stream) and (not loader or not hasattr(source, "__iter__")):
            continue
        with in_one_line(f"data: {type(source).__name__} does not give a sample", DataError):
            held = any(isinstance(one, ONCE) for one in (source, *getattr(source, "__dict__", {}).values()))
            once = (held or iter(source) is iter(source)) and _begun(source) != _begun(source)
        if once:
            raise DataError(
                f"data: {type(source).__name__} can be read only once: it goes on where it was when it is read again; "
                "let its __iter__ make a new iterator each time"
            )


def _begun(source: Any) -> str | None:
    """A digest of what something gives first."""
    with kept([], source):
        seed_everything(0)
        return content(next(iter(source), None))


def _read_to_the_end(split: Any) -> None:
    """Whether the last sample is there, of what is read by index and tells how many there are."""
    if columns_of(split) or isinstance(split, Stream | DataLoader):
        return
    last = f"data: of {len(split):,} samples in {type(split).__name__} the last fails"
    with kept([], split), in_one_line(last, DataError):
        split[len(split) - 1]


def few(
    split: Any,
    batch_size: int,
    compute: Compute,
    *,
    most: int,
    number: int = 1,
    generator: torch.Generator | None = None,
    augment: Callable[[Any, torch.Generator], Any] | None = None,
) -> Batches:
    """The first ``number`` batches of a split, cut to ``most`` samples; a loader of the user's is left alone.

    Args:
        split: one of the forms of ``splits.as_split``.
        batch_size: samples a batch.
        compute: device and memory format.
        most: samples a batch, at most.
        number: of batches.
        generator: draws what ``augment`` draws.
        augment: (batch, generator) -> batch.
    """
    split, size = as_split(split), min(batch_size, most)
    made = partial(Batches, batch_size=size, compute=compute, generator=generator, augment=augment, most=number)
    tensors = columns_of(split)
    if tensors:
        cut = like(split, [part[: size * number] for part in tensors])
        return made(cut)
    if isinstance(split, DataLoader):
        return made(beginning(split, most, number))
    if isinstance(split, Stream):
        return made(DataLoader(split, size))
    chosen = range(min(len(split), size * number))
    indices = [list(chosen[start : start + size]) for start in range(0, len(chosen), size)]
    return made(DataLoader(split, batch_sampler=indices))


def beginning(loader: Any, most: int, number: int) -> Any:
    """A DataLoader that yields the beginning of what ``loader`` would, in a worker of its own if that has some.

    Args:
        loader: of the user's; one with an ``__iter__`` of its own is returned as it is.
        most: samples of a batch.
        number: of batches.
    """
    if type(loader).__iter__ is not DataLoader.__iter__:
        return loader
    same: dict[str, Any] = {"collate_fn": loader.collate_fn, "worker_init_fn": loader.worker_init_fn}
    if loader.num_workers:
        context = loader.multiprocessing_context
        same |= {"num_workers": 1, "prefetch_factor": 1, "multiprocessing_context": context, "timeout": loader.timeout}
    if isinstance(loader.dataset, Stream):
        size = None if loader.batch_size is None else min(loader.batch_size, most)
        return DataLoader(loader.dataset, size, **same)
    if loader.batch_sampler is None:
        return DataLoader(loader.dataset, None, sampler=list(islice(loader.sampler, number)), **same)
    indices = [list(islice(batch, most)) for batch in islice(loader.batch_sampler, number)]
    return DataLoader(loader.dataset, batch_sampler=indices, **same)


def _validated(problem: Problem, model: nn.Module, compute: Compute) -> None:
    def judge(most: int) -> None:
        with _where("validation"):
            batches = few(problem.validation, EVALUATED, compute, most=most, number=2)
            judged(model, batches, problem.step, problem.metric, compute)

    _small_then_whole(judge)
    if _last_of(Batches(problem.validation, EVALUATED, NOWHERE)) == 1:
        with _where("validation, the last batch of one sample"):
            judged(model, few(problem.validation, 1, compute, most=1), problem.step, problem.metric, compute)


def _step(problem: Problem, model: nn.Module, plan: Plan, compute: Compute, most: int) -> None:
    assert plan.optimizer is not None
    with _where(plan.label):
        optimizer = make_optimizer(model, plan.optimizer)
        make_schedule(optimizer, plan.schedule, plan.warmup, 1, 1)
    generator = torch.Generator().manual_seed(0)
    with _where("train"):
        drawn = few(problem.train, plan.batch_size, compute, most=most, generator=generator, augment=problem.augment)
        batch = _first(drawn)
        with compute.autocast():
            loss, outputs, _ = stepped(problem.step, model, batch)
        with in_one_line("step: backward", FactoryError):
            backward(loss)
    with _where(plan.label), in_one_line(f"optimizer {plan.optimizer['factory']}", FactoryError):
        if plan.compare is not None:
            plan.compare(outputs, outputs)
        optimizer.step()
        optimizer.zero_grad()


def _compared(
    problem: Problem, model: nn.Module, teacher: nn.Module, compute: Compute, compare: Callable[[Any, Any], object]
) -> None:
    """Whether student and teacher speak of the same classes."""
    batch = _first(few(problem.validation, FEW, compute, most=FEW))
    with torch.no_grad(), _where("teacher"):
        wanted = stepped(problem.step, compute.place(teacher).eval(), copied(batch))[1]
        compare(stepped(problem.step, model.eval(), batch)[1], wanted)


def _last_sample(problem: Problem, model: nn.Module, plan: Plan, compute: Compute) -> None:
    """A last batch of one sample, which BatchNorm cannot train on."""
    batches = Batches(problem.train, plan.batch_size, NOWHERE, drop_last=plan.drop_last)
    if batches.drops_all():
        total, size = batches.known() or (0, 0)
        few_ = f": {total:,} training samples, batches of {size:,}" if size else " of the training samples"
        raise DataError(f"{plan.label}: drop_last leaves nothing{few_}")
    if _last_of(batches) != 1:
        return
    batch = _first(few(problem.train, 1, compute, most=1))
    try:
        with compute.autocast(), torch.set_grad_enabled(plan.optimizer is not None):
            stepped(problem.step, model, batch)
    except FactoryError as error:
        if ONE_SAMPLE not in str(error):
            raise type(error)(f"train, the last batch of one sample: {error}") from error
        total, size = batches.known() or (0, 0)
        raise DataError(
            f"{plan.label}: {total:,} training samples in batches of {size} leave one for the last, and BatchNorm "
            "cannot train on a batch of one sample: set drop_last: true (of a DataLoader: there), or another batch_size"
        ) from error


def _first(batches: Batches) -> Any:
    for batch in batches:
        return batch
    raise DataError("data: a split has no samples")


def _last_of(batches: Batches) -> int | None:
    """Samples of the last batch, where the split tells."""
    known = batches.known()
    if known is None or batches.drops_last():
        return None
    total, size = known
    return total % size or size


def _small_then_whole(work: Callable[[int], None]) -> None:
    """Tries a few samples; what needs more of them (a metric of two classes, say) gets a whole batch."""
    with suppress(DeepCompressionError):
        work(FEW)
        return
    work(EVALUATED)


def _alike(problem: Problem, test: Any, model: nn.Module, compute: Compute) -> None:
    """Whether batches of the test split are made of the same things as validation's.

    If they are not, and the step cannot take one (whose answer is not looked at), that is an error; else a warning.
    """
    with _where("test"):
        batch = _first(few(test, 2, compute, most=2))
    found, wanted = _kind(batch), _kind(_first(few(problem.validation, 2, compute, most=2)))
    if found == wanted:
        return
    sentence = f"batches of the test split are {found}, those of validation {wanted}"
    try:
        with torch.no_grad():
            stepped(problem.step, model.eval(), batch)
    except FactoryError as error:
        raise DataError(f"test: data: {sentence}: {error}") from error
    log.warning("data: %s", sentence)


def _kind(batch: Any) -> str:
    """Types and numbers of dimensions in a batch."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} of {batch.ndim} dimensions"
    inside = parts(batch)
    if inside is None:
        return type(batch).__name__
    if isinstance(batch, Mapping):
        return f"{{{', '.join(f'{key}: {_kind(one)}' for key, one in batch.items())}}}"
    return f"({', '.join(map(_kind, inside))})"


@contextmanager
def _where(place: str) -> Iterator[None]:
    """Says which split, or which training, an error is about."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{place}: {error}") from error
