from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepcompression.errors import RecipeError
from deepcompression.export import TARGETS
from flows.recipe import load as recipes
from flows.recipe import merge, rounds
from flows.recipe.schema import Recipe
from flows.recipe.stored import as_logged, as_stored
from tasks import secrets

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.usefixtures("nothing_known")
DIGITS = ROOT / "conf" / "digits.yaml"


def _mapping(**changes: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "model": {"factory": "deepcompression.models:digits_net"},
        "data": {"factory": "deepcompression.data:digits"},
        "stages": [{"stage": "prune", "density": 0.5}, {"stage": "finetune"}, {"stage": "share"}],
        **changes,
    }


def _message(source: Any, overrides: dict[str, Any] | None = None) -> str:
    with pytest.raises(RecipeError) as caught:
        recipes.load(source, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    """Recipes in conf/ load, and end in a file, or have a budget that does."""
    recipe = recipes.load(path)
    assert recipe.budget or recipe.stages[-1].stage == "encode"


def test_schema_for_editors_is_current() -> None:
    """conf/recipe.schema.json is what `make schema` writes."""
    assert json.loads((ROOT / "conf" / "recipe.schema.json").read_text()) == Recipe.model_json_schema()


def test_an_export_is_a_target_of_the_list() -> None:
    """A target's name is short for its keys; what is no target, or stands twice, is told before anything trains."""
    loaded = recipes.load(_mapping(export=["onnx"]))
    assert loaded.export == recipes.load(_mapping(export=[{"to": "onnx"}])).export and loaded.export[0].to == "onnx"
    assert f"expected {', '.join(TARGETS)}, or a mapping with to, got 'tflite'" in _message(_mapping(export=["tflite"]))
    assert "onnx" in _message(_mapping(export=["onnx", {"to": "onnx"}]))
    assert loaded.export[0].options() == {}
    assert recipes.load(_mapping(export=[{"to": "onnx", "io": "integer"}])).export[0].options() == {"io": "integer"}
    assert "export.0.io: expected float, or integer" in _message(_mapping(export=[{"to": "onnx", "io": "int4"}]))


def test_steps_and_metrics_have_words() -> None:
    """A word, alone or with its arguments, stands for a factory of this library; another one is told what there is."""
    loaded = recipes.load(_mapping(step="regression", metric={"top_k": {"k": 3}}))
    assert loaded.step.factory == "deepcompression.training.steps:regression"
    assert (loaded.metric.factory, loaded.metric.kwargs) == ("deepcompression.training.metrics:top_k", {"k": 3})
    assert recipes.load(loaded.model_dump()) == loaded
    own = {"factory": "mine:step", "kwargs": {"a": 1}}
    assert recipes.load(_mapping(step=own)).step.model_dump() == own
    assert "did you mean 'regression'" in _message(_mapping(step="regresion"))


def test_overrides_by_stage_name_and_by_index() -> None:
    """A stage is addressed by its name where that is unique, else by index."""
    loaded = recipes.load(_mapping(), {"stages.prune.density": 0.25, "stages.2.bits": 3, "seed": 7})
    assert (loaded.stages[0].density, loaded.stages[2].bits, loaded.seed) == (0.25, 3, 7)


def test_override_of_an_ambiguous_stage_names_the_indices() -> None:
    """Two stages of one name cannot be meant by it."""
    twice = [{"stage": "prune", "density": 0.5}, {"stage": "prune", "density": 0.2}]
    assert "stages.0. or stages.1." in _message(_mapping(stages=twice), {"stages.prune.density": 0.1})
    assert "no stage is called slim" in _message(_mapping(), {"stages.slim.density": 0.1})


def test_override_merges_mappings_and_replaces_the_rest() -> None:
    """A mapping merges into a mapping; a scalar or list replaces."""
    stages = [{"stage": "prune", "density": {"fc1": 0.1}}]
    merged = recipes.load(_mapping(stages=stages), {"stages.prune.density": {"fc2": 0.2}})
    assert merged.stages[0].density == {"fc1": 0.1, "fc2": 0.2}
    assert recipes.load(_mapping(stages=stages), {"stages.prune.density": 0.3}).stages[0].density == 0.3
    assert recipes.load(_mapping(seeds=[1, 2]), {"seeds": [5]}).seeds == [5]


def test_what_follows_a_table_of_tensors_in_an_override_is_one_name() -> None:
    """Names have dots, patterns and choices have signs; one value for all becomes that of the others."""
    names = ("conv1.weight", "features.0", "block*.conv", "type:Conv2d", "mine.choose:large")
    for name in names:
        loaded = recipes.load(_mapping(), {f"stages.prune.density.{name}": 0.25})
        assert loaded.stages[0].density == {"default": 0.5, name: 0.25}
    stages = [{"stage": "quantize", "weights": {"bits": {"fc1.weight": 8}}}, {"stage": "slim"}]
    overrides = {"stages.quantize.weights.bits.fc1.weight": 4, "stages.slim.units.a.b": 3, "stages.slim.units.c.d": 2}
    loaded = recipes.load(_mapping(stages=stages), overrides)
    assert loaded.stages[0].weights.bits == {"fc1.weight": 4} and loaded.stages[1].units == {"a.b": 3, "c.d": 2}
    kwargs = recipes.load(_mapping(), {"data.kwargs.density.a": 1}).data.kwargs
    assert kwargs == {"density": {"a": 1}}


def test_an_override_of_seeds_replaces_the_seed_and_the_other_way_round() -> None:
    """Who asks for three seeds need not remove the one that the file has."""
    assert recipes.load(_mapping(seed=4), {"seeds": [0, 1]}).seed is None
    assert recipes.load(_mapping(seeds=[0, 1]), {"seed": 4}).seeds is None
    assert recipes.load(_mapping(seeds=[0, 1]), {"seed": 4}).seed == 4


def test_typed_values_of_overrides() -> None:
    """1e-4 is a number, null is nothing, brackets are lists: as people mean them."""
    words = ["a=1e-4", "b=null", "c=[0,1]", "d={fc1: 0.1}", "e=x=y", "f=3", "g=true", "h=${oc.env:NO_SUCH}", "i="]
    parsed = merge.parse_overrides(words)
    assert parsed == {
        "a": 1e-4, "b": None, "c": [0, 1], "d": {"fc1": 0.1}, "e": "x=y", "f": 3, "g": True,
        "h": "${oc.env:NO_SUCH}", "i": None,
    }  # fmt: skip
    with pytest.raises(RecipeError, match="no YAML"):
        merge.parse_overrides(["a=[1"])


def test_unknown_key_names_the_nearest_and_the_line(tmp_path: Path) -> None:
    """A misspelt key is refused with file, line and the key that was probably meant."""
    path = tmp_path / "r.yaml"
    path.write_text(DIGITS.read_text().replace("validation: 0.15", "validaton: 0.15"))
    line = path.read_text().splitlines().index("  validaton: 0.15") + 1
    message = _message(path)
    assert message.startswith(f"{path}:{line}: data.validaton: unknown key") and "'validation'" in message


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"stages": [{"stage": "prune", "density": 1.5}]}, "stages.0.density"),
        ({"stages": [{"stage": "prune", "density": {"fc1": 0}}]}, "stages.0.density.fc1"),
        ({"stages": [{"stage": "prune"}]}, "exactly one of density and quality"),
        ({"stages": [{"stage": "prune", "density": 0.1, "densty": 1}]}, "did you mean 'density'"),
        ({"stages": [{"stage": "share", "bits": 17}]}, "stages.0.bits"),
        ({"stages": [{"stage": "share", "bits": "many"}]}, "got 'many'"),
        ({"stages": [{"stage": "shrink"}]}, "expected stage: one of prune"),
        ({"stages": []}, "stages"),
        ({"stages": [{"stage": "encode"}, {"stage": "share"}]}, "encode must be the last"),
        ({"stages": [{"stage": "quantize", "rest": "int8"}, {"stage": "finetune"}]}, "undoes its rounding"),
        ({"stages": [{"stage": "quantize", "correct": ["weights"]}]}, "correct: [weights] goes with weights"),
        ({"stages": [{"stage": "prune", "density": 0.1, "rounds": 3}]}, "a finetune must follow"),
        ({"stages": [{"stage": "prune", "density": {"a": 0.1}, "scope": "global"}]}, "one density for all"),
        ({"name": "../elsewhere"}, "name"),
        ({"model": {"factory": "no colon"}}, "model.factory"),
        ({"data": {"factory": "a:b", "validation": 1.5}}, "a count of samples"),
        (
            {"train": {"optimizer": {"factory": "torch.optim:SGD", "kwargs": {"lr": 1}}}},
            "the learning rate stands twice",
        ),
        ({"seed": 1, "seeds": [1, 2]}, "keep one"),
        ({"recipe_version": 9}, "recipe_version"),
    ],
)
def test_impossible_recipes_are_refused_in_one_line(changes: dict[str, Any], part: str) -> None:
    """Each wrong value gets one line that names the key and what was expected."""
    assert part in _message(_mapping(**changes))


