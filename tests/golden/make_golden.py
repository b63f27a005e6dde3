"""Write the golden files of the current format version: `python tests/golden/make_golden.py`.

Files of version 1 and later are never written again: a change of their bytes needs a new version.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepcompression.io import RawTensor, save

HERE = Path(__file__).parent


def tensors() -> dict[str, np.ndarray | RawTensor]:
    """One tensor for every method, made of integers alone so that no machine rounds differently."""
    i = np.arange(40_000)
    book = ((np.arange(16) - 8) * 2 + 1).astype(np.float32) / 64
    skewed = book[np.minimum(i * 7919 % 256 // 8 % 23, 15)]
    return {
        "gap.weight": np.where(i * i % 10007 < 800, skewed, 0).astype(np.float32).reshape(200, 200),
        "bitmap.weight": np.where(i[:3000] * 31 % 7 < 4, i[:3000] * 16807 % 2147483647, 0).astype(np.int32),
        "dense.weight": skewed.reshape(4, 100, 100),
        "dense.tied": skewed.reshape(4, 100, 100),
        "narrow.bias": (np.arange(20) - 10).astype(np.float32) / 8,
        "raw.bias": np.array([np.nan, -0.0, np.inf, 1e-45, -1 / 3], np.float32),
        "brain": RawTensor((np.arange(12) * 257).astype(np.uint16).reshape(3, 4), "bfloat16"),
        "float8": RawTensor(np.arange(256).astype(np.uint8), "float8_e4m3fn"),
        "counter": np.array(12345),
        "mask": np.arange(50) % 3 == 0,
        "empty": np.zeros((0, 3), np.float16),
        "zeros": np.zeros(1000, np.float32),
    }


if __name__ == "__main__":
    for coder in ("packed", "huffman"):
        save(tensors(), HERE / f"v0-{coder}.dcz", coder=coder)
