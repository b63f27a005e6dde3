"""What README and the pages of docs/ show works as it stands there."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.nn.utils import prune as torch_prune

import deepcompression
from deepcompression import torch as files
from deepcompression.models import digits_net
from flows.compress import compress
from flows.recipe.schema import Recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    ROOT / "README.md",
    *(ROOT / "docs" / f"{name}.md" for name in ("your-model", "recipes", "own-loop", "loading")),
)


def _blocks(kind: str) -> dict[str, str]:
    """Fenced blocks of all pages that a comment marks: <!-- kind: name -->."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    return dict(re.findall(rf"<!-- {kind}: (.+?) -->\n```\w+\n(.*?)```", text, re.DOTALL))


@pytest.mark.usefixtures("prefect_server")
def test_users_own_model_is_compressed_by_a_recipe(
    tmp_path: Path, tiny: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package outside the repository, from a checkpoint of a foreign training, with its own metric."""
    for name, text in _blocks("file").items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("/home/me/project", str(tmp_path)))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Denoiser = runpy.run_path("mine/denoise.py", run_name="__main__")["Denoiser"]  # which writes the checkpoint
    state = torch.load("denoiser.pt", weights_only=True)["state_dict"]
    pruned = torch_prune.l1_unstructured(nn.Conv2d(1, 24, 3), "weight", 0.1)
    kept = state.pop("module.first.weight")
    state |= {"module.first.weight_orig": kept, "module.first.weight_mask": pruned.weight_mask}
    torch.save({"epoch": 4, "state_dict": state}, "denoiser.pt")

    places = {key: tiny()[key] for key in ("store", "runs", "tracking")}
    summary = compress(str(tmp_path / "denoise.yaml"), {**places, "threads": 1, "device": "cpu"})

    assert summary["metric"] == "psnr" and "error" not in summary["final"]
    assert summary["final"]["metric"] > summary["baseline"]["metric"] - 0.5
    assert summary["ratio"] > 8
    loaded = files.load_into(Denoiser(), summary["file"]).state_dict()
    assert torch.equal(loaded["middle.weight"], loaded["again.weight"])
    values = loaded["middle.weight"][loaded["middle.weight"] != 0]
    assert len(values) == round(0.15 * loaded["middle.weight"].numel()) and len(torch.unique(values)) <= 16
    assert torch.equal(values, values.half().float())
    tensors = {one["name"]: one for one in deepcompression.inspect(summary["file"])["tensors"]}
    assert tensors["again.weight"]["bytes"] == 0 or tensors["again.weight"]["same_as"] == "middle.weight"


def test_loop_of_ones_own_and_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hold and bake example keeps its zeros, and its loading examples read the file that it wrote."""
    monkeypatch.chdir(tmp_path)
    blocks = _blocks("run")
    for name in ("own loop", "numpy", "torch"):
        (tmp_path / "block.py").write_text(blocks[name])
        scope = runpy.run_path(str(tmp_path / "block.py"))
        if name == "own loop":
            trained = scope["model"].state_dict()
            zeros = int((trained["fc1.weight"] == 0).sum())
            assert zeros > 1000 and list(trained) == list(scope["digits_net"]().state_dict())
        elif name == "numpy":
            assert int((scope["weights"]["fc1.weight"] == 0).sum()) == zeros
        else:
            assert torch.equal(scope["model"].state_dict()["fc1.weight"], trained["fc1.weight"])


def test_several_methods_in_a_loop_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The attach example prunes and quantizes at once, and its file makes that of the user's own model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "block.py").write_text(_blocks("run")["methods"])
    model = runpy.run_path(str(tmp_path / "block.py"))["model"]
    weight = model.state_dict()["fc1.weight"]
    assert int((weight != 0).sum()) <= round(0.2 * weight.numel()) and len(weight.unique()) <= 15
    loaded = files.load_into(digits_net(), "quantized.dcz").eval()
    images = torch.rand(4, 1, 8, 8)
    assert torch.equal(loaded(images), model.eval()(images)) and list(loaded.state_dict()) == list(model.state_dict())


def test_the_recipe_with_several_methods_is_one() -> None:
    """The stage train is read as it stands, with the defaults that it leaves out."""
    factory = {"factory": "deepcompression.models:digits_net"}
    given = yaml.safe_load(_blocks("recipe")["train"])
    recipe = Recipe.model_validate({"name": "r", "model": factory, "data": factory, **given})
    assert [type(one.settings().make()).__name__ for one in recipe.stages[0].methods] == [
        "GradualPruning",
        "QuantizedTraining",
        "Distillation",
    ]
