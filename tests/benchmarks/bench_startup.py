"""How long the imports and command lines take to start: whole processes, medians of nine.

`python tests/benchmarks/bench_startup.py`
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import deepcompression": ["-c", "import deepcompression"],
    "import deepcompression.codec.file": ["-c", "import deepcompression.codec.file"],
    "dcz --help": ["-m", "deepcompression.cli.main", "--help"],
    "python -m flows --help": ["-m", "flows", "--help"],
}


def main() -> None:
    """Prints one line a command."""
    for name, words in COMMANDS.items():
        times = []
        for _ in range(9):
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
            times.append(time.perf_counter() - started)
        print(f"{name:28} {statistics.median(times):6.3f} s")


if __name__ == "__main__":
    main()
