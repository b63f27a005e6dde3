from __future__ import annotations

import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

import deepcompression
from deepcompression import torch as files
from deepcompression.measure import significance
from deepcompression.structure.constraints import structured
from deepcompression.training.device import Compute
from tasks.execution.run import Reference
from tasks.report import figures
from tasks.report.layers import layer_table
from tasks.report.losses import rows_in
from tasks.report.page import loading, write_report
from tasks.report.words import difference, sentence, wilson

NASTY = "<img src=http://x.invalid/a onerror=alert(1)>&\"'</script>$x$"
RECIPE = {"name": "made", "model": {"factory": "torch.nn:Linear", "kwargs": {"in_features": 40, "out_features": 30}}}
State = Mapping[str, torch.Tensor]


class Page(HTMLParser):
    """What a browser would find in a page: elements with their attributes, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        whole = self.elements and self.elements[-1][0] == "wbr"
        self.texts.append(data if whole else f" {data}")

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]


def _numbers(label: str, state: State, dense: int, **changes: Any) -> dict[str, Any]:
    count = len(files.encode(state, "packed"))
    return {
        "stage": label,
        "size_bytes": count,
        "compression_ratio": dense / count,
        "density": 0.5,
        "bits_per_weight": 8 * count / 100,
        "val_metric": 0.9,
        "seconds": 0.25,
        "worked_seconds": 1.5,
        "cached": False,
        **changes,
    }


def made(
    folder: Path,
    states: Mapping[str, State],
    *,
    ends: Sequence[Mapping[str, Any]] = ({"metric": 0.9}, {"metric": 0.8}),
    entries: Mapping[str, Mapping[str, Any]] | None = None,
    shared: Sequence[str] = (),
    coder: str = "huffman",
    **summary: Any,
) -> tuple[Any, list[Reference], dict[str, Any]]:
    """A finished run without a flow: its stand-in, references and summary; the last state is what is encoded."""
    file = folder / "model.dcz"
    final = list(states.values())[-1]
    dense = 4 * sum(tensor.numel() for tensor in next(iter(states.values())).values())
    count = files.save(final, file, coder)
    references = [
        Reference(label, label, structured((), shared), numbers=_numbers(label, state, dense))
        for label, state in states.items()
    ]
    encoded = {**_numbers("encode", final, dense), "size_bytes": count, "compression_ratio": dense / count}
    run = SimpleNamespace(
        store=SimpleNamespace(find=(entries or {}).get),
        state=lambda reference: dict(states[reference.key]),
        python_path=(),
        precision="float32",
        compute=lambda: Compute("cpu"),
    )
    told = {
        "name": "made",
        "seed": 0,
        "metric": "score",
        "dense_bytes": dense,
        "file_bytes": count,
        "ratio": dense / count,
        "baseline": {"higher_is_better": True, **ends[0]},
        "final": {"higher_is_better": True, **ends[1]},
        "file": str(file),
        "folder": str(folder),
        "warnings": [],
        **summary,
    }
    return run, [*references, Reference("encode", "encode", numbers=encoded)], told


def written(folder: Path, *arguments: Any, recipe: Mapping[str, Any] = RECIPE) -> Page:
    """The page of a made run."""
    path = folder / "report.html"
    write_report(*arguments, recipe, path)
    return Page(path)


def quantized(name: str = "weight") -> dict[str, dict[str, torch.Tensor]]:
    """States of a run that prunes 1,000 of 1,200 weights and shares the rest among four values, which then move."""
    torch.manual_seed(0)
    dense = torch.randn(30, 40)
    order = torch.randperm(1200)
    pruned = dense.reshape(-1).index_fill(0, order[:1000], 0.0)
    codes, shared, trained = torch.arange(200) % 4, pruned.clone(), pruned.clone()
    shared[order[1000:]] = torch.tensor([-1.0, -0.5, 0.5, 1.0])[codes]
    trained[order[1000:]] = torch.tensor([-1.25, -0.5, 0.75, 1.5])[codes]
    steps = {"baseline": dense, "prune": pruned, "share": shared, "quantize": trained}
    bias = torch.linspace(-1, 1, 30)
    return {label: {name: one.reshape(30, 40), "bias": bias} for label, one in steps.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_run: dict[str, Any]) -> dict[str, Any]:
    """A real run of the tiny recipe: its page, and what the page was made of."""
    recipe = {**tiny_run["recipe"], "tracking": {"uri": "${oc.env:SECRET}"}}
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(tiny_run["run"], tiny_run["references"], tiny_run["summary"], recipe, path)
    return {**tiny_run, "path": path, "recipe": recipe}


@pytest.mark.parametrize(("errors", "total"), [(0, 1), (1, 1), (0, 360), (3, 360), (71, 10_000), (10_000, 10_000)])
def test_interval_is_scipy_s(errors: int, total: int) -> None:
    """Wilson's interval equals that of scipy, and stays between 0 and 1."""
    expected = binomtest(errors, total).proportion_ci(0.95, method="wilson")
    assert wilson(errors, total) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= wilson(errors, total)[0] < wilson(errors, total)[1] <= 1


