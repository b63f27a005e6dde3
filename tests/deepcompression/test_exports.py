from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import deepcompression
from deepcompression import errors

GOLDEN = Path(__file__).parent.parent / "golden" / "v1-huffman.dcz"


def modules_after(code: str) -> set[str]:
    """The top-level modules that a fresh process has imported after running `code`."""
    program = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{n.split('.')[0] for n in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_public_names() -> None:
    """The surface is these names and no more; each is there and documented."""
    names = ["File", "RawTensor", "__version__", "compress_state", "inspect", "load", "save", "verify"]
    assert deepcompression.__all__ == names
    for name in set(deepcompression.__all__) - {"__version__"}:
        assert inspect.getdoc(getattr(deepcompression, name))
    assert set(deepcompression.__all__) <= set(dir(deepcompression))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        _ = deepcompression.nope


def test_no_module_hides_an_exported_function() -> None:
    """Importing a submodule binds its name on the package: none may be called like an exported function."""
    modules = {path.stem for path in Path(deepcompression.__file__).parent.glob("*.py")}
    assert not modules & set(deepcompression.__all__)


def test_import_is_light() -> None:
    """`import deepcompression` and `dcz`'s own module load neither numpy nor anything heavier."""
    heavy = {"numpy", "torch", "numba", "dahuffman", "rich", "safetensors", "prefect", "mlflow"}
    assert not modules_after("import deepcompression") & heavy
    assert not modules_after("import deepcompression.cli.main") & (heavy - {"rich"})


def test_reading_needs_numpy_alone() -> None:
    """A file that is not huge is read without torch, numba, dahuffman or safetensors."""
    code = (
        "import sys\n"
        "for name in ('torch', 'numba', 'dahuffman', 'safetensors', 'typer'): sys.modules[name] = None\n"
        "import deepcompression, numpy\n"
        "from deepcompression.codec import file as io\n"
        "io.decode(io.encode({'w': numpy.eye(9)}, 'packed'))\n"
        f"deepcompression.load({str(GOLDEN)!r})\n"
        "for name in ('torch', 'numba', 'dahuffman', 'safetensors', 'typer'): del sys.modules[name]"
    )
    assert "numpy" in modules_after(code)


def test_errors_are_one_family() -> None:
    """Every error class is drawn in the tree, descends from the base, and is a ValueError only for input."""
    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    assert len(classes) == 23
    for error in classes:
        assert error.__doc__
        assert issubclass(error, errors.DeepCompressionError)
        assert issubclass(error, ValueError) == issubclass(error, errors.InputError)
        assert error.__name__ in (errors.__doc__ or "")
