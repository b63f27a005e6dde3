"""Between ``.dcz`` files and torch; inference from a file's codes; and two verbs for a training loop of your own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from deepcompression.codec.file import File
from deepcompression.datafree import compress
from deepcompression.errors import EditError
from deepcompression.formats.state_dict import encode, load, save, to_raw_state
from deepcompression.network.edits.apply import apply_all, check_values
from deepcompression.network.edits.undo import whole_or_not
from deepcompression.network.load import load_state
from deepcompression.reconstruction.compress import Calibration, compress_calibrated
from deepcompression.runtime.start import run
from deepcompression.structure.hold import bake, hold

__all__ = [
    "Calibration",
    "bake",
    "compress_calibrated",
    "compress_state",
    "encode",
    "hold",
    "load",
    "load_into",
    "load_state",
    "run",
    "save",
]


def load_into(model: nn.Module, path: str | Path) -> nn.Module:
    """Loads a ``.dcz`` file into ``model`` (every tensor must fit) and returns it.

    Edits that the file holds are made first: ``model``, as your code builds it, becomes the network that the tensors
    belong to, with fewer channels or quantized values. A model on the meta device gets memory on the CPU.

    Raises:
        FormatError: as ``load``.
        EditError: an edit is unknown here, or does not fit the model; the model is as it was.
        WeightsError: as ``load_state``.
    """
    with File(path) as file:
        edits = file.edits
    state = load(path)
    with whole_or_not(model):
        try:
            apply_all(model, edits)
            check_values(model, edits, state)
        except EditError as error:
            raise EditError(f"{path}: {error}") from error
        load_state(model, state, where=str(path))
    return model


def compress_state(
    state: Mapping[str, Tensor],
    path: str | Path,
    *,
    density: float | None = None,
    bits: int | None = None,
    per: str = "tensor",
    target_bytes: int | None = None,
    ratio: float | None = None,
    keep: Sequence[str] = (),
    spare: bool = True,
) -> list[compress.Compressed]:
    """Prunes and shares a state_dict, without data or training, and writes it to a ``.dcz`` file.

    Args:
        state: tensors by name; not changed.
        path: as all others, of ``deepcompression.compress_state``.

    Raises:
        WeightsError: something in it is no dense tensor, or of a dtype that the format does not know.
        InputError: a setting is impossible, or a pattern matches nothing.
        StorageError: the file cannot be written.
    """
    return compress.compress_state(
        to_raw_state(state),
        path,
        density=density,
        bits=bits,
        per=per,
        target_bytes=target_bytes,
        ratio=ratio,
        keep=keep,
        spare=spare,
    )
