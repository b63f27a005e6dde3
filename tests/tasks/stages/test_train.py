"""The stage train: shorthands and it give the same bits, methods side by side, parametrized layers, without Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from quiet_runs import quiet_run

from deepcompression.errors import StructureError
from deepcompression.torch import load_into
from tasks.execution.check import check
from tasks.execution.execute import execute
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Model, Training
from tasks.report.methods import method_tables, methods_of
from tasks.stages import baseline, encode, settings_of, train, work_of

CODE = """
import torch
from torch import nn
from torch.nn.utils import parametrizations
def data():
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    pair = (x, x[:, :3].argmax(1))
    return pair, pair, pair
def net():
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.2), nn.ReLU(), nn.Linear(16, 3))
def normed():
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 16)), nn.ReLU(), nn.Linear(16, 3))
"""
TWO = {"epochs": 2, "lr": 0.01, "batch_size": 16}
DROPOUT = {"dropout": {"modules": {"1": "0"}}}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run on a small net, told to nobody."""
    with quiet_run(tmp_path, monkeypatch, "tst_mine", CODE, Model(factory="tst_mine:net")) as made:
        yield made


def made(run: Run, label: str, keys: dict[str, Any], source: Reference) -> Reference:
    """The result of a stage with these keys."""
    settings = settings_of(keys["stage"])(**keys)
    return execute(run, label, 1, settings, source, work_of(keys["stage"]))[0]


def dense(run: Run) -> Reference:
    """The dense model of a run."""
    settings = baseline.Settings(train=Training(**TWO))
    return execute(run, "baseline", 0, settings, None, baseline.work)[0]


def taught(run: Run, source: Reference) -> Run:
    """The run, with its dense model as what is learnt from."""
    return Run(**{**vars(run), "taught_by": source})


SHORTHANDS = [
    (
        {"stage": "prune", "density": 0.3, "gradual": {**TWO, "ramp": 0.5}, "dropout": {"1": "0"}},
        [{"prune": {"density": 0.3, "ramp": 0.5}}, {"dropout": {"modules": {"1": "0"}}}],
    ),
    ({"stage": "finetune", **TWO, "dropout": {"1": "0"}}, [{"dropout": {"modules": {"1": "0"}}}]),
    ({"stage": "share", "bits": 3, "rate": 0.02, "train": TWO}, [{"share": {"bits": 3, "rate": 0.02}}]),
    ({"stage": "quantize", "train": {**TWO, "distil": {"weight": 0.3}}}, ["centroids", {"distil": {"weight": 0.3}}]),
]


def test_a_recipe_of_shorthands_and_the_same_of_train_give_the_same_bits(run: Run) -> None:
    """Gradual pruning, fine-tuning, sharing and trained quantization are trainings with methods, and nothing else."""
    first = second = dense(run)
    run = taught(run, first)
    for number, (short, methods) in enumerate(SHORTHANDS):
        first = made(run, f"s{number}", short, first)
        second = made(run, f"s{number}", {"stage": "train", **TWO, "methods": methods}, second)
        assert first.object == second.object, short["stage"]
        assert first.structure == second.structure, short["stage"]
    assert first.shared == ["0.weight", "3.weight"]


def test_methods_work_side_by_side_on_the_same_tensors(run: Run) -> None:
    """Pruned and shared in one training, both hold afterwards; the history has what each of them logs."""
    source = dense(run)
    methods = [{"prune": {"density": 0.4, "ramp": 0.5}}, {"share": {"bits": 2}}, {"distil": None}]
    reference = made(taught(run, source), "t", {"stage": "train", **TWO, "methods": methods}, source)
    weight = run.state(reference)["0.weight"]
    assert int((weight != 0).sum()) == round(0.4 * weight.numel()) and len(weight[weight != 0].unique()) <= 4
    entry = run.store.find(reference.key)
    assert entry is not None and {"prune/density", "share/bits", "distil/loss"} <= set(entry["history"][-1])
    kept = made(run, "finetune", {"stage": "finetune", **TWO}, reference)
    assert kept.structure == reference.structure


def test_each_method_reports_for_itself(run: Run) -> None:
    """Two that report layers, and two of one name, stand side by side: in the store, summary, tables and history."""
    methods = [{"prune": {"density": 0.4}}, {"share": {"bits": {"0": 2}}}, {"share": {"bits": {"3": 3}}}]
    reference = made(run, "t", {"stage": "train", **TWO, "methods": [*methods, DROPOUT]}, dense(run))
    entry = run.store.find(reference.key)
    assert entry is not None
    told = {one["method"]: one for one in methods_of(entry)}
    assert list(told) == ["prune", "share", "share-2", "dropout"] and told["dropout"]["dropout"].keys() == {"1"}
    assert [layer["density"] for layer in told["prune"]["layers"]] == pytest.approx([0.4, 0.4], abs=0.02)
    assert [one["name"] for one in told["share-2"]["layers"]] == ["3.weight"]
    assert "centroids" not in told["share"]["layers"][0]  # thousands of numbers, of many bits
    tables = method_tables([{"stage": "t", "methods": entry["report"]["methods"]}])
    assert [(one.method, one.things, one.columns[0], len(one.rows)) for one in tables] == [
        ("prune", "layers", "name", 2), ("share", "layers", "name", 1), ("share-2", "layers", "name", 1),
        ("dropout", "dropout", "dropout", 1),
    ]  # fmt: skip
    assert dict(zip(tables[1].columns, tables[1].rows[0], strict=True))["centroids"] in ("3 values", "4 values")
    assert {"prune/density", "share/bits", "share-2/bits"} <= set(entry["history"][-1])


