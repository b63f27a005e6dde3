"""The file for OpenVINO, in OpenVINO."""

from __future__ import annotations

import importlib
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

for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
    pytest.importorskip(package)

target: Any = target_of("openvino")


def small_net() -> nn.Module:
    """Pruned to a tenth and shared by 16 values, with a BatchNorm that is no identity."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(24)
    norm.running_var.uniform_(0.5, 2)
    net = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(24 * 64, 10))
    for layer in (net[0], net[4]):
        kept = torch.rand_like(layer.weight) < 0.1
        layer.weight.data = torch.where(kept, torch.randint(1, 17, layer.weight.shape) / 64 - 0.13, 0.0)
    return net.eval()


IMAGES = torch.rand(5, 3, 8, 8)


def test_the_file_is_small_has_known_shapes_and_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO decodes each weight bit for bit and gives PyTorch's outputs; plain ``read_model`` sees a batch of one,
    and another one where it is asked.
    """
    import openvino

    from deepcompression.export import onnx

    decoded, check = [], onnx._check_bits

    def seen(runtime: Any, model: Any, changed: Any) -> None:
        decoded.append((runtime.name, [tensor.name for tensor, _ in changed]))
        check(runtime, model, changed)

    monkeypatch.setattr(onnx, "_check_bits", seen)
    net, path = small_net(), tmp_path / "exports" / target.FILE
    made = target.export(net, [IMAGES], path)
    assert decoded == [("OpenVINO", ["0.weight", "4.weight"])]
    assert made.bytes == path.stat().st_size < made.float_bytes / 4 and made.max_difference < 1e-5
    assert {one.tensor: one.form for one in made.tensors}["4.weight"] != "dense" and not made.integers
    model = openvino.Core().read_model(path)
    assert list(model.inputs[0].shape) == [1, 3, 8, 8] and list(model.outputs[0].shape) == [1, 10]
    model.reshape([5, 3, 8, 8])
    found = openvino.Core().compile_model(model, "CPU", target.EXACT)(IMAGES.numpy())[0]
    wanted = net(IMAGES).detach().numpy()
    assert np.allclose(found, wanted, atol=1e-5)
    session = target.load(path, 1)
    assert session.fixed_batch == 1 and np.allclose(session([IMAGES[1:2].numpy()])[0], wanted[1:2], atol=1e-5)


class Pair(nn.Module):
    """Two inputs, two outputs, the number of samples in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 10)

    def forward(self, values: Tensor, scale: Tensor) -> dict[str, Tensor]:
        features = (values * scale[:, None, None]).reshape(values.shape[0], -1)
        return {"logits": self.head(features), "features": features}


def test_several_inputs_and_outputs_keep_their_places(tmp_path: Path) -> None:
    """Each sample's outputs are compared with PyTorch's, in the model's order, also where a sample comes alone."""
    given = [torch.rand(1, 4, 6), torch.rand(1)]
    net = Pair().eval()
    assert target.export(net, given, tmp_path / "a.onnx").max_difference < 1e-5
    logits, features = target.load(tmp_path / "a.onnx", 1)([one.numpy() for one in given])
    assert logits.shape == (1, 10) and np.allclose(features, net(*given)["features"].numpy())


