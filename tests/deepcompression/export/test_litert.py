"""LiteRT's files: what the worker is told, how it may fail, and, where its environment is, what comes out."""

from __future__ import annotations

import os
import re
import signal
import stat
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import ExportError
from deepcompression.export import agreement, litert, litert_environment, litert_sparse, litert_worker
from deepcompression.export.litert_task import float_program, on_grids, task_of
from deepcompression.network.edits.apply import apply

TOLD = '{"float_bytes": 9, "integers": [], "left": {}, "observed": [], "held": [], "versions": {}}'


class Net(nn.Module):
    """A residual block with BatchNorm, a depthwise layer, a pool and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.pool = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.MaxPool2d(2)
        self.head = nn.Linear(8 * 4 * 4, 5)

    def forward(self, images: Tensor) -> Tensor:
        found = torch.relu(self.norm(self.first(images)))
        found = self.pool(torch.relu(found + self.deep(found)))
        return self.head(found.flatten(1))


def rounded(scheme: str = "asymmetric") -> nn.Module:
    """With weights of 8 bits, one of whose channels is dead and one negated by its norm, and inputs on grids."""
    torch.manual_seed(0)
    net = Net().eval()
    net.norm.weight.data.uniform_(-2, 2)
    net.norm.running_var.uniform_(0.5, 2)
    sample, seen = torch.rand(4, 1, 8, 8), dict[str, Tensor]()
    layers = {name: one for name, one in net.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}
    for name, layer in layers.items():
        scales = torch.rand(len(layer.weight)).add(0.5).div(300).reshape(-1, *[1] * (layer.weight.ndim - 1))
        layer.weight.data = torch.randint(-127, 128, layer.weight.shape) * scales
        layer.weight.data[1] = 0
        layer.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0]}))
    net(sample)
    for name, layer in layers.items():
        layer._forward_pre_hooks.clear()
        apply(
            net,
            {"kind": "quantize_values", "sites": [f"{name}:input[0]"], "range": "static", "bits": 8, "scheme": scheme},
        )
        layer.input_0_scale.fill_(float(seen[name].detach().abs().max()) / (255 if scheme == "asymmetric" else 127))
    return net.eval()


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like LiteRT's environment."""
    folder = tmp_path / "environment"
    packages = folder / "lib" / "python3.11" / "site-packages"
    for name in (f"litert_torch-{litert_environment.VERSION}", f"torch-{torch.__version__}"):
        (packages / f"{name}.dist-info").mkdir(parents=True)
    (folder / "bin").mkdir()
    monkeypatch.setenv(litert_environment.VARIABLE, str(folder))
    python(folder, "exit 1")
    return folder


def python(environment: Path, does: str) -> None:
    """Puts a shell script in the place of that environment's Python; ``$3`` is the folder that it works in."""
    path = environment / "bin" / "python"
    path.write_text(f"#!/bin/sh\n{does}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_missing_environment_is_one_line_that_says_what_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is installed behind anybody's back, and nobody searches for what is missing."""
    monkeypatch.setenv(litert_environment.VARIABLE, str(tmp_path / "none"))
    with pytest.raises(ExportError) as told:
        litert_environment.check_environment()
    assert f"venv {tmp_path}/none && {tmp_path}/none/bin/pip install" in str(told.value)
    assert f"torch=={torch.__version__} litert-torch=={litert_environment.VERSION}" in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("package", ["torch", "litert_torch"])
def test_another_version_is_told(environment: Path, package: str) -> None:
    """Another PyTorch may read the program as another one; another converter was never tried."""
    litert_environment.check_environment()
    (packages,) = environment.glob("lib/*/site-packages")
    (found,) = packages.glob(f"{package}-*")
    found.rename(packages / f"{package}-0.1.2.dist-info")
    with pytest.raises(
        ExportError, match=rf"has {package.replace('_', '-')} 0\.1\.2, expected .*: make it anew: python"
    ):
        litert_environment.check_environment()


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("echo a trace; echo 'ValueError: not this' >&2; exit 3", r"failed: ValueError: not this \(exit code 3\)"),
        ("kill -9 $$", r"failed: ended by signal 9"),
        ("echo fine", r"does not say what it did \(.*done.json"),
        ("echo '[1' > $3/done.json", r"does not say what it did \("),
        ("echo '{}' > $3/done.json", r"does not say what it did \('float_bytes'\)"),
        ("echo '[]' > $3/done.json", r"does not say what it did \("),
        (f"echo '{TOLD.replace('[]', '0', 1)}' > $3/done.json", r"does not say what it did \(integers\)"),
        (f"echo '{TOLD}' > $3/done.json", r"does not say what it did \(\)"),
    ],
)  # fmt: skip
def test_a_worker_that_fails_is_one_line_and_its_words_are_kept(
    environment: Path, tmp_path: Path, does: str, message: str
) -> None:
    """Whoever asks has the line, and a file with all that the converter said; no half of a file is taken for one."""
    python(environment, does)
    with pytest.raises(ExportError, match=message) as told:
        litert_environment.converted(tmp_path, tmp_path / "exports" / "litert.log")
    assert str(told.value).endswith(f"; see {tmp_path}/exports/litert.log")
    assert (tmp_path / "exports" / "litert.log").exists()
    assert "\n" not in str(told.value)


