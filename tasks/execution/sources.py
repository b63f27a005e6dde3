"""Digests of code: what a stage runs is part of what made its result. Found by walking what each file imports."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from tasks.execution.specs import SPEC
from tasks.root import CODE

LIBRARY = "deepcompression"
TASKS = "tasks"
PARSES = 100  # tries of one text
STANDARD = Path(sysconfig.get_paths()["stdlib"])
# What imports a module by its name as a text; and what runs files, or all modules that it finds.
BY_NAME = frozenset(("import_module", "__import__", "run_module", "locate"))
BY_FILE = frozenset(
    (
        "exec", "run_path", "spec_from_file_location", "SourceFileLoader", "load_source", "iter_modules",
        "walk_packages",
    )
)  # fmt: skip
# Modules and packages of ``tasks`` that decide no result: they show, log, keep and find again. No walk enters them.
OUTSIDE = frozenset(
    (
        "tasks.machine", "tasks.registry", "tasks.report", "tasks.storage", "tasks.tracking", "tasks.upkeep",
        "tasks.console", "tasks.root", "tasks.secrets", "tasks.execution.execute", "tasks.execution.keys",
        "tasks.execution.patterns", "tasks.execution.sources", "tasks.execution.specs", "tasks.execution.stage",
        "tasks.execution.warned", "tasks.stages.verify",
    )
)  # fmt: skip


@lru_cache
def code_digest(*modules: str) -> str:
    """SHA-256 over the sources of modules of this project and of all of it that they import, transitively.

    Args:
        modules: such as ``tasks.stages.prune`` or ``deepcompression.torch``. Of ``tasks`` only what decides is entered.

    Raises:
        ModuleNotFoundError: one of them, or something that they import, is no module of this project.
    """
    reached: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in reached or (_is_outside(name) and name not in modules):
            continue
        reached[name] = _project_file(name)
        waiting += _imported_here(name, reached[name])
    return _digest((str(path.relative_to(CODE)), path) for path in reached.values())


def _is_outside(module: str) -> bool:
    return any(module == one or module.startswith(f"{one}.") for one in OUTSIDE)


@lru_cache
def factory_digest(spec: str) -> str:
    """What identifies the code behind ``package.module:callable``: as it was when this process first asked.

    A file that changes later does not change what the process has imported. The library's own modules go by their
    sources; of others count the sources of every module that is not installed, as they import each other, and the
    versions of those that are.
    """
    return _factory_digest(spec)


def changed(specs: Iterable[str]) -> list[str]:
    """Those of the callables whose code is another on disk by now than what this process goes by."""
    return [spec for spec in specs if factory_digest(spec) != _factory_digest(spec)]


def _factory_digest(spec: str) -> str:
    module = spec.partition(":")[0]
    if module.partition(".")[0] == LIBRARY:
        return code_digest(module)
    found = imports_of(module)
    versions_ = sorted(f"{top} {_version(top)}" for top in found.installed)
    return f"{_digest(found.files.items())} {' '.join(versions_)}"


@dataclass(frozen=True)
class Imports:
    """What a module needs: ``files`` of the user's own modules by name, top-level names of ``installed`` packages."""

    files: Mapping[str, Path]
    installed: frozenset[str]

    @property
    def own(self) -> set[str]:
        """Top-level names of the user's own modules."""
        return {name.partition(".")[0] for name in self.files}


def imports_of(module: str) -> Imports:
    """A module and all that it imports, also inside functions and through others; the standard library left out.

    Names that cannot be found (an optional dependency) are left out, as is this library. A file that imports what it
    computes at run time brings all modules of the package that the name begins with, or, where it begins with none, of
    its own package; where it is in none, of its folder. What is compiled, or in an archive, counts as a file.
    """
    files: dict[str, Path] = {}
    installed, seen = set[str](), set[str]()
    waiting: list[tuple[str, Path | None]] = [(module, None)]
    while waiting:
        name, path = waiting.pop()
        top = name.partition(".")[0]
        if name in seen or top == LIBRARY:
            continue
        seen.add(name)
        kind = "own" if path else _kind(top)
        if kind == "installed":
            installed.add(top)
        elif kind == "own" and (path := path or _file(name)) is not None:
            files[name] = path
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            read = _read(_text(name, path), package)
            waiting += [(one, None) for one in [name.rpartition(".")[0] or name, *_names(read.pairs), *read.below]]
            for outer in read.below:
                waiting += [found for folder in _folders(outer) for found in _modules(folder, f"{outer}.")]
            if read.computed:
                waiting += _beside(name, path)
    return Imports(files, frozenset(installed))


