"""Programs of torch.export: equal to the model, and with nothing inside that would be run when they are opened."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import ExportError
from deepcompression.export import pt2
from deepcompression.network.edits.apply import apply


class Net(nn.Module):
    """Two inputs and two outputs, one of integers; a dynamic grid, and a constant of forward's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, one: Tensor, two: Tensor) -> dict[str, Tensor]:
        found = self.layer(one) + two * torch.tensor([1.0, 2.0, 3.0, 4.0])
        return {"found": found, "best": found.argmax(1)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a net that rounds by the values of each call."""
    torch.manual_seed(0)
    net, path = Net().eval(), tmp_path_factory.mktemp("made") / "exports" / "model.pt2"
    site = {
        "kind": "quantize_values",
        "sites": ["layer:input[0]"],
        "range": "dynamic",
        "bits": 4,
        "scheme": "symmetric",
    }
    apply(net, site)
    sample = [torch.randn(3, 6), torch.randn(3, 4)]
    made = pt2.export(net, sample, path)
    assert made.bytes == path.stat().st_size and made.max_difference < 1e-6
    with torch.no_grad():
        wanted = net(sample[0][:1], sample[1][:1])
    got = pt2.load(path, 1)([sample[0][:1].numpy(), sample[1][:1].numpy()])
    assert [one.shape for one in got] == [(1, 4), (1,)]
    torch.testing.assert_close(torch.from_numpy(got[0]), wanted["found"])
    return path


def changed(path: Path, part: str, change: Any) -> Path:
    """The file with one part changed."""
    made = path.with_name("changed.pt2")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith(part) else content)
    return made


def test_a_program_holds_no_pickle(written: Path) -> None:
    """Whoever opens the file, with PyTorch too, loads plain bytes and JSON."""
    with zipfile.ZipFile(written) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    assert not any(b"PK\x03\x04" in one or b"\x80\x02" in one[:2] for one in parts.values())
    assert [name for name in parts if "sample_inputs" in name and parts[name]] == []


def _pickled(_: bytes) -> bytes:
    held = io.BytesIO()
    torch.save({"a": 1}, held)
    return held.getvalue()


def _calls(content: bytes) -> bytes:
    told = json.loads(content)
    told["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"
    return json.dumps(told).encode()


def _evaluates(content: bytes) -> bytes:
    told = json.loads(content)
    told["graph_module"]["graph"]["nodes"][0]["metadata"]["size"] = {"expr_str": "__import__('os').system('x')"}
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("sample_inputs/model.pt", _pickled, "sample_inputs/model.pt may hold a pickle; it is not opened"),
        ("model.json", _calls, "target 'torch.hub.load' is not opened"),
        ("model.json", _evaluates, "expr_str .* is not opened"),
        ("weights_config.json", lambda one: one.replace(b'"use_pickle": false', b'"use_pickle": true'), "use_pickle"),
        ("model.json", lambda one: one[:-9], "is no .pt2"),
    ],
)
def test_a_program_that_would_run_something_is_not_opened(written: Path, part: str, change: Any, message: str) -> None:
    """PyTorch itself would load the pickle, look the function up, evaluate the text."""
    with pytest.raises(ExportError, match=message):
        pt2.load(changed(written, part, change), 1)


def test_what_cannot_be_followed_is_told(tmp_path: Path) -> None:
    """A forward that looks at values has no graph."""

    class Looks(nn.Module):
        def forward(self, one: Tensor) -> Tensor:
            return one * 2 if float(one.sum()) > 0 else one

    with pytest.raises(ExportError, match=r"^export pt2: torch.export does not take the model: "):
        pt2.check(Looks(), [torch.rand(2, 3)])
