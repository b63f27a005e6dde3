"""A checkpoint pruned, shared and coded tensor by tensor: streamed, in bounded memory, resumable."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from deepcompression import _numba
from deepcompression._parallel import cores
from deepcompression.codec.dtypes import DTYPES
from deepcompression.codec.file import CODERS, Tensor, records
from deepcompression.codec.parts import Part, join_parts, joined_size
from deepcompression.datafree.allocate import chosen, fitted, with_steps
from deepcompression.datafree.kept import kept_beside
from deepcompression.datafree.spare import asked, planned
from deepcompression.datafree.treatment import per_of
from deepcompression.datafree.work import Progress, Work, about_of, alike
from deepcompression.errors import InputError, StructureError


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
    target_bytes: int | None = None,
    ratio: float | None = None,
    keep: Sequence[str] = (),
    spare: bool = True,
    coder: str = "auto",
    metadata: Mapping[str, str] | None = None,
    edits: Sequence[Mapping[str, Any]] | None = None,
    source: str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
    phase: Callable[[str], None] | None = None,
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
        target_bytes: the file takes at most so many bytes, and nearly as many. Tensors get values as fine as serves
            best: their relative errors are made small together, by steps in place of bits.
        ratio: in place of that, how many times smaller than the tensors, tied ones counted each time, the file is.
        keep: shell patterns of names of tensors that are stored as they are.
        spare: whether depthwise kernels, first and last layers are not pruned and get two bits more (up to 8), and
            embeddings are not pruned. Vectors, small tensors, integers and what is not finite are kept in any case.
        coder: as of `save`.
        metadata: as of `save`.
        edits: as of `save`.
        source: what the tensors are read from, whichever it was.
        threads: at most so many; None is one a core. The bytes do not depend on it.
        progress: called after each tensor with its name and its bytes, in each pass over the tensors.
        phase: called before each pass with what it is; there are several for a given size.

    Raises:
        InputError: a setting is impossible, a pattern matches nothing, a tensor cannot be stored.
        StorageError: the disk is full, or `path` cannot be written.
    """
    if coder not in CODERS:
        raise InputError(f"coder is one of {', '.join(CODERS)}, not {coder!r}")
    about = about_of(tensors)
    most = most_bytes(sum(_nbytes(*one) for one in about.values()), target_bytes, ratio)
    plan = alike(tensors, planned(about, asked(density, bits, per_of(per), keep, spare, most is not None)))
    extensions = records(metadata, edits)
    _numba.kernels(sum(math.prod(shape) for _, shape in about.values()))  # one tensor may be too small
    with kept_beside(Path(path), source or os.urandom(16).hex()) as kept:
        work = Work(tensors, kept, coder, threads or cores(), progress, phase)
        parts = (
            work.parts(plan)
            if most is None
            else fitted(plan, work.curves(plan), most, work.parts, lambda parts: joined_size(parts, coder, extensions))
        )
        join_parts(parts, Path(path), coder, extensions)
    return done(parts)


def plan_of(
    tensors: Mapping[str, Tensor],
    *,
    density: float | None = None,
    bits: int | None = None,
    per: str = "tensor",
    target_bytes: int | None = None,
    ratio: float | None = None,
    keep: Sequence[str] = (),
    spare: bool = True,
) -> list[Compressed]:
    """What `compress_state` would do to each tensor; for a given size, by what its bytes are estimated to be.

    Args:
        tensors: as all others, of `compress_state`.

    Raises:
        InputError: as `compress_state`.
    """
    about = about_of(tensors)
    most = most_bytes(sum(_nbytes(*one) for one in about.values()), target_bytes, ratio)
    plan = alike(tensors, planned(about, asked(density, bits, per_of(per), keep, spare, most is not None)))
    if most is not None:
        curves = Work(tensors, None, "auto", cores()).curves(plan)
        room = most - sum(_nbytes(*about[name]) for name in plan if name not in curves)
        weights = {name: plan[name].weight for name in curves}
        plan = with_steps(plan, curves, chosen(curves, weights, room))
    return [Compressed(name, str(one), one.why, _nbytes(*about[name])) for name, one in plan.items()]


def most_bytes(nbytes: int, target_bytes: int | None, ratio: float | None) -> int | None:
    """How many bytes a file may take; None where no size is asked for.

    Args:
        nbytes: of what is made smaller.
        target_bytes: so many.
        ratio: so many times fewer.

    Raises:
        StructureError: both are given, or one is impossible.
    """
    if target_bytes is not None and ratio is not None:
        raise StructureError("target_bytes and ratio both say how large the file may be; give one of them")
    if ratio is not None and not 1 <= ratio < math.inf:
        raise StructureError(f"ratio {ratio:g} is impossible; expected how many times smaller, 1 or more")
    if target_bytes is not None and target_bytes < 1:
        raise StructureError(f"target_bytes {target_bytes} is impossible; expected 1 or more")
    return target_bytes if ratio is None else int(nbytes / ratio)


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    return math.prod(shape) * DTYPES[dtype].itemsize


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
