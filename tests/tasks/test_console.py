from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from tasks import console
from tasks.stages.quantize import _kept


def _now(epoch: int) -> SimpleNamespace:
    return SimpleNamespace(epoch=epoch, epochs=3, step=5, steps=10, loss=0.25, metric=0.9)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> io.StringIO:
    """What is shown; a terminal where the test's parameter says so."""
    text = io.StringIO()
    shown = Console(file=text, force_terminal=request.param, width=120, highlight=False)
    monkeypatch.setattr(console, "console", shown)
    return text


@pytest.mark.parametrize("screen", [True], indirect=True)
def test_terminal_shows_epochs_rate_time_left_and_metric(screen: io.StringIO) -> None:
    """Whoever watches sees how far it is, how fast, how long still, how good."""
    with console.progress("finetune", "accuracy") as show:
        assert show is not None
        show(_now(2))
    text = screen.getvalue()
    assert all(part in text for part in ("finetune", "epoch 2/3", "steps/s", "left", "accuracy 0.9", "loss 0.25"))


def test_a_narrow_terminal_loses_the_rate_not_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns are what most terminals have."""
    text = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=text, force_terminal=True, width=80, highlight=False))
    with console.progress("finetune", "accuracy") as show:
        assert show is not None
        show(_now(2))
    assert "accuracy 0.9" in text.getvalue() and "0:00:0" in text.getvalue() and "…" not in text.getvalue()


@pytest.mark.parametrize("screen", [False], indirect=True)
def test_logs_are_calm(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no terminal is: no control character, and a line a minute at most."""
    with console.progress("finetune", "accuracy") as show:
        assert show is not None
        show(_now(1))
        assert screen.getvalue() == ""
        monkeypatch.setattr(console, "CALM_SECONDS", -1.0)
        show(_now(2))
    with console.bar("trials", 2) as advance:
        advance("24.6x")
    text = screen.getvalue()
    assert "epoch 2/3  loss 0.25  accuracy 0.9" in text and "trials 1/2  24.6x" in text and "\x1b" not in text


@pytest.mark.parametrize("screen", [False], indirect=True)
def test_names_are_shown_as_they_are(screen: io.StringIO) -> None:
    """A layer called [red] is no colour, and a line break in a name no new line."""
    with console.bar("sensitivity", 1) as tell:
        tell("m.[red]\nx.weight")
    assert "sensitivity 1/1  m.[red] x.weight" in screen.getvalue()


@pytest.mark.parametrize("screen", [True], indirect=True)
def test_quiet_is_quiet(screen: io.StringIO) -> None:
    """-q leaves nothing but results and errors."""
    console.quiet()
    console.say("something")
    with console.progress("finetune", "accuracy") as show, console.bar("trials", 2) as advance:
        assert show is None
        advance("24.6x")
    assert screen.getvalue() == ""


@pytest.mark.parametrize("screen", [False], indirect=True)
def test_many_notes_are_no_wall(screen: io.StringIO) -> None:
    """A stage that has something to say about each of a hundred tensors says how much more there is, and where."""
    console.say_some("quantize", [f"bn{index}.running_var is [float16]" for index in range(100)])
    lines = screen.getvalue().splitlines()
    assert lines[0] == "quantize: bn0.running_var is [float16]"
    assert len(lines) == 9 and lines[-1] == "quantize: and 92 more like these, in report.html"


@pytest.mark.parametrize("screen", [False], indirect=True)
def test_long_lists_of_names_are_counted(screen: io.StringIO) -> None:
    """Of 44 tensors a line names three; lists of four, and numbers, stay as they are."""
    names = [f"blocks.{index}.weight" for index in range(44)]
    console.say_some("baseline", [f"zeros held in {', '.join(names)}; sharing in none", "a, b, c, d of 1, 2, 3, 4, 5"])
    assert screen.getvalue().splitlines() == [
        "baseline: zeros held in 44 names (blocks.0.weight, blocks.1.weight, blocks.2.weight, ...); sharing in none",
        "baseline: a, b, c, d of 1, 2, 3, 4, 5",
    ]


def test_tensors_of_one_reason_are_one_note() -> None:
    """Six tensors that are not rounded for one reason make one sentence."""
    notes = list(_kept({**dict.fromkeys("abcde", "float64 is not rounded"), "f": "holds NaN"}))
    assert notes == [
        "a, b, c and 2 more keep their precision: float64 is not rounded",
        "f keeps its precision: holds NaN",
    ]


def test_no_color_is_heeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """NO_COLOR takes the colours away, the words stay."""
    monkeypatch.setenv("NO_COLOR", "1")
    text = io.StringIO()
    Console(file=text, force_terminal=True).print("[yellow]tracking:[/] away")
    assert "tracking: away" in text.getvalue() and "\x1b[33m" not in text.getvalue()


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (834, "834 B"), (27100, "27.1 KB"), (1.07e6, "1.07 MB")])
def test_sizes_for_people(count: float, text: str) -> None:
    """Powers of 1,000, three digits."""
    assert console.size(count) == text