@pytest.mark.parametrize(
    ("methods", "done", "told"),
    [
        ([{"prune": {"density": {"0": 0.4}}}], ["0.weight"], {"3.weight": "named by no pattern"}),
        ([{"quantize": {"weights": {"bits": {"3": 4}}, "activations": {}}}], ["3.weight"], {}),
        ([{"prune": {"density": 0.4}}, {"share": {"bits": {"3": 3}}}], ["0.weight", "3.weight"], {}),
        ([{"distil": None}, DROPOUT], [], {}),  # nothing is said of tensors where none is claimed
    ],
)
def test_a_training_tells_of_every_tensor_what_became_of_it(
    run: Run, methods: Any, done: list[str], told: dict[str, str]
) -> None:
    """Claimed by some method, or left alone and why: as every other stage."""
    source = dense(run)
    reference = made(taught(run, source), "t", {"stage": "train", **TWO, "methods": methods}, source)
    rows = (run.store.find(reference.key) or {})["report"].get("covered", [])
    assert [row["tensor"] for row in rows if row["done"]] == done
    left = {row["tensor"]: row["reason"] for row in rows if not row["done"]}
    assert {name for name in left if name.endswith("weight")} == (
        {"0.weight", "3.weight"} - set(done) if done else set()
    )
    assert told.items() <= left.items() and ("2 vectors" in left) == bool(done)


def test_two_methods_that_claim_the_same_are_refused(run: Run) -> None:
    """Before anything trains, with the tensor's name and both methods'."""
    source = dense(run)
    methods = [{"share": {"bits": 2}}, {"share": {"bits": 3}}]
    both = r"weight: share and share both claim its values; leave it to one of them"
    with pytest.raises(StructureError, match=both):
        made(run, "t", {"stage": "train", **TWO, "methods": methods}, source)
    with pytest.raises(StructureError, match=both):  # the check of a whole run, before its baseline trains
        train.Settings(stage="train", methods=methods).fits(run, run.blank_model())


def test_what_earlier_stages_keep_is_known_before_anything_trains(run: Run) -> None:
    """Grids are told to the stages that follow, and not put over values that those before them leave."""
    model = run.blank_model()
    made = train.Settings(stage="train", methods=[{"quantize": {"weights": {"bits": 4, "per": "channel"}}}])
    assert made.leaves(model) == {"0.weight": ("grid(4, 0)",), "3.weight": ("grid(4, 0)",)}
    made.follows(model, {"0.weight": ("zeros", "grid(4, 0)")})
    with pytest.raises(StructureError, match=r"0\.weight: is shared already, which grid\(4, 0\) would undo"):
        made.follows(model, {"0.weight": ("zeros", "shared")})


@pytest.mark.parametrize(
    ("bits", "keys", "temperature"),
    [(4, {}, 4.0), (3, {}, 2.0), ({"0.weight": 8, "default": 2}, {"weight": 0.3}, 2.0), (2, {"temperature": 3.0}, 3.0)],
)
def test_below_4_bits_the_default_temperature_is_2(bits: Any, keys: dict[str, float], temperature: float) -> None:
    """As a method and as the training's key; one that is given stays; the resolved recipe has it."""
    methods = [{"quantize": {"weights": {}, "activations": {"bits": bits}}}, {"distil": keys}]
    made = train.Settings(stage="train", methods=methods, distil=keys).model_dump(mode="json")
    assert made["methods"][1]["distil"]["temperature"] == made["distil"]["temperature"] == temperature
    assert train.Settings(**made).model_dump(mode="json") == made


@pytest.mark.parametrize(
    ("methods", "told"),
    [
        ([], "at least 1 item"),
        ([{"prun": {"density": 0.1}}], "prun"),
        ([{"prune": {"density": 0.1}, "distil": {}}], "expected one method in each entry"),
        ([{"prune": {"density": 1.5}}], "less than or equal to 1"),
        ([{"prune": {"density": 0.1, "rampp": 1}}], "rampp"),
        ([{"quantize": {}}], "expected weights, activations, or both"),
        ([{"quantize": {"weights": {"bits": 1}}}], "greater than or equal to 2"),
        ([{"quantize": {"weights": {"range": "pact"}}}], "'minmax', 'lsq', 'tqt' or 'learned'"),
        ([{"quantize": {"weights": {"scheme": "asymmetric"}}}], "asymmetric goes with minmax or learned"),
        ([{"quantize": {"activations": {"penalty": 0.1}}}], "penalty is of range pact and pact2, not of lsq"),
        ([{"quantize": {"weights": {}, "freeze_bn": 2}}], "less than or equal to 1"),
    ],
)
def test_wrong_methods_are_refused_with_the_recipe(methods: Any, told: str) -> None:
    """Unknown names and keys, several methods in one entry, impossible values."""
    with pytest.raises(ValidationError, match=told):
        train.Settings(stage="train", methods=methods)


