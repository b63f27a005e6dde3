"""How long our functions and files are: `python tests/measure_code.py` shows it, tests/test_code.py holds it.

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


def long_files() -> dict[str, int]:
    """Lines of the files over the limit whose first lines give no reason: a sentence that begins "One file: "."""
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in source_files()}
    long = {path: size for path, size in sizes.items() if size > LONGEST_FILE}
    return {name_of(path): size for path, size in long.items() if "One file: " not in (_docstring(path) or "")}


def without_args() -> list[str]:
    """Public functions of the library with three parameters or more whose docstring has no Args.

    A method that overrides another, or is one of a protocol, says nothing anew; a command's parameters are in its help.
    """
    known = _of_protocols()
    return [
        f"{name_of(path)}: {node.name}"
        for path in source_files()
        if path.is_relative_to(ROOT / "deepcompression")
        for node in _public(ast.parse(path.read_text(encoding="utf-8")).body)
        if _count(node.args) >= 3 and node.name not in known and "Args:" not in (ast.get_docstring(node) or "")
    ]


def any_keywords() -> list[str]:
    """Public functions of the library that take `**keywords: Any`, which mypy cannot check."""
    return [
        f"{name_of(path)}: {node.name}"
        for path in source_files()
        if path.is_relative_to(ROOT / "deepcompression")
        for node in _public(ast.parse(path.read_text(encoding="utf-8")).body)
        if node.args.kwarg and ast.unparse(node.args.kwarg.annotation or ast.Constant(None)) == "Any"
    ]


def name_of(path: Path) -> str:
    """A file, from the root."""
    return path.relative_to(ROOT).as_posix()


def ninth_decile(values: list[int]) -> int:
    """The value that nine in ten do not exceed."""
    return sorted(values)[max(0, -(-len(values) * 9 // 10) - 1)]


def _public(body: list[ast.stmt]) -> Iterator[ast.FunctionDef]:
    """Functions of a module, and methods of its classes that derive from nothing; no commands, no overloads."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and not node.bases:
            yield from _public(node.body)
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            decorators = {ast.unparse(one).partition("(")[0] for one in node.decorator_list}
            if not decorators & {"app.command", "overload"}:
                yield node


def _of_protocols() -> set[str]:
    """Methods of protocols that say what they take."""
    classes = [
        node
        for path in source_files()
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases)
    ]
    methods = [one for node in classes for one in node.body if isinstance(one, ast.FunctionDef)]
    return {one.name for one in methods if "Args:" in (ast.get_docstring(one) or "")}


def _count(arguments: ast.arguments) -> int:
    named = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")])


def _functions_of(path: Path) -> Iterator[Function]:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    code = _lines_with_code(text) - _docstring_lines(tree)
    name = name_of(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(name, node.name, len(code.intersection(range(node.lineno, (node.end_lineno or 0) + 1))))


def _docstring(path: Path) -> str | None:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


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
    print(f"{len(source_files())} files; over {LONGEST_FILE} lines without a reason: {long_files() or 'none'}")
    print("public functions without Args:", *(without_args() or ["none"]), sep="\n  ")
    print("public functions with **Any:", *(any_keywords() or ["none"]), sep="\n  ")


if __name__ == "__main__":
    main()
