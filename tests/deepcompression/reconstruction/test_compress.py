"""A checkpoint compressed on samples, as `dcz compress --calibrate` does."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from deepcompression.cli import main
from deepcompression.datafree.compress import Compressed
from deepcompression.errors import InputError, WeightsError
from deepcompression.reconstruction import kept
from deepcompression.torch import Calibration, compress_calibrated, compress_state, load, load_into


class Words(nn.Module):
    """A table of vectors, and two layers behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 16)
        self.hidden, self.out = nn.Linear(16, 64), nn.Linear(64, 20)

    def forward(self, words: Tensor) -> Tensor:
        found: Tensor = self.out(nn.functional.relu(self.hidden(self.table(words).mean(1))))
        return found


WORDS = torch.randint(0, 300, (256, 12), generator=torch.Generator().manual_seed(1))
FRESH = torch.randint(0, 300, (256, 12), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def net() -> nn.Module:
    """With a hidden layer of which few directions are used, as those of trained nets are."""
    torch.manual_seed(0)
    made = Words().eval()
    with torch.no_grad():
        made.table.weight.mul_(torch.linspace(3, 0.05, 16))
    return made


def _calibration(net: nn.Module, words: Tensor = WORDS) -> Calibration:
    return Calibration(copy.deepcopy(net), words.split, lambda model, batch: model(batch))


def _off(net: nn.Module, path: Path) -> float:
    with torch.no_grad():
        one, other = (model(FRESH).log_softmax(1) for model in (net, load_into(copy.deepcopy(net), path)))
    return float((one.exp() * (one - other)).sum(1).mean())


def test_a_size_is_kept_and_less_is_lost_than_without_samples(net: nn.Module, tmp_path: Path) -> None:
    """Of the same bytes; tables are treated too, what takes up what outputs are off is told."""
    calibrated, blind = tmp_path / "calibrated.dcz", tmp_path / "blind.dcz"
    done = compress_calibrated(net.state_dict(), calibrated, _calibration(net), target_bytes=4500)
    compress_state(net.state_dict(), blind, target_bytes=4500)
    assert 4000 < calibrated.stat().st_size <= 4500
    assert _off(net, calibrated) < 0.5 * _off(net, blind)
    by_name = {one.name: one for one in done}
    assert all("integers of" in by_name[f"{name}.weight"].treatment for name in ("table", "hidden", "out"))
    assert by_name["hidden.bias"].treatment == "moved"
    assert not list(tmp_path.glob("*.unfinished"))


def test_bits_and_density_are_those_that_are_asked_for(net: nn.Module, tmp_path: Path) -> None:
    """2**bits values of what is not spared, and a density of it."""
    path = tmp_path / "net.dcz"
    compress_calibrated(net.state_dict(), path, _calibration(net), bits=3, density=0.5, spare=False)
    hidden = load(path)["hidden.weight"]
    assert int((hidden != 0).sum()) == hidden.numel() // 2 and len(hidden.unique()) <= 9


def test_names_types_and_what_the_model_does_not_have_are_kept(net: nn.Module, tmp_path: Path) -> None:
    """A checkpoint of DataParallel in bfloat16, with a tensor more, comes back with the names and types that it had."""
    state = {f"module.{name}": one.bfloat16() for name, one in net.state_dict().items()}
    state["steps"] = torch.tensor([3])
    done = compress_calibrated(state, tmp_path / "net.dcz", _calibration(net), ratio=4)
    back = load(tmp_path / "net.dcz")
    assert {name: one.dtype for name, one in back.items()} == {name: one.dtype for name, one in state.items()}
    assert torch.equal(back["steps"], state["steps"])
    assert not torch.equal(back["module.out.weight"], state["module.out.weight"])
    assert next(one for one in done if one.name == "steps").treatment == "kept"


def test_what_was_stopped_goes_on(net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers that are done are not done again, and the file is the same."""
    state, count, real = net.state_dict(), [], kept.KeptLayers.done

    def run(path: Path) -> list[Compressed]:
        return compress_calibrated(state, path, _calibration(net), target_bytes=4500, source="the same")

    def stop(self: kept.KeptLayers, one: Any) -> None:
        real(self, one)
        count.append(one)
        if len(count) == 2:
            raise KeyboardInterrupt

    whole = run(tmp_path / "whole.dcz")
    monkeypatch.setattr(kept.KeptLayers, "done", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "net.dcz")
    assert run(tmp_path / "net.dcz") == whole and len(count) == 3
    assert (tmp_path / "net.dcz").read_bytes() == (tmp_path / "whole.dcz").read_bytes()


def test_what_cannot_be_is_told(net: nn.Module, tmp_path: Path) -> None:
    """Before any layer is worked on: another model's tensors, a size out of reach."""
    with pytest.raises(WeightsError, match="missing"):
        compress_calibrated({"out.weight": torch.ones(20, 64)}, tmp_path / "a.dcz", _calibration(net))
    with pytest.raises(InputError, match=r"60 bytes are out of reach"):
        compress_calibrated(net.state_dict(), tmp_path / "a.dcz", _calibration(net), target_bytes=60)
    assert not list(tmp_path.iterdir())


CODE = """
import torch
from torch import nn
def data():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    pair = (x, x[:, :3].argmax(1))
    return pair, pair, pair
def net():
    return nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 3))
"""
RECIPE = """
name: small
python_path: [{folder}]
model: {{factory: "own:net"}}
data: {{factory: "own:data"}}
stages: [{{stage: encode}}]
"""


def test_recipe_gives_model_and_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`dcz compress --calibrate RECIPE`; what does not go together is told in one line."""
    (tmp_path / "own.py").write_text(CODE)
    recipe, source, small = (tmp_path / name for name in ("recipe.yaml", "net.safetensors", "net.dcz"))
    recipe.write_text(RECIPE.format(folder=tmp_path))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 400), nn.ReLU(), nn.Linear(400, 3))
    save_file(net.state_dict(), source)

    def dcz(*options: object) -> int:
        monkeypatch.setattr(sys, "argv", ["dcz", "compress", str(source), str(small), *map(str, options)])
        with pytest.raises(SystemExit) as stop:
            main.main()
        return int(stop.value.code or 0)

    monkeypatch.setattr(sys, "path", [*sys.path])
    assert dcz("--ratio", 5, "--calibrate", recipe, "--samples", 32) == 0
    assert "reconstructed integers: 0.weight" in capsys.readouterr().out
    assert small.stat().st_size <= source.stat().st_size / 5
    assert not torch.equal(load(small)["0.weight"], load_file(source)["0.weight"])
    assert dcz("--ratio", 5, "--samples", 32) == 2 and dcz("--calibrate", recipe, "--dry-run") == 2
    assert "go with --calibrate" in capsys.readouterr().err
