from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcompression.codec import bitstream
from deepcompression.errors import MalformedFile


def digits(value: int, width: int) -> str:
    """The lowest `width` bits, lowest first."""
    return f"{value:0{width}b}"[::-1]


def as_bytes(text: str) -> bytes:
    """The oracle: binary digits, the first of each eight the lowest bit of a byte, padded with zeros."""
    text += "0" * (-len(text) % 8)
    return bytes(int(text[i : i + 8][::-1], 2) for i in range(0, len(text), 8))


@given(st.integers(1, 16), st.lists(st.integers(0, 2**16 - 1), max_size=70))
def test_pack_writes_binary_digits(width: int, values: list[int]) -> None:
    """Fixed-width fields lie least significant bit first, as FORMAT.md says, and come back."""
    values = [value % 2**width for value in values]
    packed = bitstream.pack(np.array(values, np.uint16), width)
    assert packed == as_bytes("".join(digits(value, width) for value in values))
    assert len(packed) == bitstream.packed_size(len(values), width)
    assert bitstream.unpack(packed, len(values), width).tolist() == values


@pytest.mark.parametrize("width", [1, 5, 8, 11, 16])
def test_pack_across_chunks(width: int) -> None:
    """Streams longer than the chunk that is worked on at once lose nothing at the seams."""
    values = np.random.default_rng(0).integers(0, 2**width, 3 * 65_536 + 5).astype(np.uint16)
    assert np.array_equal(bitstream.unpack(bitstream.pack(values, width), len(values), width), values)


@given(st.binary(min_size=1, max_size=4), st.integers(0, 32))
def test_padding_is_looked_at(buffer: bytes, used: int) -> None:
    """Padding is zero exactly where all digits behind the used ones are."""
    used = max(8 * len(buffer) - 7, min(used, 8 * len(buffer)))
    text = "".join(digits(byte, 8) for byte in buffer)
    assert bitstream.padding_is_zero(buffer, used) == ("1" not in text[used:])
    assert bitstream.padding_is_zero(b"", 0)


@given(st.lists(st.tuples(st.integers(1, 32), st.integers(0, 2**32 - 1)), min_size=1, max_size=80))
def test_concatenate_writes_binary_digits(fields: list[tuple[int, int]]) -> None:
    """Codes of any mix of lengths are laid end to end."""
    widths = [width for width, _ in fields]
    values = [value % 2**width for width, value in fields]
    expected = as_bytes("".join(map(digits, values, widths)))
    assert bitstream.concatenate(np.array(values, np.uint64), np.array(widths)) == expected


@given(st.binary(max_size=30))
def test_windows_read_at_each_byte(buffer: bytes) -> None:
    """The window at byte i is the number that the four bytes from i on spell, with zeros behind the end."""
    expected = [int.from_bytes((buffer + bytes(4))[i : i + 4], "little") for i in range(len(buffer))]
    assert bitstream.windows(np.frombuffer(buffer, np.uint8)).tolist() == expected


@given(st.integers(0, 2**64 - 1))
def test_varint_round_trip(value: int) -> None:
    """Every 64-bit number survives, in the fewest bytes of seven bits."""
    written = bitstream.varint(value)
    assert bitstream.Cursor(written, "x").varint("n") == value
    assert len(written) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("text", ["", "80", "8000", "ff" * 10 + "01", "ff" * 9 + "02", "ff" * 9 + "7f"])
def test_varint_refuses(text: str) -> None:
    """Cut, padded and oversized numbers are errors, not other numbers."""
    with pytest.raises(MalformedFile, match="x: n"):
        bitstream.Cursor(bytes.fromhex(text), "x").varint("n")


def test_varint_bound() -> None:
    """A caller's bound holds."""
    with pytest.raises(MalformedFile, match="at most 4"):
        bitstream.Cursor(b"\x05", "x").varint("n", most=4)


def test_cursor_stops_at_the_end() -> None:
    """Reading past the end, or leaving bytes, names the place and the counts."""
    cursor = bitstream.Cursor(b"abc", "fc1")
    assert bytes(cursor.take(2, "a")) == b"ab"
    with pytest.raises(MalformedFile, match="fc1: b needs 2 bytes, 1 are left"):
        cursor.take(2, "b")
    with pytest.raises(MalformedFile, match="fc1: 1 bytes follow"):
        cursor.end("it")
