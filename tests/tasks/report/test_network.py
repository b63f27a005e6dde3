from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from tasks.report.layers import Bits, Layer
from tasks.report.network import boxes_of, svg


def node(module: str, kind: str, *inputs: int) -> dict[str, Any]:
    return {"module": module, "kind": kind, "shape": [3], "inputs": list(inputs)}


def layer(name: str, count: int, axes: int = 2) -> Layer:
    return Layer(name, "3", "dense", 3, 3, Bits(*[None] * 5), 0, count, 1.0, None, axes, 12)


NODES = [
    node("", "input"),
    node("conv", "Conv2d", 0),
    node("norm", "BatchNorm2d", 1),
    node("", "relu", 2),
    node("side", "Conv2d", 3),
    node("", "add", 4, 3),
    node("<b>", "Linear", 5),
]
LAYERS = [
    layer("conv.weight", 100),
    layer("norm.weight", 5, 1),
    layer("side.inner.weight", 20),
    layer("<b>.weight", 40),
]


def test_what_follows_a_layer_is_in_its_box() -> None:
    """Norms and operations behind it; a sum and a layer with a matrix of its own begin boxes."""
    boxes = boxes_of(NODES, LAYERS)
    assert [box.title for box in boxes] == ["input", "conv", "side", "add", "<b>"]
    assert boxes[1].kinds == ["Conv2d", "BatchNorm2d", "relu"] and boxes[1].bytes == 105
    assert [box.bytes for box in boxes] == [0, 105, 20, 0, 40]
    assert [box.inputs for box in boxes] == [[], [0], [1], [2, 1], [3]]
    assert [box.row for box in boxes] == [0, 1, 2, 3, 4]


def test_the_drawing_is_xml_with_a_button_a_box() -> None:
    """Names are text; each button names what it opens; edges that pass rows by run at the side."""
    root = ElementTree.fromstring(svg(boxes_of(NODES, LAYERS), "box"))
    buttons = [one for one in root.iter() if one.get("role") == "button"]
    assert [one.get("aria-controls") for one in buttons] == [f"box{place}" for place in range(5)]
    assert [one.get("aria-label") for one in buttons][4] == "<b>, Linear, 40 bytes"
    paths = [one.get("d") or "" for one in root.iter("path")]
    assert len(paths) == 5 and sum("Q" in path for path in paths) == 1
