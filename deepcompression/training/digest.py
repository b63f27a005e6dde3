"""A digest of what a Python value holds, type and content, unambiguously; of what does not show it, none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepcompression.errors import DeepCompressionError
from deepcompression.training import randomness

DEEPEST = 100  # objects in objects
EXACT = {str, int, float, bool, complex, type(None)}  # whose repr is all of them
PLAIN = (str, int, float, complex, bool, type(None), np.generic, torch.dtype, torch.device, torch.Size, slice, range)
Feed = Callable[[Any], None]  # takes bytes, or what has them


class Unknown(DeepCompressionError):
    """Something has no content that could be digested; its message says what."""


def content(value: Any) -> str | None:
    """A digest of what a value holds; None where that cannot be seen."""
    try:
        return digest_of(value)
    except Unknown:
        return None


def digest_of(value: Any) -> str:
    """SHA-256, hexadecimal, of what a value holds; Unknown where that cannot be seen."""
    digest = hashlib.sha256()
    feed_value(digest.update, value)
    return digest.hexdigest()


Seen = dict[int, tuple[int, Any]]


def feed_value(feed: Feed, value: Any, but: Any = None, seen: Seen | None = None, depth: int = 0) -> None:
    """A value's type and content, unambiguously, to a digest; Unknown where an object does not show what it holds.

    Args:
        feed: takes bytes.
        value: anything.
        but: an object that is left out, wherever it stands.
        seen: objects by id, with their numbers: what stands at several places, or holds itself, is fed once.
        depth: objects that the value is in.

    Raises:
        Unknown: an object does not show what it holds, or objects are too deep.
    """
    seen = {} if seen is None else seen
    kind = type(value).__qualname__
    if isinstance(value, Tensor):
        _feed_tensor(feed, value)
    elif isinstance(value, np.ndarray):
        _feed_array(feed, value)
    elif isinstance(value, PLAIN):
        feed(f"{kind} {value!r}\n".encode())
    elif isinstance(value, bytes | bytearray):
        feed(f"{kind} {len(value)}\n".encode() + bytes(value))
    elif isinstance(value, Path):
        feed(f"path {value}\n".encode())
    elif value is but:
        feed(b"it\n")
    elif id(value) in seen:
        feed(f"again {seen[id(value)][0]}\n".encode())
    elif depth > DEEPEST:
        raise Unknown(f"objects are more than {DEEPEST} deep")
    elif type(value) in (list, tuple) and _flat(value):
        feed(f"{kind} {len(value)} {value!r}\n".encode())
    else:
        seen |= {} if type(value) is tuple else {id(value): (len(seen), value)}
        inside = _content(feed, value)
        feed(f"{kind} {len(inside)}\n".encode())
        for one in inside:
            feed_value(feed, one, but, seen, depth + 1)


def _flat(value: Any) -> bool:
    """Whether a list or tuple holds plain values, or tuples of them, alone: of a million one repr is the fastest."""
    kinds = set(map(type, value))
    return kinds <= EXACT or (kinds == {tuple} and set(map(type, chain.from_iterable(value))) <= EXACT)


def _content(feed: Feed, value: Any) -> list[Any]:
    """What an object holds; what its code is goes to the digest at once."""
    if type(value) in (list, tuple):
        return list(value)
    if type(value) is dict:
        return list(chain.from_iterable(value.items()))
    if type(value) in (set, frozenset):
        return sorted(map(digest_of, value))
    if isinstance(value, torch.Generator):
        return [str(value.device), value.initial_seed()]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, FunctionType):
        _code(feed, value.__code__)
        cells = [cell.cell_contents if randomness.full(cell) else None for cell in value.__closure__ or ()]
        return [value.__module__, value.__qualname__, cells, value.__defaults__, value.__kwdefaults__]
    if isinstance(value, type | BuiltinFunctionType):
        return [value.__module__, value.__qualname__, getattr(value, "__self__", None)]
    if isinstance(value, ModuleType):
        return [value.__name__]
    if all(hasattr(value, name) for name in ("tobytes", "mode", "size")):  # an image of Pillow's
        return [value.mode, value.size, value.tobytes()]
    return _reduced(value)


def _reduced(value: Any) -> list[Any]:
    """All that pickle would keep of an object (nothing is pickled)."""
    try:
        made = value.__reduce_ex__(4)
    except Exception as error:  # locks, handles, what is compiled
        raise Unknown(f"it holds a {type(value).__qualname__}, whose content cannot be seen") from error
    if isinstance(made, str):  # a thing of this name in its module, perhaps around a function
        return [type(value).__qualname__, getattr(value, "__module__", None), made, getattr(value, "__wrapped__", None)]
    return [part if at < 3 or part is None else list(part) for at, part in enumerate(made)]


def _feed_array(feed: Feed, value: np.ndarray[Any, Any]) -> None:
    feed(f"array {value.dtype} {value.shape}\n".encode())
    if value.dtype.hasobject:
        feed_value(feed, value.reshape(-1).tolist())
    elif value.size:
        feed(np.ascontiguousarray(value).reshape(-1).view(np.uint8))


def _code(feed: Feed, code: CodeType) -> None:
    feed(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _code(feed, constant)
        else:
            feed(repr(sorted(constant, key=repr) if isinstance(constant, frozenset) else constant).encode())


def _feed_tensor(feed: Feed, value: Tensor) -> None:
    if value.layout != torch.strided or value.is_quantized:
        raise Unknown(f"samples hold a tensor of layout {value.layout}")
    feed(f"{value.dtype} {tuple(value.shape)}\n".encode())
    if value.numel():
        feed(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
