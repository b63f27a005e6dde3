"""Planes of floats: what is deflated without matches is read by compiled code just as zlib reads it."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompression.codec import arrays, parting, planes
from deepcompression.codec.dtypes import Writing
from deepcompression.codec.planes import Plane

STRATEGIES = (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY, zlib.Z_FIXED, zlib.Z_RLE)


def deflated(data: bytes, strategy: int, level: int = 6, memory: int = 9) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, -15, memory, strategy)
    return made.compress(data) + made.flush()


def by_kernel(code: bytes, count: int) -> np.ndarray | None:
    """What the compiled reader makes of it; None where it leaves that to zlib."""
    kernels = pytest.importorskip("deepcompression.codec.kernels")
    padded = np.frombuffer(code + bytes(24), np.uint8).copy()
    out = np.empty(count + 16, np.uint8)
    return out[:count] if kernels.inflate_literals(padded, len(code), out) else None


def by_zlib(code: bytes, count: int) -> bytes | None:
    """The same by zlib; None for what is damaged."""
    reader = zlib.decompressobj(-15)
    try:
        found = reader.decompress(code, count + 1)
    except zlib.error:
        return None
    return found if len(found) == count and reader.eof and not reader.unused_data else None


@st.composite
def skewed(draw: st.DrawFn) -> bytes:
    """Bytes of which some are frequent, or noise, or long runs."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.sampled_from([0, 1, 2, 300, 5_000, 70_000]))
    kind = draw(st.sampled_from(["geometric", "noise", "normal", "steep"]))
    if kind == "noise":
        return random.integers(0, 256, count, np.uint8).tobytes()
    if kind == "steep":  # codes of all lengths
        return np.minimum(random.geometric(0.5, count), 255).astype(np.uint8).tobytes()
    if kind == "normal":
        return np.clip(random.normal(120, 3, count), 0, 255).astype(np.uint8).tobytes()
    return np.minimum(random.geometric(0.05, count), 255).astype(np.uint8).tobytes()


@settings(max_examples=60, deadline=None)
@given(skewed(), st.sampled_from(STRATEGIES), st.sampled_from([0, 1, 6, 9]), st.sampled_from([1, 9]))
def test_what_is_deflated_comes_back(data: bytes, strategy: int, level: int, memory: int) -> None:
    """The compiled reader gives the bytes, or leaves a stream with matches to zlib; those without it reads itself."""
    code = deflated(data, strategy, level, memory)
    found = by_kernel(code, len(data))
    assert found is None or found.tobytes() == data
    if level and memory == 9 and strategy == zlib.Z_HUFFMAN_ONLY and len(data) >= 5_000:  # else blocks are too short
        assert found is not None
    assert by_kernel(code, len(data) + 1) is None and by_kernel(code + b"\0", len(data)) is None


@settings(max_examples=150, deadline=None)
@given(skewed(), st.integers(0, 2**32 - 1), st.booleans())
def test_what_is_damaged_is_taken_only_as_zlib_takes_it(data: bytes, seed: int, cut: bool) -> None:
    """No stream that zlib refuses, or reads otherwise, is read: with wrong bits near its start or anywhere, or cut."""
    random = np.random.default_rng(seed)
    code = bytearray(deflated(data, zlib.Z_HUFFMAN_ONLY))
    for _ in range(int(random.integers(1, 4))):
        near = random.random() < 0.7
        code[int(random.integers(0, min(len(code), 90) if near else len(code)))] ^= 1 << int(random.integers(0, 8))
    damaged = bytes(code[: int(random.integers(0, len(code)))] if cut else code)
    found = by_kernel(damaged, len(data))
    assert found is None or found.tobytes() == by_zlib(damaged, len(data))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_plane_is_taken_and_written_as_by_numpy(dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code takes, counts and codes a byte of each value as numpy does, in runs that do not divide it too."""
    kernels = pytest.importorskip("deepcompression.codec.kernels")
    bits = (np.random.default_rng(0).normal(size=40_000).astype(np.float32).view(np.uint32) >> 16).astype(dtype)
    bits <<= dtype(16 * (bits.itemsize == 4))
    made = []
    for module in (kernels, None):
        monkeypatch.setattr(planes._numba, "kernels", lambda *_, module=module: module)
        plane = planes.plane_of(bits, 0)
        counts = planes.counted(plane)
        used = np.flatnonzero(counts).astype(np.uint8)
        stream = planes.streams.plan(counts[used], len(used), 1, "huffman")[1]
        assert stream.lengths is not None
        coded = Plane(planes.STREAM, used, stream).write(plane)
        made.append((counts.tolist(), planes.counted_runs(plane, 4096).tolist(), coded))
    assert made[0] == made[1]


@pytest.mark.parametrize("coder", ["huffman", "adaptive"])
def test_planes_of_no_values_are_plain(coder: str) -> None:
    """Where zeros are left out, nothing may be left: planes of no values are planned too."""
    what = parting.parted([np.zeros(0, np.uint32)], 1, Writing("float32", (0,), coder))
    assert b"".join(what.chunks) == b"" and what.first == bytes([1, *[planes.PLAIN] * 4])


@pytest.mark.parametrize("repeated", [0, 16, 40, 400, 2048])
def test_noise_is_deflated_only_where_it_repeats(repeated: int) -> None:
    """Noise is looked at without deflating it; what is there twice is found as by deflating it."""
    noise = np.random.default_rng(0).integers(0, 256, 4096, np.uint8)
    noise[4096 - repeated :] = noise[:repeated]
    ideal = parting.entropy(planes.counted(noise))
    assert parting._repeats(noise, ideal) == (len(arrays.deflated(noise.data, 1)) < 0.97 * ideal) == (repeated > 200)
