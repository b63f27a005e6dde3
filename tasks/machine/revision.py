"""Which revision of this project runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tasks.root import CODE


def git_revision(root: Path = CODE) -> str:
    """The revision of the clone at ``root``; empty where it is none: installed, even below somebody's repository."""
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
