"""A value in every form in which some language writes it: JSON, YAML, Python, HTML, URLs, Rich; also several times."""

from __future__ import annotations

import functools
import re
import string

_WHITE = r"(?:\s|\\+[nrtvf]|\\+(?:x|u00)(?:0[9a-dA-D]|20)|%(?:20|0[9a-dA-D])|\+|&\#(?:9|10|13|32);)+"
_LETTERS = {"\0": "0", "\a": "a", "\b": "b", "\x1b": "e", "\x85": "N", "\xa0": "_", "\u2028": "L", "\u2029": "P"}
_HTML = {"&": ("amp",), "<": ("lt",), ">": ("gt",), '"': ("quot",)}


@functools.lru_cache(maxsize=1000)
def pattern(value: str, *, anywhere: bool) -> re.Pattern[str]:
    """Matches ``value`` as it is, and in every escaped form; ``anywhere`` in a text, or as a whole word alone."""
    body = "".join(map(_forms, re.findall(r"\s+|\\+|.", value, re.DOTALL)))
    return re.compile(body if anywhere else rf"(?<![^\W_]){body}(?![^\W_])")


def _forms(part: str) -> str:
    if part.isspace():
        return f"(?:{'|'.join([_WHITE, *(_escaped(one) for one in sorted(set(part) - set(string.whitespace)))])})+"
    if part[0] == "\\":
        return r"(?:\\|%5[cC]|&\#92;)+"
    if part.isascii() and part.isalnum():
        return part
    return _escaped(part)


def _escaped(part: str) -> str:
    """One character: as it is, or as some language writes it."""
    code, encoded = ord(part), part.encode("utf-8", "surrogatepass")
    units = part.encode("utf-16-be", "surrogatepass")
    plain = [
        re.escape(part),
        "".join(f"%{byte:02x}" for byte in encoded),
        *(f"&{name};" for name in (*_HTML.get(part, ()), f"#{code}", f"#x{code:x}")),
    ]
    slashed = [
        rf"x{code:02x}",
        r"\\+".join(f"x{byte:02x}" for byte in encoded),
        r"\\+".join(f"u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)),
        rf"U{code:08x}",
        *_LETTERS.get(part, ""),
    ]
    doubled = [part + part] if part in "'\"" else []  # YAML and CSV
    return rf"(?i:\\+(?:{'|'.join(slashed)})|\\*(?:{'|'.join([*doubled, *plain])}))"


def merged(spans: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """Spans in their order, those that overlap as one, named as the longest of them."""
    merged: list[tuple[int, int, str]] = []
    longest = 0
    for start, stop, label in spans:
        if merged and start < merged[-1][1]:
            first, last, known = merged[-1]
            merged[-1] = (first, max(last, stop), label if stop - start > longest else known)
            longest = max(longest, stop - start)
        else:
            merged.append((start, stop, label))
            longest = stop - start
    return merged
