"""The batches of one split on the device."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import chain, count, islice, repeat
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from deepcompression.data.batch import cut, described, moved, portion, samples_in
from deepcompression.data.splits import Columns, Stream, as_split, columns_of
from deepcompression.errors import DataError, DeepCompressionError, FactoryError, in_one_line, told
from deepcompression.training.device import Compute
from deepcompression.training.problem import log
from deepcompression.training.randomness import kept
from deepcompression.training.share import Share, Shared

COUNTING_SECONDS = 600.0  # in which a stream that tells no length must come to its end


class Batches:
    """The batches of one split on the device. Tensors move there once, cut without per-sample Python.

    Args:
        split: one of the forms of ``splits.as_split``.
        batch_size: where the split is no DataLoader.
        compute: device and memory format.
        generator: draws the order, and whatever ``augment`` draws; without one, samples come in the split's own.
        augment: (batch, generator) -> batch.
        drop_last: leaves out a last batch that is smaller; where the split is no DataLoader.
        most: no more batches than that.
        share: which part of each batch is for this process; of ``shared``.

    Raises:
        DataError: the split has another form, or no samples; while iterating, in one line, whatever it raises.
        FactoryError: while iterating, whatever ``augment`` raises.
    """

    def __init__(
        self,
        split: Any,
        batch_size: int,
        compute: Compute,
        generator: torch.Generator | None = None,
        augment: Callable[[Any, torch.Generator], Any] | None = None,
        drop_last: bool = False,
        most: int | None = None,
        share: Share | None = None,
    ) -> None:
        split = as_split(split)
        self.device = compute.resolved()
        self.format = torch.channels_last if compute.channels_last else torch.contiguous_format
        self.batch_size, self.generator, self.augment, self.drop_last = batch_size, generator, augment, drop_last
        self.names = split.names if isinstance(split, Columns) else None
        self.tensors = tuple(part.to(self.device) for part in columns_of(split))
        self.loader: Any = None
        if isinstance(split, DataLoader):
            self.loader = split
        elif isinstance(split, Stream):
            self.loader = DataLoader(split, batch_size, drop_last=drop_last)
        elif not self.tensors:
            self.loader = _loader(split, batch_size, generator, drop_last, compute.workers, share)
        self.most, self.share = most, share
        self._counted: int | None = None

    def __len__(self) -> int:
        """Batches in one pass; a stream that does not tell is read once to count them."""
        if self.loader is None:
            whole, rest = divmod(len(self.tensors[0]), self.batch_size)
            return whole + (rest > 0 and not self.drop_last)
        if self._tells_length():
            return len(self.loader)
        if self._counted is None:
            self._counted = self._count()
        return self._counted

    def __iter__(self) -> Iterator[Any]:
        source = self._slices() if self.loader is None else self._fetched()
        for batch in islice(source, self.most):
            yield self._ready(batch)

    def _ready(self, batch: Any) -> Any:
        batch = moved(batch, self.device, self.format)
        return batch if self.augment is None or self.generator is None else self._augmented(batch)

    def shared(self) -> Iterator[tuple[Any, float]]:
        """This process's part of each batch, and how much of the batch that is; without ``share`` all of it."""
        if self.share is None:
            yield from ((batch, 1.0) for batch in self)
        elif self.loader is None:
            for chosen in self._orders():
                mine = self._chosen(chosen[self.share.of(len(chosen))])
                yield self._ready(mine), self.share.weight(len(chosen))
        else:
            cuts = isinstance(self.loader.batch_sampler, Shared)
            for batch, size in zip(self._fetched(), self._whole_sizes(), strict=False):
                total = size or samples_in(batch)
                part = batch if cuts else portion(batch, self.share.of(total), total)
                yield self._ready(part), self.share.weight(total)

    def _whole_sizes(self) -> Iterator[int | None]:
        if isinstance(self.loader.batch_sampler, Shared):
            total, size = len(self.loader.dataset), self.batch_size
            return chain(repeat(size, total // size), [total % size])
        return self.sizes()

    def sizes(self) -> Iterator[int | None]:
        """Samples that are put into each batch, as far as the split tells; then None for ever."""
        known = self.known()
        if known is None:
            return repeat(None)
        total, size = known
        return chain(repeat(size, total // size), [total % size] if total % size else [], repeat(None))

    def known(self) -> tuple[int, int] | None:
        """Samples in one pass, and in a batch; None where the split does not tell."""
        return (len(self.tensors[0]), self.batch_size) if self.loader is None else _sampled(self.loader)

    def drops_last(self) -> bool:
        """Whether a last batch that is smaller is left out."""
        if self.loader is None:
            return self.drop_last
        return bool(self.loader.drop_last or getattr(self.loader.batch_sampler, "drop_last", False))

    def drops_all(self) -> bool:
        """Whether the only batch is one that is left out, as far as the split tells."""
        known = self.known()
        if known is None:
            return self.loader is not None and self._tells_length() and not len(self.loader)
        return self.drops_last() and known[0] < known[1]

    def _augmented(self, batch: Any) -> Any:
        assert self.augment is not None and self.generator is not None
        try:
            changed = self.augment(batch, self.share.generator if self.share else self.generator)
        except DeepCompressionError:
            raise
        except Exception as error:
            raise FactoryError(f"augment: {told(error)}; the batch is {described(batch)}") from error
        if changed is None:
            raise FactoryError("augment: returned None; expected the changed batch")
        return changed

    def _slices(self) -> Iterator[Any]:
        if self.generator is not None:
            yield from (self._chosen(chosen) for chosen in self._orders())
            return
        count = len(self.tensors[0])
        for start in range(0, count - (count % self.batch_size if self.drop_last else 0), self.batch_size):
            yield self._batch([part[start : start + self.batch_size] for part in self.tensors])

    def _orders(self) -> Iterator[Tensor]:
        """Which samples make each batch, in an order that is drawn."""
        assert self.generator is not None
        count = len(self.tensors[0])
        order = torch.randperm(count, generator=self.generator).to(self.device)
        for start in range(0, count - (count % self.batch_size if self.drop_last else 0), self.batch_size):
            yield order[start : start + self.batch_size]

    def _chosen(self, chosen: Tensor) -> Any:
        return self._batch([part.index_select(0, chosen) for part in self.tensors])

    def _batch(self, tensors: list[Tensor]) -> Any:
        return tuple(tensors) if self.names is None else dict(zip(self.names, tensors, strict=True))

    def _fetched(self) -> Iterator[Any]:
        """What the loader yields; of a stream that tells a length, no more than that: it may be endless."""
        with _of_data(self.loader):
            iterator = iter(self.loader)
        end, most = object(), self._told()
        if self.generator is not None:
            iterator = islice(iterator, most)
        for number in count():
            with _of_data(self.loader):
                batch = next(iterator, end)
            if batch is end:
                return
            if number == most:
                name = type(self.loader.dataset).__name__
                log.warning(
                    "data: %s goes on after the %s batches that its length tells; these count", name, f"{most:,}"
                )
                return
            yield batch

    def _told(self) -> int | None:
        """Batches of a stream by the length that it tells; in validation by each worker, which may give all of it."""
        if not isinstance(self.loader.dataset, Stream) or not self._tells_length():
            return None
        return len(self.loader) * (1 if self.generator is not None else max(1, self.loader.num_workers))

    def _tells_length(self) -> bool:
        try:
            return len(self.loader) >= 0
        except (TypeError, NotImplementedError):
            return False

    def _count(self) -> int:
        """One pass over a stream, after which everything is drawn as if there had been none."""
        started, number, said = time.perf_counter(), 0, False
        with kept([self.generator] if self.generator else [], self.loader):
            for _ in self._fetched():
                number += 1
                spent = time.perf_counter() - started
                if spent > COUNTING_SECONDS / 60 and not said:
                    said = True
                    log.warning(
                        "data: %s tells no length and is read to count its batches, for %.0f s at most",
                        type(self.loader.dataset).__name__,
                        COUNTING_SECONDS,
                    )
                if spent > COUNTING_SECONDS:
                    raise DataError(
                        f"data: {type(self.loader.dataset).__name__} tells no length and has not ended after "
                        f"{number:,} batches in {COUNTING_SECONDS:.0f} s; give it a __len__: how many samples are an "
                        "epoch"
                    )
        log.warning(
            "data: %s tells no length; it was read once to count its %s batches, which took %.1f s; "
            "with a __len__ that is not needed",
            type(self.loader.dataset).__name__,
            f"{number:,}",
            time.perf_counter() - started,
        )
        return number


def _loader(
    split: Any,
    batch_size: int,
    generator: torch.Generator | None,
    drop_last: bool,
    workers: int,
    share: Share | None,
) -> DataLoader[Any]:
    """A loader of samples that are fetched one by one."""
    if share is None:
        return DataLoader(
            split,
            batch_size,
            shuffle=generator is not None,
            generator=generator,
            drop_last=drop_last,
            num_workers=workers,
        )
    order = BatchSampler(RandomSampler(split, generator=generator), batch_size, drop_last)
    return DataLoader(split, batch_sampler=Shared(order, share), generator=generator, num_workers=workers)


def some(split: Any, count: int, batch_size: int, compute: Compute) -> Iterator[Any]:
    """Batches with the first ``count`` samples of a split, the last one cut; fewer where there are no more.

    Where a batch of the user's own making cannot be cut, and so more samples come, a warning says so.

    Args:
        split: one of the forms of ``splits.as_split``.
        count: of samples.
        batch_size: where the split is no DataLoader.
        compute: device and memory format.
    """
    batches = Batches(split, min(batch_size, count), compute)
    left = count
    for batch, size in zip(batches, batches.sizes(), strict=False):
        first, came = cut(batch, left, size)
        if came > left:
            log.warning(
                "data: %s samples come instead of %s: a batch is %s, and where a sample of it ends cannot be told",
                f"{count - left + came:,}", f"{count:,}", described(batch),
            )  # fmt: skip
        yield first
        left -= came
        if left <= 0:
            return


def _of_data(loader: Any) -> AbstractContextManager[None]:
    return in_one_line(f"data: {type(loader.dataset).__name__} does not give a batch", DataError)


def _sampled(loader: Any) -> tuple[int, int] | None:
    """Samples in all, and in a batch, of a DataLoader that cuts them in order; None where it does not tell."""
    batches = loader.batch_sampler
    if (
        type(batches) is not BatchSampler
        or isinstance(loader.dataset, Stream)
        or not hasattr(batches.sampler, "__len__")
    ):
        return None
    return len(batches.sampler), batches.batch_size  # type: ignore[arg-type]
