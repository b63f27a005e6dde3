"""Verification in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from deepcompression import models
from deepcompression import torch as files
from deepcompression.data import digits
from deepcompression.io import RawTensor
from deepcompression.verification import difference, verify


def prepared(folder: Path, seed: int = 0) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A file with its reference, a baseline of other weights, and the request to verify them."""
    torch.manual_seed(seed)
    state, baseline = models.digits_net().state_dict(), models.digits_net().state_dict()
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
    command = [sys.executable, "-m", "deepcompression.verification"]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    model = models.digits_net()
    model.load_state_dict(state)
    x, y = digits().test
    correct = int((model.eval()(x).argmax(1) == y).sum())
    final = answer["final"]
    assert (answer["identical"], answer["differs"]) == (True, None)
    assert (final["correct"], final["total"], final["accuracy"]) == (correct, 360, correct / 360)
    assert final["error"] == pytest.approx(1 - final["metric"])
    assert answer["baseline"]["loss"] != final["loss"]


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
    code = "import json, sys; from deepcompression.verification import verify;" + (
        "print(verify(json.load(sys.stdin)), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps({**request, "data": None}), capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "{'identical': True, 'differs': None} False"
