from __future__ import annotations

import os
import threading

import pytest

from deepcompression._parallel import cores, mapped


@pytest.mark.parametrize("threads", [0, 1, 2, 7])
def test_mapped_keeps_the_order(threads: int) -> None:
    """Results stand in the order of the items, however many threads work."""
    assert mapped(lambda x: x * x, range(50), threads) == [x * x for x in range(50)]
    assert mapped(lambda x: x, [], threads) == []


def test_mapped_uses_threads() -> None:
    """Two items on two threads are worked on at once: each waits for the other."""
    both = threading.Barrier(2, timeout=60)
    mapped(lambda _: both.wait(), range(2), 2)


def test_one_item_takes_no_thread() -> None:
    """A single item is worked on where it is."""
    assert mapped(lambda _: threading.current_thread(), [0], 8) == [threading.current_thread()]


def test_errors_come_through() -> None:
    """An error in one item is the caller's, whichever thread met it."""
    with pytest.raises(ZeroDivisionError):
        mapped(lambda x: 1 // x, [1, 2, 0, 3], 2)


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment decides where it names a number, else the system."""
    monkeypatch.setenv("DEEPCOMPRESSION_THREADS", "3")
    assert cores() == 3
    for nonsense in ("", "0", "-1", "many"):
        monkeypatch.setenv("DEEPCOMPRESSION_THREADS", nonsense)
        assert 1 <= cores() <= (os.cpu_count() or 1)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert cores() == (os.cpu_count() or 1)
