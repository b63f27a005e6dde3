"""Edits that exports write: layers in two parts, and thresholds for what goes into layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepcompression.errors import ExportError
from deepcompression.export import target_of
from deepcompression.network.edits.apply import apply_all
from deepcompression.sharing.lcnn import Wanted, look_up

DICTIONARY, THRESHOLD = {"kind": "dictionary", "module": "2", "size": 3}, {"kind": "threshold", "sites": ["5:input[0]"]}
OTHERS = ("onnx", "openvino", "coreml", "litert")
CARRIED = [
    pytest.param("pt2", THRESHOLD),
    *(pytest.param(one, THRESHOLD, marks=pytest.mark.slow) for one in OTHERS[:3]),
]
CARRIED += [pytest.param(one, DICTIONARY, marks=pytest.mark.slow) for one in (*OTHERS, "pt2", "c")]


def net() -> nn.Sequential:
    """Two convolutions and a linear layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)]
    return nn.Sequential(*layers).eval()


def edited(edit: dict[str, Any]) -> nn.Sequential:
    """With an edit whose tensors say something."""
    model = net()
    if edit is DICTIONARY:
        look_up(model, [Wanted("2", 3, 2)])
    else:
        apply_all(model, [edit])
        model[5].input_0_threshold.fill_(0.2)
    return model


@pytest.mark.parametrize(("name", "edit"), CARRIED)
def test_a_target_that_carries_an_edit_writes_what_the_model_gives(
    name: str, edit: dict[str, Any], tmp_path: Path
) -> None:
    """In the target's own runtime, beside the model; and it is not what the model without the edit gives."""
    target, model, images = target_of(name), edited(edit), torch.rand(3, 1, 8, 8)
    assert edit["kind"] in target.CARRIES
    assert not torch.allclose(copy.deepcopy(net())(images), model(images), atol=1e-3)
    try:
        target.check(model, [images])
    except ExportError as error:  # a package or environment that is not on this machine
        pytest.skip(str(error))
    made = target.export(model, [images], tmp_path / target.FILE)
    session = target.load(tmp_path / target.FILE, 1)
    if session is not None:
        given = images[: session.fixed_batch or 3]
        assert made.max_difference < 1e-4
        assert abs(session([given.numpy()])[0] - model(given).detach().numpy()).max() < 1e-4


def test_targets_that_do_not_write_thresholds() -> None:
    """They refuse them by the recipe's check, before anything trains."""
    assert not any("threshold" in target_of(name).CARRIES for name in ("c", "litert"))
