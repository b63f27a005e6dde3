"""The random states that decide a training run: to seed them, to keep them, to bring them back."""

from __future__ import annotations

import contextlib
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds torch, numpy and Python: dropout, and whatever users' data sets draw from."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def states(generators: Sequence[torch.Generator]) -> dict[str, Any]:
    """Every random state, as plain values and tensors that ``torch.load`` takes with ``weights_only``."""
    name, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
        "generators": [generator.get_state() for generator in generators],
    }


def restore(saved: Mapping[str, Any], generators: Sequence[torch.Generator]) -> None:
    """Brings back what ``states`` returned."""
    torch.set_rng_state(saved["torch"].cpu())
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in saved["cuda"]])
    name, keys, *rest = saved["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = saved["python"]
    random.setstate((version, tuple(internal), gauss))
    for generator, state in zip(generators, saved["generators"], strict=True):
        generator.set_state(state.cpu())


@contextlib.contextmanager
def kept(generators: Sequence[torch.Generator], *users: Any) -> Iterator[None]:
    """Whatever the block draws, after it everything is drawn as if it had not run.

    Args:
        generators: beside those of torch, numpy and Python.
        users: objects of somebody's, such as data sets, loaders, functions: every generator that is found in them is
            kept too, and what data sets, samplers and loaders hold: a file that one opens when it is first read, or a
            number that it counts, must not be there when workers start, or training does.
    """
    back = way_back(*users)
    before = states(generators)
    try:
        yield
    finally:
        restore(before, generators)
        back()


def way_back(*users: Any) -> Callable[[], None]:
    """What brings all that ``kept`` keeps of objects back to where it is now, as often as it is called."""
    seen = found(*users)
    drawn = [(one, _state(one)) for one in seen if isinstance(one, Drawn)]
    held = [(vars(one), dict(vars(one))) for one in seen if _holds(one)]

    def back() -> None:
        for one, state in drawn:
            _set_state(one, state)
        for inside, saved in held:
            inside.update(saved)
            for name in [*inside]:
                if name not in saved:
                    del inside[name]

    return back


def found(*users: Any) -> list[Any]:
    """All objects that are found in some, their attributes and their modules; themselves among them."""
    seen: dict[int, Any] = {}
    for user in users:
        _find(user, seen)
    return list(seen.values())


Drawn = torch.Generator | np.random.Generator | np.random.RandomState | random.Random
DEPTH, WIDTH = 6, 100  # how deep in objects, and how far in lists and tuples, generators are looked for


def _find(user: Any, seen: dict[int, Any], depth: int = DEPTH) -> None:
    """All that is found in an object, its attributes and its module, by id."""
    if id(user) in seen or depth < 0:
        return
    seen[id(user)] = user
    for inner in [] if isinstance(user, Drawn) else _inside(user):
        _find(inner, seen, depth - 1)


def _holds(user: Any) -> bool:
    """Whether something of a class of its own gives samples, indices or batches."""
    plain = isinstance(user, torch.Tensor | np.ndarray | torch.nn.Module | Mapping | list | tuple | type)
    gives = any(hasattr(type(user), name) for name in ("__getitem__", "__iter__"))
    return gives and not plain and hasattr(user, "__dict__")


def _inside(user: Any) -> list[Any]:
    if isinstance(user, torch.Tensor | np.ndarray | str | bytes | torch.nn.Module | type | types.ModuleType):
        return []
    if isinstance(user, Mapping):
        return list(islice(user.values(), WIDTH))
    if isinstance(user, list | tuple | set):
        return list(islice(user, WIDTH))
    module = sys.modules.get(getattr(user, "__module__", None) or "")
    shared = [value for value in vars(module).values() if isinstance(value, Drawn)] if module else []
    cells = [cell.cell_contents for cell in getattr(user, "__closure__", None) or () if full(cell)]
    return [*getattr(user, "__dict__", {}).values(), *cells, *shared]


def full(cell: Any) -> bool:
    """Whether a closure's cell has a value."""
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that has no value yet
        return False


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, torch.Generator | np.random.RandomState):
        return generator.get_state()
    return generator.getstate()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, torch.Generator | np.random.RandomState):
        generator.set_state(state)
    else:
        generator.setstate(state)
