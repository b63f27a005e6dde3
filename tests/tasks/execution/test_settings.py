"""What a recipe says of stages and methods, stored with all its keys and read again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from every_line import METHOD_KEYS, STAGE_KEYS

from tasks.execution.settings import plain
from tasks.stages import settings_of

SHORT = {"epochs": 1}
FILTERS = {"granularity": "filter", "density": 0.5}
STAGES = [(name, {**row, "before": None}) for name, rows in STAGE_KEYS.items() for row in rows]
METHODS = [*METHOD_KEYS.items(), ("prune", {"density": 0.5}), ("prune", FILTERS), ("prune", {**FILTERS, "soft": True})]
LINES = [*STAGES, *(("train", {**SHORT, "methods": [{name: keys}]}) for name, keys in METHODS)]


@pytest.mark.parametrize(("name", "keys"), LINES, ids=[f"{name} {number}" for number, (name, _) in enumerate(LINES)])
def test_a_stored_recipe_is_read_again(name: str, keys: dict[str, Any]) -> None:
    """A run stores each key with its default, for reruns and other processes: that is no key too many."""
    given = _given(name, keys)
    settings = settings_of(name).model_validate(given)
    again = settings_of(name).model_validate(json.loads(json.dumps(plain(settings))))
    assert plain(again) == plain(settings)


def _given(name: str, keys: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in keys.items() if key != "before"}
    methods = [
        {one: {key: value for key, value in row.items() if key != "before"} for one, row in method.items()}
        if isinstance(method, dict)
        else method
        for method in own.get("methods", [])
    ]
    word = {} if name in ("baseline", "custom") else {"stage": name}
    return {**word, **own, **({"methods": methods} if methods else {})}