def test_headline_of_a_real_run_has_the_measured_numbers(finished: dict[str, Any]) -> None:
    """Bytes, ratio, errors and their intervals are those of the summary."""
    summary, text = finished["summary"], Page(finished["path"]).text
    assert f"{summary['file_bytes']:,} bytes on disk, of {summary['dense_bytes']:,} dense" in text
    assert f"{summary['ratio']:.1f}× smaller" in text
    for end in (summary["baseline"], summary["final"]):
        errors = end["total"] - end["correct"]
        expected = binomtest(errors, end["total"]).proportion_ci(0.95, method="wilson")
        interval = f"{100 * expected.low:.2f} % to {100 * expected.high:.2f} %"
        assert f"{errors} of {end['total']} wrong; 95 % Wilson interval {interval}" in text


def test_real_run_has_every_stage_picture_and_fact(finished: dict[str, Any]) -> None:
    """A row a stage, a curve a training, a histogram a shared layer, the recipe with its secrets masked, the ids."""
    page, summary = Page(finished["path"]), finished["summary"]
    for row in summary["stages"]:
        assert row["stage"] in page.text and f"{row['size_bytes']:,}" in page.text
    labels = page.attributes("aria-label")
    trained = [label for label in ("baseline", "finetune", "quantize") if f"of {label}" in " ".join(labels)]
    assert trained == ["baseline", "finetune", "quantize"]
    assert sum(label.startswith("Histogram of") for label in labels) == 4
    assert {row["op"] for row in rows_in(Path(summary["folder"]))} == {"conv1", "conv2", "fc1", "fc2"}
    assert "Which layers lose it" in page.text and "in the net after quantize, dB" in page.text
    assert "Class by class" in page.text and "with a weight that is not zero, of 347 k" in page.text
    assert {"box0", "box4"} <= set(page.attributes("id")) and "the 8-bit" not in page.text
    assert (
        "gzip of the dense model" in page.text and f"python -m flows rerun {Path(summary['folder']).name}" in page.text
    )
    assert "10 classes: 0, 1, 2" in page.text and summary["classes"] == list("0123456789")
    assert "${oc.env:SECRET}" in page.text and torch.__version__ in page.text
    assert summary["mlflow_run_id"] in page.text and summary["prefect_flow_run_id"] in page.text


def test_lines_of_the_real_run_load_its_file(finished: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python lines on the page, run where the file lies, give the model with the file's weights."""
    file = Path(finished["summary"]["file"])
    lines = loading(finished["recipe"], (), file.name)
    assert " ".join(lines.split()) in Page(finished["path"]).text
    monkeypatch.chdir(file.parent)
    names: dict[str, Any] = {}
    exec(lines, names)
    state = names["model"].state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in files.load(file).items())


