"""A checkpoint pruned, shared or rounded layer by layer on a few samples, and written as .dcz; resumable."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepcompression.codec.file import CODERS, File
from deepcompression.datafree.compress import Compressed, most_bytes
from deepcompression.datafree.kept import kept_beside
from deepcompression.datafree.spare import asked, planned
from deepcompression.datafree.treatment import Per, Treatment, per_of
from deepcompression.errors import InputError
from deepcompression.formats.state_dict import save
from deepcompression.network import names as selection
from deepcompression.network.load import load_state, own_tensors, unwrapped
from deepcompression.network.state import plain_state
from deepcompression.reconstruction.aimed import aimed, left_for, remember, remembered
from deepcompression.reconstruction.importance import importance
from deepcompression.reconstruction.kept import KeptLayers
from deepcompression.reconstruction.layer import Wanted
from deepcompression.reconstruction.reconstruct import Done, Reconstruction, Task, reconstruct
from deepcompression.structure.shared import Shared

log = logging.getLogger(__name__)
BATCH = 16  # samples at a time
FINEST = 10  # bits of an integer at most, where a size is given


@dataclass(frozen=True)
class Calibration:
    """What tensors are tried on.

    ``model``: ordinary parameters, values do not matter; ``feed``: of a number of samples at a time, the batches, the
    same at each call; ``forward``: (model, batch) -> outputs, one tensor; ``divergence``: outputs are logits (n,
    classes ...), else numbers whose squared change counts; ``seed``: of what is drawn.
    """

    model: nn.Module
    feed: Callable[[int], Iterable[Any]]
    forward: Callable[[nn.Module, Any], Any]
    divergence: bool = True
    seed: int = 0


def compress_calibrated(
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    calibration: Calibration,
    *,
    density: float | None = None,
    bits: int | None = None,
    per: str = "tensor",
    target_bytes: int | None = None,
    ratio: float | None = None,
    keep: Sequence[str] = (),
    spare: bool = True,
    coder: str = "auto",
    metadata: Mapping[str, str] | None = None,
    edits: Sequence[Mapping[str, Any]] | None = None,
    source: str | None = None,
    together: int = 1,
    progress: Callable[[str, int], object] = lambda name, nbytes: None,
) -> list[Compressed]:
    """What ``compress_state`` does, with what each layer loses on some samples made up for (``reconstruct``).

    Layers come in the order of the forward, and one layer's moments are in memory at a time, of what went into it
    before any changed: few samples say little of how to make up for what earlier layers lost. For a given size, bytes
    go where they change least of what the model says. Types are kept. Finished layers lie in a folder beside ``path``
    until all are done; where ``source`` is given and the same again, a later call goes on from there.

    Args:
        state: tensors by name; those that the model does not have are stored as they are.
        path: of the file.
        calibration: the model that the tensors belong to, into which they are loaded, and the samples.
        density: as all others up to ``edits``, of ``compress_state``.
        source: whatever decides the outcome beside the settings: tensors, model and samples.
        together: layers whose inputs are looked at in one pass over the samples.
        progress: called after each layer with its name and the bytes that it had.

    Raises:
        WeightsError: the tensors do not fit the model.
        InputError: a setting is impossible, a pattern matches nothing, or the size is out of reach.
        StorageError: the disk is full, or ``path`` cannot be written.
    """
    if coder not in CODERS:
        raise InputError(f"coder is one of {', '.join(CODERS)}, not {coder!r}")
    most = most_bytes(sum(map(_nbytes, state.values())), target_bytes, ratio)
    wanted = asked(density, bits, per_of(per), keep, spare, most is not None)
    plan = planned({name: (_dtype(one), tuple(one.shape)) for name, one in state.items()}, wanted)
    names = _loaded(calibration.model, state)
    meant = {name: _wanted(plan[file], most is not None) for name, file in _weights(calibration.model, names).items()}
    chosen = {name: one for name, one in meant.items() if one is not None and bool(state[names[name]].any())}
    if most is not None:
        left_for(_by_model(state, names), chosen, most)
    settings = f"{density} {bits} {per} {most} {sorted(keep)} {spare} {coder} {together}"
    with kept_beside(Path(path), f"{source or os.urandom(16).hex()}; {settings}") as kept:
        task = Task(chosen, lambda: calibration.feed(BATCH), calibration.forward, together=together, independent=True)
        if most is not None:
            task = _aimed(task, calibration, _by_model(state, names), most, kept.folder / "importance.tensor")
        layers = KeptLayers(kept.folder, lambda text: None, ".tensor")

        def done(one: Done) -> None:
            layers.done(one)
            progress(one.layer.name, _nbytes(state[names[one.layer.name]]))

        made = reconstruct(calibration.model, task, earlier=layers.earlier, done=done)
        new = _new(calibration.model, state, names, made)
        by = "adaptive" if coder == "auto" and most is not None else coder
        size = save(new, Path(path), by, metadata=metadata, edits=edits)
    if most is not None and size > most:
        log.warning("%s: takes %s bytes, %s more than asked for", path, f"{size:,}", f"{size - most:,}")
    first = selection.first_names(calibration.model)
    whose = {file: first.get(name, name) for name, file in names.items()}
    return _told(state, new, plan, whose, made, Path(path))


def _by_model(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors by their names in the model, those that it does not have by those in the file."""
    known = set(names.values())
    return {name: state[file] for name, file in names.items()} | {n: one for n, one in state.items() if n not in known}


