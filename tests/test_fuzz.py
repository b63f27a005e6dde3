from __future__ import annotations

import fuzz
import pytest


@pytest.mark.parametrize("tiny_chunks", [False, True])
def test_broken_files_with_right_checksums(tiny_chunks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten thousand broken files: each gives tensors or a FormatError, and takes no memory beyond what it declares."""
    monkeypatch.setenv("DEEPCOMPRESSION_THREADS", "1")
    monkeypatch.setattr(fuzz, "MOST_SECONDS", float("inf"))  # a busy machine is no failure
    if tiny_chunks:
        fuzz.small_chunks(monkeypatch.setattr, fuzz.CHUNK)
    outcomes = fuzz.run(int(tiny_chunks), range(10_000))
    assert outcomes["MalformedFile"] > 5_000 and outcomes["tensors"] > 100
