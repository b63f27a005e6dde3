"""Edits of a file: plain records that turn the user's model into the one that its tensors belong to; as bytes."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from deepcompression.errors import InputError, MalformedFile

TAG = 4
KEY = "deepcompression.edits"  # of the text in a .safetensors file's metadata that keeps them
MOST = 1 << 20  # bytes of their JSON
DEFLATED = b"\x01"  # before JSON that is compressed
MOST_LEVELS = 16
MOST_INTEGER = 1 << 53
MOST_NAME = 64
# Every kind that a writer may write, and the version of deep-compression that made the first.
SINCE = {
    "resize": "0.2.0",
    "select_inputs": "0.2.0",
    "bypass": "0.2.0",
    "quantize_values": "0.2.0",
    "fold": "0.2.0",
    "binary": "0.3.0",
    "dictionary": "0.3.0",
    "threshold": "0.3.0",
}
# Of a kind, what later versions added: (kind, key, value).
ADDED = {("quantize_values", "range", value): "0.3.0" for value in ("dynamic_row", "dynamic_token")}
_INSIDE = re.compile(r":(layer|hidden)\[[0-9]+\]")  # sites since 0.3.0
Edit = dict[str, Any]


def pack(edits: Sequence[Mapping[str, Any]] | None) -> dict[int, bytes]:
    """The extension record of ``edits`` by its tag; none where there are none.

    A record of a known kind gets its ``since``.

    Raises:
        InputError: one is no plain record, of a kind that is not written, or all take more bytes than a file keeps.
    """
    content = _json(edits)
    shorter = DEFLATED + _deflate(content)
    return {TAG: min(content, shorter, key=len)} if content else {}


def _json(edits: Sequence[Mapping[str, Any]] | None) -> bytes:
    """The canonical JSON of edits, stamped and checked; nothing where there are none."""
    if not edits:
        return b""
    if isinstance(edits, Mapping | str):
        raise InputError(f"edits are a list of records, not {type(edits).__name__}")
    content = _text([_plain(_stamped(place, edit)) for place, edit in enumerate(edits)])
    if len(content) > MOST:
        raise InputError(f"edits take {len(content):,} bytes; a .dcz file keeps at most {MOST:,}")
    try:
        unpack(content)
    except MalformedFile as error:
        raise InputError(str(error).removeprefix("header: ")) from None
    return content


def _deflate(content: bytes) -> bytes:
    made = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return made.compress(content) + made.flush()


def _inflate(data: bytes) -> bytes:
    found = zlib.decompressobj(-15)
    try:
        content = found.decompress(data, MOST + 1)
    except zlib.error:
        raise _malformed("the compressed JSON is damaged") from None
    if len(content) <= MOST and (not found.eof or found.unused_data):
        raise _malformed("the compressed JSON is damaged")
    return content


def as_text(edits: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The edits as metadata of another kind of file: their JSON by its key; none where there are none.

    Raises:
        InputError: as ``pack``.
    """
    content = _json(edits)
    return {KEY: content.decode()} if content else {}


def from_text(metadata: Mapping[str, str]) -> tuple[dict[str, str], list[Edit]]:
    """Metadata of another kind of file without the edits among it, and these.

    Raises:
        InputError: the text of the edits contradicts FORMAT.md.
    """
    texts = dict(metadata)
    text = texts.pop(KEY, None)
    if text is None:
        return texts, []
    try:
        return texts, unpack(text.encode(errors="replace"))
    except MalformedFile as error:
        raise InputError(f"metadata {KEY}: {str(error).removeprefix('header: ')}") from None


def _stamped(place: int, edit: Mapping[str, Any]) -> Edit:
    if not isinstance(edit, Mapping) or not isinstance(edit.get("kind"), str):
        raise InputError(f"edit {place}: expected a mapping with the key kind, got {str(edit)[:80]!r}")
    kind = edit["kind"]
    if kind in SINCE or "since" in edit:  # one of a later version, read from its file, is written as it was
        return {"since": _since(edit), **edit}
    raise InputError(f"edit {place}: kind {kind[:80]!r} cannot be written: known are {', '.join(SINCE)}")


def _since(edit: Mapping[str, Any]) -> str | None:
    """The first version that makes this edit."""
    later = [since for (kind, key, value), since in ADDED.items() if edit["kind"] == kind and edit.get(key) == value]
    sites = edit.get("sites")
    if isinstance(sites, list | tuple) and any(isinstance(one, str) and _INSIDE.search(one) for one in sites):
        later.append("0.3.0")
    return max(later) if later else SINCE.get(edit["kind"])


def _plain(value: object) -> object:
    """Mappings as dicts and sequences as lists, throughout."""
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise InputError(f"edits: keys are text, not {[key for key in value if not isinstance(key, str)][:3]}")
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _text(edits: object) -> bytes:
    """The canonical JSON of plain values."""
    try:
        text = json.dumps(edits, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except UnicodeEncodeError:
        raise InputError("edits: a text is not valid Unicode") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"edits: no plain records: {str(error)[:80]}") from None


def unpack(record: bytes | memoryview) -> list[Edit]:
    """The edits in a record, in order.

    Raises:
        MalformedFile: it contradicts FORMAT.md.
    """
    content = bytes(record)
    if content[:1] == DEFLATED:
        content = _inflate(content[1:])
    if len(content) > MOST:
        raise _malformed(f"more than the {MOST} bytes that are allowed")
    try:
        found: Any = json.loads(content.decode(), parse_float=_no_number, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise _malformed("not UTF-8") from None
    except RecursionError:
        raise _malformed(f"more than {MOST_LEVELS} levels") from None
    except ValueError as error:
        raise _malformed(f"no JSON: {str(error)[:80]}") from None
    if not isinstance(found, list) or not found:
        raise _malformed("no list of edits")
    _check_values(found, 1)
    for place, edit in enumerate(found):
        _check_edit(place, edit)
    if not _is_canonical(found, content):
        raise _malformed("the JSON is not canonical")
    return found


def _is_canonical(found: object, content: bytes) -> bool:
    try:
        return _text(found) == content
    except InputError:  # half of a surrogate pair, escaped
        return False


def _check_values(value: object, level: int) -> None:
    if isinstance(value, dict | list):
        if level > MOST_LEVELS:
            raise _malformed(f"more than {MOST_LEVELS} levels")
        for one in value.values() if isinstance(value, dict) else value:
            _check_values(one, level + 1)
    elif isinstance(value, int) and abs(value) >= MOST_INTEGER:
        raise _malformed("an integer of 2^53 or more")


def _check_edit(place: int, edit: object) -> None:
    if not isinstance(edit, dict):
        raise _malformed(f"edit {place} is no object")
    for key in ("kind", "since"):
        text = edit.get(key)
        sound = isinstance(text, str) and 1 <= len(text.encode(errors="replace")) <= MOST_NAME
        if not sound and (key == "kind" or key in edit):
            raise _malformed(f"edit {place}: {key} is no text of 1 to {MOST_NAME} bytes")


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:40]} is no integer")


def _malformed(what: str) -> MalformedFile:
    return MalformedFile(f"header: edits: {what}")