def test_a_worker_does_not_outlive_whoever_waits_for_it(environment: Path, tmp_path: Path) -> None:
    """After a time limit, and after Ctrl-C, no converter goes on eating memory."""
    python(environment, "echo $$ > $3/pid; exec sleep 60")
    with pytest.raises(ExportError, match=r"took longer than 0.3 s; see "):
        litert_environment.converted(tmp_path, tmp_path / "log", seconds=0.3)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cmdline").exists()
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        litert_environment.converted(tmp_path, tmp_path / "log")
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/cmdline").exists()


@pytest.mark.skipif(not find_spec("ai_edge_litert"), reason="ai-edge-litert is not installed")
def test_what_litert_does_not_open_is_not_kept(environment: Path, tmp_path: Path) -> None:
    """A file that no runtime takes must not lie in the folder of exports."""
    python(environment, f"echo '{TOLD}' > $3/done.json; echo nothing > $3/model.tflite")
    with pytest.raises(ExportError, match="cannot be read"):
        litert.export(nn.Linear(3, 2), [torch.rand(2, 3)], tmp_path / "made" / "model.tflite")
    assert list((tmp_path / "made").iterdir()) == []


def test_a_worker_is_told_integers_and_what_has_which_grid() -> None:
    """They are those of the model, layer by layer, and its hooks round as before."""
    net, sample = rounded(), torch.rand(3, 1, 8, 8)
    before = net(sample)
    task = task_of(net, [sample])
    assert on_grids(net) and list(task["names"]) == ["first", "deep", "head"]
    for place, name in enumerate(task["names"]):
        layer = net.get_submodule(str(name))
        weight, codes = layer.weight.detach().numpy().reshape(len(layer.weight), -1), task[f"codes_{place}"]
        codes = codes.reshape(weight.shape).astype(np.float64)
        scales = np.abs(weight).max(1) / np.abs(codes).max(1).clip(1)
        np.testing.assert_allclose(codes * scales[:, None], weight, rtol=1e-6)
        scale, zero = task[f"grid_{place}"]
        assert (np.float32(scale), zero) == (layer.input_0_scale.numpy(), -128)
    np.testing.assert_array_equal(task["site_0"].reshape(3, 1, 8, 8), sample)
    assert torch.equal(net(sample), before)
    program = float_program(net, [sample]).module()
    assert not torch.equal(program(sample[:1]), before[:1])


def test_weights_are_found_in_any_layout_and_times_a_norm() -> None:
    """The converter turns weights round and multiplies BatchNorm into them; nothing that is near is taken for one."""
    random = np.random.default_rng(0)
    other, codes = (random.integers(-127, 128, (6, 4, 3, 3)).astype(np.int8) for _ in range(2))
    codes[2] = 0
    factors = np.array([0.01, -0.02, 0, 1, 3, -4])
    weight = np.moveaxis((codes * factors.reshape(-1, 1, 1, 1)).astype(np.float32), 1, -1)
    known = [("other", other), ("this", codes)]
    name, found, scales = litert_worker._matched(weight, 0, known) or ("", np.empty(0), np.empty(0))
    assert name == "this" and found.dtype == np.int8
    np.testing.assert_allclose(found * scales.reshape(-1, 1, 1, 1), weight, rtol=1e-6)
    assert scales[2] == np.median([0.01, 0.02, 1, 3, 4])
    weight[3, 0, 0, 0] *= 1.001
    assert litert_worker._matched(weight, 0, known) is None


def test_layers_that_stay_float_have_the_models_names() -> None:
    """A note that names a tensor of the converter's helps nobody."""
    assert litert_worker._module("a.Net/b.Block_layer1.0/torch.nn.modules.conv.Conv2d_conv1;2") == "layer1.0.conv1"
    assert litert_worker._module("arith.constant") == "arith.constant"


