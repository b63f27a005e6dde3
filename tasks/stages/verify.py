"""The last task: the file, decoded in a fresh process, against the weights that went in and on the test split."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.states import Completed, State

from deepcompression._atomic import written
from deepcompression.errors import InvariantError, RunError
from tasks.execution.keys import callables
from tasks.execution.run import Reference, Run
from tasks.execution.settings import plain
from tasks.execution.sources import changed
from tasks.execution.stage import TASK
from tasks.report import answers, states
from tasks.secrets import masked, sealed


@dataclass(frozen=True)
class Verified:
    """Results of the dense baseline and of the decoded file, and on which split: ``test`` or ``validation``.

    ``comparison``: whether the file's errors differ from the baseline's by more than chance; None where scores are
    not 0/1 or the test split was not read.
    """

    baseline: dict[str, Any]
    final: dict[str, Any]
    comparison: dict[str, Any] | None = None


@task(name="verify", **TASK)
@sealed
def verify(
    run: Run, label: str, baseline: Reference, source: Reference, encoded: Reference, path: str, test: bool = True
) -> State[Verified]:
    """Puts the file at ``path`` and proves it there.

    Args:
        run: the run.
        label: the task's name.
        baseline: the dense model.
        source: the weights that were encoded.
        encoded: the file.
        path: where the run's ``model.dcz`` goes.
        test: whether the test split is read; else the results are those of the validation split, which the decoded
            file, bit for bit what was measured there, has too.

    Raises:
        InvariantError: the decoded tensors differ from the encoded ones in a bit.
        RunError: the fresh process fails, or the run's code was changed meanwhile.
    """
    run.ready()
    with written(Path(path)) as file:
        file.write(run.store.object_path(encoded.object).read_bytes())
    _code_unchanged(run)
    answer = _in_fresh_process(
        {
            "file": path,
            "reference": str(run.store.object_path(source.object)),
            "baseline": str(run.store.object_path(baseline.object)),
            "baseline_edits": list(baseline.edits),
            "edits": list(source.edits) or None,
            "model": {"factory": run.model.factory, "kwargs": run.model.arguments()},
            "data": plain(run.data) if test else None,
            "step": plain(run.step),
            "metric": plain(run.metric),
            "compute": asdict(replace(run.compute(), evaluate_precision="float32")),
            "threads": run.threads,
            "python_path": list(run.python_path),
            "predictions": str(Path(run.folder) / answers.FILE),
        }
    )
    if not answer["identical"]:
        raise InvariantError(f"{path}: tensor {answer['differs']} decodes to other bits than were encoded")
    if not test:
        return _ended(Verified(_validated(run, baseline), _validated(run, source)))
    told = {part: answer[part] for part in ("baseline", "final", "comparison")}
    return _ended(Verified(**{part: {"split": "test", **one} if one else None for part, one in told.items()}))


def _ended(found: Verified) -> State[Verified]:
    return Completed(message=states.verified(found.baseline, found.final), data=found)


def _code_unchanged(run: Run) -> None:
    """The fresh process imports what lies on disk now, which must be what the stages ran."""
    if specs := changed(callables(run)):
        raise RunError(
            f"the code behind {', '.join(specs)} was changed while this run was under way: its stages ran what was "
            "there before; finished stages are kept, start again to run the present code"
        )


def _validated(run: Run, reference: Reference) -> dict[str, Any]:
    numbers = reference.numbers
    correct, total = numbers["val_correct"], numbers["val_total"]
    end = {"metric": numbers["val_metric"], "loss": numbers["val_loss"], "correct": correct, "total": total}
    if correct is not None:
        end |= {"accuracy": correct / total, "error": (total - correct) / total}
    return {**end, "higher_is_better": bool(run.metric_object().higher_is_better), "split": "validation"}


def _in_fresh_process(request: dict[str, Any]) -> dict[str, Any]:
    done = _started(request)
    if done.returncode:
        last = (masked(done.stderr).strip().splitlines() or ["no message"])[-1]
        raise RunError(f"verification in a fresh process failed with exit code {done.returncode}: {last}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def _started(request: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepcompression.measure.verification"]
    return subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=False)