def test_page_is_whole_small_and_loads_nothing(finished: dict[str, Any]) -> None:
    """Every src and href stays inside the page, styles fetch nothing, ids are unique, the page is below 3 MB."""
    page, content = Page(finished["path"]), finished["path"].read_text(encoding="utf-8")
    loaded = page.attributes("src") + page.attributes("xlink:href")
    loaded += [attrs["href"] or "" for tag, attrs in page.elements if tag not in ("a",) and "href" in attrs]
    assert loaded and all(link.startswith(("#", "data:")) for link in loaded)
    links = loaded + page.attributes("href")
    assert {link for link in links if not link.startswith(("#", "data:", "http://127.0.0.1"))} == {"model.dcz"}
    assert not re.search(r"@import|url\((?!#)", content)
    ids = page.attributes("id")
    assert len(ids) == len(set(ids)) and {link[1:] for link in links if link.startswith("#")} <= set(ids)
    assert set(re.findall(r"url\(#([^)]+)\)", content)) <= set(ids)
    assert len(content.encode()) < 3_000_000


def test_same_run_gives_the_same_bytes(finished: dict[str, Any], tmp_path: Path) -> None:
    """Written again, the page does not differ in a byte."""
    again = tmp_path / "again.html"
    write_report(finished["run"], finished["references"], finished["summary"], finished["recipe"], again)
    assert again.read_bytes() == finished["path"].read_bytes()


def test_layer_bytes_add_up_to_the_file(finished: dict[str, Any], tmp_path: Path) -> None:
    """The rows' bytes and the header's are the file's size; weights are the model's."""
    summary = finished["summary"]
    coded = deepcompression.inspect(summary["file"])
    layers, total = layer_table(coded, coded, summary)
    assert (
        sum(one.bytes for one in layers) + coded["header_bytes"] == total.bytes == Path(summary["file"]).stat().st_size
    )
    assert 4 * sum(one.weights for one in layers) == 4 * total.weights == summary["dense_bytes"]


def test_layer_bits_are_those_of_the_codes(tmp_path: Path) -> None:
    """200 weights of 4 even values cost 2 bits each with fixed width; density and entropy are what they are."""
    run, references, summary = made(tmp_path, quantized())
    coded = deepcompression.inspect(summary["file"])
    packed = tmp_path / "packed.dcz"
    files.save(quantized()["quantize"], packed, "packed")
    layer = layer_table(coded, deepcompression.inspect(packed), summary)[0][0]
    assert layer.kept == 200 and layer.density == pytest.approx(200 / 1200)
    assert layer.bits.fixed_weight == layer.bits.coded_weight == 2.0
    positions = -(200 * math.log2(200 / 1200) + 1000 * math.log2(1000 / 1200)) / 200
    assert layer.bits.entropy == pytest.approx(2 + positions)
    assert layer.bits.coded_index is not None and layer.bits.fixed_index is not None
    assert positions - 0.1 < layer.bits.coded_index <= layer.bits.fixed_index
    assert layer.ratio == pytest.approx(4800 / layer.bytes)
    assert f"{layer.bits.entropy:.2f}" in written(tmp_path, run, references, summary).text


