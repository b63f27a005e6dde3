"""Metadata of a file: texts by key, as `.safetensors` has them, and the extension record that keeps them in a .dcz."""

from __future__ import annotations

from collections.abc import Mapping

from deepcompression.codec.bitstream import Cursor, varint
from deepcompression.codec.edits import KEY
from deepcompression.errors import InputError

TAG = 2
MOST = 1 << 20  # bytes of the record


def size(metadata: Mapping[str, str]) -> int:
    """Bytes of the record of `metadata`; raises as `pack`, but not for its size."""
    return len(_record(metadata))


def pack(metadata: Mapping[str, str] | None) -> dict[int, bytes]:
    """The extension record of `metadata` by its tag; none where there is nothing to keep.

    Raises:
        InputError: a key or a value is no text, or all together are larger than the format allows.
    """
    record = _record(metadata or {})
    if KEY in (metadata or {}):
        raise InputError(f"metadata: the key {KEY} is that of edits; give them as edits")
    if len(record) > MOST:
        raise InputError(f"metadata takes {len(record):,} bytes; a .dcz file keeps at most {MOST:,}")
    return {TAG: record} if record else {}


def _record(metadata: Mapping[str, str]) -> bytes:
    if not isinstance(metadata, Mapping):
        raise InputError(f"metadata is a mapping of text to text, not {type(metadata).__name__}")
    texts = sorted((_utf8(key, "a key"), _utf8(text, repr(key)[:80])) for key, text in metadata.items())
    return b"".join(varint(len(one)) + one for pair in texts for one in pair)


def _utf8(text: object, what: str) -> bytes:
    if not isinstance(text, str):
        raise InputError(f"metadata: {what} is text, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InputError(f"metadata: {what} is not valid Unicode") from None


def unpack(record: bytes | memoryview) -> dict[str, str]:
    """The metadata in a record, keys in the order of their bytes.

    Raises:
        MalformedFile: it contradicts FORMAT.md.
    """
    cursor = Cursor(record, "header: metadata")
    if len(record) > MOST:
        raise cursor.fail(f"{len(record)} bytes, at most {MOST} are allowed")
    found: dict[str, str] = {}
    last = None
    while cursor.left:
        key, text = _taken(cursor, "a key"), _taken(cursor, "a text")
        if last is not None and key <= last:
            raise cursor.fail(f"the key {key[:80]!r} follows {last[:80]!r}")
        try:
            found[key.decode()] = text.decode()
        except UnicodeDecodeError:
            raise cursor.fail(f"{key[:80]!r} or its text is not UTF-8") from None
        last = key
    return found


def _taken(cursor: Cursor, what: str) -> bytes:
    return bytes(cursor.take(cursor.varint(f"the length of {what}"), what))
