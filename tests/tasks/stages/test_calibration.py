"""Activations on grids by the stage `quantize`: what is stored, told and refused; and that the file brings it back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from quiet_runs import quiet_run

from deepcompression import torch as files
from deepcompression.errors import StructureError
from deepcompression.quantization.observers import OBSERVERS
from tasks.execution.check import check
from tasks.execution.execute import execute
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Data, Factory, Model, Training
from tasks.stages import baseline, encode, settings_of, work_of
from tasks.stages.calibration import Observer
from tasks.stages.quantize import Settings

CODE = """
import torch
from torch import nn
drawn = []
class Split(torch.utils.data.Dataset):
    def __init__(self, name, x):
        self.name, self.x = name, x
    def __len__(self):
        return len(self.x)
    def __getitem__(self, index):
        drawn.append(self.name)
        return {"x": self.x[index], "y": self.x[index, :3].argmax()}
def data():
    x = torch.randn(120, 6, generator=torch.Generator().manual_seed(0))
    order = torch.Generator().manual_seed(5)
    train = torch.utils.data.DataLoader(Split("train", x[:100]), 15, shuffle=True, generator=order)
    return train, Split("validation", x[100:]), Split("test", x[100:])
def step(model, batch):
    outputs = model(batch["x"])
    return nn.functional.cross_entropy(outputs, batch["y"]), outputs, batch["y"]
