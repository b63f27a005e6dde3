from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flows.recipe.explain import explain
from flows.recipe.schema import Recipe
from tasks.methods import METHODS
from tasks.methods import settings_of as method_settings
from tasks.stages import STAGES, settings_of

BITS = "expected an integer from 2 to 16, a table by name, or allocated"
QUANTIZE, TRAIN = {"stage": "quantize"}, {"stage": "train", "epochs": 1}


def told(stage: Any, **keys: Any) -> str:
    factory = {"factory": "a:b"}
    values = {"name": "x", "model": factory, "data": factory, "stages": [stage], **keys}
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(values)
    return explain(caught.value, values, "", "r.yaml", {})[0]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({**QUANTIZE, "weights": {"bits": "alocated"}}, f"weights.bits: {BITS}, got 'alocated'; did you mean 'allo"),
        ({**QUANTIZE, "activations": {"bits": "alocated"}}, f"activations.bits: {BITS}, got 'alocated'; did you"),
        ({**QUANTIZE, "weights": {"bits": 1}}, f"weights.bits: {BITS}, got 1"),
        ({**QUANTIZE, "weights": {"bits": [4]}}, f"weights.bits: {BITS}, got a list"),
        ({**QUANTIZE, "weights": {"bits": {"a": "allocated"}}}, "weights.bits.a: expected an integer from 2 to 16, g"),
        (
            {**QUANTIZE, "weights": {"per": "chanel"}},
            "weights.per: expected tensor, channel, or a mapping with group",
        ),
        ({**QUANTIZE, "weights": {"per": {"groups": 4}}}, "weights.per.groups: unknown key; did you mean 'group'?"),
        ({**QUANTIZE, "weights": 8}, "weights: expected a mapping with bits, scheme, per, range, got 8"),
        (
            {**QUANTIZE, "rest": "int4"},
            "rest: expected float32, float16, bfloat16, int8, or auto, got 'int4'; did you ",
        ),
        (
            {**TRAIN, "methods": [{"quantize": {"weights": {"bits": "alocated"}}}]},
            f"methods.0.quantize.weights.bits: {BITS}, got 'alocated'; did you mean 'allocated'?",
        ),
        (
            {**TRAIN, "schedule": "cosin", "methods": ["l0"]},
            "schedule: expected constant, cosine, linear, or a mapping",
        ),
        ({"stage": "share", "per": {"channel": 4}}, "per.channel: unknown key; did you mean 'channels'?"),
        ({"stage": "share", "rate": -1}, "rate: expected a number of 0 or more, or a table by name, got -1"),
        (
            {"stage": "allocate", "like": 4, "bits": 4},
            "bits: expected a table by name, or a list, each an integer from",
        ),
        ({"stage": "allocate", "like": 4, "bits": [2, "x"]}, "bits.1: expected an integer from 2 to 16, got 'x'"),
        (
            {"stage": "allocate", "cost": "latency", "like": 4, "latency": {"fc": 3}},
            "latency.fc: expected a table by name, got 3",
        ),
    ],
)
def test_what_may_stand_somewhere_is_told_whole(stage: Any, message: str) -> None:
    """Of all that a key takes, not of the first kind alone: what came, what is possible, and the nearest word."""
    assert told(stage).startswith(f"r.yaml: stages.0.{message}")


@pytest.mark.parametrize("kind", [*STAGES, *(f"method {name}" for name in METHODS)])
def test_no_key_is_refused_in_words_of_the_schema_library(kind: str) -> None:
    """Every key of every stage and method, given a word that none of them takes."""
    name, word = kind.rpartition(" ")[2], "no such word"
    settings = method_settings(name) if " " in kind else settings_of(name)
    for key in sorted({*settings.model_fields} - {"stage"}):
        one = {key: word}
        message = told({**TRAIN, "methods": [{name: one}]} if " " in kind else {"stage": name, **one})
        assert "input should" not in message.lower() and f"{key}: expected " in message and word in message