def test_values_are_found_by_what_they_are() -> None:
    """The converter's names and layouts are its own; a value that differs on one sample is another one."""
    random = np.random.default_rng(0)
    seen = [{7: random.normal(size=(1, 4, 4, 3)), 8: random.normal(size=(1, 48))} for _ in range(2)]
    sites = {"grid_0": np.array([0.5, -3]), "site_0": np.stack([np.moveaxis(one[7], -1, 1) for one in seen])}
    grid = litert_worker._sites(seen, sites)
    assert grid == {7: litert_worker.Grid(0.5, -3)} and grid[7].ends == (-62.5, 65.0)
    sites["site_0"][1] += 0.1
    assert litert_worker._sites(seen, sites) == {}


def _as_float(values: np.ndarray) -> bytes:
    """A ``.tflite`` with one matrix of weights."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT() for _ in range(2)]
    model.buffers[1].data = np.frombuffer(values.tobytes(), np.uint8)
    graph.tensors = [schema.TensorT() for _ in range(3)]
    shapes = [(1, values.shape[1]), values.shape, (1, values.shape[0])]
    for place, (one, shape) in enumerate(zip(graph.tensors, shapes, strict=True)):
        one.shape, one.name, one.buffer = np.array(shape, np.int32), b"xwy"[place : place + 1], int(place == 1)
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([2], np.int32)
    layer, code = schema.OperatorT(), schema.OperatorCodeT()
    layer.inputs, layer.outputs = np.array([0, 1, -1], np.int32), np.array([2], np.int32)
    layer.builtinOptionsType = schema.BuiltinOptions.FullyConnectedOptions
    layer.builtinOptions = schema.FullyConnectedOptionsT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.FULLY_CONNECTED
    code.version, graph.operators, model.operatorCodes = 1, [layer], [code]
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


@pytest.mark.skipif(not find_spec("ai_edge_litert"), reason="ai-edge-litert is not installed")
@pytest.mark.parametrize("shape", [(7, 40), (300, 700)])
def test_pruned_weights_are_sparse_and_compute_the_same(shape: tuple[int, int]) -> None:
    """Also an empty row, -0.0, and more values than 16 bits count; what is dense stays as it is."""
    from ai_edge_litert.interpreter import Interpreter

    random = np.random.default_rng(0)
    dense = random.normal(size=shape).astype(np.float32)
    pruned = np.where(random.random(shape) < 0.4, dense, 0).astype(np.float32)
    pruned[2], pruned[3, 5] = 0, -0.0
    assert litert_sparse.sparse(_as_float(dense)) == (_as_float(dense), [])
    small, (told,) = litert_sparse.sparse(_as_float(pruned))
    assert (told.name, told.form) == ("w", "sparse float32") and told.bytes < 0.8 * pruned.nbytes
    assert len(small) < told.bytes + 1500
    answers = []
    for content in (_as_float(pruned), small):
        session = Interpreter(model_content=content, num_threads=1)
        session.allocate_tensors()
        session.set_tensor(0, np.linspace(-1, 1, shape[1], dtype=np.float32)[None])
        session.invoke()
        answers.append(session.get_tensor(2).tobytes())
    assert answers[0] == answers[1]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["asymmetric", "symmetric"])
def test_litert_multiplies_the_models_integers(
    tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The whole way: another environment, the runtime, and outputs that are apart by a step of rounding; where that is
    more than a bound, each layer says how far it is from the float file.
    """
    monkeypatch.setattr(agreement, "APART", 0.001)
    pytest.importorskip("ai_edge_litert")
    try:
        litert_environment.check_environment()
    except ExportError as error:
        pytest.skip(str(error))
    net, sample = rounded(scheme), torch.rand(8, 1, 8, 8)
    made = litert.export(net, [sample], tmp_path / "model.tflite")
    assert made.integers and made.notes[1] == "3 layers multiply integers"
    assert re.search(
        r"of their size from PyTorch's; more than 0% at (\w+ \d\.\d%, ){2}\w+ \d\.\d%$", caplog.text.strip()
    )
    assert [one.tensor for one in made.tensors] == ["first", "deep", "head"]
    assert made.max_difference < 0.03 * float(net(sample).detach().abs().max())
    assert made.bytes == (tmp_path / "model.tflite").stat().st_size
    assert not (tmp_path / "litert.log").exists()
