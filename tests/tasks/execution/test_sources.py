"""Digests of code: a stage whose code changed is another stage."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from deepcompression.factory import load
from tasks.execution import sources
from tasks.execution.sources import OUTSIDE, changed, code_digest, factory_digest, imports_of
from tasks.root import CODE
from tasks.stages import OTHERS, STAGES

MODULES = {
    ".".join(path.relative_to(CODE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((CODE / "tasks").rglob("*.py"))
}
MODULES_OF_STAGES = [*STAGES.values(), *OTHERS.values()]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of this one's shape, small enough to change any of it."""
    for name, text in {
        "tasks/mine.py": "from deepcompression import cuts\nfrom tasks.console import say\nimport tasks.given\n",
        "tasks/given.py": "def f():\n    from deepcompression.learnt import Learnt\n",
        "tasks/console.py": "import deepcompression.shown\n",
        "deepcompression/__init__.py": "",
        "deepcompression/cuts.py": "import deepcompression.parts.masks\n",
        "deepcompression/learnt.py": "Learnt = 1\n",
        "deepcompression/shown.py": "",
        "deepcompression/other.py": "",
        "deepcompression/parts/__init__.py": "",
        "deepcompression/parts/masks.py": "",
    }.items():
        _write(tmp_path / name, text)
    monkeypatch.setattr(sources, "CODE", tmp_path)
    code_digest.cache_clear()
    yield tmp_path
    code_digest.cache_clear()


def _digest_after(path: Path, text: str = "changed = True\n") -> str:
    path.write_text(path.read_text() + text)
    code_digest.cache_clear()
    return code_digest("tasks.mine")


@pytest.mark.parametrize(
    "file",
    ["tasks/mine.py", "tasks/given.py", "deepcompression/cuts.py", "deepcompression/learnt.py",
     "deepcompression/parts/masks.py"],
)  # fmt: skip
def test_what_a_stage_imports_is_its_code(project: Path, file: str) -> None:
    """A stage's own file, what it imports, and what that imports in turn, in packages too, change its digest."""
    before = code_digest("tasks.mine")
    assert _digest_after(project / file) != before


@pytest.mark.parametrize("file", ["tasks/console.py", "deepcompression/shown.py", "deepcompression/other.py"])
def test_what_decides_nothing_does_not_retrain(project: Path, file: str) -> None:
    """A changed progress bar, or a module that the stage does not use, leaves finished stages as they are."""
    before = code_digest("tasks.mine")
    assert _digest_after(project / file) == before


def test_a_module_that_is_not_there_is_an_error(project: Path) -> None:
    """After a rename nothing is served for the digest of nothing."""
    with pytest.raises(ModuleNotFoundError, match=r"tasks\.gone"):
        code_digest("tasks.gone")
    with pytest.raises(ModuleNotFoundError, match=r"deepcompression\.gone"):
        _digest_after(project / "tasks/given.py", "import deepcompression.gone\n")


def test_files_are_known_by_their_place(project: Path) -> None:
    """The same text at another place is other code."""
    before = code_digest("tasks.mine")
    (project / "deepcompression/parts/masks.py").rename(project / "deepcompression/parts/mask.py")
    (project / "deepcompression/cuts.py").write_text("import deepcompression.parts.mask\n")
    code_digest.cache_clear()
    assert code_digest("tasks.mine") != before


def test_what_is_left_out_is_there() -> None:
    """A module of `tasks` that is renamed does not slip out of, or into, the code of stages unseen."""
    assert {one for one in OUTSIDE if not any(f"{name}.".startswith(f"{one}.") for name in MODULES)} == set()


