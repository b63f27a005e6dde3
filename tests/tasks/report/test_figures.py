from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from tasks.report import figures, pareto, sensitivity, style

STAGES = [
    {"stage": "baseline", "size_bytes": 4100, "compression_ratio": 0.98},
    {"stage": "$\\frac{1}<b>", "size_bytes": 900, "compression_ratio": 4.4},
    {"stage": "\x00encode", "size_bytes": 20, "compression_ratio": 200.0},
]
TENSOR = {"name": "$\\bad<b>\x01" + "x" * 80, "bytes": 17, "positions": 6, "values": 4, "codebook": 4, "table": 3}
INSPECTION: dict[str, Any] = {"file_bytes": 20, "tensors": [TENSOR]}
HISTORY = [{"epoch": epoch, "loss": 10.0**-epoch, "val_loss": np.nan, "val_m": np.inf} for epoch in range(3)]


def _pictures() -> list[str]:
    values = np.linspace(-1, 1, 999)
    book = np.linspace(-1, 1, 1000)
    return [
        figures.waterfall("a", 4000, STAGES),
        figures.bytes_by_tensor("b", INSPECTION),
        figures.weights("c", "w", values, {}),
        figures.weights("d", "w", values[:1], {"share": book, "quantize": book + 0.1}),
        figures.curves("e", "prune", HISTORY, "m", 1),
        figures.curves("f", "prune", [{"epoch": 0}], "m", None),
    ]


def test_pictures_are_svg_that_takes_the_page_s_colour() -> None:
    """Well-formed, text as text, neutral ink as currentColor, all ids with the key and every reference met."""
    for key, picture in zip("abcdef", _pictures(), strict=True):
        root = ElementTree.fromstring(picture)
        ids = [one.attrib["id"] for one in root.iter() if "id" in one.attrib]
        assert len(ids) == len(set(ids)) and all(one.startswith(f"{key}-") for one in ids)
        assert set(re.findall(r'(?:url\(|href=")#([^)"]+)', picture)) <= set(ids)
        assert "currentColor" in picture and style.INK not in picture and "http" not in picture
        assert list(root.iter("text")) and "font-family" not in picture


def test_pictures_do_not_differ_from_run_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same input gives the same bytes, whatever the user's matplotlib settings, which stay as they are."""
    first = _pictures()
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "#ff0000")
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    before = dict(matplotlib.rcParams)
    assert _pictures() == first and dict(matplotlib.rcParams) == before


def test_names_are_drawn_as_they_are() -> None:
    """Dollar signs are no mathematics, markup is text, what XML cannot hold is replaced, long names keep their end."""
    texts = [one.text or "" for one in ElementTree.fromstring(_pictures()[0]).iter("text")]
    assert "$\\frac{1}<b>" in texts and "\ufffdencode" in texts
    name = next(
        one.text or "" for one in ElementTree.fromstring(_pictures()[1]).iter("text") if "…" in (one.text or "")
    )
    assert name.startswith("$\\bad<b>\ufffd") and name.endswith("xxx") and len(name) == 30


def test_waterfall_tells_every_step() -> None:
    """Beside each stage stand what was left, the factor of the step and the factor so far; one that grew is marked."""
    picture = _pictures()[0]
    texts = [one.text for one in ElementTree.fromstring(picture).iter("text")]
    assert {"4.1 KB", "÷0.98", "900 B", "÷4.56", "4.4x", "20 B", "÷45.00", "200.0x"} <= set(texts)
    assert picture.lower().count(figures.VERMILION.lower()) == 1


def test_a_metric_that_stays_has_one_tick() -> None:
    """An axis around a constant accuracy would go beyond 1; one that changes has its ticks."""
    for metrics, one in (((0.9954, 0.9954), True), ((0.9, 0.9954), False)):
        history = [{"epoch": epoch, "loss": 1.0, "val_m": metric} for epoch, metric in enumerate(metrics)]
        texts = [
            text.text for text in ElementTree.fromstring(figures.curves("e", "s", history, "m", None)).iter("text")
        ]
        assert ("0.9954" in texts) == one


def test_many_centroids_stay_few_marks() -> None:
    """16-bit codebooks do not swell the page."""
    book = np.linspace(-1, 1, 65_536)
    assert len(figures.weights("a", "w", book, {"share": book, "quantize": book})) < 200_000