def test_centroids_are_followed_by_their_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Histograms show the pruned weights; the centroids of `share` stand beside what `quantize` made of the same."""
    drawn = []
    monkeypatch.setattr(figures, "weights", lambda *arguments: drawn.append(arguments) or "<svg></svg>")
    written(tmp_path, *made(tmp_path, quantized(), shared=["weight"]))
    ((_, name, values, centroids),) = drawn
    pruned = quantized()["prune"]["weight"]
    assert name == "weight" and sorted(values) == sorted(pruned[pruned != 0].tolist())
    assert {title: row.tolist() for title, row in centroids.items()} == {
        "share": [-1.0, -0.5, 0.5, 1.0],
        "quantize": [-1.25, -0.5, 0.75, 1.5],
    }


def test_markup_in_names_is_text(tmp_path: Path) -> None:
    """Tensor, stage, metric, recipe, note and gate names with HTML in them make no element and no attribute."""
    states = {label.replace("prune", NASTY): state for label, state in quantized(NASTY).items()}
    rows = [{"epoch": 1, "loss": 1.0, "val_loss": 0.5, f"val_{NASTY}": 0.5}]
    gate = {"gate": NASTY, "passed": False, "wanted": NASTY, "got": 0.5, "by": None, "text": NASTY}
    page = written(
        tmp_path,
        *made(
            tmp_path,
            states,
            shared=[NASTY],
            entries={NASTY: {"notes": [NASTY], "history": rows}},
            name=NASTY,
            metric=NASTY,
            promotion={"model": NASTY, "promoted": False, "version": None, "gates": [gate]},
        ),
        recipe={**RECIPE, "name": NASTY, "model": {"factory": f"a:{NASTY}", "kwargs": {NASTY: NASTY}}},
    )
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 1 and "img" not in tags and not page.attributes("onerror")
    assert page.text.count(NASTY) > 8


@pytest.mark.parametrize("value", [24.31, math.nan, math.inf, -math.inf])
def test_any_metric_is_told(tmp_path: Path, value: float) -> None:
    """A metric that counts no errors, or is no finite number, still makes a page, with the number as it is."""
    rows = [{"epoch": epoch, "loss": value, "val_loss": value, "val_score": value} for epoch in (1, 2)]
    ends = {"metric": 25.5, "total": 360, "correct": None}, {"metric": value, "total": 360}
    page = written(tmp_path, *made(tmp_path, quantized(), ends=ends, entries={"prune": {"history": rows}}))
    told = {"24.31": "24.31", "nan": "NaN", "inf": "∞", "-inf": "−∞"}[str(value)]
    assert f"{told} score over 360 samples" in page.text and "Wilson" not in page.text
    assert ("1.19 worse" if math.isfinite(value) else "cannot be compared") in page.text


def test_batch_norm_and_tied_weights_are_counted_once(tmp_path: Path) -> None:
    """Buffers and integers have rows, a tied tensor refers to the first, and the total counts it once."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"one": nn.Linear(20, 20), "norm": nn.BatchNorm1d(20), "two": nn.Linear(20, 20)})
    model["two"].weight = model["one"].weight
    page = written(tmp_path, *made(tmp_path, {"baseline": dict(model.state_dict())}))
    assert "norm.num_batches_tracked" in page.text and "two.weight same as one.weight" in page.text
    weights = 400 + 4 * 20 + 1  # the new norm's mean equals its bias, its variance its weight
    assert re.search(rf"all [\d,]+ [\d.]+× {weights} ", page.text)


@pytest.mark.parametrize("labels", [["baseline"], ["baseline", "mine.stages.clip", "prune"], ["baseline", "share"]])
def test_runs_of_other_stages_have_a_page(tmp_path: Path, labels: list[str]) -> None:
    """Nothing but the encoding, stages of one's own, sharing never trained; entries may be gone from the store."""
    states = dict(zip(labels, quantized().values(), strict=False))
    page = written(tmp_path, *made(tmp_path, states))
    assert all(label in page.text for label in labels)
    assert "No stage of this run trained." in page.text and "Histogram of" in " ".join(page.attributes("aria-label"))


def test_reuse_notes_and_packed_files_are_told(tmp_path: Path) -> None:
    """Reused stages are named so, their notes shown, and the file's own coder."""
    run, references, summary = made(tmp_path, quantized(), entries={"prune": {"notes": ["all held"]}}, coder="packed")
    references[1] = Reference("prune", "prune", numbers={**references[1].numbers, "cached": True})
    text = written(tmp_path, run, references, summary).text
    assert "1 of 5 stages were reused" in text and "prune : all held" in text and "(packed coding)" in text


