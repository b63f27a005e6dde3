"""Rows of CSV and Parquet files as samples."""

from __future__ import annotations

import sys

import pytest
import torch

from deepcompression.data import tabular
from deepcompression.errors import DataError

pandas = pytest.importorskip("pandas")
ROWS = "a,b,word,kind,part\n1,2.5,x,yes,train\n3,0.5,y,no,train\n5,1.5,x,yes,train\n9,3,z,no,test\n"


@pytest.fixture
def path(tmp_path):
    found = tmp_path / "t.csv"
    found.write_text(ROWS)
    return found


def test_numbers_are_normalised_and_words_are_features(path):
    """By the training rows: mean 0, deviation 1; a word that these do not have is none of theirs."""
    splits = tabular(str(path), "kind", split="part")
    x, y = splits.train
    assert splits.classes == ("no", "yes") and y.tolist() == [1, 0, 1] and splits.validation is None
    assert torch.allclose(x[:, :2].mean(0), torch.zeros(2), atol=1e-6)
    assert torch.allclose(x[:, :2].std(0, correction=0), torch.ones(2))
    assert x[:, 2:].tolist() == [[1, 0], [0, 1], [1, 0]] and splits.test[0][0, 2:].tolist() == [0, 0]
    assert x.dtype == torch.float32 and y.dtype == torch.int64


def test_targets_are_classes_or_numbers(path):
    """Whole numbers are classes unless one says otherwise; fractions are numbers."""
    assert tabular(str(path), "a", leave_out=["part"], test=1).classes == ("1", "3", "5", "9")
    assert tabular(str(path), "a", kind="numbers", split="part").train[1].tolist() == [1, 3, 5]
    splits = tabular(str(path), "b", columns=["a"], split="part")
    assert splits.train[1].dtype == torch.float32 and splits.train[0].shape == (3, 1)


def test_parquet_is_the_same_table(path, tmp_path):
    """With pyarrow."""
    pytest.importorskip("pyarrow")
    pandas.read_csv(path).to_parquet(tmp_path / "t.parquet")
    one, other = (tabular(str(one), "kind", split="part") for one in (path, tmp_path / "t.parquet"))
    assert torch.equal(one.train[0], other.train[0]) and one.classes == other.classes


def test_empty_cells_are_refused_or_filled(path):
    """With the training rows' mean, which is 0; of words with one of their own."""
    path.write_text(ROWS + ",,,yes,train\n")
    with pytest.raises(DataError, match=r"column a: 1 empty cells; data\.kwargs\.missing: mean fills them"):
        tabular(str(path), "kind", split="part")
    x = tabular(str(path), "kind", split="part", missing="mean").train[0]
    assert x[3].tolist() == [0, 0, 1, 0, 0] and not x.isnan().any()
    path.write_text(ROWS + "1,1,x,,train\n")
    with pytest.raises(DataError, match="column kind: 1 empty cells; what is learnt has none"):
        tabular(str(path), "kind")


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"target": "absent"}, "no column 'absent'; it has a, b, word"),
        ({"target": "kind", "split": "word"}, "expected train, validation or test, got 'x'"),
        ({"target": "kind", "kind": "numbers"}, "expected numbers, got 'yes'"),
        ({"target": "kind", "columns": ["kind"]}, "no column to learn from"),
        ({"target": "kind", "test": 4}, "leaves nothing on one side"),
        ({"target": "kind", "missing": "zero"}, "missing of refuse or mean"),
    ],
)
def test_what_a_table_does_not_have_is_one_line(path, kwargs, words):
    """Columns, words of a split, kinds of targets."""
    with pytest.raises(DataError, match=words):
        tabular(str(path), **kwargs)


def test_many_words_are_no_category(path):
    """A column of names would be a feature a row."""
    path.write_text("name,y\n" + "".join(f"n{number},{number % 2}\n" for number in range(300)))
    with pytest.raises(DataError, match="different words, more than 100: no category; leave it out"):
        tabular(str(path), "y")


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    """No file, no table, no pandas."""
    with pytest.raises(DataError, match=r"x\.csv: cannot be read: FileNotFoundError"):
        tabular(str(tmp_path / "x.csv"), "y")
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match=r"x\.parquet: "):
        tabular(str(tmp_path / "x.parquet"), "y")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DataError, match=r"pandas: pip install 'deep-compression\[data\]'"):
        tabular(str(tmp_path / "x.csv"), "y")
