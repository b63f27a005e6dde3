from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompression import _numba
from deepcompression.codec import arithmetic
from deepcompression.codec.arithmetic import Model
from deepcompression.errors import MalformedFile


@contextlib.contextmanager
def by(compiled: bool) -> Iterator[None]:
    """The arithmetic coder as numba compiles it, or as plain Python."""
    module = pytest.importorskip("deepcompression.codec.kernels") if compiled else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_numba, "kernels", lambda *_: module)
        yield


class Decoder:
    """The oracle's decisions: FORMAT.md, Arithmetic coding, word for word."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 6
        self.range, self.code = 2**48 - 1, int.from_bytes(data[:6].ljust(6, b"\0"), "big")
        self.cells: dict[Any, list[int]] = {}

    def decide(self, cell: Any, fresh: tuple[int, int]) -> int:
        p, c = self.cells.setdefault(cell, list(fresh))
        bound = (self.range >> 16) * max(1, p >> 6)
        bit = int(self.code < bound)
        if bit:
            self.range = bound
        else:
            self.code, self.range = self.code - bound, self.range - bound
        if self.range < 2**32:
            self.range *= 2**16
            self.code = self.code * 2**16 + int.from_bytes(self.data[self.at : self.at + 2].ljust(2, b"\0"), "big")
            self.at += 2
        self.cells[cell] = [p + ((bit * 2**22 - p) * (131072 // (2 * c + 3)) >> 16), min(c + 1, 511)]
        return bit


def log(x: int) -> int:
    f = x.bit_length() - 1
    return 16 * f + ((16 * x) >> f) - 16


def oracle(data: bytes, rows: int, columns: int, k: int, flags: bool, prior: int, context: int) -> list[int]:
    """What `data` decodes to, by FORMAT.md: symbols 0 for what is not stored, else code + 1; without flags codes."""
    n, v, a, b = context % 4, context // 4, 2 ** (prior % 16), 2 ** (prior // 16)
    coder, depth = Decoder(data), (k - 1).bit_length()
    stored = [[0] * (columns + 2) for _ in range(rows + 1)]  # a row above and a column either side, outside
    found: list[int] = []
    column_code: dict[int, int] = {}
    last = k // 2
    for i in range(rows):
        for j in range(columns):
            total, t = sum(map(sum, stored[: i + 1])), sum(row[j + 1] for row in stored[: i + 1])
            g = max(1, (2 * total + 1) * 2**16 // (2 * i * columns + 20))
            x = max(1, (t * 2**16 + a * g) * (2**32 // (i + a)) >> 32)
            y = max(1, (sum(stored[i + 1][: j + 1]) * 2**16 + b * g) * (2**32 // (j + b)) >> 32)
            likely = log(x) + log(y) - log(g)
            if flags:
                level = min(max(likely, 0), 263) >> 3
                left, up, upleft, upright = stored[i + 1][j], stored[i][j + 1], stored[i][j], stored[i][j + 2]
                w = (0, left + 2 * up, left + 2 * up + 4 * upleft + 8 * upright)[n]
                start = 8 * level + 4
                fresh = min(2**22 - 2**16, (16 + start % 16) * 2 ** (start // 16 + 2)), 4
                stored[i + 1][j + 1] = coder.decide(("flag", level, w), fresh)
                if not stored[i + 1][j + 1]:
                    found.append(0)
                    continue
            by_size = min(max(((likely - log(g)) >> 3) + 3, 0), 6) if flags else 0
            s = (0, by_size, 4 * column_code.get(j, k // 2) // k, 4 * last // k)[v]
            node, code = 1, 0
            for bit in range(depth - 1, -1, -1):
                coded = code + 2**bit < k
                one = coder.decide((s, node), (2**21, 1)) if coded else 0
                node, code = 2 * node + one, code + one * 2**bit
            last = column_code[j] = code
            found.append(code + 1 if flags else code)
    assert len(data) <= coder.at
    return found


@st.composite
def matrices(draw: st.DrawFn) -> tuple[np.ndarray, int, int, bool, int, int]:
    """Symbols (rows x columns,), columns, k, flags, prior and context, of all kinds that FORMAT.md allows."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, columns = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    flags = draw(st.booleans())
    k = draw(st.sampled_from([1, 2, 3, 5, 16, 100, 255, 256, 257, 65_536] if flags else [2, 3, 5, 16, 256, 65_536]))
    prior = draw(st.integers(0, 255))
    n = draw(st.integers(0, 2)) if flags else 0
    v = draw(st.sampled_from([0, 1, 2, 3] if flags else [0, 2, 3])) if k > 1 else 0
    codes = np.minimum(random.geometric(draw(st.sampled_from([0.01, 0.4])), (rows, columns)) - 1, k - 1)
    if flags:
        density = draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])) * random.random((1, columns)) ** draw(st.integers(0, 2))
        codes = np.where(random.random((rows, columns)) < density, codes + 1, 0)
    most = k + flags
    kind = np.uint8 if most <= 256 else np.uint16 if most <= 65_536 else np.uint32
    return codes.reshape(-1).astype(kind), columns, k, flags, prior, n + 4 * v


