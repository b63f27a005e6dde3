"""A fuzzer that knows the format: broken files whose checksums are right, so that they reach the decoders.

`python tests/fuzz.py --cases 1000000 --processes 2`. Every case is a file made from valid ones, by its number and the
seed alone: fields of the index and of blobs are changed, cut, spliced, and all checksums (and mostly lengths) are
repaired; some files are damaged without. The valid ones have any layout that a writer weighs, not just the smallest.
Decoding one must give tensors of the declared sizes, or raise a FormatError: nothing else, within a second, and without
memory beyond what is declared; and numba must make of it what numpy makes.

`--corpus FOLDER` writes files to start another fuzzer from (`make fuzz-c`): the golden files' tensors, one a file,
valid ones of this fuzzer, and those that once broke a decoder.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import tracemalloc
import zlib
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import Random
from unittest.mock import patch

import numpy as np
from forged import deflated, small_chunks, wild

from deepcompression import _numba
from deepcompression.codec import decoder, edits, encoder, reader
from deepcompression.codec.bitstream import Cursor, varint
from deepcompression.codec.dtypes import DTYPES, unsigned
from deepcompression.codec.file import decode
from deepcompression.codec.head import VERSION
from deepcompression.codec.index import CODERS, MAGIC
from deepcompression.codec.metadata import TAG, pack
from deepcompression.errors import FormatError

MOST_BYTES = 1 << 16
MOST_SECONDS = 1.0
MOST_MEMORY = 24 << 20
MOST_SEED = 4096
TRACED_EVERY = 50
COMPILED_EVERY = 10
LOT = 2_500
CHUNK = 64
NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 31, 127, 128, 255, 256, 1023, 4096, 65_534, 65_535, 65_536, 131_071, 131_072)
NUMBERS += tuple((1 << power) + more for power in (20, 22, 31, 32, 53, 62, 63, 64) for more in (-1, 0))[:-1]
FLOATS = np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-45, 1e-8, 3.4e38], np.float32)


@dataclass
class Field:
    """What a reader takes from a blob at once: its place, what the reader calls it, whether it is a varint."""

    start: int
    size: int
    what: str
    number: bool


@dataclass(frozen=True)
class Tensor:
    """A tensor's record in an index, every field free to lie; `same_as` makes it a reference."""

    name: bytes
    dtype: int
    shape: tuple[int, ...]
    blob: bytes
    same_as: int | None = None
    size: int | None = None
    fields: tuple[Field, ...] = ()


def build(
    tensors: list[Tensor], coder: int = 1, count: int | None = None, behind: bytes = b"", metadata: bytes = b""
) -> bytes:
    """A file of these records, all checksums right; `metadata` is a record's content, `behind` comes after it."""
    index = varint(len(tensors) if count is None else count)
    for tensor in tensors:
        index += varint(0) + varint(len(tensor.name)) + tensor.name
        if tensor.same_as is not None:
            index += b"\0" + varint(tensor.same_as)
            continue
        index += bytes([tensor.dtype]) + varint(len(tensor.shape)) + b"".join(map(varint, tensor.shape))
        index += varint(len(tensor.blob) if tensor.size is None else tensor.size)
        index += zlib.crc32(tensor.blob).to_bytes(4, "little")
    if metadata:
        index += varint(TAG) + varint(len(metadata)) + metadata
    index += behind
    prefix = MAGIC + bytes([VERSION, coder]) + len(index).to_bytes(4, "little")
    head = prefix + zlib.crc32(prefix + index).to_bytes(4, "little") + index
    return head + b"".join(tensor.blob for tensor in tensors if tensor.same_as is None)


