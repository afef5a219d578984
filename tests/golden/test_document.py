"""docs/protocol.md against the code: every table, every hex example, every reply shape.

May live here: reading the page and comparing. A page that says something else than the code does is a defect
of one of the two.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from walled import broker, errors
from walled import payload as pl
from walled import protocol as p
from walled.config import from_plain
from walled.core import events as ev
from walled.core import flights, view
from walled.core.broker import Broker

ROOT = Path(__file__).parent.parent.parent
GOLDEN = Path(__file__).parent
PAGE = (ROOT / "docs/protocol.md").read_text("utf-8")


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", PAGE, re.M)
    assert found, f"no section {title}"
    rest = PAGE[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.M)
    return rest[: end.start()] if end else rest


def table(text: str) -> list[dict[str, str]]:
    """The first table of a text: rows as column -> cell."""
    lines = []
    for line in text.splitlines():
        if line.startswith("|"):
            lines.append([cell.strip() for cell in line.strip("|").split("|")])
        elif lines:
            break
    columns, rule, *rows = lines
    assert all(set(cell) <= set("-") for cell in rule)
    assert all(len(row) == len(columns) for row in rows), rows
    return [dict(zip(columns, row, strict=True)) for row in rows]


HEADERS = [
    p.RequestHeader, p.JobHeader, p.AcceptedHeader, p.PartialHeader, p.FinalHeader, p.Phases, p.ErrorHeader,
    p.ReadyHeader, p.ModelInfo, p.CreditHeader, p.HeartbeatHeader,
    pl.Request, pl.Message, pl.Options, pl.Answer, pl.Usage, pl.Validation,
]  # fmt: skip


@pytest.mark.parametrize("cls", HEADERS, ids=[cls.__name__ for cls in HEADERS])
def test_fields_and_their_defaults(cls: type[msgspec.Struct]) -> None:
    stated = {row["field"]: row["default"] for row in table(section(cls.__name__))}
    assert stated == {field.name: _default(field) for field in msgspec.structs.fields(cls)}


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    if isinstance(value, msgspec.Struct):
        return f"{type(value).__name__}()"
    if value is None:
        return "nil"
    if isinstance(value, bytes):
        return repr(value).replace("'", '"')
    return json.dumps(list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize("cls", HEADERS, ids=[cls.__name__ for cls in HEADERS])
def test_choices_and_bounds(cls: type[msgspec.Struct]) -> None:
    rows = {row["field"]: row for row in table(section(cls.__name__))}
    for field in msgspec.json.schema_components([cls])[1][cls.__name__]["properties"].items():
        name, schema = field
        described = rows[name].get("type", "") or rows[name]["field"]
        for choice in schema.get("enum", ()):
            assert f"`{choice}`" in described or "as above" in described, (name, choice)
        for part in [schema, *schema.get("anyOf", ())]:
            for bound in ("minimum", "maximum"):
                if bound in part and part[bound] not in (-(2**63), 2**63 - 1):
                    assert f"{part[bound]:.0f}" in described, (name, part[bound])


def test_message_types() -> None:
    rows = table(section("Types"))
    stated = {(row["type"], int(row["byte"], 16)) for row in rows}
    real = {
        (name, value[0])
        for name, value in vars(p).items()
        if isinstance(value, bytes) and len(value) == 1 and name.isupper()
    }
    assert stated == real
    assert {bytes([number]) for _, number in stated} == set(p.TYPES)
    classes = {cls.__name__ for cls in HEADERS} | {"empty"}
    assert {row["header"] for row in rows} <= classes


def test_error_codes() -> None:
    stated = {row["code"]: row["retryable"] == "yes" for row in table(section("Errors"))}
    assert stated == {code: cls.retryable for code, cls in errors.BY_CODE.items()}


def test_limits() -> None:
    stated = {row["limit"]: int(row["value"]) for row in table(section("Limits"))}
    real = {
        name: value
        for module in (p, pl)
        for name, value in vars(module).items()
        if name.startswith("MAX_") and isinstance(value, int)
    }
    real["FRAME_COUNT"] = p.FRAME_COUNT
    real["MAX_REPLAY_BYTES"] = flights.MAX_REPLAY_BYTES
    real["CLIENT_HWM"] = broker.CLIENT_HWM
    assert stated == real


def test_reasons() -> None:
    """Every reason protocol.py or the broker gives a refused frame is in the table."""
    stated = {row["reason counted"].strip("`") for row in table(section("Messages"))} - {"–"}
    sources = [(ROOT / "walled" / name).read_text("utf-8") for name in ("protocol.py", "broker.py")]
    given = {reason for text in sources for reason in re.findall(r'reason="(\w+)"', text)}
    given -= {
        "left",
        "slow",
        "disconnected",
        "unreachable",
        "map",
        "map_size",
    }  # of a peer that left; of maps of our own processes
    assert stated == given | {"version"}


def test_version_and_preamble() -> None:
    assert f"The wire contract, version {p.PROTOCOL_VERSION}\n" in PAGE
    assert f'`"{pl.KEY_VERSION}"` is the key version' in PAGE


def test_cache_policies() -> None:
    stated = {row["policy"].strip("`") for row in table(section("Cache policies"))}
    assert stated == set(p.CachePolicy.__args__)  # type: ignore[attr-defined]


# --- hex examples -------------------------------------------------------------------------------------


def examples() -> dict[str, list[bytes]]:
    """Name -> frames (one when the example has no frame numbers)."""
    found = {}
    for name, body in re.findall(r"^```hex (\S+)\n(.*?)^```$", PAGE, re.M | re.S):
        frames: list[bytes] = []
        for line in body.splitlines():
            number, text = re.fullmatch(r"(?:(\d):)?([^#]*)(?:#.*)?", line).groups()  # type: ignore[union-attr]
            if number or not frames:
                frames.append(b"")
            frames[-1] += bytes.fromhex(text)
        found[name] = frames
    return found


def test_hex_examples() -> None:
    vectors = {
        name: {v["name"]: v for v in json.loads((GOLDEN / f"{name}.json").read_text("utf-8"))}
        for name in ("frames", "answers", "keys")
    }
    shown = examples()
    assert set(shown) == {
        "request", "answer:text", "fingerprint-input:chat", "fingerprint:chat", "key-input:chat", "key:chat",
    }  # fmt: skip
    assert [frame.hex() for frame in shown["request"]] == vectors["frames"]["request"]["frames"]
    assert shown["answer:text"][0].hex() == vectors["answers"]["text"]["hex"]
    key = vectors["keys"]["chat"]
    assert shown["fingerprint:chat"][0].hex() == key["fingerprint"]
    assert shown["key:chat"][0].hex() == key["key"]
    assert _sha256(shown["fingerprint-input:chat"][0]) == shown["fingerprint:chat"][0]
    assert _sha256(shown["key-input:chat"][0]) == shown["key:chat"][0]
    assert shown["key-input:chat"][0].endswith(shown["request"][4])


def _sha256(data: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(data).digest()


# --- control --------------------------------------------------------------------------------------------


def test_verbs() -> None:
    source = (ROOT / "walled/broker.py").read_text("utf-8")
    body = source[source.index("def _verb") : source.index("def _cancel")]
    cases = " ".join(re.findall(r"case (.*):", body))
    text = section("Control")
    stated = {row["op"] for row in table(text[text.index("The reply is") :])}
    assert stated == set(re.findall(r'"([a-z.]+)"', cases))


def shapes() -> dict[str, set[str]]:
    """What the page says of the replies: name -> keys of its map."""
    text = "\n".join(re.findall(r"^    (.*)$", section("Control"), re.M))
    found: dict[str, set[str]] = {}
    for name, body in re.findall(r"^\s*([\w./\[\]]+)\s+(?:\[?)\{((?:[^{}]|\{[^{}]*\}|\n)*)\}", text, re.M):
        flat = re.sub(r"\{[^{}]*\}", "", body)
        found[name] = {item.split(":")[0].strip() for item in flat.replace("\n", " ").split(",")}
    return found


def test_reply_shapes() -> None:
    stated = shapes()
    core = Broker(from_plain({"backend": "s", "daemon": {"allow_scripted": True},
                              "backends": {"s": {"kind": "scripted", "slots": 1}}}), b"12345678")  # fmt: skip
    ready = p.ReadyHeader(1, b"t", 7, "s", "scripted", 1, (p.ModelInfo("m", "d"),))
    core.handle(ev.WorkerReady(b"w", b"", ready), 1.0)
    for number in range(2):
        header = p.RequestHeader("m", 60_000)
        core.handle(ev.ClientRequest(b"c", bytes([number]), header, b"x"), 1.0)
    status = view.status(core, 2.0, pid=1, started_s=0.0, tree={}, extra={})
    queue, models = view.queue(core, 2.0), view.models(core)
    assert set(status) == stated["walled.status/1"]
    assert set(status["queue"]) == stated["queue"]
    assert set(status["queue"]["by_class"]) == set(p.PRIORITIES)
    assert set(view.workers(core, 2.0)) == stated["walled.workers/1"]
    assert set(status["workers"][0]) == stated["workers[]"]
    assert set(queue) == stated["walled.queue/1"]
    assert set(queue["queued"][0]) == stated["queued[]"]
    assert set(queue["running"][0]) == stated["running[]"]
    assert set(models) == stated["walled.models/1"]
    assert set(models["models"][0]) == stated["models[]"]
    assert set(view.failure(errors.BadRequest("x"))) == stated["walled.error/1"]
    for reply in (status, queue, models, view.workers(core, 2.0), view.failure(errors.BadRequest("x"))):
        assert reply["schema"] in stated
        assert _packs(reply)


def _packs(reply: dict[str, Any]) -> bool:
    return p.unpack_map(p.pack_map(reply)) == reply
