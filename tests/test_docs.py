"""What docs/ says of the code is so."""

from __future__ import annotations

import re
from collections.abc import Iterable

import draw_architecture
from imports import ROOT

from deepcompression.codec.edits import SINCE
from deepcompression.pruning import criteria
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


def _tables() -> dict[str, Iterable[str]]:
    """What may stand in a recipe or a file, by how docs/methods.md writes it."""
    rankings = [
        name for key, table in vars(criteria).items() if key.isupper() and isinstance(table, dict) for name in table
    ]
    return {
        "stage: {}": STAGES,
        "methods: [{}]": METHODS,
        "criterion: {}": rankings,
        "kind: {}": SINCE,
    }


def test_every_method_is_in_the_table() -> None:
    """What is in a list of the code is in docs/methods.md with its paper and file, and what is named there exists."""
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    words = set(re.findall(r"`([^`]+)`", text))
    wanted = [how.format(name) for how, names in _tables().items() for name in names]
    assert [one for one in wanted if one not in words] == []
    paths = [word for word in words if re.fullmatch(r"(deepcompression|tasks|flows|tests|conf|docs)/[\w./-]*", word)]
    assert [path for path in paths if not (ROOT / path).exists()] == [] and len(paths) > 15
    keys = {word for word in words if word.startswith(("stage:", "methods:", "criterion:", "kind:"))}
    assert keys - set(wanted) == set(), "these are in no list of the code"
