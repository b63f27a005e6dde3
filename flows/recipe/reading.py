"""YAML from files and servers, within bounds: what is too large, too deep or says a key twice is refused unbuilt."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from deepcompression.errors import RecipeError, RunError
from tasks.secrets import masked

# Far above any recipe. An alias counts as all that it stands for: nine lines of nine aliases each are a billion nodes.
MOST_BYTES = 256 * 1024
MOST_NODES = 20_000
MOST_DEPTH = 40
MOST_CHARACTERS = 10_000  # of one word
MOST_REFERENCES = 50  # ${...} in one word: OmegaConf's parser takes seconds for thousands
MOST_INTEGER = 2**64
NUMBER = re.compile(r"[-+.]?\d[-+.:\w]{100,}")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class _Open:
    """A mapping or list whose end was not read yet."""

    anchor: str | None
    before: int
    is_mapping: bool
    height: int = 1
    keys: set[str] = field(default_factory=set)
    at_key: bool = True


def mapping(text: str, where: str) -> dict[str, Any]:
    """The YAML mapping that ``text`` is.

    Raises:
        RecipeError: as ``check``; or it is no YAML, or no mapping.
    """
    try:
        check(text, where)
        value = yaml.load(text, Loader=LOADER)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, RecipeError):
            raise
        raise RecipeError(f"{where}: no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise RecipeError(f"{where}: no mapping; expected keys such as name, model, data, stages")
    return value


def check(text: str, where: str) -> None:
    """Refuse YAML that is large, deep, large once its aliases are followed, or that says a key twice.

    Raises:
        RecipeError: with the line.
        YAMLError: it is no YAML.
    """
    if len(text) > MOST_BYTES:
        raise RecipeError(f"{where}: {len(text):,} characters; a recipe has {MOST_BYTES:,} at most")
    opened: list[_Open] = []
    known: dict[str, tuple[int, int]] = {}  # anchor -> nodes below it, itself included; levels
    nodes = 0
    for event in yaml.parse(text, Loader=LOADER):
        place = f"{where}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.CollectionEndEvent):
            done = opened.pop()
            count, height = nodes - done.before, done.height
            anchor = done.anchor
        elif isinstance(event, yaml.NodeEvent):
            _check_key(event, opened, place)
            if isinstance(event, yaml.CollectionStartEvent):
                nodes += 1
                opened.append(_Open(event.anchor, nodes - 1, isinstance(event, yaml.MappingStartEvent)))
                _check_size(nodes, len(opened), place)
                continue
            count, height = _size(event, known, place)
            nodes += count
            anchor = event.anchor if isinstance(event, yaml.ScalarEvent) else None
        else:
            continue
        _check_size(nodes, len(opened) + height, place)
        if anchor:
            known[anchor] = count, height
        if opened:
            opened[-1].height = max(opened[-1].height, height + 1)


def within(value: Any, where: str) -> None:
    """Refuse a value that was no YAML text and is as large, or as deep, as ``check`` allows no text to be.

    Raises:
        RecipeError: it is.
    """
    nodes, waiting = 0, [(value, 1)]
    while waiting:
        one, depth = waiting.pop()
        nodes += 1
        _check_size(nodes, depth, where)
        if isinstance(one, Mapping):
            waiting += [(part, depth + 1) for pair in one.items() for part in pair]
        elif isinstance(one, list | tuple):
            waiting += [(part, depth + 1) for part in one]
        elif isinstance(one, str):
            _check_word(one, where)
        elif isinstance(one, int) and abs(one) > MOST_INTEGER:
            raise RecipeError(f"{where}: a number of more than 64 bits")


def fetched(url: str, seconds: float = 20) -> str:
    """The text behind an http(s) URL.

    Raises:
        RecipeError: it does not answer, not in time, or with more than a recipe can be.
    """
    import http.client

    from tasks.machine.deadline import within
    from tasks.machine.environment import opener

    content, until, told = b"", time.monotonic() + seconds, masked(url)
    try:
        with within(seconds, opener(url).open, url, timeout=seconds) as answer:
            while part := answer.read1(MOST_BYTES):
                content += part
                if len(content) > MOST_BYTES:
                    raise RecipeError(f"recipe {told}: more than {MOST_BYTES:,} bytes")
                if time.monotonic() > until:
                    raise RecipeError(f"recipe {told}: cannot be fetched: not whole after {seconds:.0f} s")
        return content.decode()
    except RecipeError:
        raise
    except (OSError, ValueError, RunError, http.client.HTTPException) as error:
        raise RecipeError(masked(f"recipe {url}: cannot be fetched: {error}")) from None


def text_of(path: Path) -> str:
    """The text of a file, of which no more is read than a recipe can be.

    Raises:
        RecipeError: it is longer.
        OSError, UnicodeDecodeError: it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise RecipeError(f"{path}: more than {MOST_BYTES:,} bytes; expected a recipe")
    return content.decode("utf-8")


def _check_key(event: yaml.NodeEvent, opened: list[_Open], place: str) -> None:
    inner = opened[-1] if opened else None
    if inner is None or not inner.is_mapping:
        return
    inner.at_key, is_key = not inner.at_key, inner.at_key
    if is_key and isinstance(event, yaml.ScalarEvent):
        if event.value in inner.keys:
            raise RecipeError(f"{place}: {event.value[:80]}: the key stands twice in one mapping; keep one")
        inner.keys.add(event.value)


def _size(event: yaml.NodeEvent, known: Mapping[str, tuple[int, int]], place: str) -> tuple[int, int]:
    """Nodes and levels of a word, or of what an alias stands for."""
    if isinstance(event, yaml.AliasEvent):
        if event.anchor not in known:
            raise RecipeError(f"{place}: *{event.anchor} stands for something that is not known yet, or for itself")
        return known[event.anchor]
    _check_word(event.value, place)
    if event.implicit[0] and NUMBER.fullmatch(event.value):  # tens of thousands of digits take seconds to convert
        raise RecipeError(f"{place}: a number of {len(event.value):,} characters")
    return 1, 1


def _check_word(word: str, place: str) -> None:
    if len(word) > MOST_CHARACTERS:
        raise RecipeError(f"{place}: a word of {len(word):,} characters; expected {MOST_CHARACTERS:,} at most")
    if word.count("${") > MOST_REFERENCES:
        raise RecipeError(f"{place}: {word.count('${'):,} references in one word; expected {MOST_REFERENCES} at most")


def _check_size(nodes: int, depth: int, place: str) -> None:
    if depth > MOST_DEPTH:
        raise RecipeError(f"{place}: more than {MOST_DEPTH} levels of brackets or indentation")
    if nodes > MOST_NODES:
        raise RecipeError(f"{place}: more than {MOST_NODES:,} keys and values, aliases followed")
