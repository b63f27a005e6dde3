"""conf/samples: each recipe is one, and what it names works together on data made here."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flows.recipe import load as recipes
from flows.recipe import rounds
from flows.recipe.schema import Recipe
from flows.runs import run_of
from tasks.execution.check import check
from tasks.execution.run import Run
from tasks.tracking.runs import Tracker

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = sorted((ROOT / "conf" / "samples").glob("*.yaml"))
NEEDS = {"torchvision": ["torchvision"], "transformers": ["transformers", "tokenizers"]}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_every_sample_is_a_recipe(path: Path) -> None:
    """It loads, and begins with how it is run."""
    recipe = recipes.load(path)
    assert recipe.stages[-1].stage == "encode" and recipe.name == path.stem
    assert f"python -m flows run conf/samples/{path.name}" in path.read_text()


def _looked_at(path: Path | dict[str, Any], overrides: dict[str, Any], folder: Path) -> tuple[Run, Recipe]:
    """A recipe's run, after all that is looked at before anything trains."""
    places = {"store": str(folder / "store"), "runs": str(folder / "runs"), "device": "cpu"}
    parsed = recipes.load(path, {**overrides, **places})
    run = run_of(parsed, 0, folder, Tracker(str(folder), "sqlite:///none.db", "samples"))
    check(run, rounds.expand(parsed))
    return run, parsed


@pytest.mark.parametrize("name", ["detector", "segmenter"])
def test_samples_on_made_pictures_are_ready(name: str, tmp_path: Path) -> None:
    """Model, data, step and metric go together, and all stages find their layers: as before a run, on few pictures."""
    small = {"data.kwargs.train": 24, "data.kwargs.test": 8, "data.validation": 8, "data.kwargs.size": 32}
    small |= {"model.kwargs": {"width": 4, **({"size": 32} if name == "detector" else {})}}
    run, _ = _looked_at(ROOT / "conf" / "samples" / f"{name}.yaml", small, tmp_path)
    assert run.splits().classes == ("background", "square", "disc", "cross")


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two classes, eight pictures each."""
    image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for number in range(16):
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 48, 3), np.uint8)
        image.fromarray(pixels).save(path)
    return tmp_path / "pictures"


def test_a_sample_on_pictures_is_ready(pictures: Path, tmp_path: Path) -> None:
    """Of EfficientNet-Lite0's recipe all but the net, which is a package of its own: pictures, weights, stages."""
    from deepcompression.models import resnet20

    torch.save(resnet20(3, 2).state_dict(), tmp_path / "net.pth")
    recipe = recipes.load(ROOT / "conf" / "samples" / "efficientnet-lite0.yaml").model_dump(mode="json")
    recipe["model"] = {
        "factory": "deepcompression.models:resnet20",
        "kwargs": {"channels": 3, "classes": 2},
        "weights": {"path": str(tmp_path / "net.pth")},
    }
    small = {"data.kwargs.folder": str(pictures), "data.kwargs.resize": 24, "data.kwargs.crop": 16}
    run, _ = _looked_at(recipe, small, tmp_path)
    assert run.splits().train[0][0].shape == (3, 16, 16) and run.splits().classes == ("a", "b")


def _need(*packages: str) -> None:
    for name in packages:
        if find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if "torchvision" in packages:
        try:
            import torchvision  # noqa: F401
        except RuntimeError as error:
            pytest.skip(str(error))


@pytest.mark.parametrize("name", ["mobilenet-v2", "squeezenet1-1", "resnet-50"])
def test_samples_of_torchvision_are_ready(name: str, pictures: Path, tmp_path: Path) -> None:
    """The real nets, with weights of a file, on small pictures."""
    _need("torchvision")
    from deepcompression import factory

    path = ROOT / "conf" / "samples" / f"{name}.yaml"
    torch.save(factory.build(recipes.load(path).model.factory).state_dict(), tmp_path / "net.pth")
    own = {"model.weights.path": str(tmp_path / "net.pth"), "data.kwargs.folder": str(pictures)}
    run, _ = _looked_at(path, {**own, "data.kwargs.resize": 40, "data.kwargs.crop": 32}, tmp_path)
    assert run.splits().train[0][0].shape == (3, 32, 32)


def test_the_sample_of_minilm_is_ready(tmp_path: Path) -> None:
    """A small BERT in a folder, sentences in a file; the metric of the dense net is 1."""
    _need("transformers", "tokenizers")
    from deepcompression.training.evaluate import evaluate

    folder = _bert(tmp_path / "bert")
    lines = [json.dumps({"text": " ".join("abc"[(n >> k) % 3] for k in range(5))}) for n in range(40)]
    (tmp_path / "s.jsonl").write_text("\n".join(lines))
    own = {"model.kwargs.config": str(folder), "data.kwargs.path": str(tmp_path / "s.jsonl"), "data.kwargs.length": 8}
    run, _ = _looked_at(ROOT / "conf" / "samples" / "minilm.yaml", own, tmp_path)
    from deepcompression.formats.checkpoint import read_state

    model, problem = run.blank_model(), run.problem()
    model.load_state_dict(read_state(folder))
    found = evaluate(model, problem.validation, problem.step, problem.metric)
    assert found.metric == pytest.approx(1, abs=1e-5) and found.scores is not None


def _bert(folder: Path) -> Path:
    import transformers

    config = transformers.BertConfig(
        vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    model = {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4}}
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"}, "model": model})
    )
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("name", ["detector", "segmenter"])
def test_a_sample_runs_whole(name: str, tmp_path: Path, mlflow_template: Path) -> None:
    """From made pictures to a file that was decoded, verified and judged by its own metric."""
    from flows.compress import compress

    database = tmp_path / "mlflow.db"
    database.write_bytes(mlflow_template.read_bytes())
    own = {"store": str(tmp_path / "store"), "runs": str(tmp_path / "runs"), "tracking.uri": f"sqlite:///{database}"}
    summary: Any = compress(str(ROOT / "conf" / "samples" / f"{name}.yaml"), own)
    assert summary["ratio"] > 4
    assert summary["final"]["metric"] > summary["baseline"]["metric"] - 0.1 > 0.3
