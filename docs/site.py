"""Links of pages that lead out of the docs, to files of the repository, for the site: their names alone."""

from __future__ import annotations

import re
from typing import Any

SPECIFICATION = "../deepcompression/codec/FORMAT.md"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """A link to the specification leads to its page; any other to a file outside becomes the file's path."""
    markdown = markdown.replace(f"]({SPECIFICATION}", "](format.md").replace("](../README.md", "](index.md")
    return re.sub(r"\[([^\]]*)\]\(\.\./([^)#]+)[^)]*\)", lambda found: _named(found[1], found[2]), markdown)


def _named(text: str, path: str) -> str:
    return f"{text}" if path.rstrip("/") in text else f"{text} (`{path}`)"
