"""From a model and a .dcz file to a model that runs from the file's codes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from deepcompression import _numba
from deepcompression.codec.file import File
from deepcompression.errors import EditError, InputError
from deepcompression.network.edits.apply import apply_all, check_values
from deepcompression.network.edits.undo import whole_or_not
from deepcompression.runtime.chosen import AUTO, CODES, DENSE, Chooser, Sample
from deepcompression.runtime.loading import Tensors, load
from deepcompression.runtime.running import Running
from deepcompression.runtime.workers import Workers

log = logging.getLogger(__name__)
FORMS = (AUTO, CODES, DENSE)


def run(
    model: nn.Module,
    path: str | Path,
    sample: Sample | None = None,
    *,
    form: str | Mapping[str, str] = "auto",
    threads: int | None = None,
) -> Running:
    """A model that runs from the codes of a .dcz file; where a layer's dense form is faster, from that.

    ``model`` becomes it, in eval mode, as ``load_into`` would fill it, but for the weights that are not kept dense: one
    tensor at a time is decoded. A model on the meta device has no dense weights before either.

    Args:
        model: as your code builds it, on the CPU or the meta device, in float32.
        path: of the file.
        sample: what its forward takes (a tensor, several by position, or by name): each layer is measured on the inputs
            that it gets of it. Without one, Linear layers are measured on one row, and convolutions stay dense.
        form: "auto": whatever was measured to be faster; "codes": each layer that can; "dense": none; or one of these
            by layer name or pattern, "auto" for others.
        threads: at most so many for a layer; None: as many as PyTorch uses.

    Raises:
        FormatError, EditError, WeightsError: as ``load_into``; the model is as it was.
        InputError: ``form`` is none of the words, names no layer, or wants codes and numba is missing.
    """
    forms = _forms(form)
    if any(word != DENSE for word in forms.values()) and (missing := _without_numba()):
        log.warning("%s: every layer runs dense: %s", path, missing)
        forms = {"*": DENSE}
    workers = Workers(threads or torch.get_num_threads())
    with File(path) as file, whole_or_not(model):
        state = Tensors(file)
        try:
            apply_all(model, file.edits)
            check_values(model, file.edits, state)
        except EditError as error:
            raise EditError(f"{path}: {error}") from error
        loaded = load(model, state, str(path), forms)
        chooser = Chooser(model, state, workers, loaded)
        chooser.choose(sample)
        return Running(model, chooser.rows())


def _forms(form: str | Mapping[str, str]) -> Mapping[str, str]:
    forms = form if isinstance(form, Mapping) else {"*": form}
    for word in forms.values():
        if word not in FORMS:
            raise InputError(f"form is one of {', '.join(FORMS)}, or a mapping of layers to these, not {word!r}")
    if "codes" in forms.values() and (missing := _without_numba()):
        raise InputError(f'form "codes": {missing}')
    return forms


def _without_numba() -> str:
    if find_spec("numba") is None:
        return "numba is missing: pip install 'deep-compression[fast]'"
    return "" if _numba.wanted(1, 1, 1) else "DEEPCOMPRESSION_NO_NUMBA is set"
