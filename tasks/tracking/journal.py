"""What a run's journal may say: lines as tracking.py writes them, checked before they are sent from this machine.

A journal can come from another machine by way of a shared store. What it names is sent with this machine's rights, so
only files of the run's own folder are, and only under names that lead nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from deepcompression.errors import InputError

MOST_BYTES = 16 * 10**6  # of a line; one of a long training has some 100 kB

Text = Annotated[str, Field(max_length=100_000)]
Name = Annotated[str, Field(pattern=r"""^[^'"\\\x00-\x1f\x7f]+$""", max_length=500)]  # it becomes part of a query
Folder = Annotated[
    str, Field(pattern=r"^[\w\-][\w\-. ]*(/[\w\-][\w\-. ]*)*$", max_length=500)
]  # no .., nothing absolute
Time = Annotated[int, Field(ge=0, lt=2**53)]
Scalar = Text | int | float | bool | None


class Parent(TypedDict):
    """The run that has this one as a child."""

    folder: Text
    run_id: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None


class Start(TypedDict):
    """The run begins."""

    kind: Literal["start"]
    time: Time
    name: Name
    tags: dict[Text, Scalar]
    parent: Parent | None


class Texts(TypedDict):
    """Parameters or tags."""

    kind: Literal["params", "tags"]
    time: Time
    values: dict[Text, Scalar]


class Metrics(TypedDict):
    """Name, value, step."""

    kind: Literal["metrics"]
    time: Time
    values: list[tuple[Text, float, Annotated[int, Field(gt=-(2**53), lt=2**53)]]]


class Dataset(TypedDict):
    """What was learnt from."""

    kind: Literal["dataset"]
    time: Time
    name: Name
    digest: Annotated[str, Field(max_length=36)]
    source: Text


class Artifact(TypedDict):
    """A file of the run's folder, and the folder that it is shown in."""

    kind: Literal["artifact"]
    time: Time
    path: Text
    into: Folder | None


class Finish(TypedDict):
    """The run ends."""

    kind: Literal["finish"]
    time: Time
    status: Literal["FINISHED", "FAILED", "KILLED"]


LINE: TypeAdapter[Any] = TypeAdapter(
    Annotated[Start | Texts | Metrics | Dataset | Artifact | Finish, Field(discriminator="kind")]
)


def lines(path: Path, start: int = 0) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
    """Lines from number ``start`` (0 is the first) with their numbers, each checked; a damaged one as what is wrong."""
    try:
        file = path.open("rb")
    except OSError:
        return
    with file:
        number = 0
        while line := file.readline(MOST_BYTES):
            whole = line.endswith(b"\n") or len(line) < MOST_BYTES
            while not whole:
                rest = file.readline(MOST_BYTES)
                whole = rest.endswith(b"\n") or len(rest) < MOST_BYTES
                line = b""
            if number >= start:
                yield number, checked(line, path.parent) if line else f"more than {MOST_BYTES:,} bytes"
            number += 1


def checked(line: bytes, folder: Path) -> Mapping[str, Any] | str:
    """A line, or in words why it is none that may be sent."""
    try:
        value: Mapping[str, Any] = LINE.validate_json(line)
        if value["kind"] == "artifact":
            own_file(folder, value["path"])
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part)[:40] for part in first["loc"])
        return f"{where}: {first['msg'][:160]}".lstrip(": ")
    except InputError as error:
        return str(error)
    return value


def own_file(folder: Path, name: str) -> Path:
    """The file ``name`` of a run's folder, links resolved.

    Raises:
        InputError: it is absolute, leads out of the folder, or is no file.
    """
    try:
        path = (folder / name).resolve()
        found = path.is_relative_to(folder.resolve()) and not Path(name).is_absolute() and path.is_file()
    except (OSError, ValueError):  # too long, or with a zero in it
        found = False
    if not found:
        raise InputError(f"{name[:200]!r} is no file of the run's own folder")
    return path
