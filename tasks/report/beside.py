"""What a file's bytes stand beside: what gzip and 8-bit integers make of the same model, earlier runs, exports."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MOST_BYTES = 500_000_000  # of a dense model that is given to gzip, which takes 20 s a GB and more


def beside(
    dense: Mapping[str, Tensor], decoded: Mapping[str, Tensor], folder: Path, name: str, seed: int
) -> list[dict[str, Any]]:
    """Rows of ``what``, ``bytes`` and ``how`` (a sentence, or nothing); and ``metric`` of an earlier run.

    Args:
        dense: the dense model's tensors by name.
        decoded: the file's.
        folder: of the run; earlier ones lie beside it.
        name: of the run's recipe.
        seed: of the run.
    """
    eight = "computed, every matrix with a scale a channel and the rest as it is"
    rows: list[dict[str, Any]] = [{"what": "8-bit integers", "bytes": _integers(dense.values()), "how": eight}]
    if sum(one.nbytes for one in dense.values()) <= MOST_BYTES:
        rows += [
            {"what": "gzip of the dense model", "bytes": _gzipped(dense.values()), "how": ""},
            {"what": "gzip of the decoded file", "bytes": _gzipped(decoded.values()), "how": ""},
        ]
    before = previous(folder, name, seed)
    return [*rows, *([before] if before else [])]


def previous(folder: Path, name: str, seed: int) -> dict[str, Any] | None:
    """The newest finished run before this one of the same name and seed that lies beside it; None where there is none.

    Args:
        folder: of this run.
        name: of its recipe.
        seed: of it.
    """
    stamp = folder.name.removeprefix(f"{name}-")
    older = [one for one in folder.parent.glob(f"{_plain(name)}-*") if one.name.removeprefix(f"{name}-") < stamp]
    for one in sorted(older, key=lambda path: path.name, reverse=True):
        summary = _summary(one)
        if summary.get("name") == name and summary.get("seed") == seed and "file_bytes" in summary:
            final, metric = summary["final"], summary["metric"]
            told = f"{one.name}: {final.get('split', 'test')} {metric} {final['metric']:.4f}"
            return {"what": "the run before", "bytes": summary["file_bytes"], "how": told, "run": one.name}
    return None


def bars(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that a page shows beside the file, the largest first: rows of ``beside``, the dense model, the champion,
    exports, and the file itself, each with ``part``, 0 to 1, of the largest.

    Args:
        summary: of a run; older ones have no ``beside``.
    """
    rows = [
        {"what": "dense model", "bytes": summary["dense_bytes"], "how": ""},
        *(summary.get("beside") or []),
        {"what": "this file", "bytes": summary["file_bytes"], "how": "", "own": True},
        *({"what": f"export {one['target']}", "bytes": one["bytes"], "how": ""} for one in _exports(summary)),
    ]
    champion = (summary.get("promotion") or {}).get("champion") or {}
    if champion.get("file_bytes"):
        told = f"version {champion['version']}, validation {champion['metric']} {_number(champion.get('val_metric'))}"
        rows.append({"what": "the champion before", "bytes": champion["file_bytes"], "how": told})
    most = max(row["bytes"] for row in rows) or 1
    ordered = sorted(rows, key=lambda row: -row["bytes"])
    return [
        {"own": False, **row, "part": row["bytes"] / most, "ratio": summary["dense_bytes"] / max(row["bytes"], 1)}
        for row in ordered
    ]


def _exports(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in summary.get("exports") or [] if one.get("bytes")]


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4f}"


def _integers(tensors: Iterable[Tensor]) -> int:
    return sum(
        one.numel() + 4 * len(one) if one.is_floating_point() and one.ndim > 1 else one.nbytes for one in tensors
    )


def _gzipped(tensors: Iterable[Tensor]) -> int:
    """Bytes of a gzip stream; one tensor at a time is in memory."""
    import torch

    made, count = zlib.compressobj(6, zlib.DEFLATED, 31), 0
    for one in tensors:
        count += len(made.compress(one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()))
    return count + len(made.flush())


def _plain(name: str) -> str:
    """A name that a pattern of files takes as it is."""
    import glob

    return glob.escape(name)


def _summary(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        ok = isinstance(found, dict) and math.isfinite(found["final"]["metric"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return found if ok else {}
