from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
START = """
import collections, hashlib, itertools, subprocess, sys, threading, time
from flows import watchdog
watchdog.STOP_SECONDS, watchdog.AGAIN_SECONDS, watchdog.KILL_SECONDS, watchdog.DONE_SECONDS = {seconds}
from tasks.tracking.runs import Tracker
tracker = Tracker({folder!r}, "http://127.0.0.1:9", "e")
import tasks.upkeep.liveness
tasks.upkeep.liveness._open.add(tracker)

class TerminationSignal(BaseException): "as Prefect's"

def tell(result):
    print(result, flush=True)
    return 3

dog = watchdog.start(tell)
child = subprocess.Popen(["sleep", "60"], stdout=-3, stderr=-3)
time.sleep(0.5)
print(child.pid, flush=True)
"""
LOCK_FREE = "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2 * 10**9)"
LOCKED = "collections.deque(itertools.repeat(1), maxlen=0)"
DEAF = """
while True:
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        pass
"""


def _start(folder: Path, code: str, seconds: str = "1, 0.2, 15, 60") -> tuple[subprocess.Popen[str], int]:
    """The process, ready, and the number of its child."""
    words = [sys.executable, "-c", START.format(seconds=seconds, folder=str(folder)) + code]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def _over(child: int) -> bool:
    import psutil

    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("code", "number", "wanted"),
    [
        (LOCK_FREE, signal.SIGTERM, 143),
        (DEAF, signal.SIGTERM, 143),
        (DEAF, signal.SIGINT, 130),
        (LOCKED, signal.SIGTERM, -signal.SIGKILL),
    ],
    ids=["lock-free", "deaf", "deaf to Ctrl-C", "locked"],
)
def test_a_signal_ends_a_run_whatever_holds_it_up(tmp_path: Path, code: str, number: int, wanted: int) -> None:
    """A C call, with the interpreter's lock or without, or code that catches everything; its children end too."""
    process, child = _start(tmp_path, code, "1, 0.2, 1, 60" if code == LOCKED else "1, 0.2, 15, 60")
    time.sleep(0.3)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == wanted, err
    assert _over(child)
    assert "stopped: " in err and "same command again" in err
    if wanted > 0:
        assert "KILLED" in (tmp_path / "tracking.jsonl").read_text()


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """Who asks twice does not wait; what Prefect sends itself after the first is no second one."""
    process, _ = _start(tmp_path, DEAF, "30, 0.2, 15, 60")
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=20)
    assert process.returncode == 143
    again = """
import os, signal
try:
    raise TerminationSignal
except TerminationSignal:
    for _ in range(2):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except watchdog.Terminated:
            pass
time.sleep(1.5)
print("still here")
"""
    process, _ = _start(tmp_path, again, "20, 0.2, 15, 60")
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and "still here" in out, err


def test_a_run_that_is_done_ends_with_its_result(tmp_path: Path) -> None:
    """A server that hangs at the end: what came out is shown once, with its exit code, the journal has the end."""
    process, child = _start(tmp_path, 'watchdog.done("the table")\ntime.sleep(60)', "1, 0.2, 15, 0.3")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 3 and out.strip() == "the table" and "not waited for" in err, err
    assert _over(child) and "FAILED" in (tmp_path / "tracking.jsonl").read_text()
    code = 'watchdog.done("the table")\nsys.exit(dog.report("the table"))'
    process, child = _start(tmp_path, code, "1, 0.2, 15, 60")
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 3 and out.strip() == "the table"


def test_a_command_that_has_said_everything_ends(tmp_path: Path) -> None:
    """A client's threads, that wait for a server at the interpreter's end, do not hold a failed command up."""
    code = """
from concurrent.futures import ThreadPoolExecutor
import typer
from flows.process import stop
watchdog.LEAVE_SECONDS = 0.5
ThreadPoolExecutor(1).submit(time.sleep, 60)
try:
    stop(1, "error: no answer")
except typer.Exit as stopped:
    sys.exit(stopped.exit_code)
"""
    process, child = _start(tmp_path, code)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 1 and err == "error: no answer\n" and _over(child)


def test_a_run_that_was_told_to_end_does_not_take_itself_apart(tmp_path: Path) -> None:
    """What is registered for the end is done; what the interpreter would do after it is not waited for."""
    code = """
import atexit
from flows.process import stop

class Slow:
    def __del__(self):
        time.sleep(60)

slow = Slow()
atexit.register(print, "delivered", flush=True)
try:
    stop(143, "stopped: terminated")
except BaseException as stopped:
    sys.exit(stopped.exit_code)
"""
    process, _ = _start(tmp_path, code)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 143 and out.strip() == "delivered"
