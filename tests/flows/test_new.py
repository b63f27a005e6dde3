"""What `new` writes is a recipe that can run."""

from __future__ import annotations

import json
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from deepcompression.errors import InputError, RecipeError
from flows import checked
from flows.new import Asked, write
from flows.verbs import planning


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


def test_the_example_can_run(tmp_path: Path) -> None:
    """Without any data it is a small net on digits."""
    path = write(Asked(tmp_path / "my-net"), "python -m flows")
    assert "\naims: {max_metric_loss: 2.0}" in path.read_text() and "(216 samples)" in path.read_text()
    assert path.read_text().startswith("# my-net: ") and "python -m flows run" in path.read_text()
    checked.refuse_recipe(str(path), {})


def test_a_table_of_numbers_and_one_of_words_can_run(tmp_path: Path) -> None:
    """What is learnt decides loss, metric and outputs."""
    pytest.importorskip("pandas")
    generator = np.random.default_rng(0)
    rows = [f"{a:.3f},{b:.3f},{2 * a - b:.3f},{'hot' if a > b else 'cold'}" for a, b in generator.normal(size=(80, 2))]
    (tmp_path / "table.csv").write_text("\n".join(["a,b,price,kind", *rows]))
    for target, metric in (("price", "absolute_error"), ("kind", "accuracy")):
        path = write(Asked(tmp_path / f"net-{target}", tabular=tmp_path / "table.csv", target=target), "x")
        text = path.read_text()
        assert f"metric: {metric}" in text
        # of 64 to train on 10 are for validation: one is 10 points
        assert ("\naims: {max_metric_loss: 10.0}" in text) == (
            metric == "accuracy"
        ) and "aims: {max_metric_loss" in text
        checked.refuse_recipe(str(path), {})


def test_a_net_of_numbers_begins_at_their_mean(tmp_path: Path) -> None:
    """Else the first thousand steps go into finding that a price has six digits."""
    pytest.importorskip("pandas")
    rows = [f"{a:.3f},{300_000 + 1000 * a:.1f}" for a in np.random.default_rng(0).normal(size=200)]
    (tmp_path / "table.csv").write_text("\n".join(["a,price", *rows]))
    path = write(Asked(tmp_path / "net", tabular=tmp_path / "table.csv", target="price"), "x")
    made = runpy.run_path(str(path.parent / "code" / "net_model.py"))["net"]()
    with torch.no_grad():
        found = made(torch.randn(100, 1))
    assert 299_000 < float(found.mean()) < 301_000 and 50 < float(found.std()) < 5000


def test_few_samples_get_more_epochs(tmp_path: Path) -> None:
    """A training has some hundred steps at least, and not thousands where there are many."""
    pytest.importorskip("pandas")
    epochs = {}
    for count in (80, 40_000):
        rows = [f"{a:.3f},{'hot' if a > 0 else 'cold'}" for a in np.random.default_rng(0).normal(size=count)]
        (tmp_path / "table.csv").write_text("\n".join(["a,kind", *rows]))
        path = write(Asked(tmp_path / f"net{count}", tabular=tmp_path / "table.csv", target="kind"), "x")
        epochs[count] = OmegaConf.load(path).train.epochs
    assert epochs == {80: 200, 40_000: 40}


def test_texts_can_run(tmp_path: Path) -> None:
    """A tokenizer is made of the texts where none is given, and the field with the text is found."""
    pytest.importorskip("tokenizers")
    lines = [
        {"review": f"a film that is {word} {number}", "label": word} for number in range(40) for word in ("good", "bad")
    ]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    path = write(Asked(tmp_path / "texts", text=tmp_path / "texts.jsonl"), "x")
    assert (tmp_path / "texts" / "tokenizer.json").is_file() and "words: 0.2" in path.read_text()
    checked.refuse_recipe(str(path), {})


def test_pictures_can_run(tmp_path: Path) -> None:
    """A folder a class; a net of a hub stands in the model's module."""
    image = pytest.importorskip("PIL.Image")
    for name in ("cat", "dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(8):
            image.new("RGB", (70, 64), (number, 40, 80)).save(tmp_path / "pictures" / name / f"{number}.png")
    path = write(Asked(tmp_path / "pets", images=tmp_path / "pictures"), "x")
    assert "cat, dog" in (tmp_path / "pets" / "code" / "pets_data.py").read_text()
    checked.refuse_recipe(str(path), {})


def test_what_to_type_next_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with a space is quoted for a shell."""
    monkeypatch.setattr(checked, "refuse_recipe", lambda path, overrides: None)
    planning.new(tmp_path / "my net")
    told = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(told.partition("; then ")[2])[-1] == str(tmp_path / "my net" / "recipe.yaml")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked(Path(), images=Path()), "is there, and not empty"),
        (Asked(Path("new-net"), images=Path("a"), text=Path("b")), "one kind of data"),
        (Asked(Path("new-net"), images=Path("no-such")), r"/no-such: no such file"),
        (Asked(Path("new-net"), tabular=Path("pyproject.toml")), "goes with --target"),
        (Asked(Path("new-net"), model="resnet"), "--model resnet: expected torchvision:NAME, timm:NAME"),
        (Asked(Path("new-net"), model="timm:resnet18"), "--model goes with data"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(asked: Asked, message: str) -> None:
    """In one line, with the path as it was found."""
    with pytest.raises(InputError, match=message):
        write(asked, "x")
    assert not Path("new-net").exists()


def test_a_file_beside_the_recipe_is_found_and_two_are_not_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths are of the recipe's folder, then of the project's root; where both lead somewhere it is said."""
    from flows.recipe import places

    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(places, "ROOT", tmp_path / "root")
    assert places.located("python_path", "mine", tmp_path) == str(tmp_path / "mine")
    assert places.located("python_path", "other", tmp_path) == "other"
    recipe = {"python_path": ["mine", "${oc.env:MINE}"], "model": {"weights": {"path": "mine"}}, "data": 3}
    whole = str(tmp_path / "mine")
    assert places.placed(recipe, tmp_path) == {
        "python_path": [whole, "${oc.env:MINE}"], "model": {"weights": {"path": whole}}, "data": 3
    }  # fmt: skip
    (tmp_path / "root" / "mine").mkdir(parents=True)
    with pytest.raises(RecipeError, match=f"{tmp_path}/mine and {tmp_path}/root/mine"):
        places.located("python_path", "mine", tmp_path)
