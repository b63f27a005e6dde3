"""The pages' templates, and how they write numbers."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from deepcompression.measure import significance
from tasks.console import few_named, size
from tasks.report import words

FOLDER = Path(__file__).resolve().parent
NUMBERS = (
    words.number,
    words.percent,
    words.bits,
    words.times,
    words.signed,
    words.sortable,
    words.decibels,
    words.cosine,
    words.milliseconds,
    words.rate,
    words.speed,
    words.counted,
)


@lru_cache
def template(name: str) -> Any:
    """A template of this folder: what it shows is escaped, and an unknown name in it is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for one in (size, few_named, significance.points, *NUMBERS):
        environment.filters[one.__name__] = one
    return environment.get_template(name)
