"""What is told of an export before anything trains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deepcompression import export
from deepcompression import torch as files
from deepcompression.codec.edits import SINCE
from deepcompression.errors import ExportError
from tasks import exports
from tasks.execution.settings import Stage, Training
from tasks.stages import baseline, settings_of


@pytest.fixture(params=export.TARGETS)
def target(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each target, which takes any model as it is."""
    monkeypatch.setattr(exports, "_sample", lambda run, inputs: [])
    monkeypatch.setattr(export.target_of(request.param), "check", lambda model, sample: None)
    return str(request.param)


def _checked(target: str, *stages: tuple[str, Stage]) -> None:
    run: Any = SimpleNamespace(blank_model=lambda: None)
    exports.check_export(run, target, None, stages)


def _stage(**keys: Any) -> tuple[str, Stage]:
    return keys["stage"], settings_of(keys["stage"]).model_validate(keys)


WEIGHTS, SIGNS = {"weights": {"bits": 4}}, {"activations": {"kind": "sign"}}


def test_edits_that_a_target_does_not_write_are_refused_by_the_keys_that_ask_for_them(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of training must not end in a file that cannot be made: of a method, of the checkpoint at the beginning."""
    module = export.target_of(target)
    monkeypatch.setattr(module, "CARRIES", module.CARRIES - {"quantize_values"})
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
    monkeypatch.setattr(exports, "_sample", lambda run, inputs: [])
    for name in ("c", "onnx"):
        monkeypatch.setattr(export.target_of(name), "check", lambda model, sample: None)
    static, dynamic = (_stage(stage="quantize", activations={"range": one}) for one in ("static", "dynamic_row"))
    _checked("c", static)
    _checked("onnx", dynamic)
    with pytest.raises(ExportError, match=r"^export c: stage quantize: activations.range: dynamic_row is of values"):
        _checked("c", dynamic)


def test_targets_carry_edits_that_exist(target: str) -> None:
    """A kind that is misspelt would refuse what can be written, or let pass what cannot."""
    assert set(SINCE) >= export.target_of(target).CARRIES


@pytest.mark.parametrize(
    ("right", "integers", "passes"),
    [(9_001, False, True), (9_002, False, False), (8_998, False, False), (9_010, True, True), (8_989, True, False)],
)
def test_an_export_that_recognises_less_than_the_file_is_refused(right: int, integers: bool, passes: bool) -> None:
    """An export that gives other answers must not be delivered as the model: more than rounding may explain."""
    judged = {"split": "test", "metric": 0.0, "correct": right, "total": 10_000}
    final = {"correct": 9_000, "total": 10_000}
    if passes:
        exports._check_equal("onnx", judged, final, integers)
        return
    with pytest.raises(ExportError, match=rf"^export onnx: {right:,} of 10,000 of the test split are right"):
        exports._check_equal("onnx", judged, final, integers)


def test_what_decides_ranges_is_drawn_from_all_of_the_training_split() -> None:
    """Validation judges what a range decides; and a split sorted by class would give samples of one class."""
    train = [torch.arange(1000.0)[:, None], torch.zeros(1000)]
    problem = SimpleNamespace(train=train, validation=[torch.full((20, 1), -1.0), torch.zeros(20)])
    run: Any = SimpleNamespace(ready=lambda: None, problem=lambda: problem, stage_seed=lambda label: 3)
    (sample,) = exports._sample(run, None)
    assert sample.shape == (exports.SAMPLES, 1)
    assert 0 <= sample.min() < 250 and 750 < sample.max() < 1000
