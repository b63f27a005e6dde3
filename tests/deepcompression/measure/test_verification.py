"""Verification in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from deepcompression import factory
from deepcompression import torch as files
from deepcompression.codec.dtypes import RawTensor
from deepcompression.data.small_images import digits
from deepcompression.measure import significance
from deepcompression.measure.verification import difference, verify
from deepcompression.models import paper
from deepcompression.network.edits.apply import apply_all
from deepcompression.training.problem import Accuracy


def prepared(folder: Path, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file with its reference, a baseline of other weights, and the request to verify them."""
    torch.manual_seed(seed)
    state, baseline = paper.digits_net().state_dict(), paper.digits_net().state_dict()
    files.save(state, folder / "model.dcz")
    save_file(state, folder / "reference")
    save_file(baseline, folder / "baseline")
    request = {
        **{name: str(folder / name) for name in ("reference", "baseline")},
        "file": str(folder / "model.dcz"),
        "model": {"factory": "deepcompression.models:digits_net", "kwargs": {}},
        "data": {"factory": "deepcompression.data:digits", "kwargs": {}},
        "step": None,
        "metric": None,
        "compute": {"device": "cpu"},
        "threads": None,
        "python_path": [],
    }
    return state, request


def test_a_good_file_is_identical_and_evaluated_on_the_test_split(tmp_path: Path):
    """The figures of a run's end come from the decoded file, in a process that never saw the model before."""
    state, request = prepared(tmp_path)
    command = [sys.executable, "-m", "deepcompression.measure.verification"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    model = paper.digits_net()
    model.load_state_dict(state)
    x, y = digits().test
    correct = int((model.eval()(x).argmax(1) == y).sum())
    final = answer["final"]
    assert (answer["identical"], answer["differs"]) == (True, None)
    assert (final["correct"], final["total"], final["accuracy"]) == (correct, 360, correct / 360)
    assert final["error"] == pytest.approx(1 - final["metric"])
    assert answer["baseline"]["loss"] != final["loss"]


def test_edits_are_made_of_the_delivered_model_and_compared(tmp_path: Path):
    """The file's edits belong to its tensors, not to the baseline; edits that went in and did not come out differ."""
    _, request = prepared(tmp_path)
    edits = [{"kind": "quantize_values", "range": "dynamic", "bits": 2, "scheme": "symmetric", "sites": [":input[0]"]}]
    model = paper.digits_net()
    apply_all(model, edits)
    files.save(model.state_dict(), tmp_path / "model.dcz", edits=edits)
    save_file(model.state_dict(), tmp_path / "reference")
    answer = verify({**request, "edits": edits})
    x, y = digits().test
    correct = int((model.eval()(x).argmax(1) == y).sum())
    assert (answer["identical"], answer["final"]["correct"]) == (True, correct)
    assert verify({**request, "data": None, "edits": []}) == {"identical": False, "differs": "edits"}


def test_one_changed_bit_is_found_by_name(tmp_path: Path):
    """-0.0 equals 0.0 as a number; the promise is about bits."""
    state, request = prepared(tmp_path)
    changed = {name: tensor.clone() for name, tensor in state.items()}
    name = next(name for name in changed if name.endswith("bias"))
    changed[name][0] = 0.0
    files.save(changed, tmp_path / "model.dcz")
    changed[name][0] = -0.0
    save_file(changed, tmp_path / "reference")
    answer = verify(request)
    assert (answer["identical"], answer["differs"]) == (False, name)


def _right(state: dict[str, Tensor]) -> Any:
    model = paper.digits_net()
    model.load_state_dict(state)
    x, y = digits().test
    with torch.no_grad():
        return (model.eval()(x).argmax(1) == y).numpy()


def test_baseline_and_file_are_compared_sample_by_sample(tmp_path: Path):
    """Which samples broke and which were mended is counted where both models were run, and survives as JSON."""
    state, request = prepared(tmp_path)
    answer = json.loads(json.dumps(verify(request)))
    expected = significance.compare(_right(load_file(tmp_path / "baseline")), _right(state))
    assert expected.broken + expected.mended > 0
    assert answer["comparison"] == {**asdict(expected), "sentence": significance.sentence(expected)}


def test_a_file_equal_to_its_baseline_has_as_many_errors(tmp_path: Path):
    """Nothing changed, nothing is said to have."""
    _, request = prepared(tmp_path)
    told = verify({**request, "baseline": request["reference"]})["comparison"]
    assert (told["broken"], told["mended"], told["p_value"]) == (0, 0, 1.0)
    assert told["sentence"] == "as many errors as before" and told["low"] < 0 < told["high"]


class Soft(Accuracy):
    """One number a sample that is no yes or no."""

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return super().__call__(outputs, targets).float()


class Wrong(Accuracy):
    """A yes that is bad."""

    higher_is_better = False


@pytest.mark.parametrize("metric", [Soft, Wrong])
def test_what_counts_no_right_answers_is_not_compared(
    metric: type[Accuracy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """McNemar's test is of right and wrong: other scores have a metric and no comparison."""
    _, request = prepared(tmp_path)
    monkeypatch.setattr("deepcompression.training.problem.metric_of", lambda _: metric())
    answer = verify(request)
    assert answer["comparison"] is None and answer["final"]["total"] == 360


@pytest.mark.parametrize(
    ("options", "paired"),
    [
        ({"batch_size": 90}, True),
        ({"batch_size": 90, "shuffle": True}, False),
        ({"batch_sampler": [[3, 1], [0, 2]]}, False),
    ],
)
def test_only_samples_in_one_order_are_paired(
    options: dict[str, Any], paired: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A loader that shuffles gives the two models the samples in two orders: no test of pairs that are none."""
    _, request = prepared(tmp_path)
    made = replace(digits(), test=DataLoader(TensorDataset(*digits().test), **options))
    build = factory.build
    monkeypatch.setattr(factory, "build", lambda spec, kwargs: made if spec.endswith("digits") else build(spec, kwargs))
    assert (verify(request)["comparison"] is not None) is paired


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"a": np.ones(2, "f4"), "b": np.ones(1, "f4")},
        {"a": np.ones(2)},
        {"a": np.ones((2, 1), "f4")},
        {"a": np.array([1, 2], "f4")},
    ],
)
def test_names_types_shapes_and_values_must_agree(other: dict[str, Any]):
    """Whatever differs, the tensor is named."""
    one = _raw({"a": np.ones(2, "f4")})
    assert difference(one, _raw({"a": np.ones(2, "f4")})) is None
    assert difference(one, _raw(other)) in {"a", "b"}


def _raw(arrays: dict[str, Any]) -> dict[str, RawTensor]:
    return {name: RawTensor(array.view(f"u{array.itemsize}"), array.dtype.name) for name, array in arrays.items()}


def test_comparing_bits_alone_imports_no_torch(tmp_path: Path):
    """A sweep's trials compare and read no test split; that costs tenths of a second."""
    _, request = prepared(tmp_path)
    code = "import json, sys; from deepcompression.measure.verification import verify;" + (
        "print(verify(json.load(sys.stdin)), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps({**request, "data": None}), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "{'identical': True, 'differs': None} False"
