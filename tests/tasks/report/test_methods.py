"""What methods report, as tables of the page."""

from __future__ import annotations

from tasks.report.methods import method_tables


def test_tables_say_of_what_they_are_and_texts_are_listed_at_the_left() -> None:
    """Two tables of one method must be told apart; several names are no range of numbers."""
    rows = [{"sites": ["a:input[0]", "b:input[0]"], "ends": [0.5, 2.0], "word": None}, {"sites": ["c:input[0]"]}]
    report = {"method": "hawq", "tensors": rows, "left_alone": {"d.weight": "zero throughout"}}
    first, second = method_tables([{"stage": "allocate", "methods": [report]}])
    assert (first.stage, first.method, first.things, second.things) == ("allocate", "hawq", "tensors", "left alone")
    assert first.rows[0][:2] == ["a:input[0], b:input[0]", "0.5 to 2"]
    assert [first.of_texts(column) for column in range(2)] == [True, True] and second.of_texts(1)
    assert not method_tables([{"stage": "s", "methods": [{"method": "m", "x": [{"n": "a"}, {"n": 1}]}]}])[0].of_texts(0)
