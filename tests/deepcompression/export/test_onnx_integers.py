"""A model that rounds its values, as a graph on integers."""

from __future__ import annotations

import collections
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import ExportError, InvariantError
from deepcompression.export import target_of
from deepcompression.export.exported import Exported
from deepcompression.network.edits.apply import apply
from deepcompression.network.edits.integers import range_of
from deepcompression.network.edits.quantize_values import Site
from deepcompression.network.watching import watched
from deepcompression.quantization import linear
from deepcompression.quantization.inputs import inputs_of

onnx = pytest.importorskip("onnx")
for package in ("onnxscript", "onnxruntime"):
    pytest.importorskip(package)

from deepcompression.export import agreement  # noqa: E402
from deepcompression.export.onnx_integers import place  # noqa: E402  what it needs may be missing
from deepcompression.export.onnx_layers import integers_of, refined, with_bias  # noqa: E402
from deepcompression.export.onnx_run import OnnxSession  # noqa: E402

FLOATS = {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}


class Net(nn.Module):
    """What needs care: BatchNorm, depthwise, zeros around a value, ReLU6, a sum, a pool before the next layer, a layer
    used twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.depth, self.depth_norm = nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.BatchNorm2d(16)
        self.point, self.pool = nn.Conv2d(16, 16, 1), nn.MaxPool2d(2)
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        found = nn.functional.relu6(self.norm(self.first(images)))
        inner = nn.functional.relu6(self.depth_norm(self.depth(nn.functional.pad(found, (1, 1, 1, 1)))))
        found = torch.relu(found + self.point(inner))
        found = self.pool(torch.relu(self.point(found) + found))
        logits: Tensor = self.head(found.flatten(1))
        return logits


def net() -> Net:
    torch.manual_seed(0)
    made = Net().eval()
    for norm in (made.norm, made.depth_norm):
        nn.init.normal_(norm.weight, 0.5, 1)  # some are negative
        nn.init.normal_(norm.bias)
        norm.running_var.uniform_(0.5, 2)
    return made


def mlp(layers: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(one for _ in range(layers) for one in (nn.Linear(20, 20), nn.ReLU())))[:-1].eval()


STATIC = (8, "static", "asymmetric")


def quantized(model: nn.Module, sample: Tensor, *how: tuple[int, str, str]) -> Any:
    """Weights on grids of 8 bits a channel, and each layer's input on one of its range: bits, kind of range, scheme, of
    one layer after the other.
    """
    table = linear.table(model, {"default": 8})
    model.load_state_dict(linear.quantize(model.state_dict(), table).state)
    seen: dict[Site, Tensor] = {}
    sites = inputs_of(model, 8).sites
    with torch.no_grad(), watched(model, sites, lambda site, value: seen.setdefault(site, value)):
        model(sample)
    for site, (bits, kind, scheme) in zip(sites, itertools.cycle(how or [STATIC]), strict=False):
        record = {"sites": [str(site)], "range": kind, "bits": bits, "scheme": scheme}
        apply(model, {"kind": "quantize_values", **record})
        if kind == "static":
            scale, zero = range_of(seen[site], bits, scheme)
            module = model.get_submodule(site.module)
            module.get_buffer(site.tensor("scale")).copy_(scale)
            if scheme == "asymmetric":
                module.get_buffer(site.tensor("zero_point")).copy_(zero)
    return model


def exported(model: nn.Module, sample: Tensor, path: Path) -> tuple[Exported, collections.Counter[str]]:
    """What is said of the file, and the operators that onnxruntime runs."""
    made = target_of("onnx").export(model, [sample], path / "model.onnx")
    OnnxSession(str(path / "model.onnx"), 1, optimized_model_filepath=str(path / "loaded.onnx"))
    return made, collections.Counter(node.op_type for node in onnx.load(path / "loaded.onnx").graph.node)


IMAGES = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_no_layer_of_a_residual_net_multiplies_floats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One layer left float costs more than it looks: its neighbours convert there and back. Its hooks stay as they
    were; what rounding makes beyond a bound is warned of.
    """
    monkeypatch.setattr(agreement, "APART", 0.005)
    model = quantized(net(), IMAGES)
    before = model(IMAGES)
    made, run = exported(model, IMAGES, tmp_path)
    assert any(
        "export onnx: outputs on integers are 1.0 % of their size from PyTorch's; more" in one
        for one in caplog.messages
    )
    assert (
        run["QLinearConv"] == 4 and run["QGemm"] == 1 and run["QLinearAdd"] == 2 and not {"Pad", *FLOATS} & run.keys()
    )
    assert made.integers and made.max_difference < 0.05 * float(before.detach().abs().max())
    assert made.notes[1] == "5 layers multiply integers"
    assert made.notes[2].endswith("no grid for them: values before point (2), behind point, behind point (2)")
    assert torch.equal(before, model(IMAGES))
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored = {one.name.rpartition(".")[0]: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    held = stored["head.weight"], stored["head.weight:scale"]
    assert np.array_equal(held[0] * held[1][:, None], model.head.weight.detach().numpy())


def test_integers_of_other_widths_are_what_the_model_has(tmp_path: Path) -> None:
    """Runtimes have 8 bits: a grid of 3 must not become one of 8, nor its layers float; one of 12 bits stays one."""
    sample = torch.rand(4, 20, generator=torch.Generator().manual_seed(0)) - 0.2
    how = [(12, "static", "asymmetric"), (3, "static", "symmetric"), (3, "static", "asymmetric")]
    made, run = exported(quantized(mlp(), sample, *how), sample, tmp_path)
    assert run["QGemm"] == 2 and [name for name in run if name in FLOATS] == ["Gemm"] and made.max_difference < 0.02
    assert "float: 0: its input is rounded to 12 bits, and integer kernels take 8" in made.notes


def test_ranges_of_each_call_are_found_in_the_graph(tmp_path: Path) -> None:
    """A range that is one number a row must not be taken for one of the whole batch."""
    sample = torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) * torch.logspace(-1, 1, 6)[:, None]
    kinds, schemes = ("dynamic", "dynamic_row", "dynamic_token"), ("asymmetric", "symmetric")
    how = [(8, kind, scheme) for kind, scheme in itertools.product(kinds, schemes)]
    made, run = exported(quantized(mlp(6), sample, *how), sample, tmp_path)
    assert run["DynamicQuantizeMatMul"] == run["MatMulIntegerToFloat"] == 1 and run["MatMulInteger"] == 4
    assert not FLOATS & run.keys() and made.max_difference < 1e-5 and made.notes[1] == "6 layers multiply integers"


