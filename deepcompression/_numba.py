"""Whether compiled code is used, and how it is compiled: decided here for all of the library.

numba may be missing, and takes half a second to import: only work that repays it imports it. The environment variable
DEEPCOMPRESSION_NO_NUMBA, if not empty, keeps to numpy. The results are the same.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

log = logging.getLogger(__name__)  # INFO: that the first compilation begins, which takes seconds

_known: dict[str, ModuleType] = {}  # modules that were imported to their end


def wanted(count: int, worth_calling: int, worth_importing: int) -> bool:
    """Whether numba is there and `count` steps repay its use.

    Args:
        worth_calling: steps that repay a call of compiled code where numba is already imported.
        worth_importing: steps that repay importing it too.
    """
    if count < (worth_calling if "numba" in sys.modules else worth_importing):
        return False
    if os.environ.get("DEEPCOMPRESSION_NO_NUMBA"):
        return False
    return _imported("numba") is not None


def _imported(name: str) -> ModuleType | None:
    """A module; None where it cannot be imported. Of what is imported already, `import_module` takes far longer."""
    module = _known.get(name)
    if module is None or sys.modules.get(name) is not module:
        try:
            __import__(name)
        except ImportError:
            return None
        module = _known[name] = sys.modules[name]
    return module


def kernels(count: int, worth_calling: int = 1 << 16, worth_importing: int = 1 << 22) -> ModuleType | None:
    """The compiled coders where `count` symbols repay them (`wanted`), else None.

    Args:
        count: symbols that are to be coded.
        worth_calling: from so many on they repay a call, where numba is imported already.
        worth_importing: from so many on they repay importing numba.
    """
    return _imported("deepcompression.codec.kernels") if wanted(count, worth_calling, worth_importing) else None


def compiled(function: Callable[..., Any]) -> Any:
    """Compile without the GIL; keep the machine code where there is a place to write it."""
    import numba

    _tell_of_compiling()
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


@cache
def _tell_of_compiling() -> None:
    """Has numba say when it compiles first in this process; what lies ready on disk is not compiled."""
    event: Any = import_module("numba.core.event")

    class Begins(event.Listener):  # type: ignore[misc]
        told = False

        def on_start(self, _: Any) -> None:
            if not self.told:
                self.told = True
                log.info("compiling, once ...")

        def on_end(self, _: Any) -> None:
            pass

    event.register("numba:compile", Begins())
