"""What is told of an export before anything trains."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepcompression import export
from deepcompression import torch as files
from deepcompression.codec.edits import SINCE
from deepcompression.errors import ExportError
from tasks import exports, latency
from tasks.agreement import check_agreement
from tasks.execution.settings import Stage, Training
from tasks.export_settings import Export
from tasks.stages import baseline, settings_of


@pytest.fixture(params=export.TARGETS)
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each target, which takes any model as it is."""
    monkeypatch.setattr(exports, "_sample", lambda run, asked: [])
    monkeypatch.setattr(export.target_of(request.param), "check", lambda model, sample, **options: None)
    return str(request.param)


def _checked(target: str, *stages: tuple[str, Stage]) -> None:
    run: Any = SimpleNamespace(blank_model=lambda: torch.nn.Sequential(torch.nn.Linear(4, 4)))
    exports.check_export(run, Export(to=target), stages)


def _stage(**keys: Any) -> tuple[str, Stage]:
    return keys["stage"], settings_of(keys["stage"]).model_validate(keys)


WEIGHTS, SIGNS = {"weights": {"bits": 4}}, {"activations": {"kind": "sign"}}


def test_edits_that_a_target_does_not_write_are_refused_by_the_keys_that_ask_for_them(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of training must not end in a file that cannot be made: of a method, of the checkpoint at the beginning."""
    module = export.target_of(target)
    monkeypatch.setattr(module, "CARRIES", module.CARRIES - {"quantize_values", "binary"})
    first = ("train", baseline.Settings(train=Training()))
    filters = _stage(stage="prune", granularity="filter", criterion="l1", density=0.5, remove=True)
    _checked(target, first, filters, _stage(stage="train", methods=[{"quantize": WEIGHTS}]), _stage(stage="slim"))
    signs = _stage(stage="train", methods=[{"prune": {"density": 0.5}}, {"binarize": SIGNS}])
    with pytest.raises(ExportError, match=rf"^export {target}: stage train: binarize.activations makes the edit bin"):
        _checked(target, first, filters, signs)
    site = {"sites": [":input[0]"], "values": "signs", "shape": []}
    files.save({"weight": torch.ones(2, 2)}, tmp_path / "a.dcz", edits=[{"kind": "binary", **site}])
    begun = baseline.Settings.model_validate({"weights": {"path": str(tmp_path / "a.dcz")}})
    with pytest.raises(ExportError, match=r"stage train: model.weights makes the edit binary"):
        _checked(target, ("train", begun))


def test_ranges_that_a_target_does_not_write_are_refused_by_their_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources for a microcontroller have the grids that are known: a dynamic one is told before anything trains."""
    monkeypatch.setattr(exports, "_sample", lambda run, asked: [])
    for name in ("c", "onnx"):
        monkeypatch.setattr(export.target_of(name), "check", lambda model, sample, **options: None)
    static, dynamic = (_stage(stage="quantize", activations={"range": one}) for one in ("static", "dynamic_row"))
    _checked("c", static)
    _checked("onnx", dynamic)
    with pytest.raises(ExportError, match=r"^export c: stage quantize: activations.range: dynamic_row is of values"):
        _checked("c", dynamic)


def test_values_within_recurrent_layers_are_refused_where_these_are_written_whole(target: str) -> None:
    """Known from the recipe and the model: hours of training must not end in a file that cannot be made."""
    run: Any = SimpleNamespace(blank_model=lambda: torch.nn.Sequential(torch.nn.LSTM(4, 4)))
    bits = {"0.weight_hh_l0": 8, "0.weight_ih_l0": 8}
    within = _stage(stage="quantize", activations={"bits": bits, "range": "dynamic"})
    if target in ("litert", "pt2"):
        exports.check_export(run, Export(to=target), [within])
        return
    words = (
        "activations.range: dynamic is of values" if target in ("c", "coreml") else r"0:hidden\[0\] is a value within"
    )
    with pytest.raises(ExportError, match=rf"^export {target}: stage quantize: {words}"):
        exports.check_export(run, Export(to=target), [within])


def test_integers_in_and_out_are_refused_where_nothing_is_rounded(target: str) -> None:
    """Before anything trains: of a target that has floats, and of a recipe that leaves no grid to give integers on."""
    static, share = _stage(stage="quantize", activations={"bits": 8}), _stage(stage="share", bits=4)
    run: Any = SimpleNamespace(blank_model=lambda: torch.nn.Sequential(torch.nn.Linear(4, 4)))
    asked = Export(to=target, io="integer")
    if target not in ("onnx", "openvino"):
        with pytest.raises(ExportError, match=rf"^export {target}: io: integer is not of this target; leave io out$"):
            exports.check_export(run, asked, [static])
        return
    exports.check_export(run, asked, [static])
    with pytest.raises(ExportError, match=rf"^export {target}: io: integer: no stage rounds what the model takes"):
        exports.check_export(run, asked, [share])


def test_targets_carry_edits_that_exist(target: str) -> None:
    """A kind that is misspelt would refuse what can be written, or let pass what cannot."""
    assert set(SINCE) >= export.target_of(target).CARRIES


FINAL = {"split": "test", "metric": 0.9, "loss": 0.3, "correct": 9_000, "total": 10_000}


@pytest.mark.parametrize(
    ("right", "integers", "passes"),
    [(9_001, False, True), (9_002, False, False), (8_998, False, False), (8_800, True, True), (8_799, True, False)],
)
def test_an_export_that_recognises_less_than_the_file_is_refused(right: int, integers: bool, passes: bool) -> None:
    """An export that gives other answers must not be delivered as the model: more than rounding may explain."""
    judged = {**FINAL, "correct": right}
    if passes:
        check_agreement("onnx", judged, FINAL, integers=integers)
        return
    with pytest.raises(ExportError, match=rf"^export onnx: {right:,} of 10,000 of the test split are right"):
        check_agreement("onnx", judged, FINAL, integers=integers)


@pytest.mark.parametrize(
    ("changes", "integers", "words"),
    [
        ({"correct": 9_010}, True, ""),
        ({"correct": 8_989}, True, "8,989 of 10,000 .* 9,000 with the decoded file: 0.11 points, where 0.1 or one"),
        ({"loss": 0.3002}, False, ""),
        ({"loss": 0.3004}, False, "the loss on the test split is 0.3004 in .* 0.3 with the decoded file: 0.13 % apart"),
        ({"loss": 0.314}, True, ""),
        ({"loss": 0.25}, True, "17 % apart, where rounding makes up to 5 %"),
        ({"correct": None, "metric": 0.92}, True, "the metric on the test split is 0.92 .*: 2.2 % apart"),
        ({"correct": None, "metric": 0.9001}, False, ""),
        ({"metric": 0.1}, False, ""),  # of samples that are counted the count says it
    ],
)
def test_results_further_from_the_files_than_rounding_makes_them_are_warned_of(
    changes: dict[str, Any], integers: bool, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Counts, means and losses: what integers change must not pass in silence, nor what is no count unseen."""
    check_agreement("onnx", {**FINAL, **changes}, FINAL, integers=integers)
    assert bool(caplog.messages) == bool(words) and re.search(words, " ".join(caplog.messages))


def test_an_export_whose_metric_is_no_number_is_refused() -> None:
    """NaN compares as nothing does."""
    with pytest.raises(ExportError, match=r"its metric on the test split is nan in its own runtime, 0\.9 with"):
        check_agreement("onnx", {**FINAL, "metric": float("nan"), "correct": None}, FINAL, integers=True)


def test_an_export_is_timed_beside_the_dense_net() -> None:
    """On one thread, in turns, with as many samples as it takes; the machine's threads are as before."""
    seen, threads = [], torch.get_num_threads()

    def session(arrays: Any) -> list[Any]:
        seen.append((arrays[0].shape, torch.get_num_threads()))
        time.sleep(0.004)
        return []

    session.fixed_batch = 3  # type: ignore[attr-defined]
    found = latency.beside_dense(session, torch.nn.Linear(4, 2), [torch.rand(2, 4)])  # type: ignore[arg-type]
    assert set(seen) == {((3, 4), 1)} and torch.get_num_threads() == threads
    assert found["latency_ms"] >= 4 and found["times_as_fast"] < 1
    assert re.fullmatch(
        r"median, batch 3, 1 thread, [3-7] rounds in turns with the dense net(; the machine was busy: .*)?",
        found["latency_how"],
    )
    assert latency._rounds([0.3, 0.3]) == 3 and latency._rounds([0.125, 0.125]) == 4


def test_what_decides_ranges_is_drawn_from_all_of_the_training_split() -> None:
    """Validation judges what a range decides; and a split sorted by class would give samples of one class."""
    train = [torch.arange(1000.0)[:, None], torch.zeros(1000)]
    problem = SimpleNamespace(train=train, validation=[torch.full((20, 1), -1.0), torch.zeros(20)])
    run: Any = SimpleNamespace(ready=lambda: None, problem=lambda: problem, stage_seed=lambda label: 3)
    (sample,) = exports._sample(run, Export(to="onnx"))
    assert sample.shape == (exports.SAMPLES, 1)
    assert 0 <= sample.min() < 250 and 750 < sample.max() < 1000