def test_promotion_and_split_are_told(tmp_path: Path) -> None:
    """Gates with what they wanted and got, the verdict, and which split was read."""
    gate = {"gate": "error", "passed": False, "wanted": 0.01, "got": 0.025, "by": 0.015, "text": "error is too high"}
    passed = {"gate": "bytes", "passed": True, "wanted": 9000, "got": 8601, "by": 399, "text": "small enough"}
    promotion = {"model": "digits-net", "promoted": False, "version": None, "gates": [gate, passed]}
    ends = ({"metric": 0.9, "split": "validation"},) * 2
    text = written(tmp_path, *made(tmp_path, quantized(), ends=ends, promotion=promotion)).text
    assert "Not promoted: digits-net" in text and "✗ failed 0.01 0.025 0.015 error is too high" in text
    assert "✓ passed 9,000 8,601 399" in text
    assert "validation split; the test split was not read" in text


def test_a_missed_aim_is_the_headline(tmp_path: Path) -> None:
    """The page begins with the red verdict; how much smaller the file is stands in no title."""
    verdict = {"kept": False, "text": "12.67 points lost on validation, 1 allowed", "aims": [], "test": None}
    page = written(tmp_path, *made(tmp_path, quantized(), verdict=verdict))
    assert "✗ Aim missed 12.67 points lost on validation, 1 allowed" in page.text and "seed 0: aim missed" in page.text
    assert "verdict bad" in page.attributes("class") and "x smaller" not in page.text
    kept = {**verdict, "kept": True, "text": "0.1 points lost", "test": "on the test split 2 points lost"}
    text = written(tmp_path, *made(tmp_path, quantized(), verdict=kept)).text
    assert "! Kept 0.1 points lost. On the test split 2 points lost." in text and "× smaller" in text


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        (59, 71, "12 more errors in 10,000 than the dense model (71 instead of 59), in 2.0 % of its bytes."),
        (59, 58, "1 fewer error in 10,000 than the dense model (58 instead of 59), in 2.0 % of its bytes."),
        (59, 59, "Exactly as many errors as the dense model (59 in 10,000), in 2.0 % of its bytes."),
    ],
)
def test_sentence_counts_errors(was: int, now: int, told: str) -> None:
    """The plain sentence has the difference in errors, its direction, and the share of bytes."""
    ends = [{"metric": 1.0, "total": 10_000, "correct": 10_000 - errors} for errors in (was, now)]
    summary = {"baseline": ends[0], "final": ends[1], "dense_bytes": 1000, "file_bytes": 20, "metric": "accuracy"}
    assert sentence(summary) == told


def compared(broken: int, mended: int, total: int = 10_000) -> dict[str, Any]:
    """A summary's comparison of so many samples."""
    before, after = np.ones(total, bool), np.ones(total, bool)
    before[:mended], after[mended : mended + broken] = False, False
    found = significance.compare(before, after)
    return {"split": "test", **asdict(found), "sentence": significance.sentence(found)}


@pytest.mark.parametrize(
    ("broken", "mended", "told"),
    [
        (32, 20, "12 more errors in 10,000 than the dense model (71 instead of 59; could be chance, p = 0.13), in"),
        (20, 40, "20 fewer errors in 10,000 than the dense model (39 instead of 59; hardly chance, p = 0.013), in"),
        (4, 4, "Exactly as many errors as the dense model (59 in 10,000; 4 new ones, 4 old ones gone), in"),
        (0, 0, "Exactly as many errors as the dense model (59 in 10,000), in"),
    ],
)
def test_sentence_says_what_chance_can_do(broken: int, mended: int, told: str) -> None:
    """Report, MLflow, Prefect and log share one sentence; it says whether the difference means anything."""
    ends = [{"metric": 1.0, "total": 10_000, "correct": 10_000 - errors} for errors in (59, 59 + broken - mended)]
    summary = {"baseline": ends[0], "final": ends[1], "dense_bytes": 1000, "file_bytes": 20, "metric": "accuracy"}
    assert sentence({**summary, "comparison": compared(broken, mended)}).startswith(told)
    assert difference(summary) is None and difference({**summary, "comparison": None}) is None


