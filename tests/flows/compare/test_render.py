"""A comparison as table, HTML, CSV, LaTeX and JSON."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from made_runs import csv_rows, entry_of, five_runs, run_of, scored

from flows.compare.compare import Comparison, Entry, compare, render, show


@pytest.fixture
def seeds() -> Comparison:
    """Three seeds of one recipe and two of another."""
    return five_runs()


@pytest.mark.parametrize(("higher", "best"), [(True, 1), (False, 0)])
def test_other_metrics_keep_their_name_number_and_direction(higher: bool, best: int) -> None:
    """Without 0/1 scores there are no percent and no points, and the better one is the metric's own choice."""
    found = compare(
        [
            entry_of("a", run_of("a", **scored(31, 30.2, higher))),
            entry_of("b", run_of("b", **scored(31, 30.45, higher)), stages__2__bits=4),
        ]
    )
    word = "higher" if higher else "lower"
    assert f"at +0.2500 test psnr (30.2000 → 30.4500; {word} is better)" in found.sentences[1]
    lines = render(found, "latex").splitlines()
    cells = next(line for line in lines if line.startswith("test psnr, file")).split("&")[1:]
    assert ["textbf" in cell for cell in cells] == [index == best for index in range(2)]


BROKEN: list[dict[str, Any]] = [
    {},
    {"seed": 1, "runs": []},
    {"baseline": None, "final": None, "stages": None, "seed": None},
    run_of("x", 0, math.nan),
    run_of("x", math.inf, math.inf, stages=[{}]),
    {"runs": [run_of("x", math.inf, math.nan), run_of("y", -math.inf, seed=1), {}]},
]


@pytest.mark.parametrize("form", ["table", "html", "csv", "latex", "json"])
@pytest.mark.parametrize("broken", BROKEN)
def test_what_is_missing_or_not_finite_does_not_stop_the_rest(form: Any, broken: dict[str, Any]) -> None:
    """Old, foreign and diverged summaries come out with gaps, first or not, and JSON stays JSON."""
    for order in (1, -1):
        found = compare([Entry("b", broken, {}), entry_of("a")][::order])
        text = render(found, form)
        assert "8,601" in text or "8601" in text
        if form == "json":
            assert len(json.loads(text, parse_constant=pytest.fail)["groups"]) == 2


def test_csv_is_plain() -> None:
    """RFC 4180: CR LF, quoted where needed, the same columns in each line, numbers without signs of thousands."""
    name = 'a "quoted", name'
    found = compare([entry_of(name), entry_of("b", stages__0__density={"conv1": 0.5, "default": 0.1})])
    assert render(found, "csv").count("\r\n") == 3
    rows = csv_rows(found)
    assert rows[0]["run"] == name and rows[0]["file_bytes"] == "8601" and rows[0]["file_bytes_sd"] == ""
    assert rows[1]["recipe.stages.prune.density.default"] == "0.1" and float(rows[0]["change"]) == pytest.approx(
        1 / 360
    )
    assert rows[0]["split"] == "test" and rows[0]["higher_is_better"] == "false" and None not in rows[0]


def test_json_has_everything(seeds: Comparison) -> None:
    """Every value of every seed, the changed settings with their types, and the words."""
    found = json.loads(render(seeds, "json"))
    assert found["reference"] == "a0 and 2 more" and found["changed"] == ["stages.share.bits"]
    assert [group["recipe"] for group in found["groups"]] == [{"stages.share.bits": 5}, {"stages.share.bits": 4}]
    assert found["groups"][0]["results"]["file_bytes"]["values"] == [8600, 8640, 8680]
    assert found["sentences"] == list(seeds.sentences)


