"""Where runs lie, by how the command was typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tasks.root import project_root

HERE = Path(__file__).resolve().parents[2]
ASKED = """
import os, sys
sys.argv[0] = sys.argv.pop(1)
from flows.__main__ import main
from flows.folders import LOCAL_RUNS, below_root
try:
    main()
except SystemExit as ended:
    print(ended.code, LOCAL_RUNS, below_root("artifacts/store"), os.environ.get("DEEPCOMPRESSION_ROOT"))
"""


def test_what_is_said_goes_before_the_command_and_that_before_the_clone(tmp_path: Path) -> None:
    """A module of a clone works in the clone; the installed command, also of a clone, where it is typed."""
    (tmp_path / "pyproject.toml").touch()
    clone, elsewhere = tmp_path / "tasks", tmp_path / "elsewhere"
    assert project_root(clone, elsewhere, "/x/flows/__main__.py") == tmp_path
    assert project_root(elsewhere / "tasks", elsewhere, "/x/flows/__main__.py") == elsewhere
    for typed in ("/x/bin/deep-compression", "deep-compression.exe"):
        assert project_root(clone, elsewhere, typed) == elsewhere
    assert project_root(clone, elsewhere, "deep-compression", "mine") == elsewhere / "mine"
    assert project_root(clone, elsewhere, "helper.py", str(tmp_path / "own")) == tmp_path / "own"


def test_the_installed_command_of_a_clone_leaves_the_clone_alone(tmp_path: Path) -> None:
    """Run, store and what it starts are of the folder where it is typed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}

    def told(typed: str) -> list[str]:
        command = [sys.executable, "-c", ASKED, typed, "--version"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.strip().splitlines()[-1].split(" ")

    assert told("/x/deep-compression") == ["0", *(f"{tmp_path}/artifacts/{one}" for one in ("runs", "store")),
                                           str(tmp_path)]  # fmt: skip
    assert told("flows") == ["0", *(f"{HERE}/artifacts/{one}" for one in ("runs", "store")), "None"]