def _aimed(task: Task, calibration: Calibration, state: Mapping[str, Tensor], most: int, path: Path) -> Task:
    """With a price at which the file takes so many bytes; what changes cost is measured once."""
    found = remembered(path)
    if found is None:
        one, model = calibration, calibration.model
        found = importance(
            model, list(task.wanted), lambda: one.feed(1), one.forward, divergence=one.divergence, seed=one.seed
        )
        remember(path, found)
    return aimed(task, state, found, most)


def _loaded(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, str]:
    """The name in the file of each tensor of the model that is there, into which they are loaded; of a tied one under
    the first of its names in the model too."""
    files = dict(zip(unwrapped(model, state), state, strict=True))
    own, first = own_tensors(model), selection.first_names(model)
    names = {name: file for name, file in files.items() if name in own}
    load_state(model, {name: state[file] for name, file in names.items()}, where="the recipe's model")
    return names | {first[name]: file for name, file in names.items() if first.get(name, name) not in names}


def _weights(model: nn.Module, names: Mapping[str, str]) -> dict[str, str]:
    """The names in the file of the model's parameters, tied ones once."""
    return {name: names[name] for name in dict.fromkeys(selection.first_names(model).values()) if name in names}


def _wanted(treatment: Treatment, stepped: bool) -> Wanted | None:
    """What becomes of a tensor; None: nothing."""
    if treatment.lossless:
        return None
    density = treatment.density if treatment.density < 1 else None
    if stepped:
        return Wanted(density, FINEST, "linear")
    return Wanted(density, treatment.bits, "kmeans", _part(treatment.per))


def _part(per: Per) -> Shared:
    return Shared() if per.kind == "tensor" else Shared(0, per.count or None)


def _new(
    model: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], made: Reconstruction
) -> dict[str, Tensor]:
    """All tensors of the file, those that changed in the types that they had."""
    changed = {one for layer in made.layers for one in (layer.name, layer.constant)}
    first, after = selection.first_names(model), plain_state(model)
    new = {file: after[name].to(state[file].dtype) for name, file in names.items() if first.get(name, name) in changed}
    return {file: new.get(file, one) for file, one in state.items()}


def _told(
    state: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    plan: Mapping[str, Treatment],
    whose: Mapping[str, str],
    made: Reconstruction,
    path: Path,
) -> list[Compressed]:
    """What was done to each tensor of the file; ``whose``, the names in the model."""
    with File(path) as file:
        sizes = {one.name: 0 if one.same_as is not None else one.size for one in file.index.entries}
    rows = []
    for name, before in state.items():
        what, why = _words(whose.get(name), plan[name], made)
        figures = _figures(before, new[name]) if what != "kept" else (None, None)
        rows.append(Compressed(name, what, why, _nbytes(before), sizes[name], *figures))
    return rows


def _words(name: str | None, treatment: Treatment, made: Reconstruction) -> tuple[str, str]:
    """What was done to the tensor that the model has under a name, and why that is not what was asked for."""
    one = next((one for one in made.layers if one.name == name), None)
    if one is not None and one.how == "linear":
        return f"reconstructed integers of {one.values} values", ""
    if one is not None:
        return f"reconstructed, {treatment}", treatment.why
    if any(one.constant == name for one in made.layers if one.constant):
        return "moved", "it takes up what outputs are off on average"
    if treatment.lossless:
        return "kept", treatment.why
    if name is None:
        return "kept", "the model has no such tensor"
    return "kept", made.left.get(name, "it is zero throughout")


def _figures(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Density, and how far a tensor is off."""
    one, other = before.double(), after.double()
    off = (one - other).square().sum() / one.square().sum().clamp_min(1e-300)
    return float((other != 0).double().mean()), float(off.sqrt())


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
