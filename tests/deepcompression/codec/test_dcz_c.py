"""The decoder in C, written from FORMAT.md alone: the second reader that the format's text is checked with."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import fuzz
import numpy as np
import pytest
from forged import one, record, sealed, varint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import arrays, bit_tensors, layers, on_grid

from deepcompression.codec.dtypes import DTYPES, RawTensor, unsigned
from deepcompression.codec.file import CODERS, decode, encode, load
from deepcompression.errors import FormatError
from deepcompression.formats import safetensors

ROOT = Path(__file__).resolve().parents[3]
SOURCE = ROOT / "deepcompression" / "codec" / "c" / "dcz.c"
GOLDEN = sorted((ROOT / "tests" / "golden").glob("v[12]-[!e]*.dcz"))
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")

MALFORMED = 5

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C compiler (cc, gcc or clang) on this machine")

# Each file is a length and as many bytes, copied to memory of just that size, where the sanitizer sees every step over.
DRIVER = """
#define DCZ_NO_MAIN
#include "dcz.c"

static dcz_status decode_file(const uint8_t *bytes, size_t size) {
    dcz_error error;
    dcz *file = dcz_open(bytes, size, 1 << 22, &error);
    dcz_metadata one;
    for (size_t at = 0; file != NULL && dcz_next_metadata(file, &at, &one);)
        if (one.key_length + one.text_length > size)
            abort();
    for (size_t i = 0; file != NULL && error.status == DCZ_OK && i < dcz_count(file); i++) {
        void *out = malloc(dcz_bytes(file, i) + (dcz_bytes(file, i) == 0));
        (void)dcz_decode(file, i, out, &error);
        free(out);
    }
    dcz_close(file);
    return error.status;
}

