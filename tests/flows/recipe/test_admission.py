from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
import types
from collections.abc import Mapping
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import pytest
import typer
import yaml
from bad_servers import bad_server
from pydantic import BaseModel

from deepcompression.errors import RecipeError
from flows import history
from flows.history import Found, admit
from flows.recipe import load as recipes
from flows.recipe import merge, reading
from flows.recipe.schema import Recipe
from tasks.execution.settings import Factory, Spec, Strict
from tasks.stages.custom import Settings as Custom

ROOT = Path(__file__).resolve().parents[3]


def _foreign(**changes: Any) -> Found:
    text = (ROOT / "conf" / "digits.yaml").read_text()
    return Found("r", {**yaml.safe_load(text), **changes}, foreign=True)


def _refusal(found: Found, overrides: Mapping[str, Any] | None = None, **more: Any) -> str:
    with pytest.raises(RecipeError) as told:
        admit(found, more.pop("allowed", []), more.pop("ours", None), overrides or {}, **more)
    assert "\n" not in str(told.value)
    return str(told.value)


def _model(factory: str, **kwargs: Any) -> dict[str, Any]:
    return {"factory": factory, "kwargs": kwargs}


CREATE = '${oc.create:{stage:prune,density:0.5,score:{factory:"os:system",kwargs:{command:"touch ran"}}}}'


