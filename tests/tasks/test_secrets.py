"""What recipes took from the environment is masked in every form, and nothing else is."""

from __future__ import annotations

import ast
import html
import json
import logging
import re
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from rich.markup import escape

from tasks import secrets
from tasks.secrets import aside, hidden, know, know_passwords, masked, public, restored, sealed, without_secrets

TOKEN = "-".join(["token", "of", "mine"])  # nowhere in this source, which tracebacks show

FORMS: list[Callable[[str], str]] = [
    str,
    json.dumps,
    lambda text: json.dumps(text, ensure_ascii=False),
    lambda text: json.dumps(json.dumps(text)),
    repr,
    ascii,
    lambda text: repr(repr(text)),
    lambda text: repr(text.encode()),
    html.escape,
    lambda text: html.escape(text, quote=False),
    lambda text: html.escape(json.dumps(text)),
    urllib.parse.quote,
    lambda text: re.sub("%..", lambda one: one[0].lower(), urllib.parse.quote(text, safe="")),
    urllib.parse.quote_plus,
    lambda text: yaml.safe_dump([text], width=10**6),
    lambda text: yaml.safe_dump([text], width=10**6, allow_unicode=True),
    lambda text: yaml.safe_dump([text], width=10**6, default_style="'"),
    escape,
    lambda text: " ".join(text.split()),
]


pytestmark = pytest.mark.usefixtures("nothing_known")


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=8, max_size=30))
@example("a\"b'c\\d/é<x>&ü🔑 e\nf%g=12")
@example("-----BEGIN KEY-----\nMIIEpAIBAAKC\n-----END KEY-----\n")
@example("tok[red]en[/red]")
@example("\\\\\\'\\\"\\")
def test_a_value_is_masked_in_every_form(value: str) -> None:
    """Quoted, escaped, percent-encoded, with spaces collapsed, twice over: nothing of it is left."""
    assume(len(value.strip()) >= 8 and any(one.isalnum() for one in value))
    secrets._known = secrets._Known()
    know(value, "S")
    for form in FORMS:
        told = masked(f"before {form(value)} after")
        assert value.strip() not in told and form(value) not in told, (form(value), told)
        assert told.startswith("before") and told.endswith("after"), told
        assert masked(told) == told


@settings(deadline=None)
@given(st.lists(st.text("abcdef-", min_size=8, max_size=12), min_size=1, max_size=4), st.text("abcdef- ", max_size=60))
def test_values_within_and_beside_each_other_leave_nothing(values: list[str], text: str) -> None:
    """One value may be part of another, or overlap it: neither is left in a text, and what is no value stays."""
    values = [value for value in values if len(value.strip()) >= 8]
    secrets._known = secrets._Known()
    for number, value in enumerate(values):
        know(value, f"V{number}")
    told = masked(text)
    assert not any(value in told for value in values)
    if not any(value in text for value in values):
        assert told == text


def test_text_stays_readable() -> None:
    """Short values are masked as words, the shortest, switches and small numbers not at all; names of a run never."""
    for value in ("abc", "true", "0.001", "12345", "cafe", "123456", "conv1.weight", "/data/mine"):
        know(value, "X")
    public("conv1.weight", "/data/mine/runs")
    assert masked("abc true 0.001 12345") == "abc true 0.001 12345"
    assert masked("cafe decafe1 (cafe) 123456 1234567") == "${oc.env:X} decafe1 (${oc.env:X}) ${oc.env:X} 1234567"
    assert masked("conv1.weight in /data/mine/runs/a") == "conv1.weight in /data/mine/runs/a"


def test_passwords_of_urls_are_masked() -> None:
    """Those that stand in a URL, those of a URL that came whole, and a password by itself once it is known."""
    assert masked("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert (
        masked("at http://me:p@ss@host/x, http://a:${oc.env:PW}@h")
        == "at http://me:***@host/x, http://a:${oc.env:PW}@h"
    )
    assert masked('["http://host:5000","a@b"]') == '["http://host:5000","a@b"]'
    know("https://a-long-login:p%40ssword1@host/x?sig=0123456789abcdef", "URL")
    public("https://a-long-login:p%40ssword1@host/x?sig=0123456789abcdef")
    told = masked("p@ssword1 p%40ssword1 a-long-login 0123456789abcdef https://a-long-login:p%40ssword1@host/x")
    assert told == "*** *** *** *** https://***:***@host/x"
    know_passwords("s3://key:another-one@bucket")
    assert masked("denied: another-one") == "denied: ***"


