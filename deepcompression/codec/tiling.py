"""Tiles that a tensor's zeros lie in (FORMAT.md, Tiles), found and written: whole blocks, or so many of every M."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import arithmetic, positions, streams
from deepcompression.codec import head as heads
from deepcompression.codec.apart import Piece, cut, fitted, plan_codes
from deepcompression.codec.bitstream import varint
from deepcompression.codec.dtypes import Writing
from deepcompression.codec.positions import BITMAP, FLAGS
from deepcompression.codec.shared import entropy, histogram
from deepcompression.codec.tiles import MOST_IN_ROW, Tiles, patterns

_SIDES = (1, 2, 4, 8, 16, 32)
_MEMBERS = (4, 8, 16)  # elements of which so many are stored
_LOOKED_AT = 1 << 16
_LEAST = 1 << 10
_LEARNT = 8  # bits that a pattern more costs, until its probability or its code is known
_GAIN = 0.9  # of an ideal code of single flags, below which tiles are tried
Flags = NDArray[np.bool_]


def find(symbols: NDArray[Any], how: Writing) -> list[Tiles]:
    """The best blocks and the best patterns that the symbols (n,), 0 for zero, may be in; by entropy, of a sample.

    Args:
        symbols: of the tensor, or its bits.
        how: it is written.
    """
    if len(how.shape) < 2 or symbols.size < _LEAST or how.coder == "packed":
        return []
    looked = symbols[:_LOOKED_AT]
    if np.count_nonzero(looked) == looked.size:
        return []
    flags = symbols != 0
    if not 0.01 < np.count_nonzero(flags) / flags.size < 0.99:
        return []
    found = [_best(flags, list(_blocks(how.shape)), how), _best(flags, list(_patterns(how.shape)), how)]
    return [tiles for tiles in found if tiles is not None]


def _best(flags: Flags, candidates: list[Tiles], how: Writing) -> Tiles | None:
    """The tiles that seem smallest, if they are by far smaller than flags; patterns with the most that occurs."""
    costs = [(_cost(_sample(flags, tiles), tiles, flags.size // tiles.size), tiles) for tiles in candidates]
    cost, tiles = min(costs, key=lambda one: one[0], default=(1.0, None))
    if tiles is None or cost > _GAIN:
        return None
    if not tiles.most:
        return tiles
    most = int(tiles.arranged(flags).reshape(-1, tiles.size).sum(axis=1).max())
    return tiles._replace(most=most) if most < tiles.size else None


def _blocks(shape: tuple[int, ...]) -> Iterator[Tiles]:
    rows, columns = shape[0], math.prod(shape[1:])
    kernel = math.prod(shape[2:])
    for width in {*_SIDES, kernel, shape[-1]}:
        for height in _SIDES:
            fits = columns % width == 0 and rows % height == 0 and height * width > 1
            if fits and height * columns <= MOST_IN_ROW and width < columns and (width <= 64 or height == 1):
                yield Tiles(columns, height, width)


def _patterns(shape: tuple[int, ...]) -> Iterator[Tiles]:
    """Of consecutive elements of a row, of the second axis, of the first."""
    row, kernel = math.prod(shape[1:]), math.prod(shape[2:])
    for members in _MEMBERS:
        if row % members == 0:
            yield Tiles(row, 1, members, members - 1)
        if kernel > 1 and shape[1] % members == 0:
            yield Tiles(kernel, members, 1, members - 1)
        if shape[0] % members == 0 and members * row <= MOST_IN_ROW:
            yield Tiles(row, members, 1, members - 1)


def _sample(flags: Flags, tiles: Tiles) -> Flags:
    """Some tiles (t, size), of a few rows of them."""
    grid = flags.reshape(-1, tiles.height, tiles.across, tiles.width)
    across = max(1, min(tiles.across, _LOOKED_AT // (4 * tiles.size)))
    rows = max(1, _LOOKED_AT // (across * tiles.size))
    some = grid[:: max(1, len(grid) // rows), :, :across]
    return some.transpose(0, 2, 1, 3).reshape(-1, tiles.size)


def _cost(sample: Flags, tiles: Tiles, count: int) -> float:
    """Ideal bits of where the stored elements of `sample`, of so many tiles, are, against those of a flag for each."""
    single = _of_flags(sample)
    if single == 0:
        return 1.0
    if tiles.most:
        counts = np.bincount((sample @ (1 << np.arange(tiles.size))).astype(np.int64))
        used = np.count_nonzero(counts)
        # Few samples of many patterns seem more alike than they are (Miller, Madow); and the code of each is learnt.
        chance, learnt = (used - 1) / (2 * math.log(2)), _LEARNT * used * len(sample) / count
        return (8 * entropy(counts) + chance + learnt) / single
    kept: Flags = np.asarray(sample.any(axis=1))
    return (_of_flags(kept) + _of_flags(sample[kept])) / single


def _of_flags(flags: Flags) -> float:
    ones = int(np.count_nonzero(flags))
    return 8 * entropy(np.array([ones, flags.size - ones]))


def positions_of(flags: Flags, tiles: Tiles, how: Writing) -> tuple[Piece, NDArray[np.int64]]:
    """Positions by tiles, and where the values of each chunk but the first begin.

    Args:
        flags: (n,) what is stored, tile by tile.
        tiles: in which it is.
        how: they are written.
    """
    each = flags.reshape(-1, tiles.size)
    parts = cut(each, tiles.chunk(heads.CHUNK) // tiles.size)
    if tiles.most:
        numbers = np.full(1 << tiles.size, -1)
        table = patterns(tiles.size, tiles.most)
        weights = 1 << np.arange(tiles.size)
        numbers[table @ weights] = np.arange(len(table))
        kind = np.uint8 if len(table) <= 256 else np.uint16
        symbols = [numbers[part @ weights].astype(kind) for part in parts]
        counts = [int(part.sum()) for part in parts]
    else:
        symbols = [part.any(axis=1).astype(np.uint8) for part in parts]
        counts = [int(part.sum()) * tiles.size for part in symbols]
    found = _by_pattern(symbols, tiles, how) if tiles.most else _by_block(symbols, tiles, how)
    return found, np.cumsum(counts)[:-1]


def _by_pattern(symbols: list[NDArray[Any]], tiles: Tiles, how: Writing) -> Piece:
    counts = np.sum([histogram(part, tiles.alphabet, how.threads) for part in symbols], axis=0)
    stream = plan_codes(symbols, counts, tiles.alphabet, how, sparse=False)[1]
    chunks = mapped(lambda part: streams.encode(part, stream), symbols, how.threads)
    options = [Piece(chunks, BITMAP, middle=stream.header())]
    if how.coder == "adaptive":
        options.append(_in_code(symbols, tiles, how))
    return min(options, key=lambda piece: piece.size)


def _by_block(symbols: list[NDArray[Any]], tiles: Tiles, how: Writing) -> Piece:
    options = []
    for _, places in positions.plans(symbols, how):
        options.append(Piece(mapped(places.write, symbols, how.threads), places.kind, middle=places.header()))
    if how.coder == "adaptive":
        options.append(_in_code(symbols, tiles, how))
    return min(options, key=lambda piece: piece.size)


def _in_code(symbols: list[NDArray[Any]], tiles: Tiles, how: Writing) -> Piece:
    """Blocks as flags, or patterns as codes, in arithmetic code."""
    model = tiles.model(0, 0)
    model = fitted(symbols[0], model)
    if tiles.most:
        model = tiles.model(0, model.context & ~3)

    def code(part: NDArray[Any]) -> bytes:
        made = arithmetic.encode(part, model, 40 * len(part) + 64)
        assert made is not None  # a bit never costs 17
        return varint(len(made)) + made

    chunks = mapped(code, symbols, how.threads)
    return Piece(chunks, FLAGS, last=bytes([model.prior, model.context]))
