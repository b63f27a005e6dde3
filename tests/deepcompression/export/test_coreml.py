"""The package for Core ML, which does not run here: what is read back from it."""

from __future__ import annotations

import importlib.util
import json
import logging
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import ExportError, InvariantError
from deepcompression.export import target_of
from deepcompression.network.edits.apply import apply
from deepcompression.quantization import linear

if importlib.util.find_spec("coremltools") is None:  # importing it takes seconds, in every process that lists tests
    pytest.skip("needs coremltools", allow_module_level=True)

from deepcompression.export.coreml_weights import smallest

target: Any = target_of("coreml")


class Net(nn.Module):
    """Shared and pruned, shared, on a grid of each channel, on none; a BatchNorm, which would be folded; values on
    grids that Core ML has and has not.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.again, self.wide, self.head = nn.Conv2d(24, 24, 3), nn.Linear(24, 300), nn.Linear(300, 10)
        self.norm.running_var.uniform_(0.5, 2)
        shared = [torch.randint(1, 17, one.weight.shape) / 64 - 0.13 for one in (self.conv, self.again)]
        self.conv.weight.data = torch.where(torch.rand_like(self.conv.weight) < 0.1, shared[0], 0.0)
        self.again.weight.data = shared[1]
        named = {"wide.weight": self.wide.weight.detach()}
        self.wide.weight.data = linear.quantize(named, linear.table(self, {"wide.weight": 8})).state["wide.weight"]

    def forward(self, images: Tensor) -> Tensor:
        found = torch.relu(self.norm(self.conv(images)))
        logits: Tensor = self.head(torch.relu(self.wide(torch.relu(self.again(found)).mean((2, 3)))))
        return logits


def rounding() -> nn.Module:
    """What goes into two layers is on a grid of 8 and of 4 bits."""
    net = Net().eval()
    for name, bits in (("conv", 8), ("head", 4)):
        site = {"sites": [f"{name}:input[0]"], "range": "static", "bits": bits, "scheme": "asymmetric"}
        apply(net, {"kind": "quantize_values", **site})
        net.get_submodule(name).get_buffer("input_0_scale").fill_(1 / 2**bits)
    return net


def test_weights_read_back_are_those_of_the_model_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Each in Core ML's own form, also beside a BatchNorm; grids of 8 bits are its operators; nothing is printed; and a
    weight that decodes to others stops all, the older package stays.
    """
    net, images, path = rounding(), torch.rand(2, 3, 8, 8), tmp_path / "exports" / target.FILE
    before = net(images)
    with caplog.at_level(logging.WARNING):
        made = target.export(net, [images], path)
    assert capfd.readouterr().err == "" and not [one for one in caplog.records if one.name == "coremltools"]
    forms = {one.tensor: one.form for one in made.tensors}
    assert forms == {
        "conv.weight": "mask, palette, codes of 4 bits",
        "again.weight": "palette, codes of 4 bits",
        "wide.weight": "integers of 8 bits",
        "head.weight": "dense",
    }
    files = [one for one in path.rglob("*") if one.is_file()]
    saved = sum(one.dense_bytes - one.bytes for one in made.tensors)
    assert (
        made.bytes == sum(one.stat().st_size for one in files) < made.float_bytes - saved + 3000 < made.float_bytes / 2
    )
    assert json.loads((path / "Manifest.json").read_text()) and len(files) == 3
    assert made.integers and np.isnan(made.max_difference)
    assert made.notes[0] == "read back and decoded: 4 of 4 weights are those of the model, bit for bit"
    assert made.notes[1:3] == [
        "1 values are quantized and dequantized to 8 bits",
        "rounded by float operations, as Core ML has no such grid: head:input[0]",
    ]
    assert made.notes[-1].startswith("Core ML is not on this machine") and target.load(path, 1) is None
    assert torch.equal(before, net(images))
    monkeypatch.setattr(target, "_decoded", lambda path: {"p_conv_weight": np.zeros((24, 3, 3, 3), np.float32)})
    with pytest.raises(InvariantError, match=r"^export coreml: p_conv_weight decodes to other bits"):
        target.export(net, [images], path)
    assert len([one for one in path.rglob("*") if one.is_file()]) == 3 and len(list(path.parent.iterdir())) == 1


@pytest.mark.skipif(platform.system() == "Darwin", reason="Core ML opens it there")
def test_there_is_no_session_off_apples_systems(tmp_path: Path) -> None:
    """What asks for a way to run it is told that there is none, not a traceback."""
    assert target.load(tmp_path, 1) is None


@pytest.mark.parametrize(
    ("values", "form"),
    [
        (np.full((40, 9), -0.0, np.float32), "palette, codes of 1 bits"),
        (np.arange(360, dtype=np.float32).reshape(40, 9) % 5, "palette, codes of 3 bits"),
        (np.eye(40, dtype=np.float32), "palette, codes of 1 bits"),
        (np.diag(np.linspace(1, 2, 999, dtype=np.float32)), "mask, values"),
        (np.zeros((2, 2), np.float32), None),
        (np.random.default_rng(0).normal(size=(40, 9)).astype(np.float32), None),
    ],
)
def test_a_weight_takes_the_smallest_form(values: np.ndarray, form: str | None) -> None:
    """Bytes decide, of few values, few places, zeros with a sign, and of what no form makes smaller."""
    found = smallest(values)
    assert (found.name if found else None) == form


def test_what_stops_it_is_told_before_anything_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is missing, ranges of each call, layers that coremltools does not take: in one line."""
    net, sample = nn.Sequential(nn.Linear(4, 4)), [torch.rand(2, 4)]
    site = {"sites": ["0:input[0]"], "range": "dynamic", "bits": 8, "scheme": "symmetric"}
    with pytest.raises(ExportError, match=r"^export coreml: coremltools does not take the model: .*lstm[^\n]*$"):
        target.check(nn.LSTM(4, 4), [torch.rand(2, 3, 4)])
    apply(net, {"kind": "quantize_values", **site})
    with pytest.raises(ExportError, match=r"^export coreml: 0:input\[0\] has values that this target does not write"):
        target.check(net, sample)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "coremltools" else find(name))
    with pytest.raises(ExportError, match=r"needs coremltools: pip install 'deep-compression\[coreml\]'$"):
        target.check(net, sample)