def versions() -> dict[str, str]:
    """Versions that can change a result's bits."""
    names = ("torch", "numpy", "scikit-learn", "scipy")
    return {"python": sys.version.split()[0], **{name.replace("-", "_"): _version(name) for name in names}}


def _project_file(name: str) -> Path:
    """The source of a module or package of this project."""
    place = CODE.joinpath(*name.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    raise ModuleNotFoundError(f"{name}: this project has no module of this name to take a digest of", name=name)


def _imported_here(name: str, path: Path) -> Iterator[str]:
    """Modules of this project that a file of it imports, or names in a text: of ``from package import x`` the module x,
    if it is one."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    read = _read(path.read_bytes(), package)
    for base, attribute in (*read.pairs, *((spec, "") for spec in read.specs)):
        if base.partition(".")[0] not in (LIBRARY, TASKS):
            continue
        inner = f"{base}.{attribute}" if attribute else base
        try:
            _project_file(inner)
        except ModuleNotFoundError:
            inner = base
        # A package of this name alone only names its parts; what it re-exports lazily is no part of a training.
        if inner not in (LIBRARY, TASKS):
            yield inner


def _names(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Every name that imports could mean as a module."""
    for base, attribute in pairs:
        yield base
        if attribute:
            yield f"{base}.{attribute}"


@dataclass(frozen=True)
class _Read:
    """What a file imports: ``pairs`` (module, "") or (module, what is taken from it).

    ``specs``: modules of texts of the form ``package.module:callable``, as tables of methods have them.
    ``below``: packages of which it imports modules whose names it computes; ``computed``: whether it computes others.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    specs: tuple[str, ...] = ()
    below: tuple[str, ...] = ()
    computed: bool = False


def _parsed(text: bytes) -> ast.Module:
    """Python 3.11 counts how deep it is in one number for all threads, and gives up where another parses meanwhile."""
    for _ in range(PARSES - 1):
        with contextlib.suppress(SystemError):
            return ast.parse(text)
    return ast.parse(text)


@lru_cache(maxsize=1000)  # stages share most of what they import
def _read(text: bytes, package: str) -> _Read:
    """All imports of Python source, at its top or inside a function; relative ones resolved."""
    try:
        tree = _parsed(text)
    except (SyntaxError, ValueError):  # not Python: importing it will tell
        return _Read()
    pairs: list[tuple[str, str]] = []
    begun: list[str] = []
    nodes = list(ast.walk(tree))
    called = {one.asname: one.name for node in nodes if isinstance(node, ast.ImportFrom) for one in node.names}
    for node in nodes:
        if isinstance(node, ast.Import):
            pairs += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _resolved("." * node.level + (node.module or ""), package)
            pairs += [(base, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call):
            name = called.get(_called(node), _called(node))
            begun += [""] if name in BY_FILE else []
            if name in BY_NAME:
                begins, whole = _beginning(_first_argument(node))
                module = _resolved(begins, package)
                pairs += [(module, ""), (module.rpartition(".")[0] or module, "")] if whole else []
                begun += [] if whole else [module.rpartition(".")[0]]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    specs = tuple(text.partition(":")[0] for text in texts if SPEC.fullmatch(text))
    return _Read(tuple(pairs), specs, tuple(filter(None, begun)), "" in begun)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _first_argument(call: ast.Call) -> ast.expr | None:
    return call.args[0] if call.args else next((one.value for one in call.keywords if one.arg == "name"), None)


def _beginning(node: ast.expr | None) -> tuple[str, bool]:
    """How a computed text begins, as far as that stands in the source; whether that is all of it."""
    if isinstance(node, ast.Constant):
        return (node.value, True) if isinstance(node.value, str) else ("", False)
    if isinstance(node, ast.JoinedStr) and node.values:
        return _beginning(node.values[0])[0], False
    if isinstance(node, ast.BinOp):  # "package." + name, "package.%s" % name
        return _beginning(node.left)[0].partition("%")[0], False
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):  # "package.{}".format(name)
        return _beginning(node.func.value)[0].partition("{")[0], False
    return "", False


def _resolved(name: str, package: str) -> str:
    """A module's name without leading dots."""
    level = len(name) - len(name.lstrip("."))
    if not level or not package:
        return name.lstrip(".")
    outer = package.rsplit(".", level - 1)[0]
    return f"{outer}.{name[level:]}" if name[level:] else outer


def _beside(name: str, path: Path) -> list[tuple[str, Path | None]]:
    """All modules of a module's outermost package, or of its folder, with the packages there, where it is in none."""
    package = path.name == "__init__.py"
    if package or "." in name:
        return _modules(path.parents[name.count(".") if package else name.count(".") - 1], f"{name.partition('.')[0]}.")
    found = [(one.stem, one) for one in path.parent.glob("*.py") if one.stem.isidentifier()]
    inner = [one.parent for one in path.parent.glob("*/__init__.py")]
    return [*found, *(module for folder in inner for module in _modules(folder, f"{folder.name}."))]


def _modules(folder: Path, before: str) -> list[tuple[str, Path | None]]:
    """All modules below a folder, with their files; ``before`` their names."""
    found: list[tuple[str, Path | None]] = []
    for path in folder.rglob("*.py"):
        inner = path.relative_to(folder).with_suffix("").parts
        if all(map(str.isidentifier, inner)):
            found.append(((before + ".".join(inner)).removesuffix(".__init__"), path))
    return found


def _folders(package: str) -> list[Path]:
    """The folders of a package of the user's; of an installed one none, for its version tells."""
    if _kind(package.partition(".")[0]) != "own":
        return []
    return [path.parent if path.name == "__init__.py" else path for path in _places(package)]


def _kind(top: str) -> str:
    """Where a top-level module comes from: ``own``, ``installed``, or neither (standard library, not to be found)."""
    places = _places(top)
    if any({"site-packages", "dist-packages"} & set(path.parts) for path in places):
        return "installed"
    if not places or any(path.is_relative_to(STANDARD) for path in places):
        return ""
    return "own"


def _file(name: str) -> Path | None:
    """The file that a module comes from, an archive perhaps; None: an attribute of a module, or not to be found."""
    for place in _places(name):
        for path in (place, *place.parents):
            if path.is_file():
                return path
    return None


def _text(name: str, path: Path) -> bytes:
    """A module's source; empty where it has none."""
    if path.suffix == ".py":
        return path.read_bytes()
    loader = getattr(getattr(sys.modules.get(name), "__spec__", None), "loader", None)
    try:
        return str(loader.get_source(name) or "").encode()  # type: ignore[union-attr]
    except (AttributeError, ImportError):  # compiled
        return b""


def _places(name: str) -> list[Path]:
    """Where a module lies: its file, or a namespace package's folders."""
    loaded = sys.modules.get(name)
    spec = getattr(loaded, "__spec__", None)
    if spec is None:
        try:
            spec = importlib.util.find_spec(name)
        except (Exception, SystemExit):  # a parent that is no package, or whose own code fails
            return []
    if spec is None:
        return []
    if spec.origin and spec.origin not in ("built-in", "frozen", "namespace"):
        return [Path(spec.origin)]
    return [Path(one) for one in spec.submodule_search_locations or []]


def _digest(named: Iterable[tuple[str, Path]]) -> str:
    """Of files with their names, in the names' order; a file that changed its name is another one."""
    digest = hashlib.sha256()
    for name, path in sorted(named):
        digest.update(name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        pass
    provided = metadata.packages_distributions().get(package)  # a module named unlike what was installed
    return " ".join(sorted(metadata.version(one) for one in set(provided))) if provided else "unknown"
