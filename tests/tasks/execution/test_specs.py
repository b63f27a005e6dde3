"""Callables that a recipe names, and the revision that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tasks.execution.specs import factories_in, specs_in
from tasks.machine.revision import git_revision

CONFIG = {
    "stage": "mine.stage:run",
    "train": {"optimizer": {"factory": "torch.optim:SGD", "kwargs": {"hook": "mine.hooks:one"}}, "note": "at 12:30"},
    "parts": [{"act": "mine.net:act"}, "no code: at all"],
    "density": {"type:Conv2d": 0.5, "type:Linear & mine.choose:large": 0.2, "min_size:10": 1},
}


def test_every_text_that_names_code_is_found() -> None:
    """Arguments, lists and keys that choose tensors may name code, too; times, sentences and classes are none."""
    expected = ["mine.stage:run", "torch.optim:SGD", "mine.hooks:one", "mine.net:act", "mine.choose:large"]
    assert list(specs_in(CONFIG)) == expected


def test_what_a_stage_calls_itself() -> None:
    """What the check imports: a stage's own callable and its factories, not what only their arguments name."""
    assert list(factories_in(CONFIG)) == ["mine.stage:run", "torch.optim:SGD"]
    assert list(factories_in({"stage": "prune", "density": 0.3})) == []


def test_a_revision_is_that_of_a_clone_of_this_project(tmp_path: Path) -> None:
    """Installed below somebody's own repository, their revision is not told as ours."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "site-packages").mkdir()
    assert git_revision(tmp_path / "site-packages") == ""
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    subprocess.run(["git", *identity, "commit", "-q", "--allow-empty", "-m", "one"], cwd=tmp_path, check=True)
    assert len(git_revision(tmp_path)) == 40
