"""Values that must be written nowhere: what recipes took from the environment, and passwords in URLs.

``flows.recipe.load`` tells this module each value at the moment it is read, however it is quoted, nested, decoded or
referred to. From then on ``masked`` replaces it, in whatever form it is escaped, by ``${oc.env:NAME}`` (by ``***``
where only a part of a variable was taken). Whatever is written, sent, logged, raised or printed passes through here:

- ``hidden`` for JSON, the store, MLflow and Prefect; ``masked`` for text;
- ``sealed`` for tasks and flows, whose exceptions Prefect stores;
- every log record of the process, from the first known value on;
- ``terminal`` for what a command prints.

Text in which a value stands by chance must stay readable: values of 8 characters and more are replaced anywhere,
shorter ones as whole words; those of less than 4, words such as ``true``, and numbers of less than 6 digits are not
looked for in texts: they are hidden in recipes, by their place. What a run itself calls its things (``public``) is no
secret.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from tasks.escapes import merged, pattern

LEAST, ANYWHERE, DIGITS = 4, 8, 6
UNKNOWN = "***"
WORDS = frozenset({"true", "false", "null", "none", "auto"})
_LOGIN = r"(?<=\w)://(?:\$\{[^{}]*\}|(?!\$\{)[^/:@\s\"'<>])*"
_PASSWORD = re.compile(rf"({_LOGIN}):(?![^@/\s\"'<>]*\$\{{|\*\*\*\d*@)([^/\s\"'<>]+)@")
_LABEL = re.compile(r"\$\{oc\.env:\w+\}")
_KEPT = re.compile(r":\*\*\*(\d+)@")
_PLAIN_KEY = re.compile(r"[a-z_]+")

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class _Entry:
    """A value that is looked for: a part that no escaping changes, all its forms, and what stands in its place."""

    anchor: str
    pattern: re.Pattern[str]
    label: str


@dataclass
class _Known:
    """What this process knows: value -> label, and what is no secret."""

    values: dict[str, str] = field(default_factory=dict)
    public: set[str] = field(default_factory=set)
    passwords: list[str] = field(default_factory=list)
    entries: tuple[_Entry, ...] | None = ()


_known = _Known()


def know(value: str, name: str | None = None) -> None:
    """From now on ``value`` is masked, by the name of its variable where it is the whole of one."""
    label = f"${{oc.env:{name}}}" if name else UNKNOWN
    _add(value, label)
    _add(unquote(value), UNKNOWN)
    for line in value.splitlines():
        if len(line.strip()) >= ANYWHERE:  # of a key in several lines each is one
            _add(line, UNKNOWN)
    know_passwords(value)
    if "://" in value:  # its host may be told, who logs in there, by which key, may not
        login = value.partition("://")[2].partition("/")[0].rpartition("@")[0].partition(":")[0]
        for part in (login, *(pair.partition("=")[2] for pair in value.partition("?")[2].split("&"))):
            if len(part) >= ANYWHERE:
                _add(part, UNKNOWN)


def know_passwords(text: str) -> None:
    """From now on the passwords of the URLs in ``text`` are masked."""
    for found in _PASSWORD.finditer(text if "://" in text else ""):
        _add(found[2], UNKNOWN)
        _add(unquote(found[2]), UNKNOWN)


def knows(text: str) -> bool:
    """Whether a known value stands in ``text``."""
    return text in _known.values or masked(text) != text


def public(*names: str) -> None:
    """What a run itself calls its things: names, folders, tensors. A value that is part of one is not masked."""
    _known.public |= {_bare(name) for name in names if name}
    _known.entries = None


def masked(text: str) -> str:
    """``text`` without any known value, and without the passwords of URLs."""
    text = without_passwords(text)
    named = [one.span() for one in _LABEL.finditer(text)]  # a value may be called as a variable is
    found = sorted(
        (*match.span(), one.label)
        for one in _entries()
        if one.anchor in text
        for match in one.pattern.finditer(text)
        if not any(start <= match.start() and match.end() <= end for start, end in named)
    )
    told, end = [], 0
    for start, stop, label in merged(found):
        told += [text[end:start], label]
        end = stop
    return "".join([*told, text[end:]])


def without_passwords(text: str) -> str:
    """``text`` without the passwords of URLs; a ``${...}`` in place of one stays."""
    return _PASSWORD.sub(rf"\1:{UNKNOWN}@", text) if "://" in text and "@" in text else text


def hidden(value: Any) -> Any:
    """``value`` with every text in it masked, at any depth; keys too, but for plain words of a program."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, Mapping):
        return {_key(key): hidden(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(hidden, value)) if type(value) in (list, tuple) else [hidden(one) for one in value]
    return value


def aside(value: Any) -> Any:
    """``value`` with the passwords of its URLs kept in this process, so that it may be sent; ``restored`` undoes it."""

    def keep(found: re.Match[str]) -> str:
        know_passwords(found[0])
        _known.passwords.append(found[2])
        return f"{found[1]}:{UNKNOWN}{len(_known.passwords) - 1}@"

    return _each(value, lambda text: _PASSWORD.sub(keep, text))


def restored(value: Any) -> Any:
    """What ``aside`` was given, in the same process; elsewhere a password stays masked."""

    def back(found: re.Match[str]) -> str:
        number = int(found[1])
        return f":{_known.passwords[number]}@" if number < len(_known.passwords) else f":{UNKNOWN}@"

    return _each(value, lambda text: _KEPT.sub(back, text))


def with_password(value: Any) -> bool:
    """Whether some URL in ``value`` has a password in clear."""
    return bool(aside(value) != value)


# ---------------------------------------------------------------- errors and logs


def sealed(function: Callable[P, T]) -> Callable[P, T]:
    """``function``, whose exceptions show no known value: neither they nor what caused them."""

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return function(*arguments, **named)
        except BaseException as error:
            failed = without_secrets(error)
        raise failed  # outside of the block: inside, what was replaced would hang on as its context

    return call


def without_secrets(error: BaseException) -> BaseException:
    """The exception, masked in place with its causes; another one where its class shows more than its arguments."""
    return _cleaned(error, set())


@contextlib.contextmanager
def terminal() -> Iterator[None]:
    """What is printed on stdout and stderr while the block runs is masked."""
    out, err = _Masking(sys.stdout), _Masking(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):  # type: ignore[type-var]
        yield


class _Masking:
    """A text stream that masks what is written to it; all else is that of the stream below."""

    def __init__(self, below: Any) -> None:
        self.below = below

    def write(self, text: str) -> int:
        self.below.write(masked(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.below, name)


def unmasked_stdout() -> Any:
    """The stream below ``terminal``'s, for JSON that is ``hidden`` already and must stay JSON."""
    return getattr(sys.stdout, "below", sys.stdout)


def _cleaned(error: BaseException, seen: set[int]) -> BaseException:
    if id(error) in seen:
        return error
    seen.add(id(error))
    suppressed = error.__suppress_context__
    error.__cause__ = None if error.__cause__ is None else _cleaned(error.__cause__, seen)
    error.__context__ = None if error.__context__ is None else _cleaned(error.__context__, seen)
    error.__suppress_context__ = suppressed
    members = [_cleaned(one, seen) for one in error.exceptions] if isinstance(error, BaseExceptionGroup) else []
    if members and any(one is not other for one, other in zip(members, error.exceptions, strict=True)):  # type: ignore[attr-defined]
        return _other(error)
    if not _shows(error):
        return error
    _mask(error)
    return _other(error) if _shows(error) else error


def _mask(error: BaseException) -> None:
    error.args = tuple(map(hidden, error.args))
    own = ("filename", "filename2", "strerror", "msg", "name", "path", "text", "object", "reason", *vars(error))
    for name in dict.fromkeys(own):
        with contextlib.suppress(Exception):  # read-only, or not there
            value = getattr(error, name)
            if (told := hidden(value)) != value:
                setattr(error, name, told)


def _other(error: BaseException) -> BaseException:
    from deepcompression.errors import RunError

    made = RunError(f"{type(error).__name__}: {masked(_text(error))}").with_traceback(error.__traceback__)
    made.__cause__, made.__context__ = error.__cause__, error.__context__
    made.__suppress_context__ = error.__suppress_context__
    return made


def _shows(error: BaseException) -> bool:
    try:
        text = f"{_text(error)}\n{error!r}\n{''.join(traceback.format_exception_only(error))}"
    except Exception:  # whatever a class of the user's does to be shown
        return False
    return masked(text) != text


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""


def _guard_logs() -> None:
    """Every log record of this process is masked as it is made, whoever logs and whoever listens."""
    before = logging.getLogRecordFactory()
    if getattr(before, "masks", False):
        return

    def record(*arguments: Any, **named: Any) -> logging.LogRecord:
        made = before(*arguments, **named)
        with contextlib.suppress(Exception):  # arguments that do not fit their text are told by who handles the record
            text = made.getMessage()
            if (told := masked(text)) != text:
                made.msg, made.args = told, None
            if made.exc_info and made.exc_info[1]:
                text = "".join(traceback.format_exception(*made.exc_info)).rstrip()
                if (told := masked(text)) != text:
                    made.exc_info, made.exc_text = None, told
        return made

    record.masks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(record)


# ---------------------------------------------------------------- finding


def _add(value: str, label: str) -> None:
    value = value.strip()
    if value and (value not in _known.values or _known.values[value] == UNKNOWN != label):
        _known.values[value] = label
        _known.entries = None
        _guard_logs()


def _entries() -> tuple[_Entry, ...]:
    entries = _known.entries
    if entries is None:
        values = {value: label for value, label in list(_known.values.items()) if _hides(value)}
        entries = tuple(_entry(value, label) for value, label in values.items())
        _known.entries = entries
    return entries


def _hides(value: str) -> bool:
    """Whether a value is looked for in texts."""
    if len(value) < LEAST or value.lower() in WORDS or any(_bare(value) in name for name in list(_known.public)):
        return False
    try:
        float(value)
    except ValueError:
        return True
    return sum(map(str.isdigit, value)) not in range(1, DIGITS)


def _entry(value: str, label: str) -> _Entry:
    anchor = max(re.findall("[A-Za-z0-9]+", value), key=len, default="")
    return _Entry(anchor, pattern(value, anywhere=len(value) >= ANYWHERE), label)


def _bare(text: str) -> str:
    """A URL without who logs in and without its query; any other text as it is."""
    try:
        parts = urlsplit(text)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}" if "://" in text else text
    except ValueError:
        return text


def _key(key: Any) -> Any:
    return key if not isinstance(key, str) or _PLAIN_KEY.fullmatch(key) else masked(key)


def _each(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(one, change) for key, one in value.items()}
    return [_each(one, change) for one in value] if isinstance(value, list | tuple) else value
