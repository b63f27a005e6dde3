"""Checkpoints from elsewhere: read without running any code in them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcompression.codec.file import File
from deepcompression.errors import InputError, WeightsError, one_line


def read_state(
    path: str | Path,
    *,
    key: str | None = None,
    strip: Sequence[str] = (),
    merge: bool = True,
    setting: str = "model.weights.key",
) -> dict[str, Tensor]:
    """The tensors of a checkpoint.

    Args:
        path: .safetensors, .dcz, or a file of ``torch.save`` (opened with ``weights_only``).
        key: where in the file the state_dict lies, such as ``state_dict`` or ``model.weights``.
        strip: prefixes removed from tensor names, each at most once, in this order.
        merge: whether pairs of ``weight_orig`` and ``weight_mask``, as ``torch.nn.utils.prune`` leaves them, become
            ``weight``.
        setting: what users set ``key`` by, for the error that they need it.

    Raises:
        WeightsError: missing, unreadable, contains code, no such key, not a mapping of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"weights {path}: no such file")
    content = _read(path)
    for part in key.split(".") if key else ():
        if not isinstance(content, Mapping) or part not in content:
            known = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else "no keys"
            raise WeightsError(f"weights {path}: no key {key!r}; the file has {known}")
        content = content[part]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        inside = [str(k) for k, v in content.items() if isinstance(v, Mapping)] if isinstance(content, Mapping) else []
        hint = f"; set {setting}, perhaps to {' or '.join(inside)}" if inside else ""
        raise WeightsError(f"weights {path}: expected a mapping of names to tensors{hint}")
    state = {_stripped(str(name), strip): tensor for name, tensor in content.items()}
    if len(state) < len(content):
        raise WeightsError(f"weights {path}: after stripping {list(strip)} two tensors have the same name")
    return _merge_masks(state) if merge else state


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        if path.suffix == ".dcz":
            from deepcompression.formats import state_dict as files

            return files.load(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise WeightsError(
                f"weights {path}: contains code besides tensors, which is never run; "
                "save the state_dict alone, by torch.save(model.state_dict(), path) or as .safetensors"
            ) from None
        raise WeightsError(f"weights {path}: is damaged or no checkpoint") from None
    except Exception as error:  # the readers throw many kinds for a damaged file
        raise WeightsError(f"weights {path}: cannot be read: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    return one_line(error)[:160] or "it is empty, or ends too soon"


def _stripped(name: str, strip: Sequence[str]) -> str:
    for prefix in strip:
        name = name.removeprefix(prefix)
    return name


def edits_of(path: str | Path) -> list[dict[str, Any]]:
    """The edits of a ``.dcz`` file; other files have none."""
    if Path(path).suffix.lower() != ".dcz":
        return []
    with File(path) as file:
        return [dict(edit) for edit in file.edits]


def _merge_masks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    merged = {}
    for name, tensor in state.items():
        base = name.removesuffix("_orig")
        if name.endswith("_mask") and f"{name.removesuffix('_mask')}_orig" in state:
            continue
        if name.endswith("_orig") and f"{base}_mask" in state:
            merged[base] = torch.where(state[f"{base}_mask"] != 0, tensor, torch.zeros_like(tensor))
        else:
            merged[name] = tensor
    return merged
