"""The other files that `dcz` reads and writes: .safetensors, and checkpoints of torch where that is installed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deepcompression.cli.terminal import note, plain
from deepcompression.codec import edits, metadata
from deepcompression.codec.dtypes import RawTensor
from deepcompression.codec.index import Entry
from deepcompression.codec.reader import available_memory
from deepcompression.errors import InputError, RunError, StorageError, TooLarge
from deepcompression.formats.kinds import Kind, kind_of
from deepcompression.formats.safetensors import TensorFile, write_each
from deepcompression.formats.shards import Shards, paths_of

if TYPE_CHECKING:
    import torch

SAFETENSORS = ".safetensors"
TORCH = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar")


def is_weights(path: Path) -> bool:
    """Whether `path` is called like a file of weights that is no .dcz."""
    return path.name.lower().endswith((SAFETENSORS, *TORCH))


def check_target(path: Path) -> None:
    """Refuse a path to decode to that is not called like a file of weights.

    Raises:
        InputError: says which names are known.
    """
    if not is_weights(path):
        raise InputError(f"{path}: OUT ends in {SAFETENSORS}, or for torch in {', '.join(TORCH)}")


def check_dcz_target(path: Path, source: Path, verb: str) -> None:
    """Refuse a .dcz file to write where weights lie: those that are read, or others by their name.

    Args:
        path: to write.
        source: the file, folder or index that is read.
        verb: for the message.

    Raises:
        InputError: says which.
    """
    same = path.exists() and any(one.exists() and path.samefile(one) for one in paths_of(source))
    if is_weights(path) or (same and not path.is_symlink()):
        raise InputError(f"{path}: would be overwritten by a .dcz file; {verb} IN OUT.dcz wants IN first")


class Weights(NamedTuple):
    """Tensors, their bytes together, the file's metadata as far as a .dcz can keep it, and edits."""

    tensors: Mapping[str, RawTensor]
    nbytes: int
    metadata: dict[str, str]
    edits: list[edits.Edit]


def read(path: Path, key: str | None = None, merge_masks: bool = False) -> Weights:
    """The tensors of a file, or of a checkpoint in several; of .safetensors each is read when it is asked for.

    Args:
        key: where in a torch checkpoint the state_dict lies.
        merge_masks: make one weight of each weight_orig and weight_mask of torch's own pruning.

    Raises:
        InputError: missing, damaged, of another kind, or with code in it.
        RunError: torch is needed and not installed.
        TooLarge: a torch checkpoint's expanded tensors take more than half of the memory.
    """
    kind = kind_of(path)
    if kind is Kind.DCZ:
        raise InputError(f"{path}: is a .dcz file already; dcz decode IN.dcz OUT{SAFETENSORS} takes it apart")
    if kind in (Kind.SAFETENSORS, Kind.SAFETENSORS_SHARDS):
        _no_torch_options(key, merge_masks)
        file = TensorFile(path) if kind is Kind.SAFETENSORS else Shards(path)
        return Weights(file, file.nbytes, *_keepable(file))
    _need_torch(path)
    from deepcompression.formats.checkpoint import read_state
    from deepcompression.formats.state_dict import to_raw_state

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, on pickles of other protocols
        state = read_state(path, key=key, merge=merge_masks, setting="--key")
    masked = [name for name in state if name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in state]
    if masked:
        note(f"{masked[0]} and its weight are kept apart; --merge-masks makes one pruned weight of such pairs")
    _check_expanded(path, state)
    raws = to_raw_state(state)
    return Weights(raws, sum(raw.bits.nbytes for raw in raws.values()), {}, [])


def _no_torch_options(key: str | None, merge_masks: bool) -> None:
    if key is not None or merge_masks:
        raise InputError("--key and --merge-masks are for torch checkpoints")


def same_source(path: Path) -> str:
    """A text that is another one when a file that was read was written since, or is another one."""
    stats = [(one.resolve(), one.stat()) for one in paths_of(path)]
    return "; ".join(f"{one} {stat.st_size} {stat.st_mtime_ns}" for one, stat in stats)


def is_all_weights(path: Path) -> bool:
    """Whether a file, or several, hold nothing but tensors that are encoded: a torch checkpoint has more."""
    return kind_of(path) in (Kind.SAFETENSORS, Kind.SAFETENSORS_SHARDS)


def size_of(path: Path) -> int:
    """Bytes of the files that were read."""
    return sum(one.stat().st_size for one in paths_of(path))


def _keepable(file: TensorFile | Shards) -> tuple[dict[str, str], list[edits.Edit]]:
    """A file's metadata, and the edits in it; without the former, and with a note, where a .dcz file has no room."""
    try:
        texts, changes = edits.from_text(file.metadata)
        size = metadata.size(texts)
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from None
    if size <= metadata.MOST:
        return texts, changes
    note(f"{file.path}: its metadata takes {size:,} bytes and is NOT kept: a .dcz file has at most {metadata.MOST:,}")
    return {}, changes


def _check_expanded(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Refuse a small file whose tensors show few numbers very often, before all are made."""
    made = sum(tensor.numel() * tensor.element_size() for tensor in state.values() if not tensor.is_contiguous())
    most = available_memory() // 2
    if made > most:
        raise TooLarge(f"{path}: its expanded tensors take {made} bytes, allowed is half of the memory: {most}")


def write(
    entries: Sequence[Entry],
    tensor: Callable[[str], RawTensor],
    path: Path,
    texts: Mapping[str, str],
    changes: Sequence[edits.Edit],
) -> None:
    """Write a file whole or not at all; of .safetensors one tensor at a time is in memory.

    Args:
        texts: metadata, which .safetensors keeps; of other files a note says that it is lost.
        changes: edits, which are kept, or lost, in the same way.

    Raises:
        InputError: a tensor's name cannot be in such a file.
        RunError: torch is needed and not installed.
        StorageError: the disk is full, or `path` cannot be written.
    """
    if path.name.lower().endswith(SAFETENSORS):
        write_each(
            ((entry.name, entry.dtype, entry.shape) for entry in entries),
            tensor,
            path,
            {**texts, **edits.as_text(changes)},
        )
        return
    if texts:
        note(f"{path}: a torch file has no place for metadata ({_keys(texts)}): NOT kept; {SAFETENSORS} keeps it")
    if changes:
        note(
            f"{path}: a torch file has no place for edits ({len(changes)}), without which these tensors do not fit "
            f"the model: NOT kept; {SAFETENSORS} keeps them"
        )
    _need_torch(path)
    import torch

    from deepcompression._atomic import written
    from deepcompression.formats.state_dict import from_raw

    with written(path) as file:
        state = {entry.name: from_raw(tensor(entry.name)) for entry in entries}
        try:
            torch.save(state, file)
        except RuntimeError as error:  # torch's own writer, where the file could not take it all
            raise StorageError(
                f"{path}: cannot be written: the disk may be full; torch says: {str(error)[:80]}"
            ) from error


def _keys(metadata: Mapping[str, str]) -> str:
    some = ", ".join(plain(key[:40]) for key in list(metadata)[:3])
    return some if len(metadata) <= 3 else f"{some} and {len(metadata) - 3} more"


def _need_torch(path: Path) -> None:
    try:
        import torch  # noqa: F401
    except ImportError:
        raise RunError(f"{path}: this needs torch: pip install torch; {SAFETENSORS} needs nothing more") from None
