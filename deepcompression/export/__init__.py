"""The list of targets: behind each word that ``export:`` may say the module that writes such a file.

Such a module has ``FILE``, the name of what it writes, ``CARRIES``, the kinds of edits that it writes a model with
(and ``RANGES``, those of grids, where it does not write all; ``UNTIMED``, why a call is not timed, where it is not),
``check(model, sample)``, ``export(model, sample, path) -> Exported`` and ``load(path, threads) -> Session | None``,
which gives None where the target's own runtime cannot be on this machine. This imports none.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

TARGETS: dict[str, str] = {
    "onnx": "deepcompression.export.onnx",
    "openvino": "deepcompression.export.openvino",
    "coreml": "deepcompression.export.coreml",
    "c": "deepcompression.export.c",
    "pt2": "deepcompression.export.pt2",
    "litert": "deepcompression.export.litert",
}


def target_of(name: str) -> Any:
    """The module of a target of the list."""
    return import_module(TARGETS[name])
