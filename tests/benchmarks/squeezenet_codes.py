"""SqueezeNet as its author published it, pruned and shared: `compressed_SqueezeNet.net` of SqueezeNet-Deep-Compression.

The file, of 675,763 bytes, has the number of codes of each layer, then of each 256 values, the bias, the codes and the
gaps between them, of 4 bits; a gap that is longer goes by a code of the value 0.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FIRES = ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """The net's weights, in its order."""
    yield "conv1", (96, 3, 7, 7)
    inside = 96
    for number, (few, many) in enumerate(FIRES, 2):
        yield f"fire{number}.squeeze", (few, inside, 1, 1)
        yield f"fire{number}.expand1", (many, few, 1, 1)
        yield f"fire{number}.expand3", (many, few, 3, 3)
        inside = 2 * many
    yield "conv10", (1000, 512, 1, 1)


def read(path: Path) -> dict[str, np.ndarray]:
    """Its tensors, float32."""
    data, layers = np.fromfile(path, np.uint8), list(shapes())
    counts = data[: 4 * len(layers)].view(np.uint32).tolist()
    made, at = {}, 4 * len(layers)
    for (name, shape), count in zip(layers, counts, strict=True):
        ends = np.cumsum([at, 4 * 256, 4 * shape[0], count, (count + 1) // 2])
        book, bias, codes, gaps = (data[begin:end] for begin, end in itertools.pairwise(ends))
        steps = np.stack([gaps & 15, gaps >> 4], axis=1).reshape(-1)[:count].astype(np.int64) + 1
        weight = np.zeros(np.prod(shape), np.uint8)
        weight[np.cumsum(steps) - 1] = codes
        made[f"{name}.weight"] = book.view(np.float32)[weight].reshape(shape)
        made[f"{name}.bias"] = bias.view(np.float32).copy()
        at = int(ends[-1])
    assert at == len(data)
    return made
