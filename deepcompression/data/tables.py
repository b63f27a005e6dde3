"""Rows of a CSV or Parquet file: numbers normalised, words as ones and zeros, a column as what is learnt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcompression.data.splits import Splits, _stratified
from deepcompression.errors import DataError, one_line

MOST_WORDS = 100  # of a column; more are no categories


def tabular(
    path: str,
    target: str,
    columns: Sequence[str] | None = None,
    leave_out: Sequence[str] = (),
    kind: str = "auto",
    missing: str = "refuse",
    split: str | None = None,
    test: int | float = 0.2,
    seed: int = 0,
) -> Splits:
    """Rows as samples (n, features) float32; targets (n,) int64 classes, or float32 numbers.

    Numbers have mean 0 and deviation 1 over the training rows; of words each is a feature that is 1 where it stands.

    Args:
        path: of a .csv (or .tsv) or .parquet file.
        target: the column that is learnt.
        columns: that are learnt from; default: all others.
        leave_out: of these.
        kind: classes or numbers, of the target; auto: numbers where it has any with a fraction.
        missing: what becomes of empty cells: refuse, or mean (of the training rows; of words one of their own).
        split: a column that says train, validation or test.
        test: rows of the test split, a count or a fraction, where no column says so.
        seed: of that choice.

    Raises:
        DataError: no such file or column, empty cells, a column that can be no feature, a library that is missing.
    """
    if kind not in ("auto", "classes", "numbers") or missing not in ("refuse", "mean"):
        raise DataError(
            f"data.kwargs: expected kind of auto, classes or numbers, missing of refuse or mean, got {kind}, {missing}"
        )
    path = str(Path(path).resolve())
    frame = _frame(Path(path))
    wanted = [name for name in columns or frame.columns if name not in (target, split, *leave_out)]
    for name in (target, *([split] if split else []), *wanted):
        if name not in frame.columns:
            raise DataError(f"data {path}: no column {name!r}; it has {', '.join(map(str, frame.columns))[:200]}")
    targets, classes = _targets(frame[target], kind, f"data {path}: column {target}")
    rows = _rows(frame[split], path) if split else _drawn(targets, test, seed)
    samples = _features(frame, wanted, rows["train"], missing, path)
    parts = {which: (samples[some], targets[some]) if len(some) else None for which, some in rows.items()}
    return Splits(parts["train"], parts["validation"], parts["test"], classes)


def _frame(path: Path) -> Any:
    try:
        import pandas
    except ModuleNotFoundError:
        raise DataError("data: tables are read with pandas: pip install 'deep-compression[data]'") from None
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pandas.read_parquet(path)
        return pandas.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",")
    except ImportError as error:
        raise DataError(
            f"data {path}: Parquet is read with pyarrow: pip install 'deep-compression[data]' ({one_line(error)[:80]})"
        ) from None
    except Exception as error:  # of the file, of many kinds
        raise DataError(f"data {path}: cannot be read: {type(error).__name__}: {one_line(error)[:160]}") from None


def _targets(column: Any, kind: str, where: str) -> tuple[Tensor, tuple[str, ...] | None]:
    if column.isna().any():
        raise DataError(f"{where}: {int(column.isna().sum())} empty cells; what is learnt has none: remove these rows")
    numbers = column.dtype.kind in "biuf"
    fraction = column.dtype.kind == "f" and bool((column % 1 != 0).any())
    if kind == "numbers" or (kind == "auto" and fraction):
        if not numbers:
            raise DataError(f"{where}: expected numbers, got {column.iloc[0]!r}")
        return torch.tensor(column.to_numpy(np.float32)), None
    names, codes = np.unique(column.to_numpy() if numbers else column.astype(str).to_numpy(), return_inverse=True)
    return torch.from_numpy(codes.astype(np.int64)), tuple(map(str, names.tolist()))


def _rows(column: Any, path: str) -> dict[str, Tensor]:
    words = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
    which = [words.get(str(word)) for word in column]
    if None in which:
        word = column.iloc[which.index(None)]
        raise DataError(f"data {path}: column {column.name}: expected train, validation or test, got {str(word)!r}")
    return {
        name: torch.tensor([at for at, one in enumerate(which) if one == name], dtype=torch.int64)
        for name in ("train", "validation", "test")
    }


def _drawn(targets: Tensor, test: int | float, seed: int) -> dict[str, Tensor]:
    count = round(test * len(targets)) if isinstance(test, float) else test
    if not 0 < count < len(targets):
        raise DataError(f"data.kwargs.test: {test} of {len(targets)} rows leaves nothing on one side")
    kept, held = _stratified(targets, count, seed)
    return {"train": kept, "validation": torch.zeros(0, dtype=torch.int64), "test": held}


def _features(frame: Any, names: Sequence[str], train: Tensor, missing: str, path: str) -> Tensor:
    if not names or not len(train):
        raise DataError(f"data {path}: no {'column' if not names else 'row'} to learn from")
    made = [_feature(frame[name], train.numpy(), missing, f"data {path}: column {name}") for name in names]
    return torch.from_numpy(np.concatenate(made, 1).astype(np.float32))


def _feature(column: Any, train: np.ndarray[Any, Any], missing: str, where: str) -> np.ndarray[Any, Any]:
    """A column as one feature, or one for each word: (n, features)."""
    empty = column.isna().to_numpy()
    if empty.any() and missing == "refuse":
        raise DataError(
            f"{where}: {int(empty.sum())} empty cells; data.kwargs.missing: mean fills them, leave_out leaves the "
            "column out"
        )
    if column.dtype.kind in "biuf":
        return _normalised(column.to_numpy(np.float64, na_value=np.nan), train)
    words = column.astype(str).where(~empty, "").to_numpy()
    known = np.unique(words[train])
    if len(known) > MOST_WORDS:
        raise DataError(
            f"{where}: {len(known)} different words, more than {MOST_WORDS}: no category; leave it out by leave_out"
        )
    return words[:, None] == known[None]  # type: ignore[no-any-return]


def _normalised(values: np.ndarray[Any, Any], train: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Empty cells become the training rows' mean, which is 0."""
    known = values[train][~np.isnan(values[train])]
    mean, spread = (known.mean(), known.std()) if len(known) else (0.0, 0.0)
    return np.nan_to_num((values - mean) / (spread if spread > 0 else 1.0))[:, None]