@pytest.mark.parametrize(
    "text", ["w" * 300_000, "http://" * 40_000 + "@", "http://a:" + "b" * 300_000 + " @", "\\" * 300_000]
)
def test_long_texts_take_no_time(text: str) -> None:
    """A report is megabytes, some of it one word."""
    know("a\\b 'c' of mine", "S")
    began = time.monotonic()
    masked(f"{text} http://a:b@c")
    assert time.monotonic() - began < 5


def test_json_is_hidden_at_any_depth_and_stays_json() -> None:
    """Texts and keys at any depth; numbers, and the words that a program looks for, as they are."""
    know("token-of-mine", "T")
    know("accuracy", "M")
    value = {"a": ["x token-of-mine", ("token-of-mine",)], "token-of-mine": 1, "accuracy": 0.5, "n": None}
    told = {"a": ["x ${oc.env:T}", ("${oc.env:T}",)], "${oc.env:T}": 1, "accuracy": 0.5, "n": None}
    assert hidden(value) == told


def test_passwords_go_aside_and_come_back() -> None:
    """Prefect's server stores a flow's parameters: passwords in them stay in this process."""
    given = {"tracking.uri": "http://me:hunter2@host", "b": ["s3://x:y1@z", 3, "http://me:${oc.env:PW}@host"]}
    sent = aside(given)
    assert "hunter2" not in str(sent) and "y1" not in str(sent) and "${oc.env:PW}" in str(sent)
    assert restored(sent) == given and aside("http://host/a") == "http://host/a"


class Odd(Exception):
    """An error whose text is not what it was made from."""

    def __init__(self, held: list[Any]) -> None:
        super().__init__("nothing")
        self.held = held

    def __str__(self) -> str:
        return f"odd: {''.join(self.held[0])}"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(f"no login with {TOKEN}"),
        KeyError(TOKEN),
        OSError(2, "no such file", f"/x/{TOKEN}"),
        ImportError(f"no {TOKEN}", name=TOKEN),
        UnicodeEncodeError("ascii", TOKEN, 0, 1, TOKEN),
        SyntaxError("bad", (TOKEN, 1, 1, TOKEN)),
        ExceptionGroup("several", [ValueError(TOKEN), Odd([list(TOKEN)])]),
        Odd([TOKEN]),
        Odd([list(TOKEN)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_exceptions_and_their_causes_show_no_value(error: Exception) -> None:
    """Whatever class it is, and whatever caused it: neither text, nor arguments, nor traceback have the value."""
    import traceback

    know(TOKEN, "T")

    @sealed
    def work() -> None:
        try:
            try:
                raise RuntimeError("first", [TOKEN])
            except RuntimeError:
                raise error  # noqa: B904  what is raised meanwhile is an exception's context
        except Exception as inner:
            raise TypeError("last") from inner

    with pytest.raises(TypeError) as told:
        work()
    chain: list[BaseException | None] = [told.value, told.value.__cause__, told.value.__cause__.__context__]  # type: ignore[union-attr]
    text = "".join(traceback.format_exception(told.value)) + repr(chain) + "".join(str(one) for one in chain)
    assert TOKEN not in text and "${oc.env:T}" in text
    failed = without_secrets(error)
    assert TOKEN not in f"{failed} {failed!r}"


def test_an_exception_without_a_value_is_the_same() -> None:
    """Its class, arguments and cause are for the code that catches it."""
    know("token-of-mine", "T")
    error = ValueError("something", 3)
    assert without_secrets(error) is error and error.args == ("something", 3)


def test_every_log_record_is_masked(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever logs: message, arguments and traceback; the exception itself stays as it is for who handles it."""
    know("token-of-mine", "T")
    try:
        raise ValueError("token-of-mine")
    except ValueError as error:
        logging.getLogger("anybody").exception("failed with %s of %d", {"a": "token-of-mine"}, 3)
        assert error.args == ("token-of-mine",)
    assert "token-of-mine" not in caplog.text and "failed with {'a': '${oc.env:T}'} of 3" in caplog.text
    assert "ValueError: ${oc.env:T}" in caplog.text


def test_what_is_printed_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    """A user's print, too; JSON goes past it, hidden already."""
    know("token-of-mine", "T")
    with secrets.terminal():
        print("a", "token-of-mine")
        print('{"a": 123}', file=secrets.unmasked_stdout())
    assert capsys.readouterr().out == 'a ${oc.env:T}\n{"a": 123}\n'


@pytest.mark.parametrize("path", sorted(Path(secrets.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_every_task_is_sealed(path: Path) -> None:
    """Prefect stores the message, the log and the traceback of what a task raises."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [ast.unparse(one).partition("(")[0] for one in getattr(node, "decorator_list", [])]
        assert "task" not in names or names == ["task", "sealed"], (path.stem, names)
