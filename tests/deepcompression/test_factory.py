"""Code named in a recipe."""

from __future__ import annotations

import sys

import pytest
import torch

from deepcompression import factory
from deepcompression.errors import DataError, FactoryError
from deepcompression.training.problem import cross_entropy_step


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of the user's on the path, as `python_path` puts it there."""
    (tmp_path / "users_code.py").write_text(
        "from deepcompression.errors import DataError\n"
        "VALUE = 3\n"
        "def make(size=1): return [0] * size\n"
        "def refuse(): raise DataError('no data here')\n"
        "def crash(): return {}['absent']\n"
        "class Holder:\n    @staticmethod\n    def make(): return 'held'\n"
    )
    (tmp_path / "users_broken.py").write_text("import a_module_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("users_code", "users_broken"):
        sys.modules.pop(name, None)


def test_builds_what_the_callable_returns(package):
    """A recipe's factory is called with the recipe's kwargs; attributes of attributes are reached."""
    assert factory.build("users_code:make", {"size": 2}) == [0, 0]
    assert factory.build("users_code:make") == [0]
    assert factory.build("users_code:Holder.make") == "held"


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("users_code.make", "package.module:callable"),
        (":make", "package.module:callable"),
        ("users_code:", "package.module:callable"),
        ("users_absent:make", "No module named 'users_absent'"),
        ("users_broken:make", "a_module_that_nobody_has"),
        ("..:make", "does not import"),
        ("users_code:absent", "no attribute 'absent'"),
        ("users_code:VALUE", "int"),
    ],
)
def test_a_wrong_name_is_explained(package, spec, words):
    """Each way in which a name can be wrong gives one line with the name in it and the reason."""
    with pytest.raises(FactoryError) as caught:
        factory.load(spec)
    message = str(caught.value)
    assert words in message and repr(spec) in message and "\n" not in message


def test_wrong_kwargs_are_shown(package):
    """A keyword that the callable does not take is the user's mistake: told with the call as it was."""
    with pytest.raises(FactoryError, match=r"users_code:make\(length=2\).*unexpected keyword argument"):
        factory.build("users_code:make", {"length": 2})


def test_errors_inside_a_factory_keep_their_kind(package):
    """Input errors pass as they are; anything else becomes a FactoryError that names the original."""
    with pytest.raises(DataError, match="no data here"):
        factory.build("users_code:refuse")
    with pytest.raises(FactoryError, match="KeyError: 'absent'"):
        factory.build("users_code:crash")


def test_a_function_is_named_directly_or_by_its_factory():
    """What needs so many arguments is the function; what needs none (whatever its defaults) makes one."""
    assert factory.function("operator:add")(2, 3) == 5
    shift = factory.function("deepcompression.data:shift")
    batch = (torch.ones(2, 1, 4, 4), torch.zeros(2))
    assert shift(batch, torch.Generator().manual_seed(0))[0].shape == (2, 1, 4, 4)
    assert factory.function("deepcompression.training.problem:cross_entropy_step") is cross_entropy_step
    with pytest.raises(FactoryError, match="expected a function of 2 arguments"):
        factory.function("builtins:dict")
