"""A checkpoint pruned, shared and coded tensor by tensor: streamed, in bounded memory, resumable."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deepcompression import _numba
from deepcompression._parallel import cores
from deepcompression.codec import encoder
from deepcompression.codec.dtypes import DTYPES, RawTensor, raw_of
from deepcompression.codec.file import CODERS, Tensor, records
from deepcompression.codec.parts import Part, join_parts
from deepcompression.datafree.counted import counted, narrowed
from deepcompression.datafree.kept import Kept, kept_beside
from deepcompression.datafree.spare import About, asked, planned
from deepcompression.datafree.tensor import treated
from deepcompression.datafree.treatment import Treatment, per_of
from deepcompression.errors import InputError

Progress = Callable[[str, int], None]
WAY = 1  # of finding values: raised when the same settings give other ones, so that no file has both


class Compressed(NamedTuple):
    """What was done to one tensor.

    Attributes:
        name: of the tensor.
        treatment: in words; `kept` is stored bit for bit.
        why: why that is not what was asked for; empty where it is.
        nbytes: before.
        stored: bytes in the file; 0 where an equal one serves; None where nothing was made yet.
        density: fraction of its elements that are not zero; None where it was kept.
        error: root of the sum of squared differences, relative to that of its squares; None where it was kept.
    """

    name: str
    treatment: str
    why: str
    nbytes: int
    stored: int | None = None
    density: float | None = None
    error: float | None = None


def compress_state(
    tensors: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    density: float | None = None,
    bits: int | None = None,
    per: str = "tensor",
    keep: Sequence[str] = (),
    spare: bool = True,
    coder: str = "auto",
    metadata: Mapping[str, str] | None = None,
    edits: Sequence[Mapping[str, Any]] | None = None,
    source: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> list[Compressed]:
    """Prunes and shares each tensor and writes the .dcz file of them all; says what was done to each.

    No data and no training are needed. Types are kept. Tensors are asked for one by one: a mapping may read them as
    it goes. Finished ones lie in a folder beside `path` until all are done; where `source` is given and the same
    again, a later call goes on from there.

    Args:
        tensors: arrays or RawTensor by name.
        path: of the file, in a folder that there is.
        density: fraction of the weights that stay, by magnitude, in (0, 1]; None or 1 prunes nothing.
        bits: weights take 2**bits values, found by k-means; 1 to 12. None shares none, and is 6 without a density.
        per: what has a codebook: `tensor`, `row` (an output channel), or `group:N` consecutive elements of a row.
        keep: shell patterns of names of tensors that are stored as they are.
        spare: whether depthwise kernels, first and last layers are not pruned and get two bits more (up to 8), and
            embeddings are not pruned. Vectors, small tensors, integers and what is not finite are kept in any case.
        coder: as of `save`.
        metadata: as of `save`.
        edits: as of `save`.
        source: what the tensors are read from, whichever it was.
        threads: at most so many; None is one a core. The bytes do not depend on it.
        progress: called after each tensor with its name and its bytes.

    Raises:
        InputError: a setting is impossible, a pattern matches nothing, a tensor cannot be stored.
        StorageError: the disk is full, or `path` cannot be written.
    """
    if coder not in CODERS:
        raise InputError(f"coder is one of {', '.join(CODERS)}, not {coder!r}")
    wanted = asked(density, bits, per_of(per), keep, spare)
    extensions = records(metadata, edits)
    plan = alike(tensors, planned(about_of(tensors), wanted))
    _numba.kernels(sum(math.prod(shape) for _, shape in about_of(tensors).values()))  # one tensor may be too small
    with kept_beside(Path(path), source or os.urandom(16).hex()) as kept:
        work = Work(tensors, kept, coder, threads or cores(), progress)
        parts = {name: work.part(name, treatment) for name, treatment in plan.items()}
        join_parts(parts, Path(path), coder, extensions)
    return done(parts)


def plan_of(
    tensors: Mapping[str, Tensor],
    *,
    density: float | None = None,
    bits: int | None = None,
    per: str = "tensor",
    keep: Sequence[str] = (),
    spare: bool = True,
) -> list[Compressed]:
    """What `compress_state` would do to each tensor.

    Args:
        tensors: as all others, of `compress_state`.

    Raises:
        InputError: as `compress_state`.
    """
    about = about_of(tensors)
    plan = alike(tensors, planned(about, asked(density, bits, per_of(per), keep, spare)))
    return [Compressed(name, str(one), one.why, _nbytes(*about[name])) for name, one in plan.items()]


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPES[dtype].itemsize


def about_of(tensors: Mapping[str, Tensor]) -> About:
    """dtype and shape of each tensor; without reading any of a mapping that knows them (`about`)."""
    known = getattr(tensors, "about", None)
    if known is not None:
        return {name: (about[0], about[1]) for name, about in known.items()}
    raws = ((name, raw_of(name, tensors[name])) for name in tensors)
    return {name: (raw.dtype, raw.bits.shape) for name, raw in raws}


def alike(tensors: Mapping[str, Tensor], plan: Mapping[str, Treatment]) -> dict[str, Treatment]:
    """`plan`, in which equal tensors get what spares them most: tied ones stay one."""
    about = about_of(tensors)
    groups: dict[Any, list[str]] = {}
    for name in plan:
        if len(about[name][1]) > 1:
            groups.setdefault(about[name], []).append(name)
    made = dict(plan)
    for names in groups.values():
        if len({(plan[name].density, plan[name].bits, plan[name].per) for name in names}) > 1:
            twins: dict[bytes, list[str]] = {}
            for name in names:
                bits = np.ascontiguousarray(raw_of(name, tensors[name]).bits)
                twins.setdefault(hashlib.blake2b(bits.data.cast("B") if bits.size else b"").digest(), []).append(name)
            for same in twins.values():
                best = max((plan[name] for name in same), key=_mildness)
                made |= dict.fromkeys(same, best) if len(same) > 1 else {}
    return made


def _mildness(treatment: Treatment) -> tuple[bool, float, int]:
    return treatment.lossless, treatment.density, treatment.bits or 64


@dataclass(frozen=True)
class Work:
    """Makes parts of tensors, or finds them made."""

    tensors: Mapping[str, Tensor]
    kept: Kept
    coder: str
    threads: int
    progress: Progress | None

    def part(self, name: str, treatment: Treatment) -> Part:
        """The tensor `name`, treated and coded."""
        key = f"{WAY} {self.coder} {treatment.density!r} {treatment.bits} {treatment.per} {treatment.why!r} {name}"
        part = self.kept.find(key)
        if part is None:
            part = self._made(name, treatment, key)
        if self.progress is not None:
            self.progress(name, part.about["nbytes"])
        return part

    def _made(self, name: str, treatment: Treatment, key: str) -> Part:
        raw = raw_of(name, self.tensors[name])
        about: dict[str, Any] = {"nbytes": raw.bits.nbytes, "treatment": str(treatment), "why": treatment.why}
        if not treatment.lossless:
            raw, about = self._treated(raw, treatment, about)
        flat = np.ascontiguousarray(raw.bits).reshape(-1)
        dtype, shape = raw.dtype, raw.bits.shape
        del raw
        blob = encoder.encode_tensor(flat, dtype, shape, self.coder, self.threads)
        return self.kept.add(key, blob, dtype, shape, about)

    def _treated(self, raw: RawTensor, treatment: Treatment, about: dict[str, Any]) -> tuple[RawTensor, dict[str, Any]]:
        found = counted(narrowed(raw), raw.dtype, self.threads)
        if not found.finite:
            return raw, {**about, "treatment": str(Treatment()), "why": "some of it is NaN or infinite"}
        made, loss = treated(raw, treatment, found, self.threads)
        error = (loss.squared_error / loss.energy) ** 0.5 if loss.energy else 0.0
        return made, {**about, "density": loss.nonzero / max(raw.bits.size, 1), "error": error}


def done(parts: Mapping[str, Part]) -> list[Compressed]:
    """What was done to each tensor."""
    seen: set[tuple[Any, ...]] = set()
    found = []
    for name, part in parts.items():
        same = (part.dtype, part.shape, part.digest)
        about = part.about
        stored = 0 if same in seen else part.size
        seen.add(same)
        found.append(
            Compressed(
                name,
                about["treatment"],
                about["why"],
                about["nbytes"],
                stored,
                about.get("density"),
                about.get("error"),
            )
        )
    return found
