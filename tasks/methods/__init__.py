"""The list of methods of a training: behind each word that a recipe may say the module that has its keys.

Such a module has ``Settings``, a ``tasks.execution.settings.MethodSettings``, whose ``make()`` gives the library's
method. This imports none.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.execution.settings import MethodSettings

METHODS: dict[str, str] = {
    "prune": "tasks.methods.prune",
    "l0": "tasks.methods.l0",
    "rb": "tasks.methods.rb",
    "bn_l1": "tasks.methods.bn_l1",
    "share": "tasks.methods.share",
    "centroids": "tasks.methods.centroids",
    "quantize": "tasks.methods.quantize",
    "binarize": "tasks.methods.binarize",
    "compact": "tasks.methods.compact",
    "activation_sparsity": "tasks.methods.activation_sparsity",
    "dropout": "tasks.methods.dropout",
    "distil": "tasks.methods.distil",
    "hints": "tasks.methods.hints",
    "attention": "tasks.methods.attention",
}


def settings_of(name: str) -> type[MethodSettings]:
    """The keys of a method of the list."""
    found: type[MethodSettings] = import_module(METHODS[name]).Settings
    return found
