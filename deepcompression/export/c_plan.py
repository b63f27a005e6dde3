"""What goes into an export to C: the tensors of its ``.dcz``, and the tables that say how layers are run."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcompression.codec.dtypes import RawTensor
from deepcompression.errors import ExportError
from deepcompression.export.c_integers import Cut, Integers, Narrow, Rescale, integers_of
from deepcompression.export.c_network import Clamp, Grid, Network, Norm, Pool, Step
from deepcompression.export.c_text import TABLE_BYTES, Layer, Sizes, array, clean, header, source
from deepcompression.export.c_weights import Blob, file_of, numbers, plain, smallest
from deepcompression.formats.state_dict import to_raw

MOST = (1 << 16) - 1  # of rows, of columns
Fields = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """The files by name, sizes, and why layers compute with floats (empty: they do not)."""

    files: Mapping[str, bytes]
    sizes: Sizes
    blobs: Mapping[str, Blob]
    dense: Mapping[str, int]
    tables: int
    floats: str


def plan(network: Network) -> Plan:
    """All files that are made for a model.

    Args:
        network: its chain.

    Raises:
        ExportError: a layer is too large for the tables.
    """
    check_sizes(network)
    found = integers_of(network.steps)
    made = _Tables()
    layers = made.of_integers(found) if isinstance(found, Integers) else made.of_floats(network.steps)
    steps = [one.step for one in found.steps] if isinstance(found, Integers) else network.steps
    places, values = _placed(steps)
    first, last = steps[0].into, steps[-1].made
    pools = [math.prod(op.out) for step in steps for op in step.ops if isinstance(op, Pool)]
    sizes = Sizes(
        values=values,
        plane=max(math.prod(step.out[1:]) for step in steps),
        other=max([1, *pools]),
        outputs=math.prod(last),
        symbols=max(blob.symbols for blob in made.blobs.values()),
        integer=isinstance(found, Integers),
    )
    content, tensors = file_of(made.tensors, made.blobs)
    layers = [
        Layer(layer.told, {**layer.fields, "from": at, "to": to}, layer.ops)
        for layer, (at, to) in zip(layers, places, strict=True)
    ]
    defines = {
        **_defines(network, content, len(tensors)),
        **_boundary(found),
        "MODEL_INPUTS": math.prod(first),
    }
    told = [_told(network, sizes, found), ""]
    files = {
        "model.dcz": content,
        "model.h": header(layers, defines, told, sizes).encode(),
        "model.c": source(layers, tensors).encode(),
        "model_dcz.c": array(content).encode(),
    }
    ops = max(1, sum(len(layer.ops) for layer in layers))
    tables = sum(
        TABLE_BYTES[name] * count for name, count in (("layers", len(layers)), ("ops", ops), ("tensors", len(tensors)))
    )
    dense = {name: 4 * raw.bits.size for name, raw in made.tensors.items()}
    return Plan(files, sizes, made.blobs, dense, tables, "" if isinstance(found, Integers) else found)


def check_sizes(network: Network) -> None:
    """Raises ExportError where a number does not fit into the tables, or nothing has weights."""
    if all(step.weight is None for step in network.steps):
        raise ExportError("export c: it has no layer with weights")
    for step in network.steps:
        sides = [*step.into[1:], *step.out[1:], *step.stride, *step.padding, *step.dilation]
        if max(sides) > MOST or math.prod(step.into) >= 1 << 31 or math.prod(step.out) >= 1 << 31:
            raise ExportError(f"export c: {step.name or 'an operation'} makes {step.out} of {step.into}: too large")


def _defines(network: Network, content: bytes, tensors: int) -> Mapping[str, str | int | float]:
    return {
        "MODEL_TENSORS": tensors,
        "MODEL_BYTES": f"{len(content)}u",
        "MODEL_CRC": f"{zlib.crc32(content)}u",
        "MODEL_INPUT_SHAPE": f'"{" x ".join(map(str, network.takes))}"',
        "MODEL_OUTPUT_SHAPE": f'"{" x ".join(map(str, network.gives)) or "1"}"',
    }


def _boundary(found: Integers | str) -> Mapping[str, str | int | float]:
    """How samples become integers, and integers outputs."""
    if not isinstance(found, Integers):
        return {}
    return {
        "MODEL_INPUT_STEP": found.grid.scale,
        "MODEL_INPUT_LOW": float(found.grid.low),
        "MODEL_INPUT_HIGH": float(found.grid.high),
        "MODEL_OUTPUT_STEP": found.step,
    }


def _placed(steps: Sequence[Step]) -> tuple[list[tuple[int, int]], int]:
    """Where each step's input and output lie, and how many values there is room for.

    Layers write to the other end of the room than they read from; copies to where they read.
    """
    sizes = [(math.prod(step.into), math.prod(step.made), step.weight is None) for step in steps]
    last = len(steps) - 1
    needs = [into + (0 if copy or place == last else made) for place, (into, made, copy) in enumerate(sizes)]
    room, at = max(needs), 0
    places = []
    for _, made, copy in sizes:
        to = at if copy else 0 if at else room - made
        places.append((at, max(0, to)))
        at = max(0, to)
    return places, room


class _Tables:
    """Collects the tensors of a file while layers are written."""

    def __init__(self) -> None:
        self.tensors: dict[str, RawTensor] = {}
        self.blobs: dict[str, Blob] = {}

    def of_floats(self, steps: Sequence[Step]) -> list[Layer]:
        """Layers that compute with floats."""
        return [self._layer(step, self._weight(step), self._float_ops(step), (0, 0)) for step in steps]

    def of_integers(self, found: Integers) -> list[Layer]:
        """Layers that compute with integers."""
        made = []
        for one in found.steps:
            weight = self._put(f"{one.step.name}.weight", numbers(one.weight, "int8"), smallest)
            ops = [self._integer_op(one.step.name, op) for op in one.ops]
            made.append(self._layer(one.step, weight, ops, one.zero))
        return made

    def _put(self, name: str, raw: RawTensor, write: Callable[[RawTensor], Blob]) -> int:
        """The number of a tensor, of the same one where it is there already."""
        name, base, count = name.removeprefix("."), name.removeprefix("."), 1
        while name in self.tensors and not _equal(self.tensors[name], raw):
            count += 1
            name = f"{base}.{count}"
        if name not in self.tensors:
            self.tensors[name], self.blobs[name] = raw, write(raw)
        return list(self.tensors).index(name)

    def _weight(self, step: Step) -> int | None:
        return None if step.weight is None else self._put(f"{step.name}.weight", to_raw(step.weight), smallest)

    def _float_ops(self, step: Step) -> list[Fields]:
        ops = list(step.ops)
        made: list[Fields] = []
        if step.bias is not None and ops and isinstance(norm := ops[0], Norm):
            ops[0] = Norm(norm.name, norm.scale, norm.shift + norm.scale * step.bias.double().numpy())
        elif step.bias is not None:
            made.append({"kind": "NET_SHIFT", "summands": self._put(f"{step.name}.bias", to_raw(step.bias), plain)})
        for op in ops:
            if isinstance(op, Norm):
                scale, shift = (numbers(one, "float32") for one in (op.scale, op.shift))
                factors, summands = (
                    self._put(f"{op.name}.{what}", one, plain) for what, one in (("scale", scale), ("shift", shift))
                )
                made.append({"kind": "NET_SCALE", "factors": factors, "summands": summands})
            elif isinstance(op, Clamp):
                made.append({"kind": "NET_CLAMP", "low": op.low, "high": op.high})
            elif isinstance(op, Grid):
                ends = {"low": float(op.low), "high": float(op.high)}
                made.append({"kind": "NET_GRID", "step": op.scale, **ends})
            else:
                made.append(_pool(op))
        return made

    def _integer_op(self, name: str, op: Rescale | Narrow | Cut | Pool) -> Fields:
        if isinstance(op, Rescale):
            factors = self._put(f"{name}.factors", numbers(op.factors, "int32"), plain)
            summands = self._put(f"{name}.summands", numbers(op.summands, "int64"), plain)
            return {"kind": "NET_RESCALE", "factors": factors, "summands": summands, "bits": op.shift}
        if isinstance(op, Narrow):
            return {"kind": "NET_GRID", "bits": op.bits, "low": op.low, "high": op.high}
        return {"kind": "NET_CLAMP", "low": op.low, "high": op.high} if isinstance(op, Cut) else _pool(op)

    def _layer(self, step: Step, weight: int | None, ops: list[Fields], zero: tuple[int, int]) -> Layer:
        kernel = (1, 1) if step.weight is None else tuple(step.weight.shape[2:])
        fields = {
            "weight": "NET_NONE" if weight is None else weight,
            "channels": (step.into[0], step.out[0]),
            "groups": step.groups,
            "in": step.into[1:],
            "out": step.out[1:],
            "kernel": kernel,
            "stride": step.stride,
            "padding": step.padding,
            "dilation": step.dilation,
            "plane": math.prod(step.plane),
            "zero": zero,
        }
        form = "" if weight is None else f", weights {list(self.blobs.values())[weight].form}"
        shapes = " -> ".join(" x ".join(map(str, shape)) for shape in (step.into, step.made))
        done = " ".join(str(op["kind"]).removeprefix("NET_").lower() for op in ops)
        return Layer(f"{clean(step.name) or 'copy'}: {shapes}{form}; {done}", fields, ops)


def _equal(one: RawTensor, other: RawTensor) -> bool:
    return one.dtype == other.dtype and np.array_equal(one.bits, other.bits)


def _pool(op: Pool) -> Fields:
    windows = {"kernel": op.kernel, "stride": op.stride, "padding": op.padding, "out": op.out}
    return {"kind": "NET_MEAN" if op.mean else "NET_MAX", "whole": int(op.whole), **windows}


def _told(network: Network, sizes: Sizes, found: Integers | str) -> str:
    shapes = " -> ".join(" x ".join(map(str, shape)) or "1" for shape in (network.takes, network.gives))
    way = "integers of 8 bits" if isinstance(found, Integers) else "floats"
    return f"Written by deep-compression. {shapes}, in {way}; {sizes.ram} bytes of RAM."
