"""``python -P tests/forked.py`` verifies files for the tests: each in a process forked from one that has imported.

A new process imports for seconds, at the end of every run. One test verifies in such a process; that it is a new one
and not the run's own is what all others need.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

IMPORTED = (
    "deepcompression.data.small_images",
    "deepcompression.formats.state_dict",
    "deepcompression.models",
    "deepcompression.network.edits.apply",
    "deepcompression.network.load",
    "deepcompression.training.evaluate",
    "deepcompression.training.problem",
    "numba",
    "safetensors.torch",
    "sklearn.datasets",
)


class Verifier:
    """Stands for ``tasks.stages.verify._started``."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        """What a new process says, with this one's environment and folder."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with tempfile.TemporaryDirectory() as place:
            asked = {"request": request, "environment": dict(os.environ), "folder": str(Path.cwd()), "place": place}
            print(json.dumps(asked), file=self.process.stdin, flush=True)
            code = int(self.process.stdout.readline())
            texts = [Path(place, name).read_text() for name in ("out", "err")]
        return subprocess.CompletedProcess([], code, *texts)

    def close(self) -> None:
        """Ends it."""
        self.process.communicate()


def main() -> None:
    """Forks a process for each line."""
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            _verify(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _verify(asked: dict[str, Any]) -> None:
    """In the child, which ends here."""
    import traceback

    from deepcompression.measure.verification import verify

    code = 1
    try:
        os.chdir(asked["folder"])
        sys.path.insert(0, asked["folder"])  # as ``python -m`` has it
        os.environ.clear()
        os.environ.update(asked["environment"])
        with Path(asked["place"], "out").open("w") as out, Path(asked["place"], "err").open("w") as err:
            sys.stdout, sys.stderr = out, err
            try:
                print(json.dumps(verify(asked["request"])))
                code = 0
            except Exception:
                traceback.print_exc()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
