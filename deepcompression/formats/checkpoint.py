"""Checkpoints from elsewhere: read without running any code in them."""

from __future__ import annotations

import difflib
import logging
import pickle
import re
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcompression.codec.file import File
from deepcompression.errors import InputError, WeightsError, one_line
from deepcompression.formats.kinds import Kind, is_dcz, kind_of
from deepcompression.formats.stand_ins import STAND_INS, Array, Beside

log = logging.getLogger(__name__)
_PLAIN = (str, bytes, bool, int, float, type(None), Beside)  # what may stand beside tensors in a state_dict
ORIGINAL, MASK = "_orig", "_mask"  # how torch.nn.utils.prune calls what it computes a tensor from


def read_state(
    path: str | Path,
    *,
    key: str | None = None,
    strip: Sequence[str] = (),
    ignore: Sequence[str] = (),
    merge: bool = True,
    setting: str = "model.weights.key",
    own: Collection[str] = (),
) -> dict[str, Tensor]:
    """The tensors of a checkpoint, of whatever name: what is in the file tells its kind.

    Args:
        path: .safetensors, .dcz, a file of ``torch.save`` (opened with ``weights_only``), or several: an index
            (``model.safetensors.index.json``, ``pytorch_model.bin.index.json``), or a folder with one.
        key: where in the file the state_dict lies, such as ``state_dict`` or ``model.weights``.
        strip: prefixes removed from tensor names, each at most once, in this order.
        ignore: patterns (``fnmatch``) of names, or of their last parts, that are left out: ``position_ids``.
        merge: whether pairs of ``weight_orig`` and ``weight_mask``, as ``torch.nn.utils.prune`` leaves them, become
            ``weight``.
        setting: what users set ``key`` by, for the error that they need it.
        own: names of the model's tensors: a pair that it has itself stays one.

    Raises:
        WeightsError: missing, unreadable, contains code, no such key, not a mapping of tensors, a pattern of
            ``ignore`` that matches nothing.
    """
    path = Path(path)
    content = _read(path)
    for part in _parts(content, key):
        if not isinstance(content, Mapping) or part not in content:
            known = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else "no keys"
            raise WeightsError(f"weights {path}: no key {key!r}; the file has {known}")
        content = content[part]
    found = _tensors(path, content, setting)
    state = {_stripped(str(name), strip): tensor for name, tensor in found.items()}
    if len(state) < len(found):
        raise WeightsError(f"weights {path}: after stripping {list(strip)} two tensors have the same name")
    state = _without(path, state, ignore)
    return _merge_masks(state, own) if merge else state


def _parts(content: Any, key: str | None) -> list[str]:
    """The keys that lead to the weights, from the outside in; one with dots in it may be meant as it stands."""
    if not key or (isinstance(content, Mapping) and key in content):
        return [key] if key else []
    return key.split(".")


def _tensors(path: Path, content: Any, setting: str) -> dict[object, Tensor]:
    """The tensors of a mapping, numbers and arrays of numpy among them; plain values beside them are told of."""
    values = {name: _as_tensor(value) for name, value in content.items()} if isinstance(content, Mapping) else {}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    beside = {name: value for name, value in values.items() if name not in tensors}
    if not tensors or not all(isinstance(value, _PLAIN) for value in beside.values()):
        inside = [str(name) for name, value in beside.items() if _has_tensors(value)]
        hint = f"; set {setting}, perhaps to {' or '.join(inside)}" if inside else f", got {_described(content)}"
        raise WeightsError(f"weights {path}: expected a mapping of names to tensors{hint}")
    if beside:
        log.warning("weights %s: left out, for they are no tensors: %s", path, _some(beside))
    return tensors


def _as_tensor(value: object) -> object:
    if not isinstance(value, Array):
        return value
    native = value.values.astype(value.values.dtype.newbyteorder("="))  # a copy too: what came may not be written to
    return torch.from_numpy(native)


def _has_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and any(isinstance(_as_tensor(one), Tensor) for one in value.values())


def _described(content: object) -> str:
    if isinstance(content, Mapping):
        return f"a mapping of {_some(content)}" if content else "an empty mapping"
    return type(content).__name__


def _some(values: Mapping[Any, object]) -> str:
    shown = [f"{name} ({type(value).__name__})" for name, value in list(values.items())[:4]]
    return ", ".join(shown) + (f" and {len(values) - 4} more" if len(values) > 4 else "")


