"""Every error that this library raises on purpose.

    DeepCompressionError
     ├─ InputError (also a ValueError)    the user's input is wrong: exit code 2, one line, no traceback
     │   ├─ RecipeError                   a key, a value or an override of a recipe
     │   ├─ FactoryError                  a `package.module:callable` that does not import, or does not fit
     │   ├─ DataError                     data folder missing, file truncated, offline, impossible split
     │   ├─ WeightsError                  weights file missing, not fitting, or a pickle with code
     │   ├─ EditError                     an edit of a model that is unknown here, or does not fit it
     │   ├─ StructureError                a pattern that matches nothing, impossible density or bits
     │   │   └─ ValuesError               what these weights or samples do not allow; others may
     │   ├─ ExportError                   a target that misses a package, or cannot take the model
     │   ├─ BudgetError                   a budget that cannot be measured, or is out of reach from the start
     │   └─ FormatError                   anything wrong with a .dcz file
     │       ├─ NotADczFile               the first bytes are not those of a .dcz file
     │       ├─ UnsupportedVersion        a version of the format that this reader does not know
     │       ├─ TruncatedFile             the file ends before its header says so
     │       ├─ ChecksumMismatch          bytes changed after they were written
     │       ├─ MalformedFile             a field contradicts FORMAT.md
     │       └─ TooLarge                  decoding would take more memory, or disk, than allowed
     └─ RunError                          everything else: exit code 1
         ├─ DivergedError                 the loss became NaN or infinite
         ├─ InvariantError                a stage broke the structure that it promised to hold
         ├─ StorageError                  disk full, or no permission to write
         └─ AimMissed                     the file is made, but misses a budget or a gate: exit code 3

A message is one line: where, the rule, what came, what to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


class DeepCompressionError(Exception):
    """Base of every error in this module."""


class InputError(DeepCompressionError, ValueError):
    """The user's input is wrong. ``others``: what else is wrong with it, an error each."""

    others: tuple[InputError, ...] = ()


class RecipeError(InputError):
    """A recipe's key, value or override is wrong."""


class FactoryError(InputError):
    """A `package.module:callable` does not import, or returns the wrong thing."""


class DataError(InputError):
    """Data is missing, damaged, out of reach, or cannot be split as asked."""


class WeightsError(InputError):
    """A weights file is missing, does not fit the model, or is unsafe to load."""


class EditError(InputError):
    """An edit is unknown here, or does not fit the model."""


class StructureError(InputError):
    """Pruning, sharing or rounding was asked for something impossible."""


class ValuesError(StructureError):
    """What was asked for is impossible with these weights or samples; after another training it may be possible."""


class BudgetError(InputError):
    """A budget is too small to be measured, or larger than the model."""


class ExportError(InputError):
    """A target of an export misses a package, or cannot take the model."""


class FormatError(InputError):
    """A .dcz file cannot be read."""


class NotADczFile(FormatError):
    """The first bytes are not those of a .dcz file."""


class UnsupportedVersion(FormatError):
    """The file's format version is not known to this reader."""


class TruncatedFile(FormatError):
    """The file ends before its header says so."""


class ChecksumMismatch(FormatError):
    """Bytes changed after they were written."""


class MalformedFile(FormatError):
    """A field of the file contradicts FORMAT.md."""


class TooLarge(FormatError):
    """Decoding would take more memory, or disk, than allowed, or the file has more tensors than are read."""


class RunError(DeepCompressionError):
    """A run failed for a reason other than its input."""


class DivergedError(RunError):
    """The loss became NaN or infinite."""


class InvariantError(RunError):
    """A stage broke the structure that it promised to hold."""


class StorageError(RunError):
    """A file could not be written: disk full, or no permission."""


class AimMissed(RunError):
    """A run is finished, and its file and report are there, but it misses what was asked for.

    ``summary``: the run's summary, as it would have been returned.
    """

    def __init__(self, message: str, summary: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.summary = dict(summary)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.summary)


def together(errors: Sequence[InputError]) -> InputError:
    """The first of several errors, with the others in its ``others``."""
    first, *more = errors
    first.others = (*first.others, *more)
    return first


def one_line(what: object) -> str:
    """The words of an error, or any text, without line breaks."""
    return " ".join(str(what).split())


def told(error: BaseException) -> str:
    """An error of somebody's code in one line: its type, its words, and where in their file it was raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch's workers send a whole traceback as text, whose last line is the error.
    words = lines[-1] if any("Original Traceback" in line for line in lines) else " ".join(lines)
    kind = type(error).__name__
    return (words if words.startswith(f"{kind}: ") else f"{kind}: {words}" if words else kind)[:400] + _place(error)


@contextmanager
def in_one_line(what: str, kind: type[InputError]) -> Iterator[None]:
    """Whatever somebody's code raises in the block becomes a ``kind``: ``what`` failed, and how (``told``).

    This library's own errors pass, and so does a memory that is full, of which the code is not to blame.
    """
    try:
        yield
    except (DeepCompressionError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        raise kind(f"{what}: {told(error)}") from error


def _place(error: BaseException) -> str:
    """The innermost line that is neither this library's nor that of an installed package."""
    import traceback
    from pathlib import Path

    own, found = str(Path(__file__).parent), ""
    for frame in traceback.extract_tb(error.__traceback__):
        installed = any(part in frame.filename for part in ("site-packages", "/lib/python", "<", own))
        found = found if installed else f" ({'/'.join(Path(frame.filename).parts[-2:])}, line {frame.lineno})"
    return found
