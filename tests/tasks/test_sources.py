from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tasks.sources import factory_digest, library_digest


def test_digest_follows_imports() -> None:
    """A stage's digest covers what it imports, and stages that share nothing new share no digest."""
    assert library_digest("prune") != library_digest("share")
    assert library_digest("prune") == library_digest("prune", "training")


def test_users_package_is_identified_by_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A change anywhere in the package of a user's factory changes its digest; an installed one goes by version."""
    package = tmp_path / "dc_source_test"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("def net(): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = factory_digest("dc_source_test.nets:net")
    (package / "__init__.py").write_text("x = 1\n")
    assert factory_digest("dc_source_test.nets:net") != before
    sys.modules.pop("dc_source_test", None)
    assert factory_digest("torch.optim:SGD").startswith("torch ")
    assert factory_digest("os.path:join")
