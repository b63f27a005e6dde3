"""A run ends when it is told to, and when its work is done, whatever holds it up: a server, a C call, a lock.

Python runs a signal's handler in the main thread alone, and only once a C call has returned there. So what counts time
is a small process beside the run: the interpreter's own C handler writes each signal into its pipe, whatever the main
thread does. When the time is over it asks a thread of the run to end it, and kills the run where that thread is held up
too, by a C call that keeps the interpreter's lock.

This file is that process's program as well.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

STOP_SECONDS = 6.0  # from the first signal
AGAIN_SECONDS = 1.0  # from the second
KILL_SECONDS = 3.0  # more, for the thread that ends the run in order
DONE_SECONDS = 22.0  # from the end of the work
LEAVE_SECONDS = 10.0  # from the last message of a command
SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = "finished stages and the last epoch are kept: start the same command again to go on"
OURS = 0  # written instead of a signal's number: the last one was not a person's

log = logging.getLogger(__name__)
_running: Watchdog | None = None


class Terminated(KeyboardInterrupt):
    """SIGTERM; it ends a run as Ctrl-C does."""


class Watchdog:
    """Of one run, in its process. ``tell`` prints what came out and returns the exit code."""

    def __init__(self, tell: Callable[[Any], int]) -> None:
        self.tell, self.code = tell, 0
        self.first, self.told = threading.Lock(), threading.Event()
        self.guard: subprocess.Popen[bytes] | None = None
        self.leaving: int | None = None

    def start(self) -> None:
        """From now on SIGTERM and SIGINT end this process within ten seconds. For the main thread."""
        atexit.register(self._leave)  # the first: it is called after what Prefect and others do at the end
        signal.signal(signal.SIGTERM, self._terminated)
        try:
            self.guard = subprocess.Popen(
                _command(os.getpid()), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            log.warning("a signal may have to wait: no process could be started to watch over this one (%s)", error)
            return
        assert self.guard.stdin is not None
        os.set_blocking(self.guard.stdin.fileno(), False)
        signal.set_wakeup_fd(self.guard.stdin.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, daemon=True, name="watchdog").start()

    def done(self, result: Any, more: float = 0.0) -> None:
        """The work is done and on disk: what is left may take 22 seconds, and ``more``."""
        timer = threading.Timer(DONE_SECONDS + more, self._finish, [result])
        timer.daemon = True
        timer.start()

    def report(self, result: Any) -> int:
        """What ``tell`` returns; it is called once, here or by the thread that does not wait any longer."""
        self.first.acquire()  # for ever where that thread has it: it ends the process
        self.code = self.leaving = self.tell(result)
        self.told.set()
        return self.code

    def _leave(self) -> None:
        """Of a run that has said everything: without taking a large interpreter apart, which takes seconds."""
        if self.leaving is not None:
            sys.stdout.flush()
            os._exit(self.leaving)

    def _terminated(self, *_: object) -> None:
        if type(sys.exc_info()[1]).__name__ == "TerminationSignal" and self.guard and self.guard.stdin:
            os.write(self.guard.stdin.fileno(), bytes([OURS]))  # Prefect took the first and sends it to us once more
        raise Terminated

    def _listen(self) -> None:
        import psutil  # noqa: F401 - what ends the run is at hand when it is needed

        import tasks.upkeep.liveness  # noqa: F401

        assert self.guard is not None and self.guard.stdout is not None
        if told := os.read(self.guard.stdout.fileno(), 1):
            self._end(128 + told[0], "KILLED", f"stopped: {_held_up()} did not let go and was not waited for; {AGAIN}")

    def _finish(self, result: Any) -> None:
        note = f"note: the run is done, all of it is on disk; {_held_up()} does not answer and is not waited for"
        if self.first.acquire(blocking=False):
            self.code = self.tell(result)
        else:
            self.told.wait(1)
        self._end(self.code, "FAILED" if self.code else "FINISHED", note)

    def _end(self, code: int, status: str, note: str) -> None:
        from tasks.upkeep.liveness import write_ends

        try:
            write_ends(status)
            print(note, file=sys.stderr, flush=True)
            sys.stdout.flush()
            _kill_children(os.getpid(), 0.5)
        finally:
            os._exit(code)


def start(tell: Callable[[Any], int]) -> Watchdog:
    """A watchdog over this process; ``done`` is told to it from now on."""
    global _running
    _running = Watchdog(tell)
    _running.start()
    return _running


def done(result: Any, bytes_left: int = 0) -> None:
    """Says that the work is done, where a watchdog waits for that: a megabyte still to be sent has a second."""
    if _running is not None:
        _running.done(result, bytes_left / 1e6)


def leave_soon(code: int) -> None:
    """Everything is said: what else would hold this process up, such as a client's own threads, has ten seconds."""

    def leave() -> None:
        _kill_children(os.getpid(), 0.5)
        os._exit(code)

    if _running is not None:
        _running.leaving = code
    timer = threading.Timer(LEAVE_SECONDS, leave)
    timer.daemon = True
    timer.start()


