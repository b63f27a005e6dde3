from __future__ import annotations

import fuzz
import pytest


@pytest.mark.parametrize("files", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("tiny_chunks", [False, True])
def test_broken_files_with_right_checksums(tiny_chunks: bool, files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of broken files: each gives tensors or a FormatError, and takes no memory beyond what it declares."""
    monkeypatch.setenv("DEEPCOMPRESSION_THREADS", "1")
    monkeypatch.setattr(fuzz, "MOST_SECONDS", float("inf"))  # a busy machine is no failure
    if tiny_chunks:
        fuzz.small_chunks(monkeypatch.setattr, fuzz.CHUNK)
    outcomes = fuzz.run(int(tiny_chunks), range(files))
    assert outcomes["MalformedFile"] > files / 2 and outcomes["tensors"] > files / 100
