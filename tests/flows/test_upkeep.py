from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.core import TyperCommand

from deepcompression.errors import RecipeError
from flows.compress import compress
from flows.upkeep import byte_count, seconds
from flows.verbs import keeping

ROOT = Path(__file__).resolve().parents[2]
Tiny = Callable[..., dict[str, Any]]


def test_times_and_sizes_are_read() -> None:
    """As people write them; anything else is refused by name."""
    assert (seconds("90m"), seconds("30d"), seconds("1.5 h")) == (5400, 30 * 86400, 5400)
    assert (byte_count("10GB"), byte_count("500 mb"), byte_count("7B")) == (10**10, 5 * 10**8, 7)
    for read, word in ((seconds, "soon"), (seconds, "3"), (byte_count, "ten"), (byte_count, "10 GiB")):
        with pytest.raises(RecipeError, match=word):
            read(word)


def test_a_bare_runs_means_the_runs_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """And without any word the command shows the store."""
    monkeypatch.setattr(TyperCommand, "parse_args", lambda self, ctx, args: args)
    command = keeping.BareRuns("store")
    for words, told in (
        ([], []),
        (["--runs"], ["--delete-runs"]),
        (["--runs", "--older", "3d"], ["--delete-runs", "--older", "3d"]),
        (["--runs", "folder"], ["--runs", "folder"]),
    ):
        assert command.parse_args(None, words) == told


def _flows(*words: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "flows", *words]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "COLUMNS": "100"}, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_store_shows_and_prunes_and_spares_the_champion(tiny: Tiny, tmp_path: Path, s3: str) -> None:
    """In S3: what two runs left, then without the one that is no champion."""
    store = f"{s3}/store"
    recipe = tiny(train={"epochs": 1}, stages=[{"stage": "prune", "density": 0.5}], store=store)
    champion = compress({**recipe, "promote": {"model": "m", "min_ratio": 1}})
    assert champion["promotion"]["promoted"], champion["promotion"]
    other = compress({**recipe, "seed": 7})
    uri = recipe["tracking"]["uri"]
    code, out, err = _flows("store", "--store", store)
    assert code == 0 and "baseline" in out and "all" in out and len(out.splitlines()) > 5, err
    asked = ["store", "--store", store, "--runs", str(tmp_path / "none"), "--tracking-uri", uri, "--gone"]
    code, _, err = _flows(*asked, "--dry-run")
    assert code == 0 and "would remove 3 results" in err and "3 champion" in err, err
    code, _, err = _flows(*asked)
    assert code == 0 and "removed 3 results" in err, err
    again = compress(recipe)
    assert again["reused"] == ["baseline", "prune", "encode"]
    assert compress({**recipe, "seed": 7})["file_bytes"] == other["file_bytes"]  # made again, not lost for good


def test_the_store_is_not_pruned_where_champions_are_unknown(tmp_path: Path) -> None:
    """A registry that does not answer could have a champion there: nothing is removed."""
    code, _, err = _flows("store", "--store", str(tmp_path), "--older", "0s", "--tracking-uri", "http://127.0.0.1:9")
    assert code == 1 and "champions" in err and len(err.strip().splitlines()) == 1, err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["compare"], "exactly one of these"),
        (["compare", "--last", "3", "--format", "pdf", "--runs", "nowhere"], "no finished run"),
        (["rerun", "no-such-run"], "no-such-run"),
        (["sync", "no-such-run"], "no-such-run"),
        (["store", "--store", "nonsense://x"], "nonsense://x"),
        (["sweep", "conf/digits.yaml"], "digits.yaml"),
        (["serve", "conf/digits.yaml"], "digits.yaml"),
    ],
)
def test_wrong_words_are_one_line(words: list[str], part: str) -> None:
    """Every verb says what was wrong, without a traceback, with a non-zero exit."""
    code, out, err = _flows(*words)
    assert code in (1, 2) and out == "" and len(err.strip().splitlines()) == 1 and part in err, err