def test_layers_left_float_are_named_and_keep_their_weights(tmp_path: Path) -> None:
    """onnxruntime would round a float weight to 8 bits by itself where all around is dequantized."""
    model = quantized(net(), IMAGES)
    nn.init.normal_(model.depth.weight)
    made, run = exported(model, IMAGES, tmp_path)
    assert run["Conv"] == 1 and run["QLinearConv"] == 3
    assert any(one.startswith("float: depth: its weights are on no grid of at most 8 bits") for one in made.notes)


def test_integers_go_in_and_come_out_where_that_is_asked_for(tmp_path: Path) -> None:
    """As a microcontroller gives them: nothing is converted at either end, the file tells scales and zero points, and
    opened here it takes and gives floats as all exports do.
    """
    model, path = quantized(net(), IMAGES), tmp_path / "model.onnx"
    made = target_of("onnx").export(model, [IMAGES], path, io="integer")
    graph = onnx.load(path)
    ends = [*graph.graph.input, *graph.graph.output]
    assert [one.type.tensor_type.elem_type for one in ends] == [onnx.TensorProto.UINT8] * 2
    told = {one.key: float(one.value) for one in graph.metadata_props}
    OnnxSession(str(path), 1, optimized_model_filepath=str(tmp_path / "loaded.onnx"))
    loaded = [node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node]
    assert loaded[:2] == ["Transpose", "QLinearConv"] and loaded[-1] == "QGemm" and not FLOATS & {*loaded}
    assert any(one.startswith("takes uint8 from 0 to 255: images = round(value / ") for one in made.notes)
    session, wanted = target_of("onnx").load(path, 1), model(IMAGES).detach().numpy()
    largest = np.abs(wanted).max()
    assert np.abs(session([IMAGES.numpy()])[0] - wanted).max() == pytest.approx(made.max_difference, abs=1e-6)
    assert made.max_difference < 0.05 * largest
    codes = np.clip(np.rint(IMAGES.numpy() / told["images.scale"]) + told["images.zero_point"], 0, 255)
    (raw,) = session.session.run(None, {"images": codes.astype(np.uint8)})
    values = (raw.astype("f4") - told["linear.zero_point"]) * told["linear.scale"]
    assert raw.dtype == np.uint8 and np.abs(values - wanted).max() < 0.05 * largest