int main(void) {
    uint8_t length[4];
    while (fread(length, 1, 4, stdin) == 4) {
        size_t size = (size_t)get_le(length, 4);
        uint8_t *bytes = malloc(size);
        if (bytes == NULL || fread(bytes, 1, size, stdin) != size)
            return 1;
        printf("%d\\n", (int)decode_file(bytes, size));
        free(bytes);
    }
    return 0;
}
"""


def build(source: Path, program: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [str(COMPILER), *options, f"-I{SOURCE.parent}", "-o", str(program), str(source)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("dcz") / "dcz-decode"
    built = build(SOURCE, path, *STRICT, "-O2")
    assert built.returncode == 0, built.stderr
    return path


def run(program: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=200)


def check(program: Path, file: Path, expected: dict[str, RawTensor]) -> None:
    """The C program writes just these tensors, in their order."""
    out = file.with_suffix(".safetensors")
    done = run(program, file, out)
    assert (done.returncode, done.stderr) == (0, "")
    decoded = safetensors.read(out)
    assert list(decoded) == list(expected)
    for name, tensor in expected.items():
        assert decoded[name].dtype == tensor.dtype
        assert decoded[name].bits.shape == tensor.bits.shape
        assert decoded[name].bits.tobytes() == tensor.bits.tobytes(), name


def refused(program: Path, file: Path, *options: object) -> str:
    """The one line that the program has to say of a bad file."""
    done = run(program, file, *options)
    assert done.returncode == 2, done
    assert done.stderr.count("\n") == 1
    assert done.stderr.isprintable() or done.stderr[:-1].isprintable()
    assert str(file) in done.stderr
    return done.stderr.split(f"{file}: ")[1].rstrip()


def bits_of(array: np.ndarray) -> RawTensor:
    native = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
    return RawTensor(native.view(unsigned(native.dtype.name)), native.dtype.name)


def samples() -> list[RawTensor]:
    """One tensor for each way that writers choose: many values, few, on grids, in groups, sparse, with dead rows."""
    generator = np.random.default_rng(1)
    shape, of_rows = (32, 32), (32, 1)
    integers, scales = generator.integers(-7, 8, shape), generator.uniform(1, 2, of_rows).astype(np.float32)
    many, book = generator.normal(size=shape).astype(np.float32), generator.normal(size=3).astype(np.float32)
    few = book[generator.integers(0, 3, shape)]
    sparse = generator.random(shape) < 0.1
    alive = (generator.random(of_rows) < 0.4) & (generator.random((1, 32)) < 0.4)
    zero = np.float32(0)
    plain = [many, few, np.where(sparse, many, zero), np.where(sparse, few, zero)]
    plain += [np.where(alive, many, zero), np.where(alive, few, zero), sparse, integers, few.astype(np.float16)]
    grids = [on_grid(integers, scales, "float32"), on_grid(integers, scales[:1], "bfloat16")]
    grids.append(on_grid(np.where(integers == 0, -0.0, 16.0 * integers + sparse), scales.T, "float32"))
    kept = generator.random((8, 32)).repeat(4, axis=0) < 0.4, generator.random((8, 4, 32)).argsort(axis=1) < 2
    plain += [np.where(one.reshape(shape), few, zero) for one in kept]
    return [*map(bits_of, plain), *grids, on_grid(integers * sparse, scales[:1], "float16")]


def test_compiles_without_warnings_everywhere(tmp_path: Path) -> None:
    """No level of optimization finds a doubtful conversion or a variable without value, with the program or without
    or in the fuzzer."""
    for options in (("-O0",), ("-O3",), ("-O2", "-DDCZ_NO_MAIN", "-c")):
        assert build(SOURCE, tmp_path / "out", *STRICT, *options).stderr == ""
    assert build(ROOT / "tests" / "fuzz_dcz.c", tmp_path / "out", *STRICT, "-O0", "-c").stderr == ""


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_golden_files(program: Path, tmp_path: Path, path: Path) -> None:
    """What Python reads from the golden files, C reads too."""
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    check(program, copy, load(path, raw=True))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(arrays(), bit_tensors(), layers()), max_size=3))
def test_agrees_with_python(program: Path, tmp_path: Path, tensors: Sequence[np.ndarray | RawTensor]) -> None:
    """All dtypes, shapes and layouts, by every coder, are the same bits to C as they were before encoding."""
    named = {f"layer.{i}": tensor for i, tensor in enumerate(tensors)}
    expected = {name: t if isinstance(t, RawTensor) else bits_of(t) for name, t in named.items()}
    for coder in CODERS:
        path = tmp_path / "made.dcz"
        path.write_bytes(encode(named, coder))
        check(program, path, expected)


@pytest.mark.parametrize("coder", ["huffman", "adaptive"])
def test_agrees_with_python_on_many_chunks(program: Path, tmp_path: Path, coder: str) -> None:
    """Tensors beyond one chunk and one block of codes are put together from theirs, and regions of floats."""
    generator = np.random.default_rng(2)
    book = generator.normal(size=16).astype(np.float32)
    codes = np.minimum(generator.geometric(0.3, (2400, 2000)) - 1, 15)
    kept = generator.random(codes.shape) < np.linspace(0, 0.2, 2000)
    path = tmp_path / "made.dcz"
    tensors = {"sparse": np.where(kept, book[codes], np.float32(0)), "dense": codes[:700].astype(np.uint8)}
    scale = np.repeat(np.exp2(generator.integers(-20, 0, 40)), 1 << 15).astype(np.float32)
    tensors["regions"] = generator.standard_normal(scale.size, np.float32) * scale
    path.write_bytes(encode(tensors, coder))
    check(program, path, {name: bits_of(tensor) for name, tensor in tensors.items()})


def test_names_and_references(program: Path, tmp_path: Path) -> None:
    """Names that JSON must escape, empty tensors, scalars and equal tensors come out as they went in."""
    names = ["", 'a"b\\c', "line\nbreak\ttab\0zero\x7f", "größe 😀", "größ", "__metadata__."]
    tensors: dict[str, np.ndarray] = {name: np.arange(3.0) for name in names}
    tensors |= {"scalar": np.array(7, np.int16), "empty": np.zeros((0, 3)), "deep": np.ones((1,) * 20)}
    path = tmp_path / "made.dcz"
    path.write_bytes(encode(tensors))
    check(program, path, {name: bits_of(tensor) for name, tensor in tensors.items()})


def test_every_cut_and_every_flipped_bit_is_named(program: Path, tmp_path: Path) -> None:
    """A file that lost its end or changed anywhere exits with 2 and one line; nothing is written, nothing left over."""
    content = encode({"w": np.eye(5, dtype=np.float32), "v": np.arange(9)}, "adaptive")
    path, out = tmp_path / "bad.dcz", tmp_path / "out.safetensors"
    for cut in range(0, len(content), 3):
        path.write_bytes(content[:cut])
        assert ("truncated" if cut else "not a .dcz file") in refused(program, path)
    for at in range(0, len(content), 2):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :])
        refused(program, path)
    assert run(program, path, out).returncode == 2
    assert [file.name for file in tmp_path.iterdir()] == ["bad.dcz"]


GOOD = one(b"\x00\x00" + bytes(32))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        (b"PK\x03\x04" + GOOD[4:], "magic: not a .dcz file"),
        (GOOD[:4] + b"\x03" + GOOD[5:], "version: unknown"),
        (GOOD[:20], "index: truncated"),
        (GOOD[:-1], "tensor 0 'w': blob: truncated"),
        (GOOD[:14] + b"\x02" + GOOD[15:], "index: checksum"),
        (GOOD[:-1] + b"\x01", "tensor 0 'w': blob: checksum"),
        (GOOD + b"\x00", "file: bytes behind"),
        (one(b"\x80\x00" + bytes(32)), "tensor 0 'w': form: unknown"),
        (one(b"\x00\x00" + bytes(31)), "tensor 0 'w': raw values: too few"),
        (one(b"\x04\x01\x00" + bytes(8) + b"\x01\x00"), "tensor 0 'w': codebook: does not ascend"),
        (one(b"\x00\x00" + bytes(32), dtype=14), "tensor 0 'w': dtype: unknown"),
        (one(b"\x00\x00" + bytes(32), behind=b"\x01\x00"), "extension: an odd tag"),
        (one(b"\x00\x00" + bytes(1 << 20), shape=(1 << 30,)), "tensor 0 'w': shape: too large"),
        (sealed(b"\x02" + 2 * record(b"w", "uint8", (0,), b"")), "tensor 1 'w': name: that of another"),
        (sealed(b"\x01" + record(b"\xff", "uint8", (0,), b"")), "tensor 0 '?': name: not UTF-8"),
    ],
)
def test_each_kind_of_error_has_its_line(program: Path, tmp_path: Path, file: bytes, line: str) -> None:
    """Whoever sees the message knows whether the file is another's, newer, cut, damaged, wrong or too large."""
    path = tmp_path / "bad.dcz"
    path.write_bytes(file)
    assert refused(program, path, "--max-bytes", 1 << 20).startswith(line)