@pytest.mark.parametrize(
    "changes",
    [
        {"stages": [CREATE, "${oc.create:{stage:encode}}"]},
        {"stages": CREATE},
        {"stages": ['${oc.decode:\'{"stage": "os:getcwd"}\'}']},
        {"stages": [{"stage": "prune", "density": {"default": "${oc.env:HOME}"}}]},
        {"hold": {"zeros": ["fc*", "${oc.env:HOME}"]}},
        {"model": _model("deepcompression.models:digits_net", x=[[{"y": ["a", "pre-${oc.env:HOME}-post"]}]])},
        {"model": _model("deepcompression.models:digits_net", **{"${oc.env:HOME}": 1})},
        {"model": "${oc.create:{factory:os:system}}"},
        {"name": "${oc.env:USER}"},
        {"name": '${oc.env:"USER"}'},
        {"name": "${${seed}}"},
        {"name": "${oc.select:seed}"},
        {"name": "\\${seed}"},
        {"name": "${seed"},
        {"model": _model("a:b", **{"x": {b"k": 1}})},
        {"model": _model("a:b", p="$", q="{oc.env:HOME}", r="${.p}${.q}")},
    ],
)
def test_a_recipe_from_a_server_is_plain_data(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No resolver of OmegaConf runs for it, wherever in keys, lists and texts it is called; nor is one put together."""
    called = pytest.fail
    for name in ("create", "decode", "env", "select"):
        monkeypatch.setattr(f"omegaconf.resolvers.oc.{name}", called, raising=False)
    assert "is no plain data" in _refusal(_foreign(**changes))


def test_what_only_yaml_can_say_is_refused() -> None:
    """A path can be bytes, which no rule for texts would look at; sets and dates are nothing that a recipe has."""
    for text in ("!!binary L2V0Yy9wYXNzd2Q=", "!!set {a, b}", "2026-11-26", "!!timestamp 2026-11-26"):
        recipe = history._parsed(f"name: n\nmodel: {{factory: 'a:b', kwargs: {{root: {text}}}}}", "r")
        assert "model.kwargs.root: a " in _refusal(Found("r", recipe, foreign=True))


def test_no_escape_sequence_of_a_recipe_reaches_the_terminal() -> None:
    """A key that a server chose stands in the message as it would print, harmlessly."""
    from flows import process

    message = _refusal(_foreign(**{"\x1b]0;title\x07": 1}))
    assert "\x1b" in message and process.printable(message).isprintable()


def test_a_traceback_keeps_its_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """-v shows it as Python does, but for what a terminal would obey."""
    from flows import process, watchdog

    monkeypatch.setattr(watchdog, "leave_soon", lambda code: None)
    try:
        raise OSError("\x1b[2Jgone")
    except OSError as error:
        with pytest.raises(typer.Exit):
            process.fail(error, verbose=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and lines[-1] == "OSError: ?[2Jgone"


def test_long_references_are_refused_fast() -> None:
    """No regular expression goes back and forth over ten thousand dots."""
    start = time.monotonic()
    for inner in ("." * 9000, "a." * 4500, "a[" * 4500, " " * 9000):
        for end in ("!}", "}", ""):
            _refusal(_foreign(hold={"shared": [f"${{{inner}{end}"] * 5}))
    assert time.monotonic() - start < 3


def test_references_within_the_recipe_are_followed_and_then_judged() -> None:
    """By name, relative, in a list, within a text; what they lead to is judged in the place where it ends."""
    kwargs = {"a": 3, "b": "${.a}", "c": ["${model.kwargs.a}", "${stages[0].stage}"], "d": "n-${seed}"}
    found = _foreign(step={"factory": "torch.nn:Linear", "kwargs": kwargs}, model="${step}", seed=5)
    assert "leads nowhere" in _refusal(found)
    kwargs["c"] = ["${step.kwargs.a}", "${stages[0].stage}", "${stages.0.density}"]
    first = found.recipe["stages"][0]
    made = admit(found, [], None, {})
    expected = [3, first["stage"], first["density"]]
    assert made["model"]["kwargs"] == {"a": 3, "b": 3, "c": expected, "d": "n-5"} == made["step"]["kwargs"]
    hidden = _foreign(hold={"shared": ["os:getcwd"]}, step={"factory": "${hold.shared.0}"})
    assert "os:getcwd" in _refusal(hidden)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "${name}"},
        {"name": "${seed}", "seed": "${name}"},
        {"model": {"factory": "a:b", "kwargs": {"x": "${model}"}}},
        {"model": _model("a:b", **{f"a{i}": [f"${{.a{i + 1}}}"] * 9 for i in range(20)}, a20=1)},
        {"model": _model("a:b", **{f"a{i}": f"${{.a{i + 1}}}" * 9 for i in range(20)}, a20="word")},
        {"model": _model("a:b", **{f"a{i}": [[[[[[f"${{model.kwargs.a{i + 1}}}"]]]]]] for i in range(30)}, a30=1)},
    ],
)
def test_references_that_turn_in_circles_or_grow_are_one_line(changes: dict[str, Any]) -> None:
    """Nine references to nine references and so on are refused at once."""
    start = time.monotonic()
    assert "run r:" in _refusal(_foreign(**changes))
    assert time.monotonic() - start < 3


def test_what_you_read_from_this_machine_is_not_told_to_a_recipe_from_a_server() -> None:
    """Your own value may use the environment; nothing in the recipe can have it by reference."""
    mine = {"data.kwargs.test": "${oc.env:SECRET_NUMBER,7}"}
    assert "is not told such values" in _refusal(_foreign(name="n${data.kwargs.test}"), mine)
    data = {"factory": "deepcompression.data:digits", "kwargs": {"test": 3}}
    made = admit(_foreign(data=data, name="n${data.kwargs.test}"), [], None, {"data.kwargs.test": 5})
    assert made["name"] == "n5"
    assert "leads nowhere" in _refusal(_foreign(name="${tracking.experiment}"))


@pytest.mark.parametrize(
    "spec",
    [
        "torchvision.datasets.utils:download_url",
        "torchvision.datasets.utils:extract_archive",
        "torchvision.io:write_file",
        "torchvision.datasets:DatasetFolder",
        "torchvision.models.resnet:resnet18",
        "timm.models:load_checkpoint",
        "timm.models.hub:load_state_dict_from_hf",
        "timm.utils:CheckpointSaver",
        "torch.nn:Module.load_state_dict",
        "torch.nn.utils:parametrize.torch.load",
        "torch.optim.lr_scheduler:LambdaLR",
        "deepcompression.data:read_idx",
        "deepcompression.models:nn.Linear",
    ],
)
def test_code_beside_the_admitted_is_refused(spec: str) -> None:
    """The lists are of callables: what lies under the same prefix, or is reached through one, is on none of them."""
    message = _refusal(_foreign(metric={"factory": spec}))
    assert "metric.factory" in message and f"--allow {spec}" in message


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for inner in get_args(annotation) for model in _models(inner)]


def test_every_type_that_names_code_is_judged() -> None:
    """A new part of the recipe with a callable in it must be one of the two that are looked for."""
    found, waiting = set[Any](), [Recipe]
    while waiting:
        kind = waiting.pop()
        if kind in found:
            continue
        found.add(kind)
        waiting += [one for each in kind.model_fields.values() for one in _models(each.annotation)]
    pattern = get_args(Spec)[1].metadata
    naming = {kind for kind in found if any(one.metadata == pattern for one in kind.model_fields.values())}
    assert len(found) > 15 and Custom in naming and all(issubclass(one, Factory | Custom) for one in naming)
    evil = {"factory": "os:getcwd"}
    budget = {"ratio": 2.0, "train": {"optimizer": evil}}
    share = {"stage": "share", "train": {"schedule": evil}}
    for changes in (
        {"teacher": {**evil, "train": {}}},
        {"teacher": {"factory": "deepcompression.models:lenet5", "train": {"optimizer": evil}}},
        {"budget": budget, "stages": []},
        {"stages": [share]},
        {"stages": [{"stage": "prune", "density": 0.5, "score": evil}]},
        {"stages": [{"stage": "prune", "density": 0.5, "gradual": {"epochs": 1, "optimizer": evil}}]},
        {"data": {"factory": "deepcompression.data:digits", "augment": evil}},
        {"model": _model("deepcompression.models:lenet5", inner=[{"x": evil}])},
        {"stages": [{"stage": "deepcompression.models:lenet5", "with": "os:getcwd"}]},
        {"stages": [{"stage": "prune", "density": {"os:getcwd": 0.5}}]},
        {"stages": [{"stage": "prune", "density": {"type:Linear & os:getcwd": 0.5}}]},
        {"hold": {"zeros": ["os:getcwd"]}},
    ):
        assert "os:getcwd" in _refusal(_foreign(**changes)), changes
    assert all(issubclass(one, Strict) for one in found)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm and torchvision, as far as they are asked."""
    named = SimpleNamespace(list_models=lambda: ["resnet18", "resnet34"])
    for name in ("timm", "timm.models", "torchvision", "torchvision.models"):
        module = ModuleType(name)
        module.__dict__.update(vars(named), __path__=[])
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.usefixtures("models")
def test_models_that_torchvision_and_timm_list_are_admitted_untrained() -> None:
    """By their own lists, with numbers of a closed list and without weights."""
    for model in (
        _model("torchvision.models:resnet18", num_classes=3, weights=None, replace_stride_with_dilation=[False, True]),
        _model("timm:create_model", model_name="resnet34", num_classes=3, in_chans=1, pretrained=False, global_pool=""),
        _model("torchvision:resnet18", num_classes=3),
        _model("timm:resnet34.a1_in1k", num_classes=3),
    ):
        assert admit(_foreign(model=model), [], None, {})["model"]["kwargs"] == model["kwargs"]


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("model", "part"),
    [
        (_model("torchvision.models:resnet99"), "list_models"),
        (_model("torchvision.models:list_models"), "list_models"),
        (_model("torchvision.models:get_model", name="resnet18"), "get_model"),
        (_model("torchvision.models:resnet18", weights="DEFAULT"), "weights"),
        (_model("torchvision.models:resnet18", pretrained=True), "pretrained"),
        (_model("torchvision.models:resnet18", norm_layer="x"), "norm_layer"),
        (_model("torchvision.models:resnet18", num_classes="x"), "num_classes"),
        (_model("torchvision:resnet99"), "list_models"),
        (_model("torchvision:resnet18", weights_backbone="DEFAULT"), "weights_backbone"),
        (_model("timm:load_checkpoint"), "list_models"),
        (_model("transformers:AutoModel", config="x/y"), "may call"),
        (_model("timm:create_model", model_name="hf-hub:evil/model"), "hf-hub"),
        (_model("timm:create_model", model_name="local-dir:/evil"), "local-dir"),
        (_model("timm:create_model", model_name=["resnet18"]), "list_models"),
        (_model("timm:create_model"), "list_models"),
        (_model("timm:create_model", model_name="resnet18", pretrained=1), "pretrained"),
        (_model("timm:create_model", model_name="resnet18", checkpoint_path="/x.pth"), "checkpoint_path"),
        (_model("timm:create_model", model_name="resnet18", cache_dir="x"), "cache_dir"),
        (_model("timm:create_model", model_name="resnet18", pretrained_cfg={"file": "x"}), "pretrained_cfg"),
        (_model("timm:create_model", model_name="resnet18", pretrained_cfg_overlay={"x": 1}), "pretrained_cfg"),
    ],
)
def test_what_such_a_model_may_not_be_told_is_refused(model: dict[str, Any], part: str) -> None:
    """Weights from the net, files of pickles, and any keyword that is not known to be harmless."""
    assert part in _refusal(_foreign(model=model))


