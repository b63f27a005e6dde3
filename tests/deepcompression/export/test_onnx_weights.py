from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from deepcompression.export import onnx_weights  # noqa: E402  what it needs may be missing

RNG = np.random.default_rng(0)


def sparse(shape: tuple[int, ...], density: float, values: int, kind: str = "float32") -> Any:
    """An array with so many different values where it is not zero."""
    table = np.arange(1, values + 1).astype(kind)
    return np.where(RNG.random(shape) < density, RNG.choice(table, shape), 0).astype(kind)


def far_apart() -> Any:
    array = np.zeros(90_000, np.float32)
    array[[14, 15, 31, 20_000, 20_255, 20_511, 89_999]] = np.arange(1.5, 8)
    return array


CASES = {
    "distances and codes, a byte each": np.sin(sparse((800, 500), 0.1, 16)),
    "gaps of 8 bits, codes of 4 bits": sparse((300, 100), 0.02, 4, "float64"),
    "gaps of 4 bits, codes of 4 bits": sparse((90, 30), 0.5, 16),
    "gaps of 8 bits, codes of 8 bits": sparse((60, 500), 0.1, 100, "float16"),
    "gaps of 4 bits, codes of 8 bits": sparse((60, 500), 0.3, 100),
    "gaps of 8 bits, values": np.where(RNG.random((300, 90)) < 0.1, RNG.normal(size=(300, 90)), 0).astype("f4"),
    "gaps of 4 bits, values": np.where(RNG.random((30, 90)) < 0.6, np.sin(np.arange(2700).reshape(30, 90)), 0).astype(
        "f2"
    ),
    "codes of 4 bits": sparse((30, 31), 0.99, 7),
    "codes of 8 bits": sparse((40, 50), 0.99, 40),
    "codes of 16 bits": sparse((500, 60), 0.99, 1000, "float64"),
    "integers, dense": RNG.integers(-127, 128, (40, 9)).astype("f4") * RNG.random((40, 1), np.float32),
    "integers, distances and codes, a byte each": sparse((300, 350), 0.1, 6) * RNG.random((300, 1), np.float32),
    "integers, codes of 4 bits": RNG.integers(-7, 8, (80, 30)).astype("f4") * RNG.random(30, np.float32),
    "constant": np.zeros((7, 50), np.float32),
    "dense": RNG.normal(size=(20, 30)).astype("f4"),
}


MODEL = onnx.helper.make_model(
    onnx.helper.make_graph([], "g", [], []), opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10
)


def decoded(form: onnx_weights.Form, tensor: Any) -> Any:
    alone = onnx_weights.alone(MODEL, [form], [tensor])
    onnx.checker.check_model(alone, full_check=True)
    session = onnxruntime.InferenceSession(alone.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {})[0]


@pytest.mark.parametrize("name", CASES)
def test_the_runtime_decodes_once_when_it_loads(name: str, tmp_path: Path) -> None:
    """No node of a form is left to be run at every call: the latency is that of the float file."""
    tensor = onnx.numpy_helper.from_array(CASES[name].astype("f4"), "w")
    for form in onnx_weights._forms(tensor):
        model = onnx_weights.alone(MODEL, [form], [tensor])
        one = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
        model.graph.input.append(one)
        model.graph.node.append(onnx.helper.make_node("Add", ["w", "x"], ["y"]))
        model.graph.output[0].name = "y"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        left = {node.op_type for node in onnx.load(tmp_path / "loaded.onnx").graph.node}
        assert left == {"Add"}, (form.name, left)


def check(array: Any, expected: str | None = None) -> None:
    tensor = onnx.numpy_helper.from_array(array, "layer.weight")
    for form in onnx_weights._forms(tensor):
        assert not form.nodes or decoded(form, tensor).tobytes() == array.tobytes(), form.name
    form = onnx_weights.smallest(tensor)
    assert expected in (None, form.name) and form.bytes <= tensor.ByteSize()


@pytest.mark.parametrize("expected", CASES)
def test_the_smallest_form_is_taken_and_decodes_bit_for_bit(expected: str) -> None:
    """Each kind of tensor gets the form that fits it; every form that it could have gives back every bit."""
    check(CASES[expected], expected)


@pytest.mark.parametrize("values", [1, 63])
def test_values_far_apart_survive(values: int) -> None:
    """Distances up to millions are several symbols, of which none may come down on a value."""
    array = np.zeros(1_200_000, np.float32)
    array[[14, 15, 31, 20_000, 20_255, 20_511, 20_512, 1_100_000, 1_199_999]] = np.arange(9) % values + 1.5
    array[20_511 : 20_511 + 3 * values] = np.arange(3 * values) % values + 1.5
    check(array)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.0, 0.0, -0.0, 1.5, -2.0, float("inf"), 1e-42]), min_size=1, max_size=80))
def test_any_values_survive(values: list[float]) -> None:
    """Minus zero, infinity and the smallest numbers are values like any other."""
    check(np.repeat(np.array(values, np.float32), 7))
