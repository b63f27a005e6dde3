from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import ExportError, InvariantError
from deepcompression.export import target_of
from deepcompression.network.edits.apply import apply

for package in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(package)


class Net(nn.Module):
    """Convolutions with BatchNorm, a residual, two inputs, one layer used twice, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.again = nn.Conv2d(24, 24, 3, padding=1)
        self.drop = nn.Dropout()
        self.head = nn.Linear(24, 10)

    def forward(self, images: Tensor, scale: Tensor) -> dict[str, Tensor]:
        found = torch.relu(self.norm(self.conv(images)))
        found = self.again(self.again(found)) + found
        features = self.drop(found.mean((2, 3)) * scale[:, None])
        return {"logits": self.head(features), "features": features}


def small_net() -> Net:
    """Pruned to a tenth and shared by 16 values, with a BatchNorm that is no identity."""
    torch.manual_seed(0)
    net = Net()
    for weight in (net.conv.weight, net.again.weight, net.head.weight):
        kept = torch.rand_like(weight) < 0.1
        weight.data = torch.where(kept, torch.randint(1, 17, weight.shape) / 64 - 0.13, 0.0)
    net.norm.running_var.uniform_(0.5, 2)
    net.norm.running_mean.normal_()
    return net


SAMPLE = [torch.rand(4, 3, 8, 8), torch.rand(4)]


def test_a_small_model_is_a_small_file_that_onnxruntime_opens(tmp_path: Path) -> None:
    """Pruned and shared weights stay small beside a BatchNorm, for a batch of any size; the model is as it was."""
    import onnxruntime

    net, path = small_net(), tmp_path / "exports" / "model.onnx"
    made = target_of("onnx").export(net, SAMPLE, path)
    assert made.bytes == path.stat().st_size < made.float_bytes / 4 and made.max_difference < 1e-5
    forms = {one.tensor: one.form for one in made.tensors}
    assert forms["again.weight"].startswith("gaps") and forms["conv.weight"] != "dense"
    assert [one.name for one in path.parent.iterdir()] == ["model.onnx"] and net.training
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    images, scale = torch.rand(7, 3, 8, 8), torch.rand(7)
    logits, _ = session.run(None, {"images": images.numpy(), "scale": scale.numpy()})
    assert np.allclose(logits, net.eval()(images, scale)["logits"].detach().numpy(), atol=1e-5)


def test_a_file_that_gives_other_weights_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runtime decodes is compared before anything lies on the disk."""
    from deepcompression.export import onnx_weights

    monkeypatch.setattr(onnx_weights, "_bits", lambda values: values.round(1).view("u4"))
    path = tmp_path / "model.onnx"
    path.write_bytes(b"an older one")
    with pytest.raises(InvariantError, match=r"export onnx: head\.weight .* decodes to other bits"):
        target_of("onnx").export(nn.Sequential(OrderedDict(head=nn.Linear(40, 30))), [torch.rand(2, 40)], path)
    assert path.read_bytes() == b"an older one" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("target", ["onnx"])
def test_what_stops_an_export_is_told_in_one_line(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that are signs, a batch that is fixed, and packages that are missing: by check, before training."""
    module = target_of(target)
    net = nn.Sequential(nn.Linear(4, 4))
    apply(net, {"kind": "binary", "sites": ["0:input[0]"], "values": "signs", "shape": []})
    with pytest.raises(ExportError, match=r"^export onnx: 0:input\[0\] has values that this target does not write"):
        module.check(net, [torch.rand(2, 4)])
    with pytest.raises(ExportError, match=r"^export onnx: torch\.export does not take the model") as refused:
        module.check(nn.Sequential(nn.Unflatten(0, (2, 2))), [torch.rand(4, 4)])
    assert "\n" not in str(refused.value)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ExportError, match=r"needs onnxruntime: pip install 'deep-compression\[onnx\]'"):
        module.check(net, [torch.rand(2, 4)])
