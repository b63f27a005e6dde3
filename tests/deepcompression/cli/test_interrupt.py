"""Ctrl-C that arrives where Python cannot raise it."""

import re
import subprocess
import sys

START = """
import os, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from deepcompression.cli import main
from deepcompression.cli.app import app
"""
SWALLOWED = """
class Late:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

@app.command("wait")
def wait() -> None:
    Late()
    time.sleep(60)
"""
OTHER = """
@app.command("wait")
def wait() -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        raise ImportError("half a module") from None
"""
BROKEN = """
class Broken:
    def __del__(self):
        raise ValueError("of a destructor")

@app.command("wait")
def wait() -> None:
    Broken()
"""


def run(body: str) -> subprocess.CompletedProcess[str]:
    """`dcz wait`, a verb that does `body`."""
    code = f"{START}{body}\nmain.main()"
    return subprocess.run([sys.executable, "-c", code, "wait"], capture_output=True, text=True, timeout=50, check=False)


def test_in_a_destructor() -> None:
    """What Python swallows is raised again a moment later, and is one line."""
    done = run(SWALLOWED)
    assert (done.returncode, done.stderr) == (130, "dcz: interrupted; nothing was left behind\n")


def test_turned_into_another_error() -> None:
    """An error that Ctrl-C causes, in half an import say, is Ctrl-C."""
    done = run(OTHER)
    assert (done.returncode, done.stderr) == (130, "dcz: interrupted; nothing was left behind\n")


def test_other_errors_of_destructors_are_shown() -> None:
    """What else Python cannot raise is printed as ever."""
    done = run(BROKEN)
    assert done.returncode == 0 and re.search("ValueError: of a destructor", done.stderr)
