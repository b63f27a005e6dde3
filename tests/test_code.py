"""Functions and files stay short enough to be read, and the library's public ones say what they take."""

from __future__ import annotations

from statistics import median

import measure_code as code


def test_functions_stay_short() -> None:
    """Half of them are at most 7 code lines, nine in ten at most 18, and none is over 60 but the coder's loop."""
    found = code.functions()
    lines = [function.lines for function in found]
    assert len(found) > 1000
    assert median(lines) <= code.MEDIAN and code.ninth_decile(lines) <= code.NINTH_DECILE
    long = {(one.file, one.name) for one in found if one.lines > code.LONGEST}
    assert long == code.LONG_ON_PURPOSE


def test_long_files_say_why() -> None:
    """A file over 350 lines begins with the reason why it is one, or is parted at its seams."""
    assert list(code.long_files()) == []


def test_public_functions_say_what_they_take() -> None:
    """With three parameters or more they have Args in their docstring, and no keywords that mypy cannot check."""
    assert code.without_args() == [] and code.any_keywords() == []