def mixed() -> nn.Module:
    """Weights on a grid of 8 bits a channel; what goes into a layer on a static grid, on that of a call, on none."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(40, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 10)).eval()
    net.load_state_dict(linear.quantize(net.state_dict(), linear.table(net, {"default": 8})).state)
    for site, kind in (("0:input[0]", "static"), ("2:input[0]", "dynamic")):
        apply(net, {"kind": "quantize_values", "sites": [site], "range": kind, "bits": 8, "scheme": "asymmetric"})
    net.get_submodule("0").get_buffer("input_0_scale").fill_(1 / 255)
    return net


def test_what_multiplies_integers_is_told_as_openvino_has_it(tmp_path: Path) -> None:
    """A net on integers gives the class that the rounded model gives; notes are of OpenVINO, not of onnxruntime, which
    multiplies integers also where ranges are those of a call.
    """
    net, samples = mixed(), torch.rand(6, 40)
    made = target.export(net, [samples], tmp_path / "a.onnx")
    told = "; ".join(made.notes)
    assert "1 layers multiply integers; float: 2: OpenVINO has no integer kernel for it as it stands; float: 4" in told
    assert "1 layers multiply floats by weights that stay integers in memory; a batch of one" in told
    session = target.load(tmp_path / "a.onnx", 1)
    classes = [int(session([one[None].numpy()])[0].argmax()) for one in samples]
    assert classes == net(samples).argmax(1).tolist() and made.integers and made.bytes < made.float_bytes / 1.8


def test_integers_go_in_and_come_out_where_that_is_asked_for(tmp_path: Path) -> None:
    """As a device gives them: OpenVINO takes and gives uint8 by the scales that the file tells, and opened here the
    file takes and gives floats as all exports do.
    """
    import openvino

    net, samples, path = mixed(), torch.rand(6, 40), tmp_path / "a.onnx"
    made = target.export(net, [samples], path, io="integer")
    model = openvino.Core().read_model(path)
    told = {name: float(str(one)) for name, one in model.get_rt_info("framework").value.items()}
    ((given,), (gives,)) = ([one.any_name for one in side] for side in (model.inputs, model.outputs))
    codes = np.rint(samples[:1].numpy() / told[f"{given}.scale"]) + told[f"{given}.zero_point"]
    (raw,) = openvino.Core().compile_model(model, "CPU", target.EXACT)(codes.astype(np.uint8)).values()
    values = (raw.astype("f4") - told[f"{gives}.zero_point"]) * told[f"{gives}.scale"]
    wanted = net(samples[:1]).detach().numpy()
    assert raw.dtype == np.uint8 and np.abs(values - wanted).max() <= made.max_difference + 1e-6
    assert made.max_difference < 0.05 * np.abs(wanted).max() and np.ptp(raw) > 100
    assert np.allclose(target.load(path, 1)([samples[:1].numpy()])[0], values, atol=1e-6)
    with pytest.raises(ExportError, match=r"^export openvino: io: integer: the model rounds nothing that it takes"):
        target.export(nn.Sequential(nn.Linear(4, 4)), [torch.rand(2, 4)], tmp_path / "b.onnx", io="integer")
    within = nn.Sequential(nn.Tanh(), *mixed())
    with pytest.raises(ExportError, match=r"^export openvino: io: integer: input .* is not always rounded to 8 bits"):
        target.export(within, [samples], tmp_path / "b.onnx", io="integer")


def test_outputs_of_another_model_are_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What OpenVINO computes decides, not what onnxruntime does."""
    monkeypatch.setattr(target.OpenVinoSession, "__call__", lambda self, given: [np.full((1, 4), 7, np.float32)])
    with pytest.raises(InvariantError, match=r"^export openvino: an output in its own runtime differs from PyTorch's"):
        target.export(nn.Sequential(nn.Linear(4, 4)), [torch.rand(2, 4)], tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())


def test_what_stops_it_is_told_in_one_line_by_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package, signs, a forward that cannot be followed, a file that is none: the extra is openvino's."""
    net = nn.Sequential(nn.Linear(4, 4))
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match=r"^export openvino: OpenVINO does not open .*a\.onnx: [^\n]*$"):
        target.load(tmp_path / "a.onnx", 1)
    apply(net, {"kind": "binary", "sites": ["0:input[0]"], "values": "signs", "shape": []})
    with pytest.raises(ExportError, match=r"^export openvino: 0:input\[0\] has values that this target does not write"):
        target.check(net, [torch.rand(2, 4)])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "openvino" else find(name))
    with pytest.raises(ExportError, match=r"needs openvino: pip install 'deep-compression\[openvino\]'$"):
        target.check(net, [torch.rand(2, 4)])
