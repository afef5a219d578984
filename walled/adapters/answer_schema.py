"""The door to jsonschema: does an answer fit the JSON schema its request asked for?

May live here: parsing, validating, its limits. May not: what follows.

A schema comes from a caller, so it is hostile until shown otherwise: references are resolved within it
and never fetched, its patterns are matched by RE2, and a budget of steps ends what would take for ever
(references that double at each level).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from walled.adapters import patterns
from walled.errors import BadRequest, ConfigError

MAX_STEPS = 50_000
"""Keywords evaluated for one answer; 0.3 s at most."""


class _TooManySteps(Exception):
    pass


def shapes() -> JsonShapes:
    """Raises ConfigError when the package is not installed."""
    try:
        import jsonschema
        import referencing
    except ImportError:
        raise ConfigError(
            f"validation.json_schema: needs the package jsonschema, which is not installed; "
            f"install it with: {patterns.EXTRA}"
        ) from None
    return JsonShapes(jsonschema, referencing, patterns.engine())


class JsonShapes:
    """core.validating.Shapes."""

    def __init__(self, jsonschema: Any, referencing: Any, engine: patterns.Re2) -> None:
        self._jsonschema = jsonschema
        self._registry = referencing.Registry()
        self._engine = engine
        self._unresolvable = referencing.exceptions.Unresolvable

    def shape(self, format: str) -> JsonShape:
        """Raises BadRequest for a schema that is none, or cannot be checked in bounded time."""
        schema = {} if format == "json" else json.loads(format)
        base = self._jsonschema.validators.validator_for(
            schema, default=self._jsonschema.Draft202012Validator
        )
        try:
            base.check_schema(schema)
        except self._jsonschema.SchemaError as exc:
            where = "/".join(str(part) for part in exc.absolute_path) or "at its top"
            raise BadRequest(f"format: not a JSON schema ({where})") from None
        except Exception:
            raise BadRequest("format: not a JSON schema that can be checked") from None
        self._check_patterns(schema)
        return JsonShape(self, base, schema)

    def _check_patterns(self, schema: Any) -> None:
        level = [schema]
        while level:
            inner: list[Any] = []
            for value in level:
                if isinstance(value, dict):
                    pattern = value.get("pattern")
                    found = [pattern] if isinstance(pattern, str) else []
                    properties = value.get("patternProperties")
                    found += list(properties) if isinstance(properties, dict) else []
                    for text in found:
                        self._pattern(text)
                    inner += value.values()
                elif isinstance(value, list):
                    inner += value
            level = inner

    def _pattern(self, text: str) -> Callable[[str], bool]:
        try:
            return self._engine.searcher(text)
        except ValueError:
            raise BadRequest(
                "format: a pattern of the schema cannot be checked in linear time; write it without "
                "look-around and back-references"
            ) from None

    def validator(self, base: Any, schema: Any) -> Any:
        """A validator that counts its steps and knows no other regular expressions than RE2's."""
        steps = [0]

        def counted(keyword: Callable[..., Any]) -> Callable[..., Iterator[Any]]:
            def evaluate(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
                steps[0] += 1 + (len(instance) // 10 if isinstance(instance, list) else 0)
                if steps[0] > MAX_STEPS:
                    raise _TooManySteps
                yield from keyword(validator, value, instance, schema) or ()

            return evaluate

        error = self._jsonschema.ValidationError

        def pattern(validator: Any, value: Any, instance: Any, _: Any) -> Iterator[Any]:
            if isinstance(instance, str) and not self._pattern(value)(instance):
                yield error("pattern")

        def pattern_properties(validator: Any, value: Any, instance: Any, _: Any) -> Iterator[Any]:
            if isinstance(instance, dict):
                for text, sub in value.items():
                    compiled = self._pattern(text)
                    for key, inner in instance.items():
                        if compiled(key):
                            yield from validator.descend(inner, sub, path=key, schema_path=text)

        def additional(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
            if not isinstance(instance, dict):
                return
            compiled = [self._pattern(text) for text in schema.get("patternProperties", {})]
            for key, inner in instance.items():
                if key in schema.get("properties", {}) or any(each(key) for each in compiled):
                    continue
                if value is False:
                    yield error("additionalProperties")
                elif isinstance(value, dict):
                    yield from validator.descend(inner, value, path=key)

        def unique(validator: Any, value: Any, instance: Any, _: Any) -> Iterator[Any]:
            if value and isinstance(instance, list):
                seen = {json.dumps(item, sort_keys=True) for item in instance}
                if len(seen) < len(instance):
                    yield error("uniqueItems")

        own = {
            "pattern": pattern,
            "patternProperties": pattern_properties,
            "additionalProperties": additional,
            "uniqueItems": unique,
        }
        keywords = {name: counted(keyword) for name, keyword in {**base.VALIDATORS, **own}.items()}
        made = self._jsonschema.validators.extend(base, keywords)
        return made(schema, registry=self._registry)

    @property
    def unresolvable(self) -> type[Exception]:
        return self._unresolvable  # type: ignore[no-any-return]


class JsonShape:
    """core.validating.Shape."""

    def __init__(self, shapes: JsonShapes, base: Any, schema: Any) -> None:
        self._shapes = shapes
        self._base = base
        self._schema = schema

    def problem(self, text: str) -> str:
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError):
            return "not JSON"
        if self._schema == {}:
            return ""
        validator = self._shapes.validator(self._base, self._schema)
        try:
            found = next(validator.iter_errors(value), None)
        except _TooManySteps:
            return "the schema takes too many steps to be checked"
        except (RecursionError, self._shapes.unresolvable):
            return "the schema refers to what is not there, or to itself without end"
        except Exception as exc:  # a schema that passed the check and still breaks the library
            return f"the schema cannot be checked ({type(exc).__name__})"
        return (
            ""
            if found is None
            else f"does not fit at {'/'.join(str(p) for p in found.absolute_path) or 'top'}"
        )


def _no_constant(name: str) -> Any:
    raise ValueError(name)