def test_machine_failures_exit_with_1(program: Path, tmp_path: Path) -> None:
    """A file that is fine is not blamed for a folder or an argument that is not."""
    path = tmp_path / "fine.dcz"
    path.write_bytes(GOOD)
    assert run(program, path).returncode == 0
    for arguments in (
        (path, tmp_path / "missing" / "out.safetensors"),
        (tmp_path / "missing.dcz",),
        ("--max-bytes", "much", path),
        (),
    ):
        done = run(program, *arguments)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    path.write_bytes(encode({"__metadata__": np.ones(3)}))
    assert run(program, path, tmp_path / "out").returncode == 2


def sealed_again(shape: Sequence[int], dtype: str, blob: bytes, generator: random.Random) -> bytes:
    """A file of one tensor whose blob or index is changed at a few places, with all checksums right again."""
    index = bytearray(b"\x01" + record(b"w", dtype, shape, blob))
    body = bytearray(blob)
    victim = index if generator.random() < 0.1 else body
    for _ in range(generator.choice([1, 1, 2, 4])):
        # Heads are short and say most.
        at = generator.randrange(min(len(victim), generator.choice([4, 16, 64, 1 << 20])))
        change = generator.randrange(4)
        if change == 0:
            victim[at] ^= 1 << generator.randrange(8)
        elif change == 1:
            victim[at] = generator.choice([0, 1, 127, 128, 255])
        elif change == 2 and len(victim) > 1:
            del victim[at]
        else:
            victim.insert(at, generator.randrange(256))
    if victim is index:
        return sealed(bytes(index), blob, version=2)
    return sealed(b"\x01" + record(b"w", dtype, shape, bytes(body)), bytes(body), version=2)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder under the address and undefined-behaviour sanitizers, reading files one after the other."""
    folder = tmp_path_factory.mktemp("driver")
    path, source = folder / "driver", folder / "driver.c"
    source.write_text(DRIVER)
    built = build(source, path, *STRICT, "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    if built.returncode:
        pytest.skip(f"no sanitizers with this C compiler: {built.stderr.strip().splitlines()[-1]}")
    return path


def statuses_of(driver: Path, files: Sequence[bytes]) -> list[int]:
    """What the sanitized decoder makes of each file; 0 is sound."""
    stream = b"".join(len(file).to_bytes(4, "little") + file for file in files)
    done = subprocess.run([driver], input=stream, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    statuses = [int(line) for line in done.stdout.split()]
    assert len(statuses) == len(files)
    return statuses


def test_survives_hostile_files(driver: Path) -> None:
    """No byte that an attacker sets, checksums and all, makes it read or write where it must not, hang or overflow."""
    generator, files = random.Random(3), []
    for tensor in samples():
        for coder in CODERS:
            content = encode({"w": tensor}, coder)
            blob = content[14 + int.from_bytes(content[6:10], "little") :]
            shape = tensor.bits.shape
            files += [sealed_again(shape, tensor.dtype, blob, generator) for _ in range(70)]
            files.append(content)
    statuses = statuses_of(driver, files)
    assert len(files) > 3000
    assert statuses.count(0) >= len(files) // 71
    assert set(statuses) <= {0, 3, 4, 5, 6}


def test_refuses_what_python_refuses(driver: Path) -> None:
    """Of broken files with right checksums both decoders take the same ones; edits aside, which C passes over."""
    files = [fuzz.made(5, number) for number in range(150)]

    def verdict(file: bytes) -> bool:
        try:
            decode(file, max_bytes=1 << 22)
        except FormatError as error:
            return "edits" in str(error)
        return True

    found = [status == 0 for status in statuses_of(driver, files)]
    assert found == [verdict(file) for file in files]
    assert found.count(True) > 5


def named(name: bytes) -> bytes:
    """A file with one tensor of this name."""
    return sealed(b"\x01" + record(name, "uint8", (0,), b""))


EDGES = [
    *(
        b"\x80" + bytes([0x80] * 9),
        b"\xff" + bytes([0xBF] * 9),
        b"\xbf" * 10,
        b"\xf8" + b"\x80" * 9,
    ),  # found by fuzzing
    *(
        b"\xc0\x80",
        b"\xc1\xbf",
        b"\xe0\x9f\xbf",
        b"\xf0\x8f\xbf\xbf",
        b"\xc2\x80",
        b"\xe0\xa0\x80",
        b"\xf0\x90\x80\x80",
    ),
    *(b"\xed\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xee\x80\x80", b"\xf4\x8f\xbf\xbf", b"\xf4\x90\x80\x80"),
    *(b"\xc2", b"\xe2\x82", b"\xf0\x9f\x98", b"a\xc2", b"\xc2a", b"\xf5\x80\x80\x80", b"\xfb\xbf\xbf\xbf\xbf"),
]


def test_names_are_strict_utf8(driver: Path) -> None:
    """C refuses just the names that Python does: too long forms, surrogates, beyond U+10FFFF, cut short, no lead."""
    generator = random.Random(5)
    leads = [0x41, 0x7F, 0x80, 0xBF, 0xC0, 0xC2, 0xDF, 0xE0, 0xE2, 0xED, 0xEF, 0xF0, 0xF3, 0xF4, 0xF5, 0xF8, 0xFF]
    followers = [0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF]
    names = [bytes([generator.choice(leads), *generator.choices(followers, k=n % 10)]) for n in range(2000)] + EDGES

    def allowed(name: bytes) -> bool:
        try:
            decode(named(name))
        except FormatError:
            return False
        return True

    statuses = statuses_of(driver, [named(name) for name in names])
    assert [status == 0 for status in statuses] == [allowed(name) for name in names]
    assert {*statuses[-len(EDGES) :][:4]} == {MALFORMED}


def test_output_never_follows_a_link(program: Path, tmp_path: Path) -> None:
    """A link that waits where the unfinished file was expected leads nowhere; nothing is left but the output."""
    path, out, victim = tmp_path / "fine.dcz", tmp_path / "out.safetensors", tmp_path / "victim"
    path.write_bytes(GOOD)
    victim.write_text("mine")
    (tmp_path / "out.safetensors.part").symlink_to(victim)
    assert run(program, path, out).returncode == 0
    assert victim.read_text() == "mine" and list(safetensors.read(out)) == ["w"]
    assert sorted(tmp_path.iterdir()) == sorted([path, out, victim, tmp_path / "out.safetensors.part"])


def test_devices_and_endless_input(program: Path, tmp_path: Path) -> None:
    """A pipe is not renamed over, an input that never ends is not read to the end of memory, a missing one is told."""
    path = tmp_path / "fine.dcz"
    path.write_bytes(GOOD)
    os.mkfifo(tmp_path / "pipe")
    done = run(program, path, tmp_path / "pipe")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1) and "no ordinary file" in done.stderr
    assert refused(program, Path("/dev/zero")) == "magic: not a .dcz file"
    for bad in (tmp_path / "missing", tmp_path):
        done = run(program, bad)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "pipe"]


def test_the_sum_of_all_tensors_is_bounded(program: Path, tmp_path: Path) -> None:
    """A thousand references to one tensor count a thousand times, before anything is written."""
    stored = record(b"w", "float32", (8,), b"\x00\x00" + bytes(32))
    others = b"".join(varint(0) + varint(3) + b"%03d" % i + b"\x00\x00" for i in range(999))
    path, out = tmp_path / "many.dcz", tmp_path / "out.safetensors"
    path.write_bytes(sealed(varint(1000) + stored + others, b"\x00\x00" + bytes(32)))
    assert "too large" in refused(program, path, out, "--max-bytes", 31_999)
    assert run(program, path, out, "--max-bytes", 32_000).returncode == 0


def test_metadata(program: Path, driver: Path, tmp_path: Path) -> None:
    """C writes the metadata that Python kept, with and without tensors, and refuses the records that Python does."""
    kept = {"format": "pt", "": "", 'q"\\': "größe 😀\n\0"}
    for tensors in ({"w": np.ones(3)}, {}):
        path, out = tmp_path / "made.dcz", tmp_path / "out.safetensors"
        path.write_bytes(encode(tensors, metadata=kept))
        assert run(program, path, out).returncode == 0
        assert safetensors.TensorFile(out).metadata == kept
    lies = [
        b"\1b\0\1a\0",
        b"\1a\0\1a\0",
        b"\2ab\0\1a\0",
        b"\1\xff\0",
        b"\1a\3\xed\xa0\x80",
        b"\1a",
        b"\5ab",
        b"\x81\0a\0",
    ]
    lies.append(b"\1a" + varint(1 << 20) + bytes(1 << 20))
    sound = [b"", b"\0\0", b"\0\0\1a\0\2ab\0", b"\1a" + varint((1 << 20) - 5) + bytes((1 << 20) - 5)]
    files = [sealed(b"\0\2" + varint(len(record_)) + record_) for record_ in [*lies, *sound]]
    assert statuses_of(driver, files) == [MALFORMED] * len(lies) + [0] * len(sound)
    for file in files[: len(lies)]:
        with pytest.raises(FormatError):
            decode(file)


def test_edits_are_passed_over(program: Path, tmp_path: Path) -> None:
    """The golden file with edits decodes to its tensors and metadata; that its edits are not kept is said."""
    path, out = ROOT / "tests" / "golden" / "v1-edits.dcz", tmp_path / "out.safetensors"
    done = run(program, path, out)
    assert done.returncode == 0
    assert done.stderr == (
        f"dcz-decode: {path}: its edits, without which the tensors do not fit the model, are NOT written\n"
    )
    decoded, expected = safetensors.read(out), load(path, raw=True)
    assert {name: raw.bits.tobytes() for name, raw in decoded.items()} == {
        name: raw.bits.tobytes() for name, raw in expected.items()
    }
    assert safetensors.TensorFile(out).metadata == {"format": "pt"}
    assert (run(program, path).returncode, run(program, path).stderr) == (0, "")


def test_reads_every_stored_type(program: Path, tmp_path: Path) -> None:
    """Every dtype has its safetensors name in C."""
    tensors = {name: RawTensor(np.arange(2, dtype=unsigned(name)), name) for name in DTYPES}
    path = tmp_path / "made.dcz"
    path.write_bytes(encode(tensors))
    check(program, path, tensors)