def _values(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Element bits as networks have them: shared, sparse, on a grid, in rows, or anything."""
    kind = unsigned(dtype)
    top = 2 if dtype == "bool" else 2 ** (8 * kind.itemsize)
    bits = random.integers(0, top, shape, dtype=np.uint64).astype(kind)
    how = random.integers(5)
    if how < 3:
        book = random.integers(0, top, int(random.choice([1, 2, 3, 16])), dtype=np.uint64).astype(kind)
        bits = book[np.minimum(random.geometric(0.3, shape) - 1, len(book) - 1)]
    elif how == 3 and dtype in {"float32", "float64"} and len(shape) == 2:
        axes: list[np.ndarray | float] = [random.random((shape[0], 1)), random.random((1, shape[1])), 0.125]
        integers = np.where(random.random(shape) < random.choice([0.0, 0.1]), -0.0, random.integers(-7, 8, shape))
        bits = (integers * axes[random.integers(3)]).astype(dtype).view(kind)
    elif how == 4 and len(shape) == 2 and shape[0]:  # a codebook for each row, or two
        books = bits[:, :3].repeat(random.integers(1, 3), axis=0)[: shape[0]]
        bits = np.take_along_axis(books, random.integers(0, 3, shape), axis=1)
    bits = np.where(random.random(shape) < random.choice([0.05, 0.3, 1.0]), bits, 0).astype(kind)
    if len(shape) == 2 and shape[0] and random.random() < 0.3:  # by whole blocks, or 2 of 4
        kept = random.random((shape[0], shape[1] // 4, 1)) < 0.3
        if random.random() < 0.5:
            kept = random.random((shape[0], shape[1] // 4, 4)).argsort(axis=2) < 2
        bits = np.where(kept, bits.reshape(shape[0], -1, 4), 0).reshape(shape).astype(kind)
    if len(shape) == 2 and random.random() < 0.4:
        bits[random.random(shape[0]) < 0.3] = 0
        bits[:, random.random(shape[1]) < 0.3] = 0
    return bits


@lru_cache(2)
def valid(seed: int, lot: int) -> tuple[tuple[Tensor, ...], ...]:
    """A hundred valid files, as records."""
    random = np.random.default_rng((seed, lot, 1 << 40))
    files = []
    names = [*DTYPES, *["float32"] * 20]
    for number in range(100):
        tensors = []
        for place in range(int(random.integers(1, 4))):
            dtype = str(random.choice(names))
            shape = [(), (40,), (9, 16), (16, 32), (4, 3, 2, 2), (0, 3), (200,)][random.integers(7)]
            bits = _values(random, dtype, shape)
            with wild(Random(int(random.integers(1 << 32)))):
                blob = encoder.encode_tensor(bits.reshape(-1), dtype, shape, CODERS[number % 3])
            fields = fields_of(blob, dtype, bits)
            tensors.append(Tensor(f"t{place}".encode(), DTYPES[dtype].number, shape, blob, fields=fields))
        files.append(tuple(tensors))
    return tuple(files)


def fields_of(blob: bytes, dtype: str, bits: np.ndarray) -> tuple[Field, ...]:
    """The fields of a valid blob, in order, as our reader takes them; it must give `bits`."""
    whole = np.frombuffer(blob, np.uint8).__array_interface__["data"][0]
    found: dict[int, Field] = {}

    class Watched(Cursor):
        def take(self, count: int, what: str) -> memoryview:
            taken = super().take(count, what)
            self.note(taken, what, number=False)
            return taken

        def varint(self, what: str, most: int = 2**64 - 1) -> int:
            start = self.at
            value = super().varint(what, most)
            self.note(self.buffer[start : self.at], what, number=True)
            return value

        def note(self, taken: memoryview, what: str, number: bool) -> None:
            if len(taken):
                start = np.frombuffer(taken, np.uint8).__array_interface__["data"][0] - whole
                # What lies within a chunk is taken after it, and a varint after its bytes.
                for inner in [at for at in found if start <= at < start + len(taken)]:
                    del found[inner]
                found[start] = Field(start, len(taken), what, number)

    with patch.object(decoder, "Cursor", Watched):
        decoded, _ = decoder.decode_tensor(blob, dtype, bits.size, "valid")
    assert np.array_equal(decoded, bits.reshape(-1))
    return tuple(found[start] for start in sorted(found))


def _field(random: np.random.Generator, tensor: Tensor, other: Tensor) -> bytes:
    """A blob with one field that lies: another number, other bytes, or the like field of another blob."""
    if not tensor.fields:
        return _bytes(random, tensor.blob, other.blob)
    place = int(random.integers(len(tensor.fields)))
    field = tensor.fields[place]
    old = tensor.blob[field.start : field.start + field.size]
    alike = [one for one in other.fields if one.what == field.what]
    if alike and random.random() < 0.2:
        one = alike[int(random.integers(len(alike)))]
        new = other.blob[one.start : one.start + one.size]
    elif field.number:
        value = sum((byte & 127) << 7 * i for i, byte in enumerate(old))
        near = [max(0, value - 1), value + 1, 2 * value, value // 2]
        new = varint(int(random.choice(near)) if random.random() < 0.5 else NUMBERS[random.integers(len(NUMBERS))])
        if random.random() < 0.03:
            new = new[:-1] + bytes([new[-1] | 128]) + b"\0"
    else:
        new = _other_bytes(random, old)
    blob = tensor.blob[: field.start] + new + tensor.blob[field.start + field.size :]
    # The number before it is often its length.
    before = tensor.fields[place - 1]
    if (
        place
        and before.number
        and varint(len(old)) == tensor.blob[before.start : field.start]
        and random.random() < 0.8
    ):
        blob = blob[: before.start] + varint(len(new)) + blob[field.start :]
    return blob


def _other_bytes(random: np.random.Generator, old: bytes) -> bytes:
    how = random.integers(9)
    at = int(random.integers(len(old)))
    if how < 2:
        return old[:at] + bytes([old[at] ^ 1 << int(random.integers(8))]) + old[at + 1 :]
    if how == 2:
        return bytes([int(random.choice([0, 1, 255, random.integers(256)]))]) * len(old)
    if how == 3:
        return old[:at]
    if how == 4:
        return old + (b"\0", b"\xff", random.bytes(3))[random.integers(3)]
    if how == 5:
        return random.bytes(len(old))
    if how == 6:
        return (b"\xff" * 6 + old[6:])[: max(6, len(old))]
    if how == 7:
        small = FLOATS[random.integers(len(FLOATS))]
        with np.errstate(over="ignore"):
            small = small.astype(np.dtype(("f2", "f4", "f8")[random.integers(3)])).tobytes()
        at -= at % len(small)
        return (old[:at] + small + old[at + len(small) :])[: max(len(old), len(small))]
    return deflated(bytes(int(random.choice([0, len(old), 4 * len(old), 1 << 20]))))


def _bytes(random: np.random.Generator, blob: bytes, other: bytes) -> bytes:
    """A blob with a few bytes changed, cut, repeated or taken from another."""
    data = bytearray(blob)
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(len(data) + 1))
        how = random.integers(8)
        if how < 3 and at < len(data):
            data[at] = int(random.choice([0, 1, 127, 128, 255, data[at] ^ 1 << random.integers(8)]))
        elif how == 3:
            del data[at : at + int(random.integers(1, 9))]
        elif how == 4:
            data[at:at] = random.bytes(int(random.integers(1, 9)))
        elif how == 5:
            data[at : at + 1] = varint(int(random.choice([0, 1, 255, 65_535, 65_536, 2**31, 2**62, 2**63])))
        elif how == 6:
            data = data[:at]
        else:
            start = int(random.integers(len(other) + 1))
            data[at:] = other[start:]
    return bytes(data)


def _record(random: np.random.Generator, tensor: Tensor) -> Tensor:
    """A record with one field that lies."""
    how = random.integers(6)
    if how == 0:
        return replace(tensor, dtype=int(random.integers(0, 256)))
    if how == 1:
        big = [0, 1, 2, 255, 4096, 2**20, 2**31, 2**62, 2**63]
        shape = tuple(int(random.choice([n, n + 1, *big])) for n in tensor.shape)
        return replace(tensor, shape=shape)
    if how == 2:
        return replace(tensor, shape=(*tensor.shape, *[int(random.integers(0, 3))] * int(random.choice([1, 63, 65]))))
    if how == 3:
        return replace(tensor, size=int(random.choice([0, 1, len(tensor.blob) + 1, 2**40])))
    if how == 4:
        return replace(tensor, name=_name(random, tensor.name))
    return replace(tensor, same_as=int(random.integers(0, 4)))


WORDS = ("", "a", "ab", "format", "pt", "größe", "😀", "\0", "a" * 200)


def _texts(count: int) -> list[bytes]:
    """Metadata records as writers make them, some of them empty."""
    random = Random(count)
    pairs = [{random.choice(WORDS): random.choice(WORDS) for _ in range(random.randrange(5))} for _ in range(count)]
    return [pack(one).get(TAG, b"") for one in pairs]


def _metadata(random: np.random.Generator) -> bytes:
    """A metadata record that lies, or one that does not."""
    some = _texts(int(random.integers(2, 20)))
    record = some[-1]
    return record if random.random() < 0.3 else _bytes(random, record, some[0])


# Edits as writers make them, and each way to break a rule of theirs.
EDITS = (
    edits.pack([{"kind": "bypass", "module": "a"}])[edits.TAG],
    edits.pack([{"kind": "fold", "tensor": 'größe😀.\n"w'}, {"kind": "resize", "tensors": {"w": [3]}}])[edits.TAG],
    *(
        b"[]",
        b"{}",
        b"[1]",
        b'[{"kind":1}]',
        b'[{"kind":""}]',
        b'[{"kind":"a","since":0}]',
        b'[{"kind":"a","kind":"b"}]',
    ),
    *(b'[ {"kind":"a"}]', b'[{"kind":"a","n":1.5}]', b'[{"kind":"a","n":1e5}]', b'[{"kind":"a","n":NaN}]'),
    *(
        b'[{"kind":"a","n":9007199254740992}]',
        b'[{"kind":"\\ud800"}]',
        b'[{"kind":"\xff"}]',
        b'[{"kind":"\xed\xa0\x80"}]',
    ),
    b'[{"kind":"a","n":' + b"[" * 14 + b"]" * 14 + b"}]",
    b'[{"kind":"a","n":' + b"[" * 15 + b"]" * 15 + b"}]",
    b"[" * 100_000,
    b'[{"kind":"a","n":' + b"9" * 5000 + b"}]",
)


def _edits(random: np.random.Generator) -> bytes:
    """An extension record of edits that lie, or do not."""
    one, other = (EDITS[random.integers(len(EDITS))] for _ in range(2))
    content = one if random.random() < 0.4 else _bytes(random, one, other)
    return varint(edits.TAG) + varint(len(content)) + content


def _records(random: np.random.Generator) -> bytes:
    """Extension records of any tag, one after the other, whole or cut."""
    tags = random.integers(0, 9, int(random.integers(1, 5)))
    if random.random() < 0.5:
        tags = np.unique(tags) * 2
    found = b"".join(varint(int(tag)) + varint(3) + random.bytes(3) for tag in tags)
    return found if random.random() < 0.7 else _bytes(random, found, found)


def _name(random: np.random.Generator, name: bytes) -> bytes:
    """Another name: of bytes that are next to UTF-8's edges, or a long one."""
    leads = (
        b"",
        b"\x80",
        b"\xc0\x80",
        b"\xc3",
        b"\xe0\xa0",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xff" + b"\xbf" * 9,
    )
    lead = leads[random.integers(len(leads))]
    return lead + name * int(random.choice([0, 1, 50])) + random.bytes(int(random.integers(0, 3)))


def made(seed: int, number: int) -> bytes:
    """The file of a case."""
    random = np.random.default_rng((seed, number))
    files = valid(seed, number // LOT)
    tensors = list(files[random.integers(len(files))])
    others = files[random.integers(len(files))]
    place = int(random.integers(len(tensors)))
    how = random.integers(20)
    if how < 14:
        other = others[int(random.integers(len(others)))]
        blob = _field(random, tensors[place], other) if how < 9 else _bytes(random, tensors[place].blob, other.blob)
        if how == 0:
            blob = _bytes(random, blob, other.blob)
        tensors[place] = replace(tensors[place], blob=blob)
    elif how < 17:
        tensors[place] = _record(random, tensors[place])
    elif how == 17:
        tensors[place] = replace(tensors[place], blob=others[0].blob)
    elif how == 18:
        behind = b"".join(varint(int(random.integers(0, 300))) for _ in range(int(random.integers(1, 5))))
        if random.random() < 0.7:
            return build(
                tensors, behind=(b"", _records(random), _edits(random))[random.integers(3)], metadata=_metadata(random)
            )
        return build(tensors, int(random.integers(256)), int(random.integers(6)), behind)
    file = build(tensors, int(random.integers(5)))
    return file if how < 19 else _bytes(random, file, build(list(others)))


def check(file: bytes, traced: bool = False) -> str:
    """What came of decoding: "tensors" or the error's name; AssertionError where that is not allowed."""
    if traced:
        tracemalloc.start()
    start = time.process_time()
    try:
        found = decode(file, max_bytes=MOST_BYTES)
        assert sum(tensor.bits.nbytes for tensor in found.values()) <= MOST_BYTES
        outcome = "tensors"
    except FormatError as error:
        assert "\n" not in str(error)
        outcome = type(error).__name__
    spent = time.process_time() - start
    if traced:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_MEMORY, f"{peak} bytes of memory"
    assert traced or spent < MOST_SECONDS, f"{spent:.1f} s"
    return outcome


def compiled_agrees(file: bytes) -> bool:
    """Whether numba, for however few symbols, and numpy alone give the same tensors or the same error."""
    results: list[object] = []
    for module in (None, import_module("deepcompression.codec.kernels")):
        with patch.object(_numba, "kernels", lambda *_, module=module: module):
            try:
                found = decode(file, max_bytes=MOST_BYTES)
                results.append({name: tensor.bits.tobytes() for name, tensor in found.items()})
            except FormatError as error:
                results.append(type(error))
    return results[0] == results[1]


def run(seed: int, numbers: range) -> Counter[str]:
    """Outcomes of these cases; the first failure is raised with its number."""
    outcomes: Counter[str] = Counter()
    compiled = find_spec("numba") is not None
    for number in numbers:
        try:
            file = made(seed, number)
            outcomes[check(file, number % TRACED_EVERY == 0)] += 1
            if compiled and number % COMPILED_EVERY == 0:
                assert compiled_agrees(file), "numba and numpy differ"
        except Exception as error:
            again = f"python tests/fuzz.py --seed {seed} --first {number} --cases 1"
            raise AssertionError(f"case {number} of seed {seed}: {error!r}; again: {again}") from error
    return outcomes


def write_corpus(folder: Path) -> int:
    """Write files to start from to `folder`; their number."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [build(list(tensors), metadata=texts) for tensors, texts in zip(valid(0, 0), _texts(100), strict=True)]
    files += [build(list(valid(0, 0)[0]), behind=varint(edits.TAG) + varint(len(one)) + one) for one in EDITS[:-2]]
    for path in sorted((Path(__file__).parent / "golden").glob("*.dcz")):
        files += [file for file in _split(path) if len(file) <= MOST_SEED]
    files += [build([Tensor(name, 6, (0,), b"")]) for name in (b"\x80" * 10, b"\xff" + b"\xbf" * 9, "ö€😀".encode())]
    for number, file in enumerate(files):
        (folder / f"seed-{number:04}").write_bytes(file)
    return len(files)


def _split(path: Path) -> list[bytes]:
    """Each tensor of a .dcz file in a file of its own."""
    content = path.read_bytes()
    index = reader.index_of(reader.Mapped(memoryview(content)))
    return [
        build([Tensor(b"w", DTYPES[e.dtype].number, e.shape, content[e.offset : e.offset + e.size])])
        for e in index.entries
        if e.same_as is None
    ]


def _worker(seed: int, numbers: range) -> Counter[str]:
    os.environ["DEEPCOMPRESSION_THREADS"] = "1"
    if seed % 2:
        small_chunks(setattr, CHUNK)
    return run(seed, numbers)


def main() -> None:
    """Run so many cases, half of them with tiny chunks, and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument(
        "--seed", type=int, default=None, help="one seed alone (odd ones have tiny chunks); default: 0 and 1"
    )
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--corpus", type=Path, metavar="FOLDER", help="write a seed corpus and stop")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if options.corpus is not None:
        print(f"{options.corpus}: {write_corpus(options.corpus)} files")
        return
    seeds = [options.seed] if options.seed is not None else [0, 1]
    each = -(-options.cases // len(seeds))
    step = min(each, 5_000)
    last = options.first + each
    tasks = [(seed, range(i, min(i + step, last))) for i in range(options.first, last, step) for seed in seeds]
    total: Counter[str] = Counter()
    start = time.perf_counter()
    with ProcessPoolExecutor(options.processes, max_tasks_per_child=1 if len(seeds) > 1 else None) as pool:
        for outcomes in pool.map(_worker, *zip(*tasks, strict=True)):
            total += outcomes
            done = sum(total.values())
            print(f"{done} cases, {done / (time.perf_counter() - start):.0f} a second", file=sys.stderr, flush=True)
    print(f"{sum(total.values())} cases, no failure: " + ", ".join(f"{n} {name}" for name, n in total.most_common()))


if __name__ == "__main__":
    main()