@pytest.mark.parametrize("stage", MODULES_OF_STAGES)
def test_every_stage_has_code_of_its_own(stage: str) -> None:
    """Each stage's digest is found by walking, covers what decides a training, and is no other stage's."""
    assert len({code_digest(one) for one in MODULES_OF_STAGES}) == len(MODULES_OF_STAGES) > 8
    assert code_digest(stage) == code_digest(stage, "tasks.execution.bench", "deepcompression.training.problem")


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the user's own modules, on the path; flat, with names that nothing else has."""
    for name, text in {
        "dcu_net.py": "from dcu_blocks import act\ndef make(): return act()\n",
        "dcu_blocks.py": "import numpy\ndef act():\n    import dcu_deep\n    return dcu_deep.value\n",
        "dcu_deep.py": "value = 1\n",
        "dcu_alone.py": "",
        "dcu_named.py": "import importlib\nimportlib.import_module('dcu_deep')\n",
        "dcu_dynamic.py": "import importlib\nname = 'dcu_' + 'deep'\nimportlib.import_module(name)\n",
        "dcu_flat.py": "import importlib\ndef make(kind): return importlib.import_module(f'dcu_pack.{kind}')\n",
        "dcu_percent.py": "from importlib import import_module as get\nget('dcu_pack.%s' % 1)\n",
        "dcu_path.py": "import runpy, os\nrunpy.run_path(os.path.join('.', 'dcu_deep.py'))\n",
        "dcu_bom.py": "\ufeffimport dcu_deep\n",
        "dcu_compiled.py": "import dcu_binary\n",
        "dcu_binary.pyc": "not read, for nothing imports it here\n",
        "dcu_pack/__init__.py": "",
        "dcu_pack/near.py": "import importlib\nimportlib.import_module('.unused', __package__)\n",
        "dcu_pack/nets.py": "from .parts import block\nfrom . import more\n",
        "dcu_pack/parts.py": "block = 1\n",
        "dcu_pack/more.py": "",
        "dcu_pack/unused.py": "",
        "dcu_pack/registry.py": "import importlib\ndef get(name): return importlib.import_module('dcu_pack.' + name)\n",
    }.items():
        _write(tmp_path / name, text)
    monkeypatch.syspath_prepend(str(tmp_path))
    factory_digest.cache_clear()
    yield tmp_path
    factory_digest.cache_clear()
    for name in [one for one in sys.modules if one.startswith("dcu_")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("spec", "file", "counts"),
    [
        ("dcu_net:make", "dcu_net.py", True),
        ("dcu_net:make", "dcu_blocks.py", True),
        ("dcu_net:make", "dcu_deep.py", True),
        ("dcu_net:make", "dcu_alone.py", False),
        ("dcu_named:x", "dcu_deep.py", True),
        ("dcu_dynamic:x", "dcu_deep.py", True),
        ("dcu_pack.nets:x", "dcu_pack/parts.py", True),
        ("dcu_pack.nets:x", "dcu_pack/more.py", True),
        ("dcu_pack.nets:x", "dcu_pack/__init__.py", True),
        ("dcu_pack.nets:x", "dcu_pack/unused.py", False),
        ("dcu_pack.registry:x", "dcu_pack/unused.py", True),
        ("dcu_pack.registry:x", "dcu_deep.py", False),
        ("dcu_pack.near:x", "dcu_pack/unused.py", True),
        ("dcu_flat:make", "dcu_pack/unused.py", True),
        ("dcu_flat:make", "dcu_alone.py", False),
        ("dcu_percent:make", "dcu_pack/unused.py", True),
        ("dcu_path:x", "dcu_deep.py", True),
        ("dcu_bom:x", "dcu_deep.py", True),
        ("dcu_compiled:x", "dcu_binary.pyc", True),
    ],
)
def test_a_users_code_is_all_that_its_module_imports(user: Path, spec: str, file: str, counts: bool) -> None:
    """Helper modules beside a factory's count, through each other, inside functions, and where names are computed."""
    before = factory_digest(spec)
    (user / file).write_text((user / file).read_text() + "more = 2\n")
    assert bool(changed([spec])) == counts
    assert factory_digest(spec) == before  # what this process has imported
    factory_digest.cache_clear()
    assert (factory_digest(spec) != before) == counts


def test_source_in_another_encoding_and_in_an_archive_counts(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python reads what PEP 263 allows, and zip files: so does the digest."""
    (user / "dcu_latin.py").write_bytes("# coding: latin-1\n# é\nimport dcu_zipped\n".encode("latin-1"))
    monkeypatch.syspath_prepend(str(user / "dcu.zip"))
    digests = []
    for value in (1, 2):
        with zipfile.ZipFile(user / "dcu.zip", "w") as archive:
            archive.writestr("dcu_zipped.py", f"import dcu_deep\nvalue = {value}\n")
        digests.append(factory_digest("dcu_latin:x"))
        factory_digest.cache_clear()
    assert digests[0] != digests[1]
    assert imports_of("dcu_latin").own >= {"dcu_latin", "dcu_zipped"}


def test_installed_packages_count_by_their_version(user: Path) -> None:
    """What is installed goes by name and version, also where the module is called otherwise; ours by its sources."""
    assert imports_of("dcu_net").installed == {"numpy"} and imports_of("dcu_net").own == {
        "dcu_net",
        "dcu_blocks",
        "dcu_deep",
    }
    import numpy
    import sklearn

    assert factory_digest("dcu_net:make").endswith(f" numpy {numpy.__version__}")
    assert factory_digest("sklearn.cluster:KMeans").endswith(f" sklearn {sklearn.__version__}")
    for spec in ("deepcompression.models:lenet5", "deepcompression.data:mnist"):  # found where it is defined, too
        assert factory_digest(spec) == code_digest(spec.partition(":")[0], load(spec).__module__)
    assert factory_digest("os.path:join") and factory_digest("dcu_missing:x")


def test_what_a_table_names_is_code(project: Path) -> None:
    """A criterion that stands in a table as `package.module:callable` changes the digest as an import does."""
    _write(project / "deepcompression/cuts.py", "TABLE = {'mine': 'deepcompression.other:make'}\n")
    code_digest.cache_clear()
    before = code_digest("tasks.mine")
    assert _digest_after(project / "deepcompression/other.py") != before
    (project / "deepcompression/cuts.py").write_text("TABLE = {'mine': 'deepcompression.gone:make'}\n")
    code_digest.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"deepcompression\.gone"):
        code_digest("tasks.mine")


def test_a_thread_that_parses_meanwhile_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 ends one of two parses at a time with a SystemError, which ended whole runs."""
    parse, tries = sources.ast.parse, iter([SystemError("AST constructor recursion depth mismatch")] * 2)

    def disturbed(text: bytes) -> object:
        for error in tries:
            raise error
        return parse(text)

    monkeypatch.setattr(sources.ast, "parse", disturbed)
    assert sources._read(b"import one.two  # disturbed", "").pairs
