"""What each tensor gets, before any is read: as asked, or spared, by its name and shape, with the reason why."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from deepcompression.codec.dtypes import DTYPES
from deepcompression.datafree.treatment import TENSOR, Per, Treatment, check, row_of
from deepcompression.errors import StructureError
from deepcompression.structure.counted import KINDS

SMALL = 1024  # elements, below which a tensor has nothing to give
DEFAULT_BITS = 6
MORE, ENOUGH = 2, 8  # bits that what is spared gets beyond the others, up to so many
PICTURE = 4  # channels of a picture at most
_EMBEDDING = re.compile(r"(^|[._])(embed\w*|wte|wpe|tok_\w+|\w+_embeddings?|emb)([._]|$)", re.I)
_LAST = re.compile(
    r"^((model|module|net|_orig_mod|state_dict)\.)*"
    r"(lm_head|embed_out|heads?|fc|classifier|logits|score|output|qa_outputs|cls|predictions)(\..*)?$"
)
_AN_EMBEDDING = "an embedding"  # of which few bits are enough, but each row is used alone
_NUMBER = re.compile(r"(\d+)")
_COMPARED = re.compile(r"(^|[._])(q|k|query|key)(_?proj|_lin|_layer)?[._]", re.I)
SPARED_WEIGHT, COMPARED_WEIGHT = 4.0, 0.25  # of relative errors; a query's and a key's pass a softmax
About = Mapping[str, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Asked:
    """What is asked for all tensors that are not spared.

    Attributes:
        density: fraction of the weights that stays.
        bits: of the codes of shared weights; None shares none.
        per: what has a codebook of its own.
        keep: patterns of names, as in a shell, of tensors that are stored as they are.
        spare: whether layers that lose most are spared.
        stepped: whether bytes are allocated, by steps in place of bits.
    """

    density: float = 1.0
    bits: int | None = None
    per: Per = TENSOR
    keep: tuple[str, ...] = ()
    spare: bool = True
    stepped: bool = False


def asked(
    density: float | None, bits: int | None, per: Per, keep: Sequence[str], spare: bool = True, stepped: bool = False
) -> Asked:
    """What is asked, with DEFAULT_BITS where neither a density nor a number of bits is given.

    Args:
        density: of the weights, or None.
        bits: of codes, or None.
        per: what has a codebook.
        keep: patterns of names.
        spare: whether to spare.
        stepped: whether the bytes are given.

    Raises:
        StructureError: one of them is impossible, or codebooks are parted where none are asked for.
    """
    if stepped and (bits is not None or per.kind != "tensor"):
        what = f"per {per}" if bits is None else f"bits {bits}"
        raise StructureError(f"{what} does not go with a size, by which it is found how fine values are; give either")
    if bits is None and density is None and not stepped:
        bits = DEFAULT_BITS
    check(1.0 if density is None else density, bits)
    if bits is None and per.kind != "tensor":
        raise StructureError(f"per {per} is about codebooks, and without bits there are none; give bits too")
    return Asked(1.0 if density is None else density, bits, per, tuple(keep), spare, stepped)


def planned(tensors: About, wanted: Asked) -> dict[str, Treatment]:
    """The treatment of each tensor, by name.

    Args:
        tensors: dtype and shape by name.
        wanted: what is asked.

    Raises:
        StructureError: a pattern of `keep` matches no tensor.
    """
    kept = _matching(list(tensors), wanted.keep)
    whys = {name: kept.get(name) or _kept_because(*about, wanted) for name, about in tensors.items()}
    spared = _spared([(name, tensors[name][1]) for name in tensors if not whys[name]]) if wanted.spare else {}
    return {name: _treatment(name, tensors[name][1], whys[name], spared.get(name, ""), wanted) for name in tensors}


def _matching(names: Sequence[str], patterns: Sequence[str]) -> dict[str, str]:
    """Why tensors are kept, by name, that match one of the patterns."""
    found: dict[str, str] = {}
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            near = (
                difflib.get_close_matches(pattern[:200], [name[:200] for name in names[:10_000]], 3, 0.3) or names[:3]
            )
            raise StructureError(f"keep {pattern!r} matches no tensor; there are {', '.join(near) or 'none'}")
        found |= {name: f"asked for by keep {pattern}" for name in matched if name not in found}
    return found


def _kept_because(dtype: str, shape: tuple[int, ...], wanted: Asked) -> str:
    """Why a tensor is stored as it is; empty where it is not."""
    size = row_of(shape) * (shape[0] if shape else 1)
    if dtype not in KINDS:
        return f"{dtype}, {'a type of scales' if DTYPES[dtype].floating else 'no floating type'}"
    if len(shape) < 2:
        return "a vector or a single number, as biases and normalisation are"
    if size < SMALL:
        return f"fewer than {SMALL:,} elements"
    if wanted.bits is not None and size < 8 * 2**wanted.bits:
        return f"too few elements for {2**wanted.bits:,} values"
    return ""


def _spared(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> dict[str, str]:
    """Why tensors are spared, by name."""
    found: dict[str, str] = {}
    for name, shape in tensors:
        if len(shape) > 2 and shape[1] == 1:
            found[name] = "one input channel a filter: depthwise, or the first layer"
        elif len(shape) > 3 and shape[1] <= PICTURE:
            found[name] = f"takes {shape[1]} channels: the first layer"
        elif len(shape) == 2 and _EMBEDDING.search(name):
            found[name] = _AN_EMBEDDING
    ordered = _in_order([name for name, _ in tensors])
    if not ordered or len(ordered) < 3:
        return found
    heads = [name for name in ordered if _LAST.match(name)]
    found.setdefault((heads or ordered)[-1], "the last layer")
    if not any("first" in why or "embedding" in why for why in found.values()):
        found.setdefault(ordered[0], "the first layer")
    return found


def _in_order(names: list[str]) -> list[str]:
    """Names in the order of layers: as they come, or by their numbers where the file has them by the alphabet."""
    if names != sorted(names):
        return names
    return sorted(names, key=lambda name: [(int(p), "") if p.isdigit() else (-1, p) for p in _NUMBER.split(name) if p])


def _treatment(name: str, shape: tuple[int, ...], why: str, spared: str, wanted: Asked) -> Treatment:
    if wanted.stepped and not why:
        return _stepped(name, spared, wanted)
    if why or (spared and wanted.bits is None):
        return Treatment(why=why or spared)
    if spared and spared != _AN_EMBEDDING:
        assert wanted.bits is not None
        return Treatment(1.0, max(wanted.bits, min(wanted.bits + MORE, ENOUGH)), TENSOR, spared)
    density, why = (1.0, spared) if spared and wanted.density < 1 else (wanted.density, "")
    per = wanted.per
    if per.count and row_of(shape) % per.count:
        return Treatment(density, wanted.bits, Per("row"), f"{per.count} does not divide the {row_of(shape)} of a row")
    return Treatment(density, wanted.bits, per, why)


def _stepped(name: str, spared: str, wanted: Asked) -> Treatment:
    """What gets its step when bytes are allocated."""
    compared = wanted.spare and bool(_COMPARED.search(name))
    weight = COMPARED_WEIGHT if compared else SPARED_WEIGHT if spared and spared != _AN_EMBEDDING else 1.0
    return Treatment(1.0 if spared else wanted.density, why=spared, step=0.0, weight=weight)