class _Page(HTMLParser):
    """Tags, addresses and table cells of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href", "srcset", "action")]


def test_html_stands_alone_and_is_escaped() -> None:
    """Nothing is fetched, nothing that a recipe or a name says becomes markup, both colour schemes are there."""
    evil = '<img src=x onerror="alert(1)">'
    text = render(compare([entry_of(evil), entry_of("b", train__lr=evil)]), "html")
    page = _Page()
    page.feed(text)
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert all(one and one.startswith("#") for one in page.addresses)
    assert "prefers-color-scheme: dark" in text and "http" not in text.replace("http-equiv", "")
    assert "aria-sort" in text


def test_html_has_results_first_and_a_column_for_each_of_few_runs() -> None:
    """Up to six runs stand side by side, more below each other; a picture numbers them."""
    found = [entry_of(f"r{i}", run_of(f"r{i}", 8000 + i, 2 + i), train__epochs=i) for i in range(7)]
    few, many = (render(compare(found[:count]), "html") for count in (6, 7))
    assert few.index("file bytes") < few.index("seconds</th>") < few.index("train.epochs") < few.index("In words")
    assert few.count('<table class="side">') == 1 and many.count('<table class="rows">') == 2
    assert "6 runs by bytes and test error" in few and "<svg" in many
    equal = render(compare([entry_of("a"), entry_of("b", train__epochs=9)]), "html")
    assert ">1, 2<" in equal


def test_html_parts_runs_on_unlike_data() -> None:
    """Those on the same data are compared with each other, whatever the first run learnt from."""
    data = {"data__factory": "mine:other"}
    entries = [
        entry_of("a"),
        entry_of("b", **data),
        entry_of("c", train__epochs=9),
        entry_of("d", train__epochs=8, **data),
    ]
    found = compare(entries)
    assert [[one.name for one in part.groups] for part in found.parts] == [["a", "c"], ["b", "d"]]
    assert found.parts[1].changed == ("train.epochs",) and "not comparable" not in " ".join(found.parts[1].sentences)
    text = render(found, "html")
    assert text.count("<section>") == 2 and "unlike data" in text
    assert compare(entries[:1]).parts == () and "unlike data" not in render(compare(entries[::2]), "html")


def test_html_leads_to_reports(tmp_path: Path) -> None:
    """Where a run's folder lies here, its report is one click away."""
    (tmp_path / "report.html").write_text("x")
    text = render(compare([entry_of("a", {**run_of("a"), "folder": str(tmp_path)}), entry_of("b")]), "html")
    assert text.count(f'href="{(tmp_path / "report.html").as_uri()}"') == 1


def test_latex_escapes_and_marks_the_best() -> None:
    """Signs that TeX takes for commands are printed, the smaller file and the smaller error are bold."""
    nasty = {"train__lr": -1, "train__schedule": "{x} #1 $ ^ ~ \\end"}
    text = render(compare([entry_of("a_b 50% R&D"), entry_of("b", run_of("b", 7904, 2), **nasty)]), "latex")
    assert r"a\_b 50\% R\&D" in text and r"\{x\} \#1 \$ \textasciicircum{} \textasciitilde{}" in text
    assert r"\textbackslash{}end" in text and "$-$1" in text and text.count(r"\toprule") == 1
    bold = re.findall(r"\\textbf\{(.*?)\}", text)
    assert bold == ["7,904", "26.8x", r"0.56 \%"]


def _compiled(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    head = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}"
    (folder / "t.tex").write_text(f"{head}\n{text}\n\\end{{document}}\n", encoding="utf-8")
    words = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "t.tex"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
@pytest.mark.parametrize("count", [2, 9])
def test_latex_compiles(count: int, tmp_path: Path) -> None:
    """A table of few and of many runs is valid LaTeX and not wider than the page."""
    names = ["a_b 50% R&D {x} #1 $ ^ ~ \\end <|>", *(f"digits-20261121-104632-{i:04}" for i in range(1, count))]
    entries = [entry_of(name, train__epochs=i, stages__0__density=0.1 + i / 100) for i, name in enumerate(names)]
    done = _compiled(render(compare(entries), "latex"), tmp_path)
    assert done.returncode == 0 and "Overfull" not in done.stdout, done.stdout[-2000:]


@pytest.mark.parametrize("count", [2, 4, 9])
@pytest.mark.parametrize("width", [30, 80, 160])
def test_table_fits_and_loses_nothing(
    width: int, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal of any width no line of the table is longer than it, and each cell is there to its last sign."""
    monkeypatch.setenv("COLUMNS", str(width))
    names = [f"digits-20261121-104632-{i:04}" for i in range(count)]
    show(compare([entry_of(name, run_of(name, 80000 + i), train__epochs=i) for i, name in enumerate(names)]))
    lines = [line for line in capsys.readouterr().out.splitlines() if line[:1] in "┏┃┡│├└"]
    assert max(map(len, lines)) <= width
    assert all(f"80,{i:03}" in "\n".join(lines) for i in range(count)) and "…" not in "".join(lines)
    joined = re.sub(r"[\s│┃]", "", "".join(lines))
    assert width == 30 or count > 2 or all(name[-4:] in joined for name in names)


def test_a_pipe_gets_whole_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a terminal a run is one line, so that grep finds it whole."""
    monkeypatch.delenv("COLUMNS", raising=False)
    show(compare([entry_of(f"digits-20261121-104632-{i:04}", train__epochs=i) for i in range(9)]))
    line = next(line for line in capsys.readouterr().out.splitlines() if "-0003" in line)
    assert "8,601" in line and "test error" not in line and line.endswith("│")
