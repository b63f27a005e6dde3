"""What Prefect and MLflow cost a run: `python -m flows run` against the same work by calling the library.

`python tests/benchmarks/bench_orchestration.py`. Whole processes, imports and the fresh verifying process included; the
first run makes both databases, the others (median of three) find them. Each run has an empty store.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
name: bench
threads: 1
model: {{factory: "deepcompression.models:digits_net"}}
data: {{factory: "deepcompression.data:digits", validation: 0.15}}
train: {{epochs: 3}}
stages: [{{stage: prune, density: 0.2}}, {{stage: finetune, epochs: 1}}, {{stage: share, bits: 4}}, {{stage: encode}}]
store: {folder}/store-{number}
runs: {folder}/runs
tracking: {{uri: "sqlite:///{folder}/mlflow.db"}}
"""
DIRECT = """
import json, subprocess, sys, torch
from deepcompression import data, models, torch as files
from deepcompression.network import names as selection, state as structure
from deepcompression.training.problem import Problem
from deepcompression.pruning.prune import prune
from deepcompression.sharing.share import share
from deepcompression.structure.constraints import structured
from deepcompression.training.loop import train
from deepcompression.training.plan import Plan
from safetensors.torch import save_file

folder = sys.argv[1]
torch.set_num_threads(1)
splits = data.split_validation(data.digits(), 0.15)
problem = Problem(splits.train, splits.validation)
optimizer = {"factory": "torch.optim:AdamW", "kwargs": {"lr": 1e-3}}
model = models.digits_net()
train(model, problem, Plan(3, optimizer))
save_file(structure.plain_state(model), f"{folder}/baseline.safetensors")
table = selection.resolve(model, {"default": 0.2})
model.load_state_dict(prune(structure.plain_state(model), table).state)
train(model, problem, Plan(1, optimizer), structure=structured(table))
state = share(structure.plain_state(model), dict.fromkeys(table, 4)).state
files.save(state, f"{folder}/model.dcz")
save_file(state, f"{folder}/state.safetensors")
request = {
    "file": f"{folder}/model.dcz", "reference": f"{folder}/state.safetensors",
    "baseline": f"{folder}/baseline.safetensors",
    "model": {"factory": "deepcompression.models:digits_net", "kwargs": {}},
    "data": {"factory": "deepcompression.data:digits", "kwargs": {}},
    "step": None, "metric": None, "threads": 1, "python_path": [],
    "compute": {"device": "cpu", "precision": "float32", "channels_last": False},
}
subprocess.run(
    [sys.executable, "-m", "deepcompression.measure.verification"], input=json.dumps(request), text=True, check=True
)
"""


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of a process that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Prints the overhead of the first and of later runs."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT")}
        environment["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{folder}/prefect.db"
        times, direct = [], []
        for number in range(4):
            recipe = Path(folder) / f"{number}.yaml"
            recipe.write_text(RECIPE.format(folder=folder, number=number))
            times.append(seconds([sys.executable, "-m", "flows", "run", str(recipe), "-q"], environment))
            direct.append(seconds([sys.executable, "-c", DIRECT, folder], environment))
        plain = statistics.median(direct)
        later = statistics.median(times[1:])
        print(f"library called directly      {plain:5.1f} s")
        print(f"first run, new databases     {times[0]:5.1f} s, {times[0] - plain:5.1f} s more")
        print(f"later runs                   {later:5.1f} s, {later - plain:5.1f} s more")


if __name__ == "__main__":
    main()
