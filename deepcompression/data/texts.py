"""Texts of JSON lines, cut into tokens by a tokenizer's file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepcompression.data.splits import Splits
from deepcompression.errors import DataError, one_line

IGNORE = -100  # a label that does not count, in steps and metrics
FILES = {"train": ("train.jsonl",), "validation": ("validation.jsonl", "valid.jsonl", "val.jsonl", "dev.jsonl"),
         "test": ("test.jsonl",)}  # fmt: skip


def text(
    path: str,
    tokenizer: str,
    field: str | Sequence[str] = "text",
    label: str | None = None,
    tags: str | None = None,
    length: int = 128,
    test: int | float = 0.1,
    seed: int = 0,
) -> Splits:
    """Batches of ``input_ids``, ``attention_mask`` and ``labels``, int64.

    With ``label`` each text has a class, labels (n,); with ``tags`` each word, labels (n, length), of which a word's
    first token has it and the others -100; with neither labels are the tokens themselves, -100 where there is none.

    Args:
        path: a folder with train.jsonl, test.jsonl and, where there is one, validation.jsonl; or one .jsonl file, of
            which a part is the test split.
        tokenizer: a tokenizer.json of Hugging Face's tokenizers, or a folder that has one.
        field: the field with the text, or two for pairs; with ``tags`` a list of words.
        label: the field with the class, a word or a number.
        tags: the field with the words' classes, as many as there are words.
        length: tokens of a sample; longer texts are cut, shorter ones filled up.
        test: samples of the test split, where the file is one: a count or a fraction.
        seed: of that choice.

    Raises:
        DataError: no such file or field, a line that is no JSON, a library that is missing.
    """
    if label and tags:
        raise DataError("data.kwargs: label and tags are both given: a class for each text, or for each word")
    path = str(Path(path).resolve())
    cutter = _tokenizer(Path(tokenizer).resolve(), length)
    lines = _parts(Path(path), test, seed)
    fields = [field] if isinstance(field, str) else list(field)
    wanted = [*fields, *([label] if label else []), *([tags] if tags else [])]
    for row in (row for rows in lines.values() for row in rows):
        _whole(row, wanted, path)
    named = label or tags
    classes = _classes(lines, named) if named else None
    made = {
        which: _columns(rows, cutter, fields, label, tags, classes) if rows else None for which, rows in lines.items()
    }
    return Splits(made["train"], made["validation"], made["test"], classes)


Row = Mapping[str, Any]
Columns = dict[str, Tensor]


def _tokenizer(path: Path, length: int) -> Any:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise DataError("data: texts are cut by tokenizers: pip install 'deep-compression[data]'") from None
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"data.kwargs.tokenizer {path}: no such file; expected a tokenizer.json")
    try:
        made = Tokenizer.from_file(str(file))
    except Exception as error:  # of a compiled library
        raise DataError(f"data.kwargs.tokenizer {path}: no tokenizer.json: {one_line(error)[:120]}") from None
    if length < 2:
        raise DataError(f"data.kwargs.length: expected 2 tokens or more, got {length}")
    padding = made.padding or {}
    made.enable_truncation(length)
    made.enable_padding(length=length, pad_id=padding.get("pad_id", 0), pad_token=padding.get("pad_token", "[PAD]"))
    return made


def _parts(path: Path, test: int | float, seed: int) -> dict[str, list[Row]]:
    if path.is_dir():
        found = {
            which: next((path / one for one in names if (path / one).is_file()), None) for which, names in FILES.items()
        }
        if not found["train"]:
            raise DataError(f"data.kwargs.path {path}: has no train.jsonl")
        return {which: _lines(file) if file else [] for which, file in found.items()}
    rows = _lines(path)
    count = round(test * len(rows)) if isinstance(test, float) else test
    if not 0 < count < len(rows):
        raise DataError(f"data.kwargs.test: {test} of {len(rows)} samples leaves nothing on one side")
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    kept, held = order[count:].sort().values.tolist(), order[:count].sort().values.tolist()
    return {"train": [rows[one] for one in kept], "validation": [], "test": [rows[one] for one in held]}


def _lines(path: Path) -> list[Row]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data.kwargs.path {path}: cannot be read: {one_line(error)}; expected JSON lines") from None
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def _row(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict):
        raise DataError(f"data {where}: expected a JSON object a line, got {line[:60]!r}")
    return row


def _whole(row: Row, wanted: Sequence[str], path: str) -> None:
    lacking = next((name for name in wanted if row.get(name) is None), None)
    if lacking is not None:
        raise DataError(f"data {path}: a line has no {lacking!r}; it has {', '.join(row)[:160]}")


def _classes(lines: Mapping[str, Sequence[Row]], name: str) -> tuple[str, ...]:
    """All names, of all splits; numbers in their order."""
    values = [row[name] for rows in lines.values() for row in rows]
    found = {str(one) for value in values for one in (value if isinstance(value, list) else [value])}
    return tuple(sorted(found, key=lambda one: (not one.isdecimal(), int(one) if one.isdecimal() else 0, one)))


def _columns(
    rows: Sequence[Row],
    cutter: Any,
    fields: Sequence[str],
    label: str | None,
    tags: str | None,
    classes: Sequence[str] | None,
) -> Columns:
    given = [row[fields[0]] if len(fields) == 1 else tuple(row[name] for name in fields) for row in rows]
    try:
        cut = cutter.encode_batch(given, is_pretokenized=tags is not None)
    except TypeError as error:
        kind = "a list of words" if tags else "a text"
        raise DataError(f"data.kwargs.field: expected {kind} in {', '.join(fields)} ({one_line(error)[:80]})") from None
    ids, mask = torch.tensor([one.ids for one in cut]), torch.tensor([one.attention_mask for one in cut])
    number = {name: place for place, name in enumerate(classes or ())}
    if label:
        labels = torch.tensor([number[str(row[label])] for row in rows])
    elif tags:
        labels = torch.tensor([_of_words(row[tags], one.word_ids, number) for row, one in zip(rows, cut, strict=True)])
    else:
        labels = ids.where(mask.bool(), IGNORE)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _of_words(tags: Any, words: Sequence[int | None], number: Mapping[str, int]) -> list[int]:
    """Each token's class: the word's, of its first token; -100 of all others."""
    if not isinstance(tags, list) or len(tags) <= max((one for one in words if one is not None), default=-1):
        raise DataError(f"data.kwargs.tags: expected a class for each word, got {str(tags)[:60]}")
    last, found = None, []
    for word in words:
        found.append(IGNORE if word is None or word == last else number[str(tags[word])])
        last = word
    return found
