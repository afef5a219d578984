"""What is wrong with plain values that should fit a msgspec schema, in words an operator can act on.

May live here: finding every wrong key and value with its full path and the nearest valid one. May not: any
schema (config.py has it). Slow and thorough: it runs only after msgspec has refused the values.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import msgspec


def problems(data: Any, schema: Any, path: str = "") -> list[str]:
    """One line for each wrong key or value below `path`."""
    if get_origin(schema) is dict:
        if not isinstance(data, dict):
            return [_wrong(path, f"expected a table, got {_kind(data)}")]
        key_schema, value_schema = get_args(schema)
        found: list[str] = []
        for name, value in data.items():
            found += _value_problems(name, key_schema, f"{path}.{name}" if path else str(name), "name: ")
            found += problems(value, value_schema, _join(path, name))
        return found
    members = [
        member
        for member in (get_args(schema) or (schema,))
        if isinstance(member, type) and issubclass(member, msgspec.Struct)
    ]
    if not members:
        return _value_problems(data, schema, path)
    if not isinstance(data, dict):
        return [_wrong(path, f"expected a table, got {_kind(data)}")]
    if len(members) == 1:
        return _struct_problems(data, members[0], path)
    tags = {str(member.__struct_config__.tag): member for member in members}
    tag_field = str(members[0].__struct_config__.tag_field)
    tag = data.get(tag_field)
    if not isinstance(tag, str) or tag not in tags:
        return [_wrong(_join(path, tag_field), _choice(tag, list(tags)))]
    return _struct_problems(data, tags[tag], path)


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known word most like one that is not known; empty when none is."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), "")


def _struct_problems(data: dict[str, Any], struct: type[msgspec.Struct], path: str) -> list[str]:
    fields = {field.name: field for field in msgspec.structs.fields(struct)}
    found = []
    for key, value in data.items():
        if key in fields:
            found += problems(value, fields[key].type, _join(path, key))
        elif key != struct.__struct_config__.tag_field:
            near = nearest(str(key), fields, cutoff=0.5)
            valid = ", ".join(sorted(fields))
            hint = f"did you mean `{_join(path, near)}`?" if near else f"valid keys: {valid}"
            found.append(_wrong(_join(path, key), f"unknown key; {hint}"))
    found += [
        _wrong(_join(path, name), "is missing; it has no default")
        for name, field in fields.items()
        if field.required and name not in data
    ]
    return found


def _value_problems(value: Any, schema: Any, path: str, what: str = "") -> list[str]:
    items = get_args(schema)[:1] if get_origin(schema) is tuple else ()
    if items and get_origin(items[0]) is Literal and isinstance(value, list):
        lines = [_value_problems(item, items[0], f"{path}[{n}]") for n, item in enumerate(value)]
        return [line for found in lines for line in found]
    try:
        msgspec.convert(value, schema)
    except msgspec.ValidationError as exc:
        if get_origin(schema) is Literal:
            return [_wrong(path, what + _choice(value, [str(choice) for choice in get_args(schema)]))]
        text, _, inner = str(exc).partition(" - at `$")
        return [_wrong(path + inner.rstrip("`"), what + text)]
    return []


def _choice(value: Any, choices: list[str]) -> str:
    near = nearest(str(value), choices)
    hint = f'; did you mean "{near}"?' if near else ""
    wanted = ", ".join(f'"{choice}"' for choice in choices)
    return f"expected one of {wanted}, got {value!r}{hint}"


def _kind(value: Any) -> str:
    return {list: "an array", str: "a text", bool: "a boolean"}.get(type(value), f"{value!r}")


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _wrong(path: str, text: str) -> str:
    return f"{path}: {text}" if path else text
