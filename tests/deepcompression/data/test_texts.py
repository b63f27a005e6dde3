"""Texts of JSON lines as tokens."""

from __future__ import annotations

import json
import sys

import pytest

from deepcompression.data import text
from deepcompression.errors import DataError

VOCABULARY = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4, "##d": 5}
TOKENIZER = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": VOCABULARY,
    },
}  # fmt: skip
ROWS = [{"text": "a b", "label": "good"}, {"text": "b ad c a", "label": "bad"}, {"text": "c", "label": "good"}]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return write(tmp_path / "t.jsonl", ROWS)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def told(path, **kwargs):
    with pytest.raises(DataError) as caught:
        text(str(path), str(path.parent / "tokenizer.json"), **{"test": 1, **kwargs})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_tokenizer_that_is_missing_is_one_line(path, monkeypatch):
    """The package, and the file."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "pip install 'deep-compression[data]'" in told(path)


def test_labels_are_classes_of_texts(path):
    """Texts are cut and filled up to one length."""
    pytest.importorskip("tokenizers")
    splits = text(str(path), str(path.parent), label="label", length=4, test=1)
    assert splits.classes == ("bad", "good") and splits.train["input_ids"].shape == (2, 4)
    whole = text(str(path), str(path.parent), label="label", length=4, test=1, seed=1)
    rows = {tuple(ids): label for one in (whole.train, whole.test)
            for ids, label in zip(one["input_ids"].tolist(), one["labels"].tolist(), strict=True)}  # fmt: skip
    assert rows == {(2, 3, 0, 0): 1, (3, 2, 5, 4): 0, (4, 0, 0, 0): 1}


def test_without_labels_tokens_are_to_be_told(path):
    """What fills up does not count."""
    pytest.importorskip("tokenizers")
    folder = path.parent / "parts"
    folder.mkdir()
    write(folder / "train.jsonl", ROWS[:1])
    write(folder / "valid.jsonl", ROWS[1:])
    splits = text(str(folder), str(path.parent), length=3)
    assert splits.train["labels"].tolist() == [[2, 3, -100]] and splits.test is None
    assert splits.validation["labels"].tolist() == [[3, 2, 5], [4, -100, -100]]


def test_tags_are_classes_of_words(path):
    """A word's first token has its class, the others none."""
    pytest.importorskip("tokenizers")
    rows = [{"text": ["ad", "b"], "tags": ["X", "O"]}, {"text": ["c"], "tags": ["O"]}]
    splits = text(str(write(path, rows)), str(path.parent), tags="tags", length=4, test=1, seed=0)
    found = splits.train["labels"].tolist() + splits.test["labels"].tolist()
    assert sorted(found) == [[0, -100, -100, -100], [1, -100, 0, -100]] and splits.classes == ("O", "X")
    assert "expected a class for each word" in told(
        write(path, [{"text": ["ad", "b"], "tags": ["X"]}] * 2), tags="tags"
    )
    assert "expected a list of words in text" in told(write(path, [{"text": 3, "tags": []}] * 2), tags="tags")


def test_lines_that_say_something_else_are_named(path):
    """No JSON, no such field, no file, too few."""
    pytest.importorskip("tokenizers")
    assert "a line has no 'body'; it has text, label" in told(path, field="body")
    path.write_text('{"text": "a"}\nno\n')
    assert "line 2: expected a JSON object a line, got 'no'" in told(path)
    path.write_text('{"text": "a"}\n')
    assert "leaves nothing on one side" in told(path)
    assert "cannot be read" in told(path.parent / "absent.jsonl")
    assert "label and tags are both given" in told(path, label="x", tags="y")
    with pytest.raises(DataError, match=r"expected a tokenizer\.json"):
        text(str(path), str(path.parent / "absent"))
    (path.parent / "tokenizer.json").write_text("{}")
    assert "no tokenizer.json" in told(path)
