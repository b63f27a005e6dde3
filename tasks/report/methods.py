"""What each method of a training reports, as tables: one for each thing that a method tells of tensors or modules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.report.words import number

FEW = 2  # numbers that a cell shows; of more, such as a codebook's, their count


@dataclass(frozen=True)
class Table:
    """What one method of a stage says of one kind of ``things``: ``rows`` of numbers and texts, under ``columns``."""

    stage: str
    method: str
    things: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def of_texts(self, column: int) -> bool:
        """Whether a column has texts alone, which stand at its left."""
        return all(isinstance(row[column], str | None) for row in self.rows)


def methods_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a stored stage's methods report, each with its name as ``method``; without long lists of numbers.

    Empty where no method was at work.
    """
    found = (entry.get("report") or {}).get("methods") or []
    return [{key: _short(value) for key, value in one.items()} for one in found]


def method_tables(stages: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A table for each thing that a method of a stage reports.

    Args:
        stages: each with ``stage``, its label, and ``methods``, what its methods report.
    """
    return [
        Table(stage["stage"], one["method"], *made)
        for stage in stages
        for one in stage["methods"]
        for made in _tables({key: value for key, value in one.items() if key != "method"})
    ]


def _tables(report: Mapping[str, Any]) -> Iterator[tuple[str, list[str], list[list[Any]]]]:
    for key, value in report.items():
        rows: Sequence[Any] = value if isinstance(value, list) else []
        if isinstance(value, Mapping):
            rows = [{key: name, "value": one} for name, one in value.items()]
        rows = [row if isinstance(row, Mapping) else {key: row} for row in rows]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        if rows:
            yield (
                key.replace("_", " "),
                [name.replace("_", " ") for name in columns],
                [[_cell(row.get(one)) for one in columns] for row in rows],
            )


def _cell(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    between = ", " if value and isinstance(value[0], str) else " to "
    return f"{len(value)} values" if _long(value) else between.join(map(number, value))


def _short(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _short(one) for key, one in value.items() if not _long(one)}
    return [_short(one) for one in value] if isinstance(value, list) else value


def _long(value: Any) -> bool:
    return isinstance(value, list) and len(value) > FEW and not isinstance(value[0], str | Mapping)