def test_missing_file_and_broken_yaml(tmp_path: Path) -> None:
    """A recipe that cannot be read, or is no mapping, is an input error too."""
    assert "cannot be read" in _message(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    assert "expected a YAML mapping" in _message(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    assert "not a YAML mapping" in _message(tmp_path / "bad.yaml")


def test_recipe_from_a_url() -> None:
    """A recipe may lie on a web server; one that is not there is told with its address."""

    class Served(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/digits.yaml" else 404)
            self.end_headers()
            self.wfile.write(DIGITS.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Served)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    assert recipes.load(f"{address}/digits.yaml") == recipes.load(DIGITS)
    assert f"{address}/none.yaml: cannot be fetched" in _message(f"{address}/none.yaml")
    server.shutdown()


def test_secrets_are_used_but_not_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes from the environment stays `${oc.env:...}` in the stored recipe, also through another key."""
    monkeypatch.setenv("DC_TEST_TOKEN", "hunter2")
    source = _mapping(
        tracking={"uri": "http://me:${oc.env:DC_TEST_TOKEN}@host", "experiment": "${tracking.uri}"},
        store="s3://user:plain@bucket",
        runs="s3://${oc.env:DC_TEST_TOKEN}:plain@bucket",
    )
    loaded = recipes.load(source)
    assert loaded.tracking.uri == "http://me:hunter2@host"
    stored = json.dumps(as_stored(loaded, source))
    assert "hunter2" not in stored and "plain" not in stored and "${oc.env:DC_TEST_TOKEN}" in stored


WAYS = (
    "${oc.env:DC_S}", '${oc.env:"DC_S"}', "pre-${oc.env:DC_S}-post", "${oc.create:{x:${oc.env:DC_S}}}",
    "${oc.decode:'${oc.env:DC_S}'}", "${oc.env:DC_NONE,${oc.env:DC_S}}", "${oc.env:${oc.env:DC_NAME}}",
    "${model.kwargs.first}", "${step.kwargs}", "${oc.select:model.kwargs.first}", "${oc.dict.values:step.kwargs}",
)  # fmt: skip
TREES = st.recursive(
    st.sampled_from(WAYS) | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=4,
)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for one in value for leaf in _leaves(one)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("value", ["hunter2-of-mine", "7e2", "ab"])
@given(tree=TREES, whole=st.sampled_from(WAYS[:-1]))
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_way_a_secret_takes_it_is_stored_unresolved(
    monkeypatch: pytest.MonkeyPatch, value: str, tree: Any, whole: str
) -> None:
    """Quoted, decoded, nested, by reference, a whole node, a custom stage's keyword: it runs again as stored."""
    monkeypatch.setenv("DC_S", value)
    monkeypatch.setenv("DC_NAME", "DC_S")
    monkeypatch.delenv("DC_NONE", raising=False)
    source = _mapping(
        model={"factory": "a.b:c", "kwargs": {"first": "${oc.env:DC_S}", "tree": tree}},
        data={"factory": "a.b:d", "kwargs": "${step.kwargs}"},
        step={"factory": "a.b:e", "kwargs": {"b": "${oc.env:DC_S}", "c": "${model.kwargs.first}"}},
        stages=[{"stage": "a.b:f", "token": whole, "again": "${stages.0.token}", "tree": tree}, {"stage": "encode"}],
    )
    loaded = recipes.load(source)
    stored = as_stored(loaded, source)
    told = [str(leaf) for leaf in _leaves([stored, as_logged(loaded, stored)])]
    assert stored["data"]["kwargs"] == "${step.kwargs}" and stored["stages"][0]["token"] == whole
    assert not {value, f"pre-{value}-post", str(yaml.safe_load(value))} & set(told) - {"True"}
    assert recipes.load(stored) == loaded


def test_parts_of_a_secret_are_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a variable that holds a mapping each value is masked in texts; one that cannot be decoded is not shown."""
    monkeypatch.setenv("DC_S", "{user: somebody-else, pin: 12345678}")
    loaded = recipes.load(_mapping(data={"factory": "a.b:d", "kwargs": "${oc.decode:${oc.env:DC_S}}"}))
    assert loaded.data.kwargs == {"user": "somebody-else", "pin": 12345678}
    assert secrets.masked("somebody-else 12345678") == "*** ***"
    monkeypatch.setenv("DC_S", "[not-to-be-seen, {")
    assert "not-to-be" not in _message(_mapping(data={"factory": "a.b:d", "kwargs": "${oc.decode:${oc.env:DC_S}}"}))


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "${oc.env:DC_S}"},
        {"precision": "${oc.env:DC_S}"},
        {"seed": "${oc.env:DC_S}"},
        {"name": "-${oc.env:DC_S}"},
        {"train": {"schedule": "${oc.env:DC_S}"}},
        {"model": "${oc.env:DC_S}"},
        {"stages": [{"stage": "${oc.env:DC_S}"}]},
        {"stages": [{"stage": "prune", "density": "${oc.env:DC_S}"}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
@pytest.mark.parametrize("value", ["x1y", "hunter2-of-mine"])
def test_a_refused_secret_is_not_shown(monkeypatch: pytest.MonkeyPatch, value: str, changes: dict[str, Any]) -> None:
    """The message of a wrong value shows where it comes from, of whatever length it is."""
    monkeypatch.setenv("DC_S", value)
    message = _message(_mapping(**changes))
    assert value not in message and ("DC_S" in message or "expected" in message or "valid" in message)


def test_a_password_in_a_recipes_address_is_not_shown() -> None:
    """Neither where it cannot be fetched."""
    assert "hunter2" not in _message("http://me:hunter2@127.0.0.1:9/recipe.yaml")


def test_interpolation_of_a_missing_variable_is_an_input_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret that is not there is told by name, at the key that wants it; so is whatever else leads nowhere."""
    monkeypatch.delenv("DC_TEST_NONE", raising=False)
    assert _message(_mapping(store="${oc.env:DC_TEST_NONE}")) == (
        "recipe: store: Environment variable 'DC_TEST_NONE' not found"
    )
    assert _message(_mapping(store="${runs}", runs="${store}")).endswith(": Recursive interpolation detected")
    assert _message(_mapping(store="${no.where}")) == "recipe: store: Interpolation key 'no.where' not found"


def test_stored_recipe_runs_again_unchanged() -> None:
    """The resolved recipe has every default, and loading it gives the same recipe."""
    loaded = recipes.load(DIGITS)
    stored = as_stored(loaded, DIGITS)
    assert recipes.load(stored) == loaded
    assert stored["train"]["optimizer"] == {"factory": "torch.optim:AdamW", "kwargs": {}}


def test_rounds_unroll_into_labelled_stages() -> None:
    """prune and the finetune after it alternate; densities fall by equal factors to the final one."""
    stages = [{"stage": "prune", "density": {"fc1": 0.125}, "rounds": 3}, {"stage": "finetune"}, {"stage": "share"}]
    expanded = rounds.expand(recipes.load(_mapping(stages=stages)))
    assert [label for label, _ in expanded] == [
        "prune", "finetune", "prune-2", "finetune-2", "prune-3", "finetune-3", "share", "encode",
    ]  # fmt: skip
    assert [settings.density["fc1"] for label, settings in expanded if "prune" in label] == pytest.approx(
        [0.5, 0.25, 0.125]
    )


def test_encode_is_added_where_it_is_missing() -> None:
    """A recipe always ends in a file."""
    assert [stage.stage for stage in recipes.load(_mapping()).stages] == ["prune", "finetune", "share", "encode"]


def test_layers_of_a_sequential_are_called_by_their_numbers(tmp_path: Path) -> None:
    """YAML reads 1 as a number and `on` as true: numbers are names, the rest is told with its line."""
    numbered = [
        {"stage": "prune", "density": {1: 0.5, "default": 0.2}},
        {"stage": "share", "bits": {0: 4}, "rate": {0: 0}},
    ]
    loaded = recipes.load(
        _mapping(stages=numbered, hold={"zeros": [1], "shared": [3]}), {"stages.prune.density.3": 0.1}
    )
    assert loaded.stages[0].density == {"1": 0.5, "default": 0.2, "3": 0.1} and loaded.stages[1].bits == {"0": 4}
    assert loaded.hold.zeros == ["1"] and loaded.hold.shared == ["3"]
    text = (
        "name: x\nmodel: {factory: 'a:b'}\ndata: {factory: 'a:b'}\nstages:\n  - stage: prune\n    density: {%s: 0.5}\n"
    )
    for key, shown in (("on", "true"), ("0.1", "0.1"), ("no", "false")):
        (tmp_path / "r.yaml").write_text(text % key)
        told = _message(str(tmp_path / "r.yaml"))
        assert (
            f"r.yaml:6: stages.0.density: expected a tensor's or module's name, got what YAML reads as {shown}" in told
        )
    (tmp_path / "r.yaml").write_text(text % "null")
    assert "r.yaml" in _message(str(tmp_path / "r.yaml"))
    assert "r.yaml:6: stages.0.density.1: expected a number above 0 and at most 1" in _message_of(
        tmp_path, text % "1", "0.5", "2.0"
    )


def _message_of(folder: Path, text: str, old: str, new: str) -> str:
    (folder / "r.yaml").write_text(text.replace(old, new))
    return _message(str(folder / "r.yaml"))
