"""Looking a stage up in a local store that holds 10,000 results: found, and not found; milliseconds, median of 200."""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.storage.store import Store

RESULTS, TIMES = 10_000, 200


def median_ms(work: Callable[[], Any]) -> float:
    """Milliseconds of one call, median."""
    times = []
    for _ in range(TIMES):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def main() -> None:
    """Prints one line a case."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        (Path(folder) / "keys").mkdir()
        (Path(folder) / "objects").mkdir()
        entry = {"object": "o", "object_bytes": 4 * 10**6, "numbers": {str(n): n for n in range(40)}}
        (Path(folder) / "objects" / "o").write_bytes(bytes(4 * 10**6))
        for number in range(RESULTS):
            (Path(folder) / "keys" / f"{number:064d}.json").write_text(json.dumps(entry))
        print(f"found      {median_ms(lambda: store.find(f'{7:064d}')):.3f} ms")
        print(f"not found  {median_ms(lambda: store.find('none')):.3f} ms")


if __name__ == "__main__":
    main()