def test_a_parametrized_layer_goes_through_the_stages(run: Run) -> None:
    """A weight that weight_norm computes is a parameter from the baseline on, and the file makes it one again."""
    run = Run(**{**vars(run), "model": Model(factory="tst_mine:normed")})
    source = dense(run)
    assert [edit["kind"] for edit in source.edits] == ["fold"]
    pruned = made(run, "prune", {"stage": "prune", "density": 0.25}, source)
    tuned = made(run, "finetune", {"stage": "finetune", **TWO}, pruned)
    assert "0.weight" in pruned.zeros
    assert int((run.state(tuned)["0.weight"] != 0).sum()) == 24
    packed = execute(run, "encode", 4, encode.Settings(stage="encode"), tuned, encode.work)[0]
    thin = load_into(run.blank_model(), run.store.object_path(packed.object))
    assert all(torch.equal(thin.state_dict()[name], one) for name, one in run.state(tuned).items())


THREE = {"weights": {}, "keep": ["3"]}
SIGNS = {"activations": {}, "keep": ["0"]}
GRIDS = {"stage": "quantize", "weights": {"bits": 4}}
FIRST = {"stage": "binarize", "keep": ["3"]}


@pytest.mark.parametrize(
    ("before", "keys", "told"),
    [
        ({"stage": "share", "bits": 2}, {"stage": "binarize", **THREE}, "0.weight: is shared already, which binarize"),
        (FIRST, {"stage": "quantize", "weights": {"bits": 8}}, "0.weight: is binary already"),
        (FIRST, {"stage": "train", "methods": [{"quantize": {"activations": {}}}]}, r"0:input\[0\]: stage binarize"),
        (FIRST, {"stage": "share", "bits": 2}, "0.weight: is binary already, which share would undo; leave it"),
        (FIRST, {"stage": "prune", "density": 0.5}, "0.weight: is binary already, and 0 would be a third value; prune"),
        (GRIDS, {"stage": "share", "train": {}}, r"0.weight: is grid\(4, 0\) already, which share would undo"),
        (
            None,
            {"stage": "binarize", "keep": ["0"]},
            r"3:input\[0\]: no sample is below 0 there, so that every sign would",
        ),
        (None, {"stage": "train", "methods": [{"binarize": SIGNS}]}, r"3:input\[0\]: no sample is below 0 there"),
        (None, {"stage": "binarize"}, r"weights.bits: no layer is left: the first and the last layer stay float"),
        (None, {"stage": "train", "methods": [{"binarize": {"weights": {}}}]}, r"binarize: weights.bits: no layer"),
    ],
)
def test_what_goes_with_no_binary_weight_is_refused_before_anything_trains(
    run: Run, before: Any, keys: Any, told: str
) -> None:
    """By the stages before, and by those that follow."""
    stages = [(one["stage"], settings_of(one["stage"]).model_validate(one)) for one in (before, keys) if one]
    with pytest.raises(StructureError, match=told):
        check(run, stages)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"weights": {"bits": 2}}, "bits 2 is impossible for xnor, expected 1; dorefa takes up to 8"),
        ({"activations": {"kind": "sign", "bits": {"0": 4}}}, "bits 4 is impossible for sign"),
        ({"weights": None, "activations": None}, "expected weights, activations, or both"),
        ({"phases": {"activations": 0.5}}, "expected activations, weights and decay to begin in this order"),
        ({"schedule": {"factory": "torch.optim.lr_scheduler:StepLR"}}, "schedule: expected constant, cosine or linear"),
    ],
)
def test_impossible_keys_of_a_binarization_are_refused_with_the_recipe(keys: Any, told: str) -> None:
    """One line each."""
    with pytest.raises(ValidationError, match=told):
        settings_of("binarize")(stage="binarize", **keys)
    settings_of("binarize")(stage="binarize")


def test_a_binarization_says_what_it_leaves_float_and_which_edits_it_makes(run: Run) -> None:
    """In the table of tensors, by name; exports know of the edits beforehand; and the rate falls at the end."""
    keys = {"stage": "binarize", **TWO, "keep": ["3"], "activations": {"kind": "dorefa", "bits": {"0": 2}}}
    reference = made(run, "b", keys, dense(run))
    entry = run.store.find(reference.key) or {}
    left = {row["tensor"]: row["reason"] for row in entry["report"]["covered"] if not row["done"]}
    assert left["3.weight"] == "stays float: named in keep"
    assert reference.structure["0.weight"] == ("binary",) or list(reference.structure["0.weight"]) == ["binary"]
    assert (
        [edit["kind"] for edit in reference.edits]
        == ["quantize_values"]
        == list(settings_of("binarize")(**keys).edits())
    )
    assert len(method_tables([{"stage": "b", "methods": methods_of(entry)}])) == 2
