"""Ctrl-C counts wherever it arrives: in a callback of its own Python only prints it, or it becomes another error."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

AGAIN = 0.05  # seconds


class CtrlC:
    """What became of Ctrl-C since `listen`."""

    def __init__(self) -> None:
        self.pressed = False

    def listen(self) -> None:
        """From now on; for the main thread. Where this process was started to ignore Ctrl-C it goes on doing so."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._press)
            sys.unraisablehook = self._swallowed

    def _press(self, number: int, frame: FrameType | None) -> None:
        self.pressed = True
        signal.default_int_handler(number, frame)

    def _swallowed(self, what: Any) -> None:
        if not issubclass(what.exc_type, KeyboardInterrupt):
            sys.__unraisablehook__(what)
            return
        timer = threading.Timer(AGAIN, _again)
        timer.daemon = True
        timer.start()


def _again() -> None:
    if os.name == "posix":
        os.kill(os.getpid(), signal.SIGINT)  # wakes what waits, too
    else:
        _thread.interrupt_main()
