from __future__ import annotations

import math
import re
from pathlib import Path
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from tasks.report.pareto import Point, front, picture, spread_out

POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=30).map(
    lambda rows: [Point(number, size, metric / 10) for number, (size, metric) in enumerate(rows)]
)


@given(POINTS, st.booleans())
def test_nothing_beats_the_front_and_it_beats_or_equals_the_rest(points: list[Point], higher: bool) -> None:
    """Against the definition, pair by pair."""
    sign = 1 if higher else -1
    best = front(points, higher=higher)

    def beats(a: Point, b: Point) -> bool:
        gains = (b.file_bytes - a.file_bytes, sign * (a.metric - b.metric))
        return min(gains) >= 0 and max(gains) > 0

    assert not [one for one in best for other in points if beats(other, one)]
    for point in points:
        equal = [one for one in best if (one.file_bytes, one.metric) == (point.file_bytes, point.metric)]
        assert equal or any(beats(one, point) for one in best)


@given(POINTS, st.integers(1, 12))
def test_so_many_are_taken_with_both_ends(points: list[Point], count: int) -> None:
    """Never more than asked, the smallest and the best among them where two or more are."""
    best = front(points, higher=True)
    taken = spread_out(best, count)
    assert 1 <= len(taken) <= count and set(taken) <= set(best)
    assert best[-1] in taken and (count == 1 or best[0] in taken)


def test_picture_is_a_whole_svg(tmp_path: Path) -> None:
    """Points, front and test results are drawn; one trial alone is enough; equal input, equal bytes."""
    points = [Point(0, 900, 0.9), Point(1, 1200, 0.95), Point(2, 1500, 0.94)]
    result = {"name": "a<b>", "metric": "accuracy", "dense_val_metric": 0.96}
    tested = {1: {"file_bytes": 1200, "final": {"metric": 0.93}}}
    for shown in (points, points[:1]):
        picture(shown, front(shown, higher=True), tested, result, tmp_path / "p.svg")
        content = (tmp_path / "p.svg").read_bytes()
        assert ElementTree.fromstring(content).tag.endswith("svg")
        picture(shown, front(shown, higher=True), tested, result, tmp_path / "p.svg")
        assert (tmp_path / "p.svg").read_bytes() == content


def test_what_was_asked_for_and_what_was_taken_are_drawn(tmp_path: Path) -> None:
    """A budget's limit is a line, its file has a ring; matplotlib tells drawn words in comments."""
    points = [Point(1, 900, 0.9), Point(2, 1200, 0.95)]
    result = {"name": "a", "metric": "accuracy", "dense_val_metric": 0.96}
    picture(points, points, {}, result, tmp_path / "p.svg", taken=points[1], worst=0.94, most_bytes=1300)
    words = re.findall(r"<!-- (.*?) -->", (tmp_path / "p.svg").read_text())
    assert {"taken", "what was asked for, val accuracy", "what was asked for, bytes"} <= set(words)
    picture(points, points, {}, result, tmp_path / "p.svg")
    assert "taken" not in re.findall(r"<!-- (.*?) -->", (tmp_path / "p.svg").read_text())


def test_the_legend_names_what_is_drawn(tmp_path: Path) -> None:
    """No entry for trials beside the front where all are on it, as after many searches."""
    points = [Point(1, 900, 0.9), Point(2, 1200, 0.95), Point(3, 1300, 0.92)]
    result = {"name": "a", "metric": "accuracy", "dense_val_metric": 0.96}
    for shown in (points, points[:2]):
        picture(shown, front(shown, higher=True), {}, result, tmp_path / "p.svg")
        words = re.findall(r"<!-- (.*?) -->", (tmp_path / "p.svg").read_text())
        assert ("trial, validation" in words) == (len(shown) == 3) and "Pareto front, validation" in words


def test_the_front_is_told_below(tmp_path: Path) -> None:
    """Each trial of the front with its bytes and settings, as text; of many the first, and how many more."""
    points = [Point(number, 1000 * (number + 1), 0.9 + number / 1000) for number in range(20)]
    result = {"name": "s", "metric": "accuracy", "dense_val_metric": 0.99}
    told = {number: f"density {number}" for number in range(20)}
    picture(points, front(points, higher=True), {}, result, tmp_path / "p.svg", told=told)
    text = (tmp_path / "p.svg").read_text()
    assert "0:  1 KB, density 0" in text and "density 11" in text and "density 12" not in text
    assert "and 8 more of the front" in text


def test_what_is_not_a_number_is_on_no_front_and_in_no_picture(tmp_path: Path) -> None:
    """It beats nothing, however small its file; a picture is drawn all the same, even where nothing else is there."""
    points = [Point(0, 100, math.nan), Point(1, 900, 0.9), Point(2, 1200, math.inf)]
    assert front(points, higher=True) == [points[1]] and front(points[:1], higher=False) == []
    tested = {0: {"file_bytes": 100, "final": {"metric": math.nan}}}
    for shown, dense in ((points, 0.95), (points[:1], math.nan), (points[:1], None)):
        result = {"name": "a", "metric": "auc", "dense_val_metric": dense}
        picture(shown, front(shown, higher=True), tested, result, tmp_path / "p.svg", taken=shown[0], worst=math.nan)
        assert ElementTree.fromstring((tmp_path / "p.svg").read_bytes()).tag.endswith("svg")