def test_a_library_that_is_not_here_has_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torchvision or timm the refusal says so, and imports nothing else."""
    for name, spec in (("timm", "timm:create_model"), ("torchvision", "torchvision.models:resnet18")):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, f"{name}.models", raising=False)
        assert "does not import here" in _refusal(_foreign(model=_model(spec, model_name="resnet18")))


def test_data_and_weights_lie_below_folders_that_the_user_allows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Absolute, relative, through a link, by a URL, hidden in a list or a key: one rule for every path."""
    monkeypatch.delenv("DEEPCOMPRESSION_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    good, secret = tmp_path / "good", tmp_path / "secret"
    good.mkdir()
    secret.mkdir()
    (good / "link").symlink_to(secret)
    for root in (str(good), "good", f"{good}/sub"):
        data = _foreign(data=_model("deepcompression.data:mnist", root=root))
        assert "--allow-folder" in _refusal(data)
        admit(data, [], None, {}, [str(good)])
        admit(data, [], None, {"data.kwargs.root": root})
    monkeypatch.setenv("DEEPCOMPRESSION_DATA", str(good))
    admit(data, [], None, {})
    for root in (str(secret), "secret", "good/link", "good/../secret", "~", "~root", "file:///x", "s3://x", "", "nope"):
        assert "data.kwargs.root" in _refusal(_foreign(data=_model("deepcompression.data:mnist", root=root))), root
    for kwargs in ({"x": ["a", {"y": "/etc/passwd"}]}, {"x": {"/etc/passwd": 1}}, {"x": "secret"}, {"file": "x"}):
        found = _foreign(step=_model("os:getcwd", **kwargs), stages=[{"stage": "os:getcwd", **kwargs}])
        assert "--allow-folder" in _refusal(found, allowed=["os:getcwd"]), kwargs


def test_weights_of_a_recipe_from_a_server_are_no_pickles(tmp_path: Path) -> None:
    """.safetensors and .dcz below an allowed folder; another file only by the user's own word."""

    def weights(path: str) -> Found:
        return _foreign(model={"factory": "deepcompression.models:digits_net", "weights": {"path": path}})

    admit(weights(f"{tmp_path}/w.safetensors"), [], None, {}, [str(tmp_path)])
    admit(weights(f"{tmp_path}/w.dcz"), [], None, {}, [str(tmp_path)])
    assert "--allow-folder" in _refusal(weights(f"{tmp_path}/w.dcz"))
    for name in ("w.pt", "w.safetensors.pt", "w.SAFETENSORS", "w"):
        assert ".safetensors or .dcz only" in _refusal(weights(f"{tmp_path}/{name}"), folders=[str(tmp_path)])
    admit(weights(f"{tmp_path}/w.pt"), [], None, {"model.weights.path": f"{tmp_path}/w.pt"})
    teacher = _foreign(teacher={"factory": "deepcompression.models:digits_net", "weights": {"path": "/w.pt"}})
    assert "teacher.weights.path" in _refusal(teacher)


def test_what_the_user_allows_is_a_module_or_one_callable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module lets in what is defined in it, not what it imports; a callable lets in itself alone."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "mine_admitted.py").write_text("import os\ndef net(): ...\ndef other(): ...\n")

    def model(spec: str) -> Found:
        return _foreign(model={"factory": spec})

    admit(model("mine_admitted:net"), ["mine_admitted:net"], None, {})
    admit(model("mine_admitted:net"), ["mine_admitted"], None, {})
    assert "mine_admitted:other" in _refusal(model("mine_admitted:other"), allowed=["mine_admitted:net"])
    assert "os.system" in _refusal(model("mine_admitted:os.system"), allowed=["mine_admitted"])
    assert "os:system" in _refusal(model("os:system"), {"model.kwargs": {}})
    admit(model("os:system"), [], None, {"model.factory": "mine_admitted:net"})


def test_a_server_does_not_promote(capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe without gates would make any file the champion: promote is the user's, and its absence is said."""
    assert "promote" not in admit(_foreign(promote={"model": "m"}), [], None, {})
    assert "promote is not taken" in capsys.readouterr().err
    ours = recipes.load("conf/digits.yaml", {"promote": {"model": "mine", "min_ratio": 2}})
    assert admit(_foreign(promote={"model": "m"}), [], ours, {})["promote"]["model"] == "mine"


@pytest.mark.parametrize("recipe", ["/etc/passwd", "http://127.0.0.1:1/x.yaml", "conf/digits.yaml", 7, None, ["x"]])
def test_prefect_does_not_choose_what_is_read(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flow run whose parameters name a file or a URL: neither is opened."""
    monkeypatch.setattr(merge, "_read", lambda source: pytest.fail(f"{source} was opened"))
    _prefect(monkeypatch, {"recipe": recipe})
    with pytest.raises(RecipeError, match=r"does not choose|has no recipe"):
        history._from_prefect("0" * 32)


def test_overrides_from_prefect_are_the_servers_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are put into the recipe unresolved, and judged with it."""
    recipe = _foreign().recipe
    _prefect(monkeypatch, {"recipe": recipe, "overrides": {"stages.prune.density": 0.25, "a.b": "${oc.env:HOME}"}})
    found = history._from_prefect("0" * 32)
    assert found.foreign and found.recipe["a"] == {"b": "${oc.env:HOME}"}
    assert [one["density"] for one in found.recipe["stages"] if one["stage"] == "prune"] == [0.25]
    assert "a.b" in _refusal(found)
    _prefect(monkeypatch, {"recipe": recipe, "overrides": {"stages.77.x": 1}})
    with pytest.raises(RecipeError, match="fits nowhere"):
        history._from_prefect("0" * 32)


def _prefect(monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any]) -> None:
    class Client:
        def __enter__(self) -> Client:
            return self

        def __exit__(self, *_: object) -> None: ...

        def read_flow_run(self, _: str) -> Any:
            return SimpleNamespace(parameters=json.loads(json.dumps(parameters)))

    monkeypatch.setattr("prefect.client.orchestration.get_client", lambda **_: Client())


def _bomb() -> str:
    lines = ["a: &a [x,x,x,x,x,x,x,x,x]"]
    lines += [f"{c}: &{c} [{','.join([f'*{p}'] * 9)}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines)


HOSTILE = {
    "aliases": _bomb(),
    "merges": _bomb().replace("[", "{<<: [").replace("]", "]}").replace("x,x,x,x,x,x,x,x,x", "{k: v}"),
    "itself": "a: &a [*a]",
    "brackets": "[" * 3000,
    "closed": "a: " + "[" * 3000 + "]" * 3000,
    "braces": "{a: " * 3000,
    "dashes": "- " * 3000,
    "levels": "a0: &a0 [[[[[[1]]]]]]\n" + "".join(f"a{i}: &a{i} [[[[[[*a{i - 1}]]]]]]\n" for i in range(1, 40)),
    "twice": "name: a\nseed: 0\nname: b\n",
    "nodes": "a: [" + "1," * 30_000 + "]",
    "bytes": "#" * 300_000,
    "digits": "a: " + "9" * 9000,
    "sexagesimal": "a: " + "1:" * 4000 + "1",
    "hexadecimal": "a: 0x" + "f" * 9000,
    "tag": "a: !!python/object/apply:os.getcwd []",
    "resolvers": "a: '" + "${" * 3000 + "'",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_yaml_is_one_line_and_fast(kind: str, tmp_path: Path) -> None:
    """In a recipe, in a stored one and in one from a server: no traceback, no minute of waiting, little memory."""
    path = tmp_path / "recipe.yaml"
    path.write_text(HOSTILE[kind])
    start = time.monotonic()
    for read in (
        lambda: recipes.load(str(path)),
        lambda: recipes.load(history._in(tmp_path).recipe),
        lambda: admit(Found("r", history._parsed(HOSTILE[kind], "r"), foreign=True), [], None, {}),
    ):
        with pytest.raises(RecipeError) as told:
            read()
        assert "\n" not in str(told.value)
    assert time.monotonic() - start < 3


def test_a_recipe_behind_a_url_is_bounded_in_bytes_and_in_time() -> None:
    """Neither a server that drips nor one that does not stop holds a run for long, or fills its memory."""
    with bad_server("drip") as url:
        start = time.monotonic()
        with pytest.raises(RecipeError, match="cannot be fetched"):
            reading.fetched(url, 0.4)
        assert time.monotonic() - start < 3
    with TCPServer(("127.0.0.1", 0), _Endless) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(RecipeError, match="more than 262,144 bytes"):
            reading.fetched(f"http://127.0.0.1:{server.server_address[1]}/recipe.yaml")


class _Endless(StreamRequestHandler):
    """Bytes until somebody hangs up."""

    def handle(self) -> None:
        self.rfile.readline()
        self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"#" * 65536)


def test_the_line_of_a_key_that_stands_twice() -> None:
    """YAML would take the last without a word."""
    with pytest.raises(RecipeError, match=r"r:4: b: the key stands twice"):
        reading.check("a:\n  b: 1\n  c: 2\n  b: 3\n", "r")
    reading.check("a: {b: 1}\nc: {b: 1}\nd: [{b: 1}, {b: 1}]", "r")


def test_all_shipped_recipes_are_within_the_bounds() -> None:
    """Nothing that people write by hand comes near them."""
    for path in sorted((ROOT / "conf").rglob("*.yaml")):
        reading.check(path.read_text(), str(path))
    for path in sorted((ROOT / "conf").glob("*.yaml")):
        found = Found("r", history._parsed(path.read_text(), "r"), foreign=True)
        admit(found, [], None, {})
