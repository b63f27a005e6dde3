"""Metadata of a file: kept as it came, bounded, and nothing to a file that has none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from forged import one, record, sealed, varint
from hypothesis import given, settings
from hypothesis import strategies as st

import deepcompression
from deepcompression.codec import metadata
from deepcompression.codec.dtypes import RawTensor
from deepcompression.codec.file import decode, encode, inspect
from deepcompression.errors import InputError, MalformedFile
from deepcompression.formats import safetensors

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
W = {"w": np.arange(4, dtype=np.float32)}


def texts(*pairs: tuple[bytes, bytes]) -> bytes:
    """A metadata record of these pairs, right or wrong."""
    return b"".join(varint(len(text)) + text for pair in pairs for text in pair)


def with_record(content: bytes, tag: int = metadata.TAG) -> bytes:
    """A file without tensors that has this extension record."""
    return sealed(b"\0" + varint(tag) + varint(len(content)) + content)


@settings(deadline=None, max_examples=30)
@given(st.dictionaries(TEXT, TEXT, max_size=6), st.randoms(use_true_random=False))
def test_round_trip(kept: dict[str, str], random: Any) -> None:
    """Any texts come back, the bytes do not depend on their order, and the tensors are none the wiser."""
    shuffled = dict(random.sample(list(kept.items()), len(kept)))
    made = encode(W, metadata=kept)
    assert encode(W, metadata=shuffled) == made
    assert metadata.unpack(metadata.pack(kept).get(metadata.TAG, b"")) == kept
    assert decode(made)["w"].bits.tobytes() == W["w"].tobytes()
    assert len(made) - len(encode(W)) == (metadata.size(kept) + len(varint(metadata.size(kept))) + 1 if kept else 0)


def test_files_without_metadata_have_the_bytes_that_they_had() -> None:
    """None and an empty mapping leave no trace."""
    assert encode(W) == encode(W, metadata=None) == encode(W, metadata={})
    assert int.from_bytes(encode(W)[6:10], "little") == len(b"\1" + record(b"w", "float32", (4,), b""))


@pytest.mark.parametrize("kept", [{"format": "pt"}, {"b": "1", "a": "größe 😀\n\0", "": ""}])
def test_safetensors_and_back(tmp_path: Path, kept: dict[str, str]) -> None:
    """What safetensors itself wrote as metadata it reads again after a way through .dcz; File and inspect show it."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    save_file(W, tmp_path / "a.safetensors", metadata=kept)
    source = safetensors.TensorFile(tmp_path / "a.safetensors")
    assert source.metadata == kept
    deepcompression.save(source, tmp_path / "a.dcz", metadata=source.metadata)
    assert inspect(tmp_path / "a.dcz")["metadata"] == kept
    with deepcompression.File(tmp_path / "a.dcz") as file:
        assert file.metadata == kept
        safetensors.write({"w": file.raw("w")}, tmp_path / "b.safetensors", file.metadata)
    with safe_open(tmp_path / "b.safetensors", "np") as back:
        assert back.metadata() == kept
        assert np.array_equal(back.get_tensor("w"), W["w"])


def test_size_is_bounded() -> None:
    """A record of just the format's bound is kept and read; a byte more is an error that says both sizes."""
    most = {"k": "x" * (metadata.MOST - 2 - 3)}
    assert metadata.size(most) == metadata.MOST
    assert metadata.unpack(metadata.pack(most)[metadata.TAG]) == most
    with pytest.raises(InputError, match=r"1,048,577 bytes; a \.dcz file keeps at most 1,048,576"):
        encode({}, metadata={"k": most["k"] + "x"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epoch": 3}, "'epoch' is text, not int"),
        ({3: "x"}, "a key is text, not int"),
        ({"a": "\ud800"}, "'a' is not valid Unicode"),
        ({"\udfff": "a"}, "a key is not valid Unicode"),
        ({"a": None}, "'a' is text, not NoneType"),
        ([("a", "b")], "mapping of text to text, not list"),
    ],
)
def test_texts_only(wrong: Mapping[str, str], message: str) -> None:
    """What is no text is refused before anything is encoded."""
    with pytest.raises(InputError, match=message):
        encode({}, metadata=wrong)


@pytest.mark.parametrize(
    ("lying", "message"),
    [
        (texts((b"b", b""), (b"a", b"")), "the key b'a' follows b'b'"),
        (texts((b"a", b"1"), (b"a", b"1")), "the key b'a' follows b'a'"),
        (texts((b"ab", b""), (b"a", b"")), "the key b'a' follows b'ab'"),
        (texts((b"\xff", b"")), "not UTF-8"),
        (texts((b"a", b"\xed\xa0\x80")), "not UTF-8"),
        (texts((b"a", b""))[:-1], "the length of a text needs 1 bytes"),
        (b"\x05ab", "a key needs 5 bytes, 2 are left"),
        (b"\x81\x00a\x00", "shortest form"),
        (texts((b"a", bytes(metadata.MOST))), "at most 1048576 are allowed"),
    ],
)
def test_lies(lying: bytes, message: str) -> None:
    """Each rule of FORMAT.md that a metadata record can break has its own message."""
    with pytest.raises(MalformedFile, match=message):
        decode(with_record(lying))


def test_readers_skip_what_they_need_not_know() -> None:
    """The record after it, tag 6, is passed over; a record of no texts is no metadata; tensors are decoded all the
    same."""
    assert decode(with_record(b"any", tag=6)) == decode(with_record(b"")) == {}
    file = one(b"\0\0" + bytes(32), behind=b"\x02\x04\x01k\x01v\x06\x01?")
    assert list(decode(file)) == ["w"]


def header(path: Path, text: str) -> Path:
    """A .safetensors file without tensors and with this header."""
    path.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"__metadata__": {"a": 1}}', "__metadata__ is no mapping of text to text"),
        ('{"__metadata__": ["a"]}', "__metadata__ is no mapping of text to text"),
        ('{"__metadata__": null}', "__metadata__ is no mapping of text to text"),
        ('{"__metadata__": {"a": "1", "a": "2"}}', "the key 'a' stands there twice"),
        ('{"__metadata__": {}, "__metadata__": {}}', "the key '__metadata__' stands there twice"),
    ],
)
def test_hostile_safetensors(tmp_path: Path, text: str, message: str) -> None:
    """Metadata that safetensors does not allow is the user's error, in a line that names the file."""
    with pytest.raises(InputError, match=f"a.safetensors: not a valid .safetensors file: .*{message}"):
        safetensors.TensorFile(header(tmp_path / "a.safetensors", text))


def test_safetensors_headers_stay_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header larger than safetensors reads is not written."""
    monkeypatch.setattr(safetensors, "_MOST_HEADER", 1000)
    raws = {"n" * 950: RawTensor(np.zeros(1, np.uint8), "uint8")}
    with pytest.raises(InputError, match=r"the header takes 1,008 bytes; \.safetensors has at most 1,000"):
        safetensors.write(raws, tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_metadata_is_what_json_makes_of_it(tmp_path: Path) -> None:
    """Escaped and plain characters in a header are the same text."""
    kept = safetensors.TensorFile(header(tmp_path / "a", r'{"__metadata__": {"gr\u00f6\ud83d\ude00": "\n"}}')).metadata
    assert kept == {"grö😀": "\n"} and json.dumps(kept)