@settings(max_examples=300, deadline=None)
@given(matrices())
def test_round_trip_by_the_oracle(matrix: tuple[np.ndarray, int, int, bool, int, int]) -> None:
    """A second decoder, written from FORMAT.md alone, and ours read back what was coded, at every prior and context."""
    symbols, columns, k, flags, prior, context = matrix
    with by(compiled=False):
        code = arithmetic.encode(symbols, Model(columns, k, flags, prior, context), 8 * len(symbols) + 64)
        assert code is not None
        settings_ = len(symbols) // columns, columns, k, flags, prior, context
        decoded = arithmetic.decode(code, settings_[0], Model(*settings_[1:]))
    assert decoded.dtype == symbols.dtype
    assert np.array_equal(decoded, symbols)
    assert not code or code[-1] != 0
    assert oracle(code, *settings_) == symbols.tolist()


@settings(max_examples=100, deadline=None)
@given(matrices(), st.binary(max_size=40))
def test_compiled_equals_python(matrix: tuple[np.ndarray, int, int, bool, int, int], other: bytes) -> None:
    """numba and Python write the same code, read the same symbols, and make the same of what no encoder wrote."""
    symbols, columns, k, flags, prior, context = matrix
    shape = len(symbols) // columns, Model(columns, k, flags, prior, context)
    results: list[list[object]] = []
    for compiled in (False, True):
        with by(compiled):
            code = arithmetic.encode(symbols, Model(columns, k, flags, prior, context), 8 * len(symbols) + 64)
            assert code is not None
            results.append([code, arithmetic.decode(code, *shape).tolist()])
            for text in (other, code + other, code[: len(other)]):
                try:
                    results[-1].append(arithmetic.decode(text, *shape).tolist())
                except MalformedFile as error:
                    results[-1].append(str(error))
    assert results[0] == results[1]


@pytest.mark.parametrize("compiled", [False, True])
def test_probable_symbols_take_no_room(compiled: bool) -> None:
    """100,000 zeros take a few bytes, and 100,000 coin flips little more than a bit each."""
    random = np.random.default_rng(0)
    with by(compiled):
        for symbols, most in ((np.zeros(100_000, np.uint8), 200), (random.integers(0, 2, 100_000), 12_900)):
            code = arithmetic.encode(symbols.astype(np.uint8), Model(100, 1, True, 0x66, 1), 20_000)
            assert code is not None
            assert len(code) < most
            assert arithmetic.decode(code, 1000, Model(100, 1, True, 0x66, 1)).tolist() == symbols.tolist()


@pytest.mark.parametrize("compiled", [False, True])
def test_encoder_gives_up(compiled: bool) -> None:
    """Where the code would pass the room that it is given, there is none, and nothing is written beyond."""
    symbols = np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8)
    with by(compiled):
        sizes = {
            most: arithmetic.encode(symbols, Model(30, 256, False), most) for most in (0, 1, 7, 100, 2000, 3500, 9000)
        }
    assert sizes[0] is sizes[100] is None
    assert sizes[3500] == sizes[9000] is not None


@pytest.mark.parametrize("compiled", [False, True])
def test_carry_runs_through_the_code(compiled: bool) -> None:
    """Where the low end passes a power of two, the carry runs back through bytes of FF; thousands of codes hold it."""
    random = np.random.default_rng(7)
    with by(compiled):
        for i in range(300):
            symbols = (random.random(400) < random.choice([0.001, 0.02, 0.5, 0.98])).astype(np.uint8)
            code = arithmetic.encode(symbols, Model(20, 1, True, i % 256, i % 3), 2000)
            assert code is not None
            assert np.array_equal(arithmetic.decode(code, 20, Model(20, 1, True, i % 256, i % 3)), symbols)


@pytest.mark.parametrize(
    ("code", "sound"),
    [
        (b"", True),  # all ones: the empty code is all zeros
        (b"\1", True),
        (b"\0", False),  # ends in zero
        (b"\1\0", False),
        (b"\xff" * 6, False),  # no number below the range
        (b"\xff" * 6 + b"\1", False),
        (b"\xff" * 5 + b"\xfe", True),
        (b"\1" * 7, False),  # a byte behind the last that is asked for
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_code_refuses(code: bytes, sound: bool, compiled: bool) -> None:
    """A code that begins with FF six times, ends in zero or is longer than what is read was written by no encoder."""
    with by(compiled):
        if sound:
            assert arithmetic.decode(code, 1, Model(1, 1, True)).tolist() in ([0], [1])
            return
        with pytest.raises(MalformedFile, match="arithmetic code"):
            arithmetic.decode(code, 1, Model(1, 1, True))


def test_tables_are_those_of_the_format() -> None:
    """The logarithms, rates and fresh cells that `run` looks up are what FORMAT.md computes."""
    assert [int(x) for x in arithmetic.LOG[1:]] == [log(x) for x in range(1, 65_537)]
    assert arithmetic.RATE.tolist() == [131072 // (2 * c + 3) for c in range(512)]
    cells = arithmetic.fresh_cells(5)
    assert len(cells) == 33 * 16 + 7 * 8
    assert {(int(cell) >> 10, int(cell) & 1023) for cell in cells[528:]} == {(2**21, 1)}
    for level in range(33):
        x = 8 * level + 4
        fresh = min(2**22 - 2**16, (16 + x % 16) * 2 ** (x // 16 + 2))
        assert {(int(c) >> 10, int(c) & 1023) for c in cells[16 * level : 16 * level + 16]} == {(fresh, 4)}


def test_rows_a_chunk() -> None:
    """A chunk has whole rows: as many as make four million elements, and one at least."""
    assert [arithmetic.rows_a_chunk(columns) for columns in (1, 3, 1 << 22, (1 << 22) + 1)] == [1 << 22, 1398101, 1, 1]
