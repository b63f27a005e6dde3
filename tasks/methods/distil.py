"""Distillation as a method of a training."""

from __future__ import annotations

from tasks.execution.settings import Distil as Settings

__all__ = ["Settings"]
