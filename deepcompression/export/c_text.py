"""The C sources that belong to one model: ``model.h``, ``model.c`` and its ``.dcz`` as an array.

No parenthesis stands in them: so they are data, whoever wrote them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepcompression.export.c_weights import Placed


@dataclass(frozen=True)
class Sizes:
    """Elements of the static arrays of ``net.c``."""

    values: int
    plane: int
    other: int
    outputs: int
    symbols: int
    integer: bool

    @property
    def ram(self) -> int:
        """Bytes of all static memory of ``net.c`` where pointers have 32 bits."""
        decoder = 1228 + 4 * self.symbols
        return decoder + self.values * (1 if self.integer else 4) + 4 * (self.plane + self.other + self.outputs)


TABLE_BYTES = {"layers": 64, "ops": 40, "tensors": 12}  # of an element, as compilers lay them out


@dataclass(frozen=True)
class Layer:
    """A ``net_layer`` and its ``net_op``: C expressions by field."""

    told: str
    fields: Mapping[str, Any]
    ops: Sequence[Mapping[str, Any]]


def header(
    layers: Sequence[Layer], defines: Mapping[str, str | int | float], comment: Sequence[str], sizes: Sizes
) -> str:
    """``model.h``.

    Args:
        layers: in their order.
        defines: more of them, by name.
        comment: its first lines.
        sizes: of arrays.
    """
    ops = sum(len(layer.ops) for layer in layers)
    known = {
        "MODEL_INTEGER": int(sizes.integer),
        "MODEL_VALUES": sizes.values,
        "MODEL_PLANE": sizes.plane,
        "MODEL_OTHER": sizes.other,
        "MODEL_OUTPUTS": sizes.outputs,
        "MODEL_SYMBOLS": max(1, sizes.symbols),
        "MODEL_LAYERS": len(layers),
        "MODEL_OPS": max(1, ops),
        **defines,
    }
    lines = [f" * {line}".rstrip() for line in [*comment, *(layer.told for layer in layers)]]
    body = [f"#define {name} {_expression(value)}" for name, value in known.items()]
    return "\n".join(["/*", *lines, " */", "#ifndef MODEL_H", "#define MODEL_H", "", *body, "", "#endif", ""])


def source(layers: Sequence[Layer], tensors: Mapping[str, Placed]) -> str:
    """``model.c``: the tables.

    Args:
        layers: in their order.
        tensors: where they lie in the file.
    """
    lines = ['#include "net.h"', "", "const net_tensor model_tensors[] = {"]
    for name, place in tensors.items():
        lines.append(f"    {{{place.at}u, {place.bytes}u, {place.elements}u}}, /* {clean(name)} */")
    lines += ["};", "", "const net_op model_ops[] = {"]
    ops = [op for layer in layers for op in layer.ops]
    lines += [f"    {_initialiser(op)}," for op in ops or [{"kind": "NET_CLAMP"}]]
    lines += ["};", "", "const net_layer model_layers[MODEL_LAYERS] = {"]
    first = 0
    for layer in layers:
        lines.append(f"    {_initialiser({**layer.fields, 'first': first, 'ops': len(layer.ops)})},")
        first += len(layer.ops)
    return "\n".join([*lines, "};", ""])


def array(content: bytes) -> str:
    """``model_dcz.c``."""
    lines = ['#include "net.h"', "", "extern const uint8_t model_dcz[MODEL_BYTES];", ""]
    lines.append("const uint8_t model_dcz[MODEL_BYTES] = {")
    lines += [f"    {', '.join(map(str, content[at : at + 24]))}," for at in range(0, len(content), 24)]
    return "\n".join([*lines, "};", ""])


def is_data(text: str) -> bool:
    """Whether such a source holds no code: without parentheses there is no function, and no call of one."""
    included = re.findall(r"#\s*include(.*)", text)
    return "(" not in text and "??" not in text and all(one.strip() == '"net.h"' for one in included)


def _initialiser(fields: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f".{name} = {_expression(value)}" for name, value in fields.items()) + "}"


def _expression(value: Any) -> str:
    if isinstance(value, tuple | list):
        return "{" + ", ".join(map(_expression, value)) + "}"
    if isinstance(value, float):
        if math.isinf(value):
            return "3.402823466e38f" if value > 0 else "-3.402823466e38f"
        return f"{value.hex()}f"
    return str(value)


def clean(name: str) -> str:
    """A module's or tensor's name, which is anybody's text, as a comment may hold it."""
    return re.sub(r"[^\w.]", "_", name, flags=re.ASCII)
