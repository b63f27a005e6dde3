"""The edits of a file: plain records, canonical, bounded, and nothing to a file that has none."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from forged import sealed, varint
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompression.codec import edits
from deepcompression.codec.file import decode, encode
from deepcompression.errors import InputError, MalformedFile

W = {"w": np.arange(4, dtype=np.float32)}
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(1 - (1 << 53), (1 << 53) - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def deflated(content: bytes) -> bytes:
    """A record with this JSON, compressed."""
    made = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    return b"\x01" + made.compress(content) + made.flush()


def with_edits(content: bytes) -> bytes:
    """A file without tensors that has this record of edits."""
    return sealed(b"\0" + varint(edits.TAG) + varint(len(content)) + content)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(list(edits.SINCE)), st.dictionaries(TEXT, PLAIN, max_size=3)), max_size=3))
def test_round_trip(drawn: list[tuple[str, dict[str, Any]]]) -> None:
    """Any plain records come back in their order with `since`, their keys in any order give the same bytes."""
    records = [{**rest, "kind": kind, "since": edits.SINCE[kind]} for kind, rest in drawn]
    packed = edits.pack(records)
    assert (edits.unpack(packed[edits.TAG]) if packed else []) == records
    turned = [{key: one[key] for key in reversed(one) if key != "since"} for one in records]
    made = encode(W, edits=turned)
    assert made == encode(W, edits=records)
    assert decode(made)["w"].bits.tobytes() == W["w"].tobytes()
    texts, back = edits.from_text({"k": "v", **edits.as_text(records)})
    assert (texts, back) == ({"k": "v"}, records)


def test_the_shorter_of_both_forms_is_written() -> None:
    """Long records of many layers are compressed; a short one is not made longer; both are read."""
    short = [{"kind": "k", "since": "1"}]
    long = [{"kind": "resize", "modules": {}, "tensors": {f"layer{i}.conv.weight": [64, 32, 3, 3] for i in range(40)}}]
    assert edits.pack(short)[edits.TAG][:1] == b"["
    packed = edits.pack(long)[edits.TAG]
    assert packed[:1] == edits.DEFLATED and len(packed) < 0.2 * len(edits.as_text(long)[edits.KEY])
    assert edits.unpack(packed)[0]["tensors"] == long[0]["tensors"]


def test_files_without_edits_have_the_bytes_that_they_had() -> None:
    """None and an empty list leave no trace."""
    assert encode(W) == encode(W, edits=None) == encode(W, edits=[])


def test_an_unknown_kind_stands_in_the_way_of_no_reader() -> None:
    """Who only decodes goes on, and who copies the file writes what a later version wrote."""
    later = [{"kind": "rotate", "since": "9.1", "angle": 3}]
    content = edits.pack(later)[edits.TAG]
    assert content == b'[{"angle":3,"kind":"rotate","since":"9.1"}]'
    assert edits.unpack(content) == later
    assert decode(with_edits(content)) == {}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "fold"}, "edits are a list of records, not dict"),
        (["fold"], "edit 0: expected a mapping with the key kind"),
        ([{"kind": "fold"}, {"tensor": "w"}], "edit 1: expected a mapping with the key kind"),
        ([{"kind": "rotate"}], "edit 0: kind 'rotate' cannot be written: known are resize, select_inputs"),
        ([{"kind": "fold", 1: 2}], "edits: keys are text"),
        ([{"kind": "fold", "tensor": 0.5}], "edits: no JSON: 0.5 is no integer"),
        ([{"kind": "fold", "tensor": float("nan")}], "edits: no plain records: Out of range"),
        ([{"kind": "fold", "tensor": 1 << 53}], "an integer of 2"),
        ([{"kind": "fold", "tensor": np.float32(1)}], "edits: no plain records"),
        ([{"kind": "fold", "tensor": "\ud800"}], "a text is not valid Unicode"),
        ([{"kind": "fold", "since": ""}], "since is no text of 1 to 64 bytes"),
        ([{"kind": "fold", "tensor": "w" * (1 << 20)}], "a .dcz file keeps at most 1,048,576"),
    ],
)
def test_what_cannot_be_kept_is_refused(wrong: Any, message: str) -> None:
    """Nothing is turned into something else on the way to a file."""
    with pytest.raises(InputError, match=message):
        encode(W, edits=wrong)


def test_the_text_of_edits_has_its_own_key() -> None:
    """Metadata cannot pose as edits, and a wrong text of edits is the user's error."""
    with pytest.raises(InputError, match=r"the key deepcompression\.edits is that of edits"):
        encode(W, metadata={edits.KEY: "[]"})
    with pytest.raises(InputError, match=r"metadata deepcompression\.edits: edits: no list of edits"):
        edits.from_text({edits.KEY: "[]"})


@pytest.mark.parametrize(
    ("lying", "message"),
    [
        (b"[]", "no list of edits"),
        (b"{}", "no list of edits"),
        (b"", "no JSON"),
        (b"[1]", "edit 0 is no object"),
        (b"[{}]", "edit 0: kind is no text"),
        (b'[{"kind":""}]', "edit 0: kind is no text"),
        (b'[{"kind":"%s"}]' % (b"x" * 65), "edit 0: kind is no text of 1 to 64 bytes"),
        (b'[{"kind":"a","since":1}]', "edit 0: since is no text"),
        (b'[ {"kind":"a"}]', "not canonical"),
        (b'[{"kind":"a","kind":"b"}]', "not canonical"),
        (b'[{"n":1,"kind":"a"}]', "not canonical"),
        (b'[{"kind":"\\u0061"}]', "not canonical"),
        (b'[{"kind":"a","n":-0}]', "not canonical"),
        (b'[{"kind":"\\ud800"}]', "not canonical"),
        (b'[{"kind":"\xff"}]', "not UTF-8"),
        (b'[{"kind":"a","n":1.0}]', "1.0 is no integer"),
        (b'[{"kind":"a","n":1e400}]', "1e400 is no integer"),
        (b'[{"kind":"a","n":-Infinity}]', "-Infinity is no integer"),
        (b'[{"kind":"a","n":9007199254740992}]', "an integer of 2"),
        (b'[{"kind":"a","n":%s}]' % (b"9" * 5000), "no JSON"),
        (b'[{"kind":"a","n":' + b"[" * 15 + b"]" * 15 + b"}]", "more than 16 levels"),
        (b"[" * 100_000, "more than 16 levels"),
        (b"[" + bytes(edits.MOST), "more than the 1048576 bytes that are allowed"),
        (deflated(b" " * (edits.MOST + 1)), "more than the 1048576 bytes that are allowed"),
        (deflated(b'[{"kind":"a"}]')[:-1], "the compressed JSON is damaged"),
        (deflated(b'[{"kind":"a"}]') + b"x", "the compressed JSON is damaged"),
        (b"\x01", "the compressed JSON is damaged"),
        (b"\x01" + b"\xff" * 9, "the compressed JSON is damaged"),
        (deflated(b"[]"), "no list of edits"),
    ],
    ids=lambda one: one[:24] if isinstance(one, bytes) else None,
)
def test_lies(lying: bytes, message: str) -> None:
    """Each rule of FORMAT.md that a record of edits can break has its own message."""
    with pytest.raises(MalformedFile, match=f"header: edits: .*{message}"):
        decode(with_edits(lying))
