"""Write the golden files of a format version: `python tests/golden/make_golden.py NAME`, e.g. v2-grids.

Files of version 1 and later are never written again: a change of their bytes needs a new version.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcompression.codec import parting
from deepcompression.codec.dtypes import DTYPES, RawTensor, unsigned
from deepcompression.codec.file import save

HERE = Path(__file__).parent
ZLIB = "1.2.13"  # by which they were written: another one may deflate in other bytes


def tensors() -> dict[str, np.ndarray | RawTensor]:
    """One tensor for every method, made of integers alone so that no machine rounds differently."""
    i = np.arange(40_000)
    mixed = _scrambled(i)  # 16 bits that look random
    book = ((np.arange(16) - 8) * 2 + 1).astype(np.float32) ** 3 / 64
    skewed = book[np.minimum(mixed % 256 // 8 * 7 % 23, 15)]
    sparse = np.where(mixed % 1000 < 80, skewed, 0).astype(np.float32)
    dead = sparse.reshape(200, 200).copy()
    dead[mixed[:200] % 3 == 0] = 0
    dead[:, mixed[200:400] % 4 == 0] = 0
    huge = np.zeros((2050, 2050), np.float32)
    huge[:, :6] = book[mixed[:2050] % 2, None]
    huge[i[:2050], i[:2050] * 977 % 2050] = book[mixed[:2050] % 5]
    raw = np.zeros(((1 << 20) + 100, 1), np.float32)
    raw.reshape(-1)[(i[:60] * 1753 * 11) % raw.size] = i[:60] * np.float32(2.0**-7) + np.float32(2.0**-20)
    by_column = np.minimum(i[:6400] % 80 // 5, 15)
    near = np.cumsum(mixed[:6400] % 3 - 1) % 16
    crowd = (mixed[:100, None] % 2 + mixed[100:200] % 2).reshape(-1)  # of 100 rows and columns, 0 to 2
    crowded = np.where(mixed[:10_000] % 32 < 2 * 4**crowd, book[4 * crowd + mixed[:10_000] // 32 % 4], 0)
    patches = (i[:6400] // 80 + i[:6400] % 80) // 3 % 4 == 0
    groups = 1 + i[:256].astype(np.float32).repeat(32) / 512
    scales = (1 + np.arange(64, dtype=np.float32)[:, None]) / 4096
    rows = np.sort(mixed[:1024].reshape(64, 16), axis=1).astype(np.int64) * 4099
    return {
        "gaps.weight": sparse.reshape(200, 200),
        "masks.weight": dead,
        "bitmap.weight": np.where(mixed[:3000] % 7 < 4, i[:3000] * 16807 % 2147483647, 0).astype(np.int32),
        "half.weight": np.where(mixed % 2 == 0, skewed, 0)[:8000].astype(np.float32).reshape(10, 20, 40),
        "dense.weight": skewed.reshape(4, 100, 100),
        "dense.tied": skewed.reshape(4, 100, 100),
        "ternary.weight": np.where(mixed % 9 < 4, np.sign(mixed - 20000), 0).astype(np.int8),
        "chunks.weight": huge,
        "chunks.raw": raw,
        "grid.weight": ((mixed[:8192] % 255).astype(np.float32) - 127).reshape(64, 128) / 128,
        "grid.rows": ((mixed[:8192] % 255).astype(np.float32) - 127).reshape(64, 128) * scales,
        "grid.sparse": np.where(mixed[:8192] % 8 < 2, mixed[:8192] % 31 - 15, 0).astype(np.float32).reshape(64, 128)
        * scales,
        "grid.groups": ((mixed[:8192] % 15).astype(np.float32) - 7).reshape(32, 256) * groups.reshape(32, 256),
        "context.column": book[np.where(mixed[:6400] % 8, by_column, mixed[:6400] % 16)].reshape(80, 80),
        "context.last": book[near].reshape(80, 80),
        "context.size": crowded.astype(np.float32).reshape(100, 100),
        "context.near": np.where(patches & (mixed[:6400] % 16 > 0), skewed[:6400], 0)
        .astype(np.float32)
        .reshape(80, 80),
        "book.rows": np.take_along_axis(rows, mixed[:8192].reshape(64, 128) % 16, axis=1),
        "narrow.bias": (np.arange(20) - 10).astype(np.float32) / 8,
        "wide.bias": (np.arange(20) * 2.0**100 + 2.0**98).astype(np.float32),
        "double": (np.arange(9) - 4) / 1024 + 2.0**-40,
        "raw.bias": np.array([np.nan, -0.0, np.inf, 1e-45, -1 / 3], np.float32),
        "deflated.bias": (1 + mixed[:2000] / 65536).astype(np.float32) + np.float32(2.0**-20),
        "position_ids": np.arange(512)[None],
        "one.weight": np.full((7, 9), 0.5, np.float32),
        "bool": mixed[:500] % 3 == 0,
        "scalar": np.array(12345),
        "empty": np.zeros((0, 3), np.float16),
        "zeros": np.zeros(1000, np.float32),
        **{f"dtype.{name}": _all_bits(name) for name in DTYPES},
    }


def _scrambled(i: np.ndarray) -> np.ndarray:
    """Sixteen bits for each of `i`, by splitmix64."""
    x = i.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ x >> np.uint64(shift)) * np.uint64(factor)
    return (x >> np.uint64(48)).astype(np.int64)


def _all_bits(name: str) -> RawTensor:
    patterns = np.arange(30, dtype=np.uint64) ** np.uint64(5)
    bits = (patterns % 2 if name == "bool" else patterns).astype(unsigned(name))
    return RawTensor(bits.reshape(5, 6), name)


# What turns a small model (tests/deepcompression/network/test_edits.py) into that of `edited`.
EDITS: list[dict[str, Any]] = [
    {"kind": "fold", "tensor": "fc.weight"},
    {
        "kind": "resize",
        "modules": {"conv": {"out_channels": 3}, "fc": {"in_features": 12}, "norm": {"num_features": 3}},
        "tensors": {
            "conv.bias": [3],
            "conv.weight": [3, 1, 3, 3],
            "fc.weight": [3, 12],
            **{f"norm.{name}": [3] for name in ("bias", "running_mean", "running_var", "weight")},
        },
    },
    {"kind": "select_inputs", "count": 10, "module": "fc"},
    {"kind": "bypass", "module": "act"},
    {"kind": "quantize_values", "bits": 8, "range": "static", "scheme": "asymmetric", "sites": ["conv:output[0]"]},
    {"kind": "quantize_values", "bits": 4, "range": "dynamic", "scheme": "symmetric", "sites": ["fc:input[0]"]},
]


def edited() -> dict[str, np.ndarray]:
    """The tensors of a small model after `EDITS`."""
    i = np.arange(30, dtype=np.float32)
    return {
        "conv.weight": (i[:27] % 7 - 3).reshape(3, 1, 3, 3) / 8,
        "conv.bias": i[:3] / 4,
        "conv.output_0_scale": np.array(0.03125, np.float32),
        "conv.output_0_zero_point": np.array(96, np.int32),
        "norm.weight": 1 + i[:3] / 2,
        "norm.bias": i[:3] - 1,
        "norm.running_mean": i[:3] / 16,
        "norm.running_var": 1 + i[:3],
        "norm.num_batches_tracked": np.array(5),
        "act.edit": np.array(0, np.uint8),
        "fc.bias": np.array([0.5, -1, 0], np.float32),
        "fc.weight": (i % 5 - 2).reshape(3, 10) / 4,
        "fc.selected": np.array([0, 1, 2, 4, 5, 6, 7, 9, 10, 11]),
        "fc.input_0_edit": np.array(0, np.uint8),
    }


def grids() -> dict[str, np.ndarray | RawTensor]:
    """What a grid has in version 2: channels of any axis, groups of them, -0.0; and codebooks by channel."""
    mixed = _scrambled(np.arange(8192))
    integers = (mixed % 31 - 15).astype(np.float32)
    sparse = np.where(mixed % 8 < 3, integers, 0).astype(np.float32)
    negative = np.where(mixed % 7 == 0, np.float32(-0.0), integers)
    scales = 1 / (4096 + 7 * np.arange(64, dtype=np.float32))
    books = np.sort(mixed[:1024].reshape(16, 64), axis=0).astype(np.int64) * 4099
    return {
        "channels.last": integers.reshape(128, 64) * scales,
        "channels.middle": integers.reshape(64, 32, 4) * scales[:32, None],
        "channels.sparse": np.where(sparse == 0, np.float32(0), sparse).reshape(128, 64) * scales,
        "channels.groups": integers.reshape(128, 64) * np.repeat(1 + mixed[:256].reshape(4, 64) % 512, 32, 0) / 4096,
        "channels.book": np.take_along_axis(books, mixed.reshape(128, 64) % 16, axis=0),
        "negative.weight": negative / 64,
        "negative.sparse": np.where(mixed % 5 == 0, negative, np.float32(0)) / 64,
        "negative.rows": negative.reshape(64, 128) * scales[:, None],
        "negative.channels": negative.reshape(128, 64) * scales,
        "negative.half": (negative / 64).astype(np.float16),
        "negative.double": negative.astype(np.float64).reshape(128, 64) * scales,
    }


def tiles() -> dict[str, np.ndarray | RawTensor]:
    """Zeros by blocks and by patterns, in rows, columns and kernels; with raw values, planes, codebooks, grids."""
    mixed = _scrambled(np.arange(16_384)).reshape(128, 128)
    values = (mixed / 65_536 - 0.5).astype(np.float32) + np.float32(2.0**-22)
    book = (((np.arange(8) - 4) * 2 + 1).astype(np.float32) ** 3 / 64)[mixed % 8]
    integers = (mixed % 31 - 15).astype(np.float32) / 64
    scales = 1 / (4096 + 7 * np.arange(128, dtype=np.float32))
    walk = 1 + (np.cumsum(mixed % 3 - 1) % 16).reshape(128, 128).astype(np.float32) ** 3
    return {
        "blocks.row": _in_blocks(values, 1, 4),
        "blocks.square": _in_blocks(book, 4, 4),
        "blocks.column": _in_blocks(integers, 8, 1),
        "blocks.negative": _in_blocks(np.where(integers == 0, np.float32(-0.0), integers), 2, 2),
        "blocks.rare": _in_blocks(book, 8, 8, 3),
        "blocks.most": _in_blocks(book, 2, 4, 65),
        "blocks.walk": _in_blocks(walk, 1, 8),
        "blocks.channels": _in_blocks(integers, 1, 8) * scales,
        "blocks.kernels": _in_blocks(book[:, :126], 1, 9).reshape(128, 14, 3, 3),
        "blocks.int": _in_blocks(mixed * 65_537 + 1, 1, 4),
        "patterns.row": _in_patterns(book, 1, 4, 2),
        "patterns.column": _in_patterns(integers, 4, 1, 2),
        "patterns.raw": _in_patterns(values, 1, 4, 1),
        "patterns.eight": _in_patterns(book, 8, 1, 4),
        "patterns.kernels": _in_patterns(values, 4, 1, 2).reshape(16, 8, 16, 8).swapaxes(1, 2).reshape(256, 8, 8),
        "patterns.half": _in_patterns(values, 4, 1, 2).astype(np.float16),
    }


def fine() -> dict[str, np.ndarray | RawTensor]:
    """Grids so fine that the low bits of codes are stored as they are."""
    mixed = _scrambled(np.arange(12 * 6_000)).reshape(12, -1)
    integers = ((mixed.sum(axis=0) - 6 * 65_536) // 24).astype(np.float32)
    scales = 1 / (4096 + 7 * np.arange(10, dtype=np.float32))
    return {
        "fine.weight": integers / 4096,
        "fine.negative": np.where(np.abs(integers) < 40, np.float32(-0.0), integers) / 4096,
        "fine.rows": integers.reshape(10, 600) * scales[:, None],
        "fine.channels": integers.reshape(600, 10) * scales,
    }


def _in_blocks(tensor: np.ndarray, height: int, width: int, percent: int = 30) -> np.ndarray:
    """The matrix with so many blocks of a hundred kept."""
    kept = _scrambled(np.arange(tensor.size // (height * width)) + 77) % 100 < percent
    kept = kept.reshape(tensor.shape[0] // height, -1).repeat(height, 0).repeat(width, 1)
    return np.where(kept, tensor, 0).astype(tensor.dtype)


def _in_patterns(tensor: np.ndarray, height: int, width: int, most: int) -> np.ndarray:
    """The matrix with so many elements of each tile."""
    keys = _scrambled(np.arange(tensor.size) + 99).reshape(tensor.shape[0] // height, height, -1, width)
    kept = keys.argsort(axis=3 if height == 1 else 1).argsort(axis=3 if height == 1 else 1) < most
    return np.where(kept.reshape(tensor.shape), tensor, 0).astype(tensor.dtype)


def planes() -> dict[str, np.ndarray | RawTensor]:
    """Floats of every type, dense and sparse, whose exponents are few: sums of many bits are nearly normal."""
    mixed = _scrambled(np.arange(12 * 5_000)).reshape(12, -1).astype(np.float64) / 65_536
    normal = (mixed.sum(axis=0) - 6) * (1 + mixed[0] / 1024)
    single = normal.astype(np.float32)
    period = np.resize((mixed[0, :300] * 65_536).astype(np.uint32) * np.uint32(127), 5_000)
    repeats = single.view(np.uint32) & np.uint32(0xFF800000) | period & np.uint32(0x7FFFFF)
    return {
        "planes.single": single,
        "planes.half": normal.astype(np.float16),
        "planes.brain": RawTensor((single.view(np.uint32) >> np.uint32(16)).astype(np.uint16), "bfloat16"),
        "planes.double": normal + 2.0**-52 * normal,
        "planes.narrowed": normal.astype(np.float16).astype(np.float32),
        "planes.sparse": np.where(mixed[1] < 0.4, single, 0).astype(np.float32),
        "planes.rare": np.where(mixed[1] < 0.05, single, 0).astype(np.float32)[:, None].repeat(5, 1),
        "planes.plain": np.where(mixed[2] < 0.5, single, np.float32(1)) * np.float32(3),
        "planes.special": np.where(
            mixed[3] < 0.01, np.float32(np.nan), np.where(mixed[3] < 0.02, -np.inf, single)
        ).astype(np.float32),
        "planes.drift": single * np.float32(2) ** (np.arange(5_000) // 100).astype(np.float32),
        "planes.repeats": repeats.view(np.float32),
        "planes.float8": RawTensor((np.abs(normal) * 40).astype(np.uint8) % 120, "float8_e4m3fn"),
        "planes.wide": RawTensor((np.abs(normal) * 16).astype(np.uint8) % 120, "float8_e5m2"),
    }


if __name__ == "__main__":
    name = sys.argv[1]
    if name == "v1-edits":
        save(edited(), HERE / "v1-edits.dcz", coder="packed", metadata={"format": "pt"}, edits=EDITS)
    elif name in ("v2-grids", "v2-tiles", "v2-planes", "v2-fine"):
        made = {"grids": grids, "tiles": tiles, "planes": planes, "fine": fine}[name[3:]]()
        with pytest.MonkeyPatch.context() as patch:
            if name == "v2-planes":  # wherever they can be
                patch.setattr(parting, "promising", lambda _, stored, how: DTYPES[stored].floating)
            save(made, HERE / f"{name}.dcz", coder="huffman")
            if name != "v2-fine":
                save(made, HERE / f"{name}-adaptive.dcz", coder="adaptive")
    else:
        save(tensors(), HERE / f"{name}.dcz", coder=name[3:])
