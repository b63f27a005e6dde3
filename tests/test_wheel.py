"""What is installed is what stands in the tree: three packages, each module and each file of theirs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("setuptools", "77")
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("deepcompression", "flows", "tasks")
SITES = [one for one in sys.path if Path(one).name == "site-packages"]
IMPORTED = """
import importlib, sys
from pathlib import Path
here = Path(sys.argv[1])
failed = []
for name in sys.argv[3:]:
    try:
        path = Path(importlib.import_module(name).__file__)
        assert path.is_relative_to(here), f'{path} is not installed'
    except BaseException as error:
        if name.rpartition('.')[2].startswith('in_') and ": needs " in str(error) and "pip install" in str(error):
            continue  # a trainer's, whose package is an extra
        failed.append(f'{name}: {type(error).__name__}: {error}')
import deepcompression
assert deepcompression.load(sys.argv[2])
print(failed)
"""


def _files(*folders: str) -> set[str]:
    """Paths of all files of packages in the tree, without what Python compiled."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", *arguments, "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, "--disable-pip-version-check"], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of a copy of the tree, without a network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    return next(out.glob("*.whl"))


def _python(installed: Path, *arguments: str) -> str:
    """A fresh process elsewhere: what is installed, the packages beside this one, and nothing of the tree."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(installed), *SITES])}
    command = [sys.executable, "-S", "-s", "-P", *arguments]  # without site: its .pth files lead back to the tree
    done = subprocess.run(command, cwd=installed.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_holds_every_file_of_the_three_packages(wheel: Path) -> None:
    """A subpackage, a template, the format's text or the C decoder that is not declared would be missed by users."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == _files(*PACKAGES)


def test_what_is_installed_works_away_from_the_tree(wheel: Path, tmp_path: Path) -> None:
    """Every module imports, a file decodes, and the workflow's command line answers: all from what is installed."""
    pytest.importorskip("prefect")
    installed = tmp_path / "installed"
    _pip("install", "--target", str(installed), str(wheel))
    modules = sorted(
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        for path in _files(*PACKAGES)
        if path.endswith(".py")
    )
    golden = str(ROOT / "tests" / "golden" / "v1-huffman.dcz")
    assert _python(installed, "-c", IMPORTED, str(installed), golden, *modules).strip().endswith("[]")
    assert "compare" in _python(installed, "-m", "flows", "--help")
    command = str(installed / "bin" / "deep-compression")  # the same, in any folder
    assert "python -m" not in _python(installed, command, "run", "-h") and "deep-compression new" in _python(
        installed, command, "-h"
    )
    assert not list(installed.rglob("artifacts"))