def _without(path: Path, state: dict[str, Tensor], ignore: Sequence[str]) -> dict[str, Tensor]:
    """The tensors that no pattern means."""
    for pattern in ignore:
        if not any(_means(pattern, name) for name in state):
            near = difflib.get_close_matches(pattern, state, 3) or list(state)[:3]
            raise WeightsError(
                f"weights {path}: ignore: pattern {pattern!r} matches no tensor of the file; it has {', '.join(near)}"
            )
    return {name: one for name, one in state.items() if not any(_means(pattern, name) for pattern in ignore)}


def _means(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def _read(path: Path) -> Any:
    try:
        kind = kind_of(path)
    except InputError as error:
        raise WeightsError(f"weights {error}") from None
    if kind in (Kind.SAFETENSORS_SHARDS, Kind.TORCH_SHARDS):
        return _read_shards(path, kind)
    try:
        if kind is Kind.SAFETENSORS:
            from safetensors.torch import load_file

            return load_file(path)
        if kind is Kind.DCZ:
            from deepcompression.formats import state_dict as files

            return files.load(path)
        # Opened here: torch.load goes by the name where it opens a file itself.
        with path.open("rb") as file, torch.serialization.safe_globals(list(STAND_INS)):
            return torch.load(file, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(f"weights {path}: {_refusal(path, str(error))}") from None
    except Exception as error:  # the readers throw many kinds for a damaged file
        raise WeightsError(f"weights {path}: cannot be read: {_reason(error)}") from None


def _read_shards(path: Path, kind: Kind) -> dict[str, Tensor]:
    """The tensors of several files."""
    from deepcompression.formats.shards import Shards, files_of
    from deepcompression.formats.state_dict import from_raw

    if kind is Kind.SAFETENSORS_SHARDS:
        return {name: from_raw(raw) for name, raw in Shards(path).items()}
    state: dict[str, Tensor] = {}
    for file in files_of(path):
        for name, tensor in _tensors(file, _read(file), "model.weights.key").items():
            if str(name) in state:
                raise WeightsError(f"weights {path}: {name} is in {file.name} and in a file before it")
            state[str(name)] = tensor
    return state


def _refusal(path: Path, error: str) -> str:
    """Why a pickle is not read."""
    protocol = re.search(r"Unsupported operand (149|150)", error)
    if protocol:
        return (
            "was saved with another pickle_protocol than 2, which torch.save has by default; where you trust it: "
            f"torch.save(torch.load({str(path)!r}, weights_only=False), 'weights.pt')"
        )
    named = re.search(r"(?:GLOBAL|class|function) ([\w.<>']+)", error)
    if ("eights only" not in error and "weights_only" not in error) or "Unsupported operand" in error:
        return "is damaged or no checkpoint"
    what = f" ({named[1]})" if named else ""
    return (
        f"contains code besides tensors{what}, which is never run; save the state_dict alone, where you trust it: "
        f"model = torch.load({str(path)!r}, weights_only=False); torch.save(model.state_dict(), 'weights.pt')"
    )


def _reason(error: Exception) -> str:
    return one_line(error)[:160] or "it is empty, or ends too soon"


def _stripped(name: str, strip: Sequence[str]) -> str:
    for prefix in strip:
        name = name.removeprefix(prefix)
    return name


def edits_of(path: str | Path) -> list[dict[str, Any]]:
    """The edits of a ``.dcz`` file; other files have none."""
    if not is_dcz(Path(path)):
        return []
    with File(path) as file:
        return [dict(edit) for edit in file.edits]


def _merge_masks(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """``state`` with one weight for each pair that the model has not itself, with or without what wraps it."""
    sources = [name for name in state if name.endswith(ORIGINAL) and f"{name.removesuffix(ORIGINAL)}{MASK}" in state]
    kept = tuple(f".{name}" for name in own if name.endswith(ORIGINAL))
    pairs = [name.removesuffix(ORIGINAL) for name in sources if not f".{name}".endswith(kept)]
    masks, merged = {f"{base}{MASK}": base for base in pairs}, dict[str, Tensor]()
    for name, tensor in state.items():
        base = name.removesuffix(ORIGINAL)
        if name.endswith(ORIGINAL) and base in pairs:
            merged[base] = torch.where(state[f"{base}{MASK}"] != 0, tensor, torch.zeros_like(tensor))
        elif name not in masks:
            merged[name] = tensor
    return merged
