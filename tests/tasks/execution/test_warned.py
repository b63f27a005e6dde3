"""Warnings reach a person: the console at once, and the run's folder."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tasks import console
from tasks.execution.warned import kept, listen, warn, warned


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the console was given."""
    lines: list[str] = []
    monkeypatch.setattr(console.console, "print", lambda text, **_: lines.append(text))
    return lines


def test_what_the_library_warns_of_is_said_and_kept(tmp_path: Path, said: list[str]) -> None:
    """A warning of any of our loggers, in a stage, is said with the stage's label and lies in the folder, once."""
    with warned(tmp_path, "prune") as texts:
        for _ in range(2):
            logging.getLogger("deepcompression.training.loop").warning("%s cannot\n be used", "x.pt")
        logging.getLogger("deepcompression.training.loop").info("nothing")
        logging.getLogger("elsewhere").warning("not ours")
    assert texts == ["x.pt cannot be used"]
    assert said == ["[yellow]warning:[/] prune: x.pt cannot be used"]
    assert kept(tmp_path) == [{"stage": "prune", "text": "x.pt cannot be used"}]


def test_outside_of_a_stage_a_warning_is_said_too(said: list[str]) -> None:
    """Nothing that the library warns of is swallowed, and nothing is said twice."""
    listen()
    listen()
    logging.getLogger("tasks.storage.store").warning("[odd] text")
    assert said == ["[yellow]warning:[/] \\[odd] text"]


def test_a_killed_line_and_a_read_only_folder_lose_nothing_else(tmp_path: Path, said: list[str]) -> None:
    """Half a line at the end is passed over; where nothing can be kept, it is at least said."""
    warn(tmp_path, "share", "first")
    (tmp_path / "warnings.jsonl").open("a").write('{"stage": "sha')
    assert kept(tmp_path) == [{"stage": "share", "text": "first"}]
    warn(tmp_path / "gone", "share", "second")
    assert len(said) == 2 and kept(tmp_path / "gone") == []