WAITED_FOR = (
    ("tasks.tracking.runs", "MLflow"),
    ("tasks.tracking.client", "MLflow"),
    ("tasks.registry.models", "MLflow"),
    ("tasks.storage.places", "the store"),
    ("prefect", "Prefect"),
    ("tasks.upkeep.liveness", "Prefect"),
)


def _held_up() -> str:
    """What the main thread waits for, by the innermost code of which that is known."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        for name, waiting in WAITED_FOR:
            if module == name or module.startswith(f"{name}."):
                return waiting
        if (module, frame.f_code.co_name) == ("flows.summary", "leave"):
            return "Prefect"  # its artifacts; MLflow's are sent below tasks.tracking
        if module.startswith(("tasks.", "flows.", "deepcompression.")) and module != "tasks.machine.deadline":
            return f"{module}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "something"


# ---------------------------------------------------------------- the process beside the run


def _command(run: int) -> list[str]:
    times = (STOP_SECONDS, AGAIN_SECONDS, KILL_SECONDS)
    return [sys.executable, "-I", __file__, str(run), *map(str, times)]


def _guard(run: int) -> None:
    usual = deadline = None
    first = 0
    stop, again, kill = map(float, sys.argv[2:])
    while deadline is None or time.monotonic() < deadline:
        left = 2.0 if deadline is None else deadline - time.monotonic()
        readable = select.select([0], [], [], max(min(left, 2.0), 0))[0]
        told = os.read(0, 64) if readable else None
        if told == b"" or os.getppid() != run:
            return  # it ended
        for byte in told or b"":
            if byte == OURS:
                deadline = usual
            elif byte in SIGNALS and usual is None:
                first, usual = byte, time.monotonic() + stop
                deadline = usual
            elif byte in SIGNALS and deadline is not None:
                deadline = min(deadline, time.monotonic() + again)
    with contextlib.suppress(OSError):
        os.write(1, bytes([first]))
    late = time.monotonic() + kill
    while os.getppid() == run:
        if time.monotonic() > late:
            _kill_children(run, 0)
            os.kill(run, signal.SIGKILL)
            print(f"stopped: killed, since Python did not come to its end in time; {AGAIN}", file=sys.stderr)
            return
        time.sleep(0.05)


def _kill_children(run: int, grace: float) -> None:
    """All processes below a run but the guard: verification, workers, a temporary Prefect server."""
    import psutil

    guard, children = _command(run)[:4], []
    with contextlib.suppress(psutil.Error):
        children = [one for one in psutil.Process(run).children(recursive=True) if not _is(one, guard)]
    for one in children if grace else ():
        with contextlib.suppress(psutil.Error):
            one.terminate()
    for one in psutil.wait_procs(children, grace)[1]:
        with contextlib.suppress(psutil.Error):
            one.kill()


def _is(process: Any, command: list[str]) -> bool:
    try:
        return bool(process.cmdline()[: len(command)] == command)
    except Exception:  # gone, or somebody else's
        return False


if __name__ == "__main__":
    _guard(int(sys.argv[1]))
