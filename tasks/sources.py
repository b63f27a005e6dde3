"""Digests of code: what a stage runs is part of what made its result. Found by walking what each file imports."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "deepcompression"
TASKS = "tasks"
STANDARD = Path(sysconfig.get_paths()["stdlib"])
# Modules of ``tasks`` that decide no result: they show, log, keep and find again. A walk does not enter them.
OUTSIDE = frozenset(
    f"{TASKS}.{stem}"
    for stem in (
        "cleaning", "console", "deadline", "environment", "figures", "key", "lease", "life", "pareto", "places",
        "process", "promote", "registry", "report", "secrets", "served", "sources", "stage", "store", "tracking",
        "verify", "warned",
    )
)  # fmt: skip


@lru_cache
def code_digest(*modules: str) -> str:
    """SHA-256 over the sources of modules of this project and of all of it that they import, transitively.

    Args:
        modules: such as ``tasks.prune`` or ``deepcompression.torch``. Of ``tasks`` only what decides is entered.

    Raises:
        ModuleNotFoundError: one of them, or something that they import, is no module of this project.
    """
    reached: dict[str, Path] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in reached or (name in OUTSIDE and name not in modules):
            continue
        reached[name] = _project_file(name)
        waiting += _imported_here(name, reached[name])
    return _digest((str(path.relative_to(ROOT)), path) for path in reached.values())


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
    computes at run time brings all files of its package, or, where it is in none, of its folder.
    """
    files: dict[str, Path] = {}
    installed, seen = set[str](), set[str]()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        top = name.partition(".")[0]
        if name in seen or top == LIBRARY:
            continue
        seen.add(name)
        kind = _kind(top)
        if kind == "installed":
            installed.add(top)
        elif kind == "own" and (path := _source(name)) is not None:
            files[name] = path
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            read = _read(path, package)
            waiting += [name.rpartition(".")[0] or name, *_names(read.pairs)]
            if read.computed:
                files |= _beside(name, path)
    return Imports(files, frozenset(installed))


def versions() -> dict[str, str]:
    """Versions that can change a result's bits."""
    names = ("torch", "numpy", "scikit-learn")
    return {"python": sys.version.split()[0], **{name.replace("-", "_"): _version(name) for name in names}}


def _project_file(name: str) -> Path:
    """The source of a module or package of this project."""
    place = ROOT.joinpath(*name.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    raise ModuleNotFoundError(f"{name}: this project has no module of this name to take a digest of", name=name)


def _imported_here(name: str, path: Path) -> Iterator[str]:
    """Modules of this project that a file of it imports: of ``from package import x`` the module x, if it is one."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for base, attribute in _read(path, package).pairs:
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
    """What a file imports: ``pairs`` (module, "") or (module, what is taken from it); whether more is computed."""

    pairs: tuple[tuple[str, str], ...] = ()
    computed: bool = False


def _read(path: Path, package: str) -> _Read:
    """All imports of a file of Python source, at its top or inside a function; relative ones resolved."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):  # not Python: importing it will tell
        return _Read()
    pairs: list[tuple[str, str]] = []
    computed = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            pairs += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, package) if node.level and package else base.lstrip(".")
            pairs += [(base, alias.name) for alias in node.names]
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__", "exec", "run_path"):
            named = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            pairs += [(named, "")] if isinstance(named, str) else []
            computed |= not isinstance(named, str)
    return _Read(tuple(pairs), computed)


def _called(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _beside(name: str, path: Path) -> dict[str, Path]:
    """All Python files of a module's outermost package, or of its folder where it is in none."""
    package = path.name == "__init__.py"
    if not package and "." not in name:
        return {f"{name}:{one.name}": one for one in path.parent.glob("*.py")}
    folder = path.parents[name.count(".") if package else name.count(".") - 1]
    found = folder.rglob("*.py")
    return {f"{name}:{one.relative_to(folder)}": one for one in found}


def _kind(top: str) -> str:
    """Where a top-level module comes from: ``own``, ``installed``, or neither (standard library, not to be found)."""
    places = _places(top)
    if any({"site-packages", "dist-packages"} & set(path.parts) for path in places):
        return "installed"
    if not places or any(path.is_relative_to(STANDARD) for path in places):
        return ""
    return "own"


def _source(name: str) -> Path | None:
    """A module's file of Python source, or None: an attribute of a module, compiled, or not to be found."""
    return next((path for path in _places(name) if path.suffix == ".py" and path.is_file()), None)


def _places(name: str) -> list[Path]:
    """Where a module lies: its file, or a namespace package's folders."""
    loaded = sys.modules.get(name)
    spec = getattr(loaded, "__spec__", None)
    if spec is None:
        try:
            spec = importlib.util.find_spec(name)
        except Exception:  # a parent that is no package, or whose own code fails
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