def by_class():
    x = torch.arange(200.0)[:, None].repeat(1, 6)
    return tuple({"x": x, "y": torch.arange(200) // 67} for _ in range(3))
class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(Split("train", torch.ones(3, 6)))
def few(how):
    x = torch.ones(1 if how == "sample" else 40, 6)
    train = {
        "sample": {"x": x, "y": torch.zeros(1, dtype=torch.int64)},
        "loader": torch.utils.data.DataLoader(Split("train", x), 64),
        "stream": Stream(),
        "loader of none": torch.utils.data.DataLoader(Split("train", x), 64, drop_last=True),
    }[how]
    return train, Split("validation", x), Split("test", x)
def shift(batch, generator):
    return {**batch, "x": batch["x"] + 100}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(6, 64, bias=False), nn.BatchNorm1d(64), nn.Linear(64, 3)
        self.gru = nn.GRU(6, 2)
    def forward(self, x):
        return self.b(self.norm(self.a(x)).relu()) + self.gru(x)[0].sum()
class Unlike(Net):
    def __init__(self, never=False):
        super().__init__()
        self.never = never
    def forward(self, x):
        return x[:, :3] + self.a.weight.sum() if self.never else self.b(input=self.a(x))
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run on a small net, told to nobody; samples are mappings, and augmented where anything trains."""
    with quiet_run(tmp_path, monkeypatch, "tsc_mine", CODE, Model(factory="tsc_mine:Net")) as made:
        data = Data(factory="tsc_mine:data", augment=Factory(factory="tsc_mine:shift"))
        yield replace(made, step=Factory(factory="tsc_mine:step"), data=data)


def made(run: Run, keys: dict[str, Any], source: Reference) -> Reference:
    settings = settings_of("quantize")(stage="quantize", **keys)
    return execute(run, "quantize", 1, settings, source, work_of("quantize"))[0]


def dense(run: Run) -> Reference:
    keys = baseline.Settings(train=Training(epochs=1, lr=0.01, batch_size=16))
    return execute(run, "baseline", 0, keys, None, baseline.work)[0]


def test_calibrated_by_training_samples_alone_and_brought_back_by_the_file(run: Run) -> None:
    """Not augmented, one order, no other split; tables of sites and biases; the file computes the same."""
    import tsc_mine  # type: ignore[import-not-found]

    source = dense(run)
    tsc_mine.drawn.clear()
    keys = {"bits": {"default": 8, "gru.weight_ih_l0": 6}, "observer": "auto", "samples": 60}
    done = made(run, {"weights": {"bits": 8}, "activations": keys, "correct": ["bias"], "rest": "float16"}, source)
    calls = "".join(name[0] for name in tsc_mine.drawn)
    assert calls.startswith("t" * 180) and set(calls[180:]) == {"v"}  # two passes, one for biases; then it is measured
    entry = run.store.find(done.key)
    assert entry is not None
    report, state = entry["report"], run.state(done)
    assert [one["sites"] for one in report["sites"]] == [["a:input[0]"], ["b:input[0]"], ["gru:input[0]"]]
    assert (report["calibration"]["samples"], len(report["calibration"]["digest"])) == (60, 64)
    x = run.splits().train.dataset.x
    seen = report["sites"][0]
    assert float(x.min()) <= seen["least"] <= seen["most"] <= float(x.max()) < 90
    biases = next(one["layers"] for one in report["methods"] if one["method"] == "bias")
    assert [(one["layer"], one["tensor"]) for one in biases[:2]] == [("a", "norm.running_mean"), ("b", "b.bias")]
    assert biases[2]["why"].startswith("a recurrent layer's outputs")
    assert state["a.input_0_scale"].dtype == torch.float32  # not rounded with the rest
    assert any(note.startswith("activations: 3 values on grids (") for note in entry["notes"])
    packed = execute(run, "encode", 2, encode.Settings(stage="encode"), done, encode.work)[0]
    back = files.load_into(run.blank_model(), run.store.object_path(packed.object)).eval()
    assert torch.equal(back(x), run.model_with(done).eval()(x))
    assert not torch.equal(back(x), run.model_with(source).eval()(x))


def test_a_split_that_is_sorted_is_calibrated_by_samples_from_all_of_it(run: Run) -> None:
    """Not by the first ones, which are all of one class."""
    run = replace(run, data=Data(factory="tsc_mine:by_class"))
    entry = run.store.find(made(run, {"activations": {"samples": 64, "observer": "minmax"}}, dense(run)).key)
    assert entry is not None
    assert entry["report"]["sites"][0]["most"] > 150 and entry["report"]["calibration"]["samples"] == 64


def test_dynamic_ranges_are_of_each_vector(run: Run) -> None:
    """No scale, no table of ranges; what was left is told with why."""
    done = made(run, {"activations": {"range": "dynamic_token"}}, dense(run))
    entry = run.store.find(done.key)
    assert entry is not None
    assert [edit["range"] for edit in done.edits] == ["dynamic_token"] * 2
    assert any(note.startswith("gru.weight_ih_l0: the input of a recurrent layer") for note in entry["notes"])
    assert entry["report"]["calibration"] == {"samples": 0, "digest": None}


@pytest.mark.parametrize("how", ["sample", "loader", "stream", "loader of none"])
def test_samples_that_are_too_few_are_refused_before_anything_trains(run: Run, how: str) -> None:
    """Auto keeps a batch apart; nothing is calibrated by none, nor a bias corrected."""
    run = replace(run, data=Data(factory="tsc_mine:few", kwargs={"how": how}))
    one, none = "observer: auto keeps a .* and there is one batch; name an", "no samples came to calibrate with; the"
    cases: list[Any] = [({"activations": {"observer": "auto"}}, none if how == "loader of none" else one)]
    if how == "loader of none":
        cases += [({"activations": {}}, none), ({"weights": {}, "correct": ["bias"]}, none)]
    for keys, words in cases:
        with pytest.raises(StructureError, match=rf"^stage it: (activations|correct: \[bias\]): {words}"):
            check(run, [("it", Settings(stage="quantize", **keys))])


@pytest.mark.parametrize("stage", ["quantize", "train", "binarize"])
@pytest.mark.parametrize(
    ("never", "named", "words"),
    [
        (False, "b", r"b:input\[0\] cannot be quantized: its input comes by keyword \(input=\), and only what comes"),
        (True, "a", r"a:input\[0\] cannot be quantized: the forward never calls a; leave the layer out"),
    ],
)
def test_inputs_by_which_no_value_comes_are_refused_before_anything_trains(
    run: Run, stage: str, never: bool, named: str, words: str
) -> None:
    """By the check, whoever means to quantize them: the stage, a method of a training, a binarization."""
    run = replace(run, model=Model(factory="tsc_mine:Unlike", kwargs={"never": never}))
    activations = {"bits": {named: 8}}
    keys: dict[str, Any] = {
        "quantize": {"activations": activations},
        "train": {"epochs": 1, "methods": [{"quantize": {"activations": activations}}]},
        "binarize": {"weights": None, "activations": {"kind": "dorefa", "bits": {named: 2}}, "keep": []},
    }
    settings = settings_of(stage)(stage=stage, **keys[stage])
    with pytest.raises(StructureError, match=f"stage it: {words}"):
        check(run, [("it", settings)])


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"activations": {"range": "dynamic", "samples": 9}}, "samples has no effect with range: dynamic"),
        ({"activations": {"range": "dynamic_row", "observer": "kl"}}, "observer has no effect with range: dynamic_row"),
        ({"activations": {"percentile": 99}}, "percentile goes with observer: percentile, or auto"),
        ({"activations": {"observer": "auto", "samples": 1}}, "observer: auto keeps samples apart to choose by; give"),
        ({"activations": {"observer": "entropy"}}, "'minmax', 'moving_average'"),
        ({"activations": {"bits": 1}}, "greater than or equal to 2"),
        ({"activations": {"samples": 0}}, "greater than or equal to 1"),
        ({"correct": ["bias"]}, r"correct: \[bias\] goes with weights or activations"),
    ],
)
def test_keys_that_do_not_go_together(keys: dict[str, Any], words: str) -> None:
    """One line each, before anything runs."""
    with pytest.raises(ValidationError, match=words):
        Settings(stage="quantize", **keys)


def test_what_cannot_be_quantized_or_is_already_is_refused_before_anything_trains(run: Run) -> None:
    """By the check that looks patterns up: inner weights by name; sites that an earlier stage quantizes, either way."""
    keys = [
        ("train", {"epochs": 1, "methods": [{"quantize": {"activations": {"bits": {"a": 4}}}}]}),
        ("quantize", {"activations": {"bits": {"b": 8}}}),
        ("quantize", {"activations": {}}),
        ("quantize", {"activations": {"bits": {"gru.weight_hh_l0": 8}}}),
    ]
    train, other, every, inner = [
        (f"{word}-{place}", settings_of(word)(stage=word, **one)) for place, (word, one) in enumerate(keys)
    ]
    check(run, [train, other])
    for stages, words in (
        (
            [train, every],
            r"stage quantize-2: a:input\[0\]: stage train-0 quantizes it already; leave it out of",
        ),
        ([other, every], r"b:input\[0\]: stage quantize-1 quantizes it already"),
        ([every, train], r"stage train-0: a:input\[0\]: stage quantize-2 quantizes it already"),
        ([inner], "stage quantize-3: gru.weight_hh_l0: its input cannot be quantized: it multiplies what gru computes"),
    ):
        with pytest.raises(StructureError, match=words):
            check(run, stages)
    assert set(get_args(Observer)) == {*OBSERVERS, "auto"}
    assert every[1].edits() == {"quantize_values": "activations"}  # type: ignore[attr-defined]
