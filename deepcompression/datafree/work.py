"""The work on a checkpoint's tensors, one after the other: counted, treated, coded, and kept when finished."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcompression.codec import encoder
from deepcompression.codec.dtypes import RawTensor, raw_of
from deepcompression.codec.file import Tensor
from deepcompression.codec.parts import Part
from deepcompression.datafree.allocate import Curve, curve_of
from deepcompression.datafree.kept import Kept
from deepcompression.datafree.spare import About
from deepcompression.datafree.tensor import treated
from deepcompression.datafree.treatment import Treatment
from deepcompression.structure.counted import counted, narrowed
from deepcompression.structure.cut import cut_at

Progress = Callable[[str, int], None]
WAY = 1  # of finding values: raised when the same settings give other ones, so that no file has both


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
        if len({(*_mildness(plan[name]), plan[name].per) for name in names}) > 1:
            twins: dict[bytes, list[str]] = {}
            for name in names:
                bits = np.ascontiguousarray(raw_of(name, tensors[name]).bits)
                twins.setdefault(hashlib.blake2b(bits.data.cast("B") if bits.size else b"").digest(), []).append(name)
            for same in twins.values():
                best = max((plan[name] for name in same), key=_mildness)
                made |= dict.fromkeys(same, best) if len(same) > 1 else {}
    return made


def _mildness(treatment: Treatment) -> tuple[bool, float, int, float]:
    return treatment.lossless, treatment.density, treatment.bits or 64, treatment.weight


@dataclass(frozen=True)
class Work:
    """Makes parts of tensors, or finds them made."""

    tensors: Mapping[str, Tensor]
    kept: Kept | None
    coder: str
    threads: int
    progress: Progress | None = None
    phase: Callable[[str], None] | None = None

    def parts(self, plan: Mapping[str, Treatment]) -> dict[str, Part]:
        """All tensors, treated and coded."""
        if self.phase is not None:
            self.phase("compressing")
        return {name: self.part(name, treatment) for name, treatment in plan.items()}

    def curves(self, plan: Mapping[str, Treatment]) -> dict[str, Curve]:
        """What steps cost and lose, of tensors that get some; counted in one pass."""
        if self.phase is not None:
            self.phase("counting")
        found = {name: self._curve(name, one) for name, one in plan.items() if one.step is not None}
        return {name: curve for name, curve in found.items() if curve is not None}

    def _curve(self, name: str, treatment: Treatment) -> Curve | None:
        raw = raw_of(name, self.tensors[name])
        flat = narrowed(raw)
        found = counted(flat, raw.dtype, self.threads)
        cut = cut_at(flat, found, treatment.density, self.threads) if found.finite else None
        if self.progress is not None:
            self.progress(name, raw.bits.nbytes)
        return curve_of(found, cut) if found.finite else None

    def part(self, name: str, treatment: Treatment) -> Part:
        """The tensor `name`, treated and coded."""
        how = (treatment.density, treatment.bits, treatment.step, str(treatment.per), treatment.why)
        key = f"{WAY} {self.coder} {how} {name}"
        assert self.kept is not None
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
        assert self.kept is not None
        return self.kept.add(key, blob, dtype, shape, about)

    def _treated(self, raw: RawTensor, treatment: Treatment, about: dict[str, Any]) -> tuple[RawTensor, dict[str, Any]]:
        found = counted(narrowed(raw), raw.dtype, self.threads)
        if not found.finite:
            return raw, {**about, "treatment": str(Treatment()), "why": "some of it is NaN or infinite"}
        made, loss = treated(raw, treatment, found, self.threads)
        error = (loss.squared_error / loss.energy) ** 0.5 if loss.energy else 0.0
        return made, {**about, "density": loss.nonzero / max(raw.bits.size, 1), "error": error}
