"""Timing, on a clock that goes only when a call says so."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from deepcompression.measure.latency import Clock, Plan, interleaved, ratio

MS = 1_000_000


class Machine:
    """A clock, and callables that take as long as they say; on a machine that is ``slower`` for a while."""

    def __init__(self) -> None:
        self.wall, self.cpu, self.slower = 0, 0, 1
        self.called: list[str] = []
        self.clock = Clock(lambda: self.wall, lambda: self.cpu)

    def taking(self, name: str, milliseconds: float, cores: float = 1.0) -> Callable[[object], None]:
        def call(_: object) -> None:
            self.called.append(name)
            self.wall += round(self.slower * milliseconds * MS)
            self.cpu += round(cores * milliseconds * MS)

        return call


def test_a_timing_is_of_the_calls_alone() -> None:
    """Median, spread and CPU time are in seconds of one call; two cores at work are twice the CPU time."""
    machine = Machine()
    rivals = {"a": machine.taking("a", 4), "b": machine.taking("b", 1, cores=2)}
    told = interleaved(rivals, None, Plan(rounds=30), machine.clock)
    assert (told["a"].median, told["a"].p10, told["a"].p99, told["a"].iqr) == (0.004, 0.004, 0.004, 0.0)
    assert told["a"].cpu == 0.004 and told["b"].cpu == 0.002
    assert told["a"].calls == 30 * 5 and len(told["a"].by_round) == 30  # 5 calls of 4 ms fill 20 ms
    assert ratio(told["b"], told["a"]) == 0.25


def test_each_round_has_all_rivals_and_begins_with_another() -> None:
    """What disturbs the machine for a while disturbs all; none always comes after the same one."""
    machine = Machine()
    rivals = {name: machine.taking(name, 30) for name in "abc"}  # too slow for more than a call in a round
    interleaved(rivals, None, Plan(rounds=3, warm=0), machine.clock)
    assert "".join(machine.called) == "aaabbbccc" + "abc" + "bca" + "cab"


def test_a_machine_that_becomes_slow_changes_no_ratio() -> None:
    """Half of the rounds on a machine three times as slow: medians of all calls may lie anywhere, rounds do not."""
    machine = Machine()
    fast, slow = machine.taking("a", 10), machine.taking("b", 25)

    def worse(_: object) -> None:
        fast(_)
        machine.slower = 3 if len(machine.called) > 40 else 1

    told = interleaved({"a": worse, "b": slow}, None, Plan(rounds=20), machine.clock)
    assert ratio(told["b"], told["a"]) == pytest.approx(2.5)


@pytest.mark.parametrize(("plan", "rounds"), [(Plan(seconds=1), 50), (Plan(seconds=0.01), 7), (Plan(rounds=2), 2)])
def test_time_or_rounds_end_it(plan: Plan, rounds: int) -> None:
    """So many seconds for each, seven rounds at least; or exactly the rounds that were asked for."""
    machine = Machine()
    told = interleaved({"a": machine.taking("a", 20), "b": machine.taking("b", 20)}, None, plan, machine.clock)
    assert {len(one.by_round) for one in told.values()} == {rounds}


def test_no_p99_of_few_calls() -> None:
    """The slowest of ten calls is no ninety-ninth percentile."""
    machine = Machine()
    told = interleaved({"a": machine.taking("a", 500)}, None, Plan(rounds=10), machine.clock)
    assert told["a"].p99 is None and told["a"].calls == 10


def test_garbage_is_collected_again_afterwards() -> None:
    """A callable that fails must not leave the process without a garbage collector."""
    with pytest.raises(ZeroDivisionError):
        interleaved({"a": lambda batch: 1 / batch}, 0)
    assert gc.isenabled()
