"""What docs/ says of the code is so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import draw_architecture
import pytest
from imports import ROOT, SOURCES, TOPS

from deepcompression.codec.edits import SINCE
from deepcompression.export import TARGETS
from deepcompression.pruning import criteria
from deepcompression.quantization.observers import OBSERVERS
from deepcompression.quantization.ranges import RANGES
from tasks.methods import METHODS
from tasks.stages import STAGES

ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")


def test_drawing_is_of_todays_imports() -> None:
    """Boxes and arrows of docs/architecture.svg are those of the code: `make architecture` draws them anew."""
    today = draw_architecture.lines(draw_architecture.arrows())
    assert draw_architecture.drawn_lines() == today, "run `make architecture`"


def test_drawing_shows_every_package_and_no_upward_arrow() -> None:
    """All subpackages are boxes, and nothing below knows what is above it."""
    of = draw_architecture.arrows()
    folders = {f"{path.parent.parent.name}/{path.parent.name}" for path in ROOT.glob("[dft]*/*/__init__.py")}
    assert folders - set(of) == set() and len(folders) > 20
    tops = {"deepcompression": 0, "tasks": 1, "flows": 2}
    height = {box: tops[box.split("/")[0]] for box in of}
    assert [(box, one) for box, others in of.items() for one in others if height[one] > height[box]] == []


def test_architecture_names_every_package_and_what_exists() -> None:
    """Each subpackage is described, and each path that is named exists."""
    for box in draw_architecture.arrows():
        if "/" in box and (ROOT / box).is_dir():
            assert f"`{box.split('/')[1]}`" in ARCHITECTURE or f"`{box}`" in ARCHITECTURE, box
    paths = set(re.findall(r"`((?:deepcompression|tasks|flows|tests|conf|docs)/[\w./-]*)`", ARCHITECTURE))
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_image_has_every_extra() -> None:
    """What a recipe may ask for, such as an export, runs in the container too; what is for developers and
    for training loops of others stays out.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (installed,) = re.findall(r'-e "\.\[([\w,]+)\]"', (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    assert set(installed.split(",")) == set(project["optional-dependencies"]) - {"dev", "docs", "lightning", "mmengine"}


def _tables() -> dict[str, Iterable[str]]:
    """What may stand in a recipe or a file, by how docs/methods.md writes it."""
    rankings = [
        name for key, table in vars(criteria).items() if key.isupper() and isinstance(table, dict) for name in table
    ]
    return {
        "stage: {}": STAGES,
        "methods: [{}]": METHODS,
        "criterion: {}": rankings,
        "export: [{}]": TARGETS,
        "kind: {}": SINCE,
        "observer: {}": [*OBSERVERS, "auto"],
        "range: {}": RANGES,
    }


def test_every_method_is_in_the_table() -> None:
    """What is in a list of the code is in docs/methods.md with its paper and file, and what is named there exists."""
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    words = set(re.findall(r"`([^`]+)`", text))
    wanted = [how.format(name) for how, names in _tables().items() for name in names]
    assert [one for one in wanted if one not in words] == []
    paths = [word for word in words if re.fullmatch(r"(deepcompression|tasks|flows|tests|conf|docs)/[\w./-]*", word)]
    assert [path for path in paths if not (ROOT / path).exists()] == [] and len(paths) > 15
    keys = {word for word in words if word.startswith(("stage:", "methods:", "criterion:", "export:", "kind:"))}
    assert keys - set(wanted) == set(), "these are in no list of the code"


def _blocks(kind: str) -> list[tuple[str, str]]:
    """Fenced blocks of docs/adding-a-method.md that a comment marks: <!-- kind: what -->."""
    text = (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8")
    return re.findall(rf"<!-- {kind}: (.+?) -->\n```\w+\n(.*?)```", text, re.DOTALL)


def _insert(path: Path, before: str, line: str) -> None:
    """The line in a file, behind the first line that begins so."""
    text = path.read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(before)}.*\n", text, re.MULTILINE)
    assert found, f"{path} has no line that begins with {before}"
    path.write_text(text[: found.end()] + line + text[found.end() :], encoding="utf-8")


RECIPES = """
import pytest, yaml
from flows.recipe.schema import Recipe
@pytest.mark.parametrize("text", {})
def test_recipe(text):
    factory = {{"factory": "deepcompression.models:digits_net"}}
    Recipe.model_validate({{"name": "r", "model": factory, "data": factory, **yaml.safe_load(text)}})
"""


def test_what_the_tutorial_adds_works(tmp_path: Path) -> None:
    """A copy of the project with the tutorial's files and lines passes their tests, and reads its recipes."""
    for top in TOPS:
        shutil.copytree(ROOT / top, tmp_path / top, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in _blocks("file"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    for where, line in _blocks("line"):
        _insert(tmp_path / where.split()[0], where.split()[1], line)
    for where, line in _blocks("import"):
        _insert(tmp_path / where, "from deepcompression.errors import", line)
    (tmp_path / "tests/test_recipes.py").write_text(RECIPES.format([text for _, text in _blocks("recipe")]))
    own = {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "tests"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert f"{sum(text.count('def test_') for _, text in _blocks('file')) + 3} passed" in done.stdout


PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_pages_lead_to_exists(page: Path) -> None:
    """Links, paths of the repository and verbs of the Makefile; but for files that the tutorial makes."""
    text = page.read_text(encoding="utf-8")
    own = {where.split()[0] for kind in ("file", "line") for where, _ in _blocks(kind)}
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    assert [link for link in links if link and not (page.parent / link).exists()] == []
    paths = set(
        re.findall(r"(?<![\w/.-])((?:deepcompression|tasks|flows|tests|conf|docs)/[\w./-]*\w)(?![\w/<{*])", text)
    )
    assert [path for path in sorted(paths - own) if not (ROOT / path).exists()] == []
    verbs = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)(?=`|$| +[#A-Z\[])", text, re.MULTILINE)) - set(verbs) == set()


def test_moved_names_are_where_the_changelog_says() -> None:
    """What stands in the right column of its table can be imported."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^  \| `[\w.]+` \| `(deepcompression[\w.]+)`", text, re.MULTILINE)
    assert len(rows) > 10
    for module, _, name in (row.rpartition(".") for row in rows):
        text = SOURCES[module].read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {name}\b", text, re.MULTILINE), f"{module}.{name}"