def test_bytes_by_stage_is_a_file_of_its_own(tmp_path: Path) -> None:
    """A standing SVG with both pictures, the same bytes each time."""
    for name in ("one.svg", "two.svg"):
        figures.bytes_by_stage(STAGES[:1], INSPECTION, tmp_path / "new" / name)
    one, two = ((tmp_path / "new" / name).read_bytes() for name in ("one.svg", "two.svg"))
    assert one == two and one.startswith(b"<?xml")


def test_sensitivity_tells_tensors_apart(tmp_path: Path) -> None:
    """Every named tensor has a look of its own and stands in the legend; many more than that are drawn too."""
    tensor = {"weights": 9, "density": 1.0, "by_bits": [{"bits": 2, "metric": 0.4, "loss": 1.0}]}
    tensor["by_density"] = [{"density": 0.1, "metric": 0.5, "loss": 1.0}]
    for count in (0, 1, 28, 60):
        tensors = [{**tensor, "name": f"t{number}$<", "weights": number} for number in range(count)]
        curves = {"base": {"metric": 0.9, "loss": 0.1}, "samples": 10, "tensors": tensors}
        for name in ("one.svg", "two.svg"):
            sensitivity.sensitivity(curves, "accuracy", tmp_path / name)
        picture = (tmp_path / "one.svg").read_bytes()
        assert picture == (tmp_path / "two.svg").read_bytes()
        texts = re.findall(r"<!-- (.*?) -->", picture.decode())  # text is drawn as shapes; matplotlib tells it beside
        shown = {one for one in texts if one.startswith("t") and one.endswith("$&lt;")}
        assert shown == {f"t{number}$&lt;" for number in range(max(count - 28, 0), count)} and "unchanged" in texts
    assert (
        len(sensitivity.LINES) == len(set(sensitivity.LINES))
        and len(sensitivity.LINES) * len(sensitivity.MARKERS) == 28
    )


def test_centroids_are_followed_though_units_change_places() -> None:
    """Rounded values belong to the centroids that they were, by place; after a reordering by rank."""
    shared = np.array([0.5, 0.0, -1.0, 0.5, 2.0])
    rounded = np.array([0.25, 0.0, -1.5, 0.25, 2.5])
    for state in (rounded, rounded[[1, 4, 0, 2, 3]]):
        before, after = figures._codebooks([shared, state])
        assert before.tolist() == [-1.0, 0.5, 2.0] and after.tolist() == [-1.5, 0.25, 2.5]


def test_pictures_leave_out_what_is_not_a_number(tmp_path: Path) -> None:
    """A search and curves with NaN, or with the null that stands for it in the store, are drawn without it."""
    steps = [
        {"number": place, "file_bytes": 100 * place, "val_metric": metric, "kept": metric == 0.9}
        for place, metric in enumerate((np.nan, 0.9, np.inf), 1)
    ]
    outcome = {"steps": steps, "dense_val_metric": 0.95, "chosen": 2, "metric": "auc"}
    assert ElementTree.fromstring(pareto.tradeoff("t", outcome)).tag == "svg"
    assert pareto.tradeoff("t", {**outcome, "chosen": 1}) == ""
    points = [{"density": 0.5, "bits": 4, "metric": None}, {"density": 0.2, "bits": 3, "metric": np.nan}]
    tensor = {"name": "a", "weights": 5, "density": 1.0, "by_density": points, "by_bits": points}
    sensitivity.sensitivity({"base": {"metric": None}, "tensors": [tensor]}, "auc", tmp_path / "s.svg")
    assert ElementTree.fromstring((tmp_path / "s.svg").read_bytes()).tag.endswith("svg")


@pytest.mark.parametrize("values", [[0.5, 0.9, 1.0], [0.25, 0.25, 0.25], [math.nan, 0.9, 0.95]])
def test_shares_end_at_one_and_one_sample_has_a_width(values: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """No axis of an accuracy goes beyond 1; the mark at its end is as high as one of the samples."""
    drawn: list[Any] = []
    monkeypatch.setattr(figures, "inline", lambda figure, *_: drawn.append(figure) or "<svg></svg>")
    history = [{"epoch": epoch, "loss": 1.0, "val_accuracy": value} for epoch, value in enumerate(values, 1)]
    figures.curves("k", "prune", history, "accuracy", None, counted=40)
    axes = drawn[0].axes[1]
    low, high = axes.get_ylim()
    assert 0 <= low < high <= 1
    bottom, top = axes.lines[-1].get_ydata()
    assert top - bottom == pytest.approx(1 / 40) and top <= 1
