"""Eight runs that share their training and pruning: one sweep on two processes against eight separate commands.

The separate ones have a store each, as eight scripts would; and once more one store, so that they share stages too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
GRID = [(default, conv) for default in (2, 3, 4, 5) for conv in (4, 5)]


def _flows(words: list[str], environment: dict[str, str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "flows", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - started


def _places(folder: Path, store: str) -> dict[str, Any]:
    uri = f"sqlite:///{folder}/mlflow.db"
    return {"store": str(folder / store), "runs": str(folder / "runs"), "tracking.uri": uri}


def separate(folder: Path, environment: dict[str, str], shared: bool) -> float:
    """Seconds of eight commands, one after the other."""
    total = 0.0
    for number, (default, conv) in enumerate(GRID):
        places = _places(folder, "shared" if shared else f"store{number}")
        words = [f"{key}={value}" for key, value in places.items()]
        bits = [f"stages.share.bits.default={default}", f"stages.share.bits.conv*={conv}"]
        total += _flows(["run", "conf/digits.yaml", "-q", *words, *bits], environment)
    return total


def main() -> None:
    """Prints seconds and ratios."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        environment = {**os.environ, "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db"}
        environment.pop("PREFECT_API_URL", None)
        _flows(
            ["run", "conf/digits.yaml", "-q", *(f"{k}={v}" for k, v in _places(folder, "warm").items())], environment
        )
        changes = json.dumps(_places(folder, "sweep"))
        sweep = _flows(["sweep", "conf/sweeps/digits.yaml", "workers=2", f"overrides={changes}", "-q"], environment)
        print(f"sweep, two processes, three chosen ones tested  {sweep:6.1f} s")
        for shared in (False, True):
            seconds = separate(folder, environment, shared)
            kind = "one store for all" if shared else "a store each     "
            print(f"eight commands, {kind}              {seconds:6.1f} s   the sweep takes {sweep / seconds:.0%}")


if __name__ == "__main__":
    main()