def test_difference_and_its_interval_are_told(tmp_path: Path) -> None:
    """The page's head has the difference in percentage points, its interval, the words, and what hides in a net sum."""
    ends = [{"metric": 1.0, "total": 10_000, "correct": 10_000 - errors, "split": "test"} for errors in (59, 71)]
    comparison = compared(32, 20)
    text = written(tmp_path, *made(tmp_path, quantized(), ends=ends, comparison=comparison)).text
    assert "Difference, test split +0.12 points of error 95 % interval -0.02 to +0.27 percentage points" in text
    assert "12 more errors in 10,000; could be chance, p = 0.13" in text
    assert "right before, wrong now: 32; wrong before, right now: 20" in text and "McNemar's exact p" in text
    assert difference({"comparison": comparison}) == (
        "12 more errors in 10,000; could be chance, p = 0.13 (+0.12 points, 95 % interval -0.02 to +0.27)"
    )


@pytest.mark.parametrize(("higher", "word"), [(True, "worse"), (False, "better")])
def test_sentence_knows_the_better_direction(higher: bool, word: str) -> None:
    """Whether less is worse is what the metric says."""
    ends = [{"metric": value, "higher_is_better": higher} for value in (2.0, 1.5)]
    summary = {"baseline": ends[0], "final": ends[1], "dense_bytes": 10, "file_bytes": 1, "metric": "m"}
    assert f"0.5 {word}" in sentence(summary)


def test_loading_lines_have_paths_and_arguments() -> None:
    """Folders of packages come first, keyword arguments are Python, and a method's class is what is imported."""
    recipe = {"model": {"factory": "mine.nets:Net.small", "kwargs": {"width": 24, "kind": "a'b"}}}
    lines = loading(recipe, ("/home/me/project",), "model.dcz").splitlines()
    assert lines[:3] == ["import sys", "", "sys.path[:0] = ['/home/me/project']"]
    assert lines[-3:] == [
        "from mine.nets import Net",
        "",
        "model = load_into(Net.small(width=24, kind=\"a'b\"), 'model.dcz').eval()",
    ]


@pytest.mark.slow
def test_page_works_in_a_browser(finished: dict[str, Any]) -> None:
    """Opened as a file: every picture has a size, headings sort both ways, nothing errs, a phone need not scroll."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        troubles: list[str] = []
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda one: troubles.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
        page.goto(finished["path"].as_uri())
        boxes = [svg.bounding_box() for svg in page.query_selector_all("svg")]
        assert len(boxes) >= 9 and all(box and box["width"] > 100 and box["height"] > 50 for box in boxes)
        _check_sorting(page)
        page.locator("svg.net g", has_text="fc1").focus()
        page.keyboard.press("Enter")
        told = page.locator(".network .panel").inner_text()
        assert "fc1.weight" in told and "conv2.weight" not in told and "multiplications a sample" in told
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        if (figure := page.query_selector("#losses-table tbody td:nth-child(3)")) and (box := figure.bounding_box()):
            assert box["x"] + box["width"] <= 390  # beside the op, without scrolling the table
        browser.close()
    assert troubles == []


def _check_sorting(page: Any) -> None:
    """By mouse, then by keyboard."""
    cells = "#layer-table tbody tr td:nth-child(3)"
    head = page.locator("#layer-table th", has_text="bytes")
    before = [int(text.replace(",", "")) for text in page.locator(cells).all_inner_texts()]
    assert before == sorted(before, reverse=True)
    head.locator("button").click()
    falling = [int(text.replace(",", "")) for text in page.locator(cells).all_inner_texts()]
    assert falling == before and head.get_attribute("aria-sort") == "descending"
    head.locator("button").press("Enter")
    rising = [int(text.replace(",", "")) for text in page.locator(cells).all_inner_texts()]
    assert rising == sorted(before) and head.get_attribute("aria-sort") == "ascending"
    page.locator("#layer-table th", has_text="tensor").locator("button").click()
    names = page.locator("#layer-table tbody tr td:nth-child(1)").all_inner_texts()
    assert names == sorted(names) and head.get_attribute("aria-sort") == "none"
