"""A comparison as a table for a paper: booktabs, names escaped, the best in bold."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence

from flows.compare.results import Comparison
from flows.compare.words import SIDE_BY_SIDE, Column, columns, joined

FOLD = 20
IN_PRINT = frozenset(
    {"run", "file_bytes", "file_bytes_worst", "ratio", "bits_per_weight", "density"}
    | {"score", "dense_score", "file_score", "file_score_worst", "change", "p_value"}
)
SIGNS = {
    **{sign: f"\\{sign}" for sign in "{}$&#_%"},
    **{"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "[": "{[}", "]": "{]}"},
    **{"±": r"$\pm$", "→": r"$\rightarrow$", "–": "--", "…": r"\ldots{}"},
}


def latex(comparison: Comparison) -> str:
    """A ``table`` environment with caption and label; the sentences stand above it as comments."""
    several = any(group.n > 1 for group in comparison.groups)
    found = [c for c in columns(comparison) if c.setting or c.key in IN_PRINT or (several and c.key == "seeds")]
    side_by_side = len(comparison.groups) <= SIDE_BY_SIDE
    rows = _side_by_side(found) if side_by_side else _below(found)
    kinds = "l" + "r" * len(comparison.groups) if side_by_side else "".join("r" if c.numeric else "l" for c in found)
    lines = [f"% {' '.join(line.split())}" for line in comparison.sentences]
    lines += [r"% needs \usepackage{booktabs,graphicx}", r"\begin{table}[t]", r"\centering"]
    lines += [f"\\caption{{{_escaped(_caption(comparison, found))}}}", r"\label{tab:comparison}"]
    lines += [r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%", f"\\begin{{tabular}}{{{kinds}}}"]
    lines += [r"\toprule", f"{rows[0]} \\\\", r"\midrule", *(f"{row} \\\\" for row in rows[1:]), r"\bottomrule"]
    return "\n".join([*lines, r"\end{tabular}}", r"\end{table}"]) + "\n"


def _side_by_side(found: Sequence[Column]) -> list[str]:
    """A line a property, as on a narrow page; the first has the runs' names."""
    return [" & ".join([_escaped(column.label), *_cells(column, "r")]) for column in found]


def _below(found: Sequence[Column]) -> list[str]:
    """A line a run; the first has the properties' names."""
    heads = [_stacked(column.label, _side(column)) for column in found]
    lines = zip(*(_cells(column, _side(column)) for column in found), strict=True)
    return [" & ".join(heads), *(" & ".join(line) for line in lines)]


def _side(column: Column) -> str:
    return "r" if column.numeric else "l"


def _cells(column: Column, side: str) -> list[str]:
    texts = [f"n = {cell.value}" if column.key == "seeds" else cell.text for cell in column.cells]
    stacked = [_stacked(text, side) for text in texts]
    return [f"\\textbf{{{text}}}" if cell.best else text for text, cell in zip(stacked, column.cells, strict=True)]


def _stacked(text: str, side: str) -> str:
    """Long text on several lines: tables in print are narrow."""
    lines = [_escaped(line) for line in textwrap.wrap(text, FOLD, break_long_words=False)]
    return "".join(lines) if len(lines) < 2 else f"\\shortstack[{side}]{{" + r"\\".join(lines) + "}"


def _caption(comparison: Comparison, found: Sequence[Column]) -> str:
    parts = ["The compressed file beside the dense network it was made from."]
    if any(group.n > 1 for group in comparison.groups):
        parts.append("Mean ± sample standard deviation over n seeds.")
    if any(cell.best for column in found for cell in column.cells):
        parts.append("The best is bold.")
    barred = dict.fromkeys(why for group in comparison.groups for why in group.incomparable.values())
    if barred:
        parts.append(f"Not all are comparable: {joined(list(barred))}.")
    return " ".join(parts)


def _escaped(text: str) -> str:
    escaped = "".join(SIGNS.get(sign, sign) for sign in " ".join(text.split()))
    return re.sub(r"(?<![\w\-])-(?=\d)", "$-$", escaped)
