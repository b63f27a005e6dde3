"""How busy a machine is, by what is known to be at work."""

from __future__ import annotations

import time

import pytest

from deepcompression.measure import load


def test_own_work_is_not_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a machine on which 1.5 cores worked, one for this process, half a core is others'."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    monkeypatch.setattr(load, "_worked", lambda: 1.5 * now[0])
    with load.watched() as seen:
        now[0] = 10.0
    assert (seen.own, seen.others, seen.busy) == (1.0, 0.5, True)


def test_a_machine_works_for_who_works() -> None:
    """The real counters: a tenth of a second of work is seen as about one core."""
    with load.watched() as seen:
        until = time.process_time() + 0.1
        while time.process_time() < until:
            pass
    assert 0.05 < seen.own <= 1.1 and seen.others >= 0 and seen.cores >= 1
