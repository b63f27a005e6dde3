"""How long an export takes for one sample, beside the dense net in the same process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from deepcompression.export.exported import Session
    from deepcompression.measure.latency import Timing

ROUNDS, LEAST = 7, 3
SECONDS = 1.0  # for all rounds, where a call is not longer
THREADS = 1
BUSY = 2.0  # times as long as it works, from which a machine is called busy


def beside_dense(session: Session, dense: nn.Module, sample: Sequence[Tensor]) -> dict[str, Any]:
    """Medians of few interleaved rounds on one thread: ``flows bench`` measures more, and for longer.

    Args:
        session: the export, opened for one thread.
        dense: the dense net, on the CPU.
        sample: what the model takes by position, each (batch, ...); the first element is taken, or as many as the
            session takes at once.

    Returns:
        ``latency_ms`` of a call, ``dense_latency_ms``, ``times_as_fast`` as the dense net (the median over rounds), and
        ``latency_how``: batch, threads and rounds, in words, and that the machine was busy, if it was.
    """
    from deepcompression.measure.latency import Plan, interleaved, ratio

    size = session.fixed_batch or 1
    given = [_first(one, size) for one in sample]
    arrays = [one.numpy() for one in given]
    with _one_thread():
        rivals = {"dense": _called(dense, given), "export": lambda _: session(arrays)}
        rounds = _rounds([_seconds(call) for call in rivals.values()])
        found = interleaved(rivals, None, Plan(rounds=rounds, burst=0.02, warm=0.05))
    return {
        "latency_ms": 1000 * found["export"].median,
        "dense_latency_ms": 1000 * found["dense"].median,
        "times_as_fast": ratio(found["dense"], found["export"]),
        "latency_how": f"median, batch {size}, {THREADS} thread, {rounds} rounds in turns with the dense net"
        f"{_busy(found['dense'])}",
    }


def _busy(dense: Timing) -> str:
    """That others had the processor for most of the dense net's time, which works in this process on one thread."""
    if dense.median < BUSY * dense.cpu:
        return ""
    return f"; the machine was busy: of the dense net's {1000 * dense.median:.3g} ms {1000 * dense.cpu:.3g} were worked"


def _first(tensor: Tensor, size: int) -> Tensor:
    """So many elements; the first one again where there are not so many."""
    import torch

    if not tensor.ndim:
        return tensor
    return torch.cat([tensor[:1]] * size) if len(tensor) < size else tensor[:size]


def _called(model: nn.Module, given: Sequence[Tensor]) -> Callable[[Any], object]:
    import torch

    model.eval()

    def call(_: Any) -> object:
        with torch.inference_mode():
            return model(*given)

    return call


def _seconds(call: Callable[[Any], object]) -> float:
    from time import perf_counter

    call(None)  # allocates
    started = perf_counter()
    call(None)
    return perf_counter() - started


def _rounds(seconds: Sequence[float]) -> int:
    """Fewer where calls are long."""
    one = sum(max(0.02, each) for each in seconds)
    return int(min(ROUNDS, max(LEAST, SECONDS // one)))


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
