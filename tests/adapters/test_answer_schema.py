"""Answers against JSON schemas: what fits, what is refused, and schemas that would stall a worker."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from walled.adapters import answer_schema
from walled.errors import BadRequest

SHAPES = answer_schema.shapes()


def problem(schema: Any, value: str) -> str:
    return SHAPES.shape(schema if schema == "json" else json.dumps(schema)).problem(value)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ("json", "[1]", "[1"),
        ("json", '{"a": 1.5}', '{"a": NaN}'),
        ({"type": "integer"}, "3", '"3"'),
        ({"type": "object", "required": ["a"]}, '{"a": 1}', "{}"),
        ({"additionalProperties": False, "properties": {"a": {}}}, '{"a": 1}', '{"b": 1}'),
        (
            {"additionalProperties": {"type": "string"}, "patternProperties": {"^n": {"type": "number"}}},
            '{"n1": 1, "s": "x"}', '{"n1": "1"}',
        ),
        ({"type": "string", "pattern": "^[A-Z]{3}$"}, '"ABC"', '"abc"'),
        ({"enum": ["yes", "no"]}, '"no"', '"maybe"'),
        ({"type": "array", "uniqueItems": True}, "[1, 2]", "[1, 1]"),
        ({"oneOf": [{"type": "string"}, {"minimum": 3}]}, "5", "1"),
        ({"$defs": {"t": {"type": "string"}}, "items": {"$ref": "#/$defs/t"}}, '["x"]', "[1]"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "const": 1}, "1", "2"),
    ],
)  # fmt: skip
def test_what_fits(schema: Any, good: str, bad: str) -> None:
    assert problem(schema, good) == ""
    assert problem(schema, bad) != ""


def test_the_problem_names_the_place_and_not_the_text() -> None:
    schema = {"properties": {"seller": {"properties": {"phone": {"type": "integer"}}}}}
    found = problem(schema, '{"seller": {"phone": "secret-5551234"}}')
    assert "seller/phone" in found
    assert "secret" not in found


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"pattern": "("},
        {"pattern": "(?=a)"},
        {"patternProperties": {"(?<!a)b": {}}},
        [1],
    ],
)
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(BadRequest, match="format"):
        SHAPES.shape(json.dumps(schema))


DOUBLING = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(40)} | {"a40": {}}


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"$defs": DOUBLING, "$ref": "#/$defs/a0"}, "1"),
        ({"$ref": "#"}, "1"),
        ({"type": "string", "pattern": "^(a+)+$"}, json.dumps("a" * 50_000 + "b")),
        ({"patternProperties": {"^(a|aa)+$": {}}}, json.dumps({"a" * 20_000 + "b": 1})),
        ({"uniqueItems": True}, json.dumps([{"a": n} for n in range(20_000)])),
        ({"items": {"anyOf": [{"type": "string"}] * 50}}, json.dumps(list(range(20_000)))),
        ({"$ref": "http://127.0.0.1:9/never.json"}, "1"),
    ],
)
def test_no_schema_can_stall(schema: Any, value: str) -> None:
    began = time.thread_time()
    problem(schema, value)
    assert time.thread_time() - began < 5.0


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    def refuse(*args: Any, **more: Any) -> Any:
        raise AssertionError("it opened a URL")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert "refers to what is not there" in problem({"$ref": "http://example.test/x.json"}, "1")
