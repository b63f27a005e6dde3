"""Models that are served: gates, champions, packages."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """``champion_file`` is what deployments call; MLflow is imported when they do."""
    if name == "champion_file":
        from tasks.registry.models import champion_file

        return champion_file
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