def test_integers_are_not_asked_of_an_input_that_stays_float(tmp_path: Path) -> None:
    """In one line: a model that rounds nothing, or not what it takes, or to more than 8 bits."""
    sample = torch.rand(4, 20, generator=torch.Generator().manual_seed(0))
    within = nn.Sequential(nn.Tanh(), *quantized(mlp(), sample))
    for model, words in (
        (mlp(), "the model rounds nothing that it takes"),
        (within, "input .* is not always rounded to 8 bits by a static range"),
        (quantized(mlp(), sample, (12, "static", "asymmetric")), "is not always rounded to 8 bits"),
        (quantized(mlp(), sample, (8, "dynamic", "asymmetric")), "is not always rounded to 8 bits"),
    ):
        with pytest.raises(ExportError, match=rf"^export onnx: io: integer: .*{words}"):
            target_of("onnx").export(model, [sample], tmp_path / "model.onnx", io="integer")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_model_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding explains a part of a difference, not all of it; the layer where it begins is named."""
    from deepcompression.export import onnx_kernels

    doubled = lambda integers: refined(integers)._replace(scales=2 * refined(integers).scales)  # noqa: E731
    monkeypatch.setattr(onnx_kernels, "refined", doubled)
    sample = torch.rand(8, 20)
    with pytest.raises(InvariantError, match=r"of their size from PyTorch's, .*; more than 5% at 2 .*nothing was writ"):
        target_of("onnx").export(quantized(mlp(), sample), [sample], tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_weights_are_the_integers_of_the_file() -> None:
    """One scale where one does, else one a channel; asymmetric ones of one scale too; else none."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-7, 8, (4, 3, 2))
    codes[:, 0, 0], codes[:, 1, 1] = 7, 1
    scales = np.float32([0.1, 0.2, 0.7, 3.0])
    one = integers_of(codes.astype("f4") * np.float32(0.3), 0)
    each = integers_of(codes.astype("f4") * scales[:, None, None], 0)
    assert one and each and np.array_equal(one.codes, codes) and np.array_equal(each.codes, codes)
    assert np.allclose(one.scales, 0.3) and np.allclose(each.scales, scales)
    last = integers_of(np.ascontiguousarray((codes.astype("f4") * scales[:, None, None]).T), 2)
    assert last and np.array_equal(last.codes, codes.T)
    shifted = rng.integers(-20, 230, (5, 40)).astype("f4") * np.float32(0.01)
    assert (found := integers_of(shifted, 0)) and 0 < found.zero <= 20
    assert integers_of(rng.normal(size=(4, 30)).astype("f4"), 0) is None


def test_a_bias_is_rounded_finely_where_weights_are_few_or_zero() -> None:
    """Its step is that of input times weight: a channel of zeros would round its bias to nothing."""
    weight = np.zeros((3, 8), np.float32)
    weight[0, :2], weight[1, 3] = (1.0, -2.0), 0.5
    integers = integers_of(weight, 0)
    assert integers is not None
    bias = np.array([0.013, -0.2, 0.7])
    made = with_bias(refined(integers), bias, 0.05)
    assert made[1] is not None
    assert np.allclose(made[1] * np.float64(np.float32(0.05)) * made[0].scales, bias, atol=0.05 * 2 / 64)
    assert np.array_equal((made[0].codes * made[0].scales[:, None])[:2], weight[:2]) and not made[0].codes[2].any()


def test_a_channel_that_died_has_a_scale_by_its_bias() -> None:
    """Its weights are nothing beside a bias that int32 could not hold in their scale; the channel beside it is kept."""
    weight = np.float32([[3, -1, 2], [3, -1, 2]]) * np.float32([[1e-20], [0.1]])
    integers = integers_of(weight, 0)
    assert integers is not None
    made, steps = with_bias(integers, np.array([2.5, -1.0]), 0.05)
    assert steps is not None and np.allclose(steps * 0.05 * made.scales, [2.5, -1.0], rtol=1e-6)
    assert np.allclose(made.codes * made.scales[:, None], weight, atol=1e-7) and np.array_equal(
        made.codes[1], [3, -1, 2]
    )


def test_nothing_is_rounded_that_layers_on_integers_do_not_need() -> None:
    """A sum beside layers that stay float takes the float value."""
    import onnx_ir
    from onnx import TensorProto, helper, numpy_helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y")]
    weight = np.random.default_rng(0).normal(size=(3, 3)).astype("f4")
    told = {"site": "a:input[0]", "range": "static", "low": 0, "high": 255, "scale": 0.1, "zero": 3}
    nodes = [
        helper.make_node("Exp", ["x"], ["h"]),
        helper.make_node("Grid", ["h"], ["r"], domain="deepcompression", **told),
        helper.make_node("MatMul", ["r", "w"], ["m"], "a"),
        helper.make_node("Add", ["h", "m"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("deepcompression", 1)]
    model, placed = place(onnx_ir.from_proto(helper.make_model(graph, opset_imports=versions)), lambda names: {})
    made = onnx_ir.to_proto(model)
    sums = next(node for node in made.graph.node if node.op_type == "Add")
    assert "h" in sums.input and list(placed.left) == ["m"] and not placed.integers
    onnx.checker.check_model(made, full_check=True)
