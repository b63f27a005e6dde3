"""The other files that `dcz` reads and writes: .safetensors, and checkpoints of torch where that is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from deepcompression.errors import InputError, RunError, StorageError
from deepcompression.format import Entry
from deepcompression.io import RawTensor
from deepcompression.tensorfile import TensorFile, write_each
from deepcompression.terminal import note

SAFETENSORS = ".safetensors"
TORCH = (".pt", ".pth", ".bin", ".ckpt")


def is_weights(path: Path) -> bool:
    """Whether `path` is called like a file of weights that is no .dcz."""
    return path.suffix.lower() in (SAFETENSORS, *TORCH)


def check_name(path: Path, what: str) -> None:
    """Refuse a path, shown to the user as `what`, that is not called like a file of weights.

    Raises:
        InputError: says which names are known.
    """
    if not is_weights(path):
        raise InputError(f"{path}: {what} ends in {SAFETENSORS}, or for torch in {', '.join(TORCH)}")


def read(path: Path, key: str | None = None, merge_masks: bool = False) -> tuple[Mapping[str, RawTensor], int]:
    """The tensors of a file and their bytes; of .safetensors each is read when it is asked for.

    Args:
        key: where in a torch checkpoint the state_dict lies.
        merge_masks: make one weight of each weight_orig and weight_mask of torch's own pruning.

    Raises:
        InputError: missing, damaged, of another kind, or with code in it.
        RunError: torch is needed and not installed.
    """
    check_name(path, "IN")
    if path.suffix.lower() == SAFETENSORS:
        if key is not None or merge_masks:
            raise InputError("--key and --merge-masks are for torch checkpoints")
        file = TensorFile(path)
        return file, file.nbytes
    _need_torch(path)
    from deepcompression.checkpoint import read_state
    from deepcompression.torch import to_raw_state

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on pickles of other protocols
        state = read_state(path, key=key, merge=merge_masks, setting="--key")
    masked = [name for name in state if name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in state]
    if masked:
        note(f"{masked[0]} and its weight are kept apart; --merge-masks makes one pruned weight of such pairs")
    raws = to_raw_state(state)
    return raws, sum(raw.bits.nbytes for raw in raws.values())


def write(entries: Iterable[Entry], tensor: Callable[[str], RawTensor], path: Path) -> None:
    """Write a file whole or not at all; of .safetensors one tensor at a time is in memory.

    Raises:
        InputError: a tensor's name cannot be in such a file.
        RunError: torch is needed and not installed.
        StorageError: the disk is full, or `path` cannot be written.
    """
    if path.suffix.lower() == SAFETENSORS:
        write_each(((entry.name, entry.dtype, entry.shape) for entry in entries), tensor, path)
        return
    _need_torch(path)
    import torch

    from deepcompression.atomic import written
    from deepcompression.torch import from_raw

    with written(path) as file:
        state = {entry.name: from_raw(tensor(entry.name)) for entry in entries}
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own writer, where the file could not take it all
            raise StorageError(
                f"{path}: cannot be written: the disk may be full; torch says: {str(error)[:80]}"
            ) from error


def _need_torch(path: Path) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise RunError(f"{path}: this needs torch: pip install torch; {SAFETENSORS} needs nothing more") from None
