"""How long our functions and files are: `python tests/measure_code.py` shows it, tests/test_architecture.py holds it.

A code line is one with code on it: no docstring, comment or blank line; a function's signature and the functions
within it count.
"""

import ast
import io
import statistics
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("deepcompression", "tasks", "flows")

MEDIAN, NINTH_DECILE, LONGEST = 7, 18, 60
LONGEST_FILE = 350
# One text, plain Python and compiled by numba; its file says why it is one.
LONG_ON_PURPOSE = frozenset({("deepcompression/codec/arithmetic_loop.py", "run")})

_NO_CODE = frozenset(
    {
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENCODING,
        tokenize.ENDMARKER,
    }
)


@dataclass(frozen=True)
class Function:
    """One function: the file it is in, from the root, its name and its code lines."""

    file: str
    name: str
    lines: int


def source_files() -> list[Path]:
    """Every Python file of the three packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def functions() -> list[Function]:
    """Every function of the three packages, methods and inner functions too, the longest first."""
    found = [function for path in source_files() for function in _functions_of(path)]
    return sorted(found, key=lambda function: -function.lines)


def ninth_decile(values: list[int]) -> int:
    """The value that nine in ten do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 9 // 10) - 1)]


def _functions_of(path: Path) -> Iterator[Function]:
    text = path.read_text()
    tree = ast.parse(text)
    code = _lines_with_code(text) - _docstring_lines(tree)
    name = path.relative_to(ROOT).as_posix()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(name, node.name, len(code.intersection(range(node.lineno, (node.end_lineno or 0) + 1))))


def _lines_with_code(text: str) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {line for token in tokens if token.type not in _NO_CODE for line in range(token.start[0], token.end[0] + 1)}


def _docstring_lines(tree: ast.AST) -> set[int]:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    first = [node.body[0] for node in ast.walk(tree) if isinstance(node, documented) and ast.get_docstring(node)]
    return {line for node in first for line in range(node.lineno, (node.end_lineno or 0) + 1)}


def main() -> None:
    """Prints the figures, the longest functions, and the files over the limit."""
    found = functions()
    lines = [function.lines for function in found]
    print(
        f"{len(found)} functions: median {statistics.median(lines):g}, 90th percentile {ninth_decile(lines)}, "
        f"longest {max(lines)}"
    )
    for function in found[:20]:
        print(f"{function.lines:5} {function.file}: {function.name}")
    sizes = {path: len(path.read_text().splitlines()) for path in source_files()}
    print(f"{len(sizes)} files: median {statistics.median(sizes.values()):g} lines; over {LONGEST_FILE}:")
    for path, size in sorted(sizes.items(), key=lambda item: -item[1]):
        if size > LONGEST_FILE:
            print(f"{size:5} {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
