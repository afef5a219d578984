"""Makes the golden byte vectors of the wire contract from the code as it is now.

May live here: what the vectors are and their file form. May not: any check (test_vectors.py).

    python -m tests.golden.make_vectors            # compare with the files, change nothing
    python -m tests.golden.make_vectors --replace  # write them; only when the contract is meant to change

A vector that changes breaks every client and cache out there: then PROTOCOL_VERSION (frames) or KEY_VERSION
(payloads, keys) has to change with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from walled import payload as pl
from walled import protocol as p

HERE = Path(__file__).parent
CLIENT = bytes.fromhex("a1b2c3d4e5f60718")
JOB = (7).to_bytes(8, "big")
EPOCH = bytes.fromhex("0011223344556677")


def request_id(number: int) -> bytes:
    return CLIENT + number.to_bytes(8, "big")


REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {
        "kind": "chat",
        "messages": [{"role": "user", "content": "Hi"}],
        "options": {"temperature": 0},
    },
    "chat-conversation": {
        "kind": "chat",
        "system": "Answer in Spanish.",
        "messages": [
            {"role": "user", "content": "¿Sigue disponible la bici? 🚲"},
            {"role": "assistant", "content": "Sí."},
            {"role": "user", "content": "¿Último precio?"},
        ],
    },
    "chat-everything": {
        "kind": "chat",
        "format": {"type": "object", "required": ["price"], "properties": {"price": {"type": "number"}}},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "What is this?", "name": "ana", "images": [b"\x89PNG"]},
            {
                "role": "assistant",
                "tool_calls": [{"id": "c1", "function": {"name": "look", "arguments": "{}"}}],
            },
            {"role": "tool", "content": "a bike", "tool_call_id": "c1"},
        ],
        "options": {
            "frequency_penalty": -0.5,
            "max_tokens": 300,
            "min_p": 0.05,
            "presence_penalty": 2,
            "repeat_penalty": 1.1,
            "seed": 4294967295,
            "stop": ["\n\n", "END"],
            "temperature": 0.7,
            "top_k": 40,
            "top_p": 1,
        },
        "tools": [{"type": "function", "function": {"name": "look", "parameters": {}}}],
    },
    "chat-defaults-dropped": {
        "kind": "chat",
        "format": "",
        "messages": [{"role": "user", "content": "Hi", "name": "", "images": []}],
        "options": {"temperature": -0.0, "stop": [], "top_k": None},
        "prompt": "",
        "tools": [],
    },
    "generate": {"kind": "generate", "prompt": "Once upon a time", "options": {"max_tokens": 1}},
    "generate-json": {"kind": "generate", "prompt": "List three colours.", "format": "json", "system": "s"},
    "embed": {"kind": "embed", "input": ["red bicycle", "bicicleta roja"]},
}

ANSWERS: dict[str, pl.Answer] = {
    "text": pl.Answer(
        model="walled-demo", text="Hello!", usage=pl.Usage(completion_tokens=3, prompt_tokens=11)
    ),
    "cut": pl.Answer(finish_reason="length", model="m", text="Once"),
    "tool-call": pl.Answer(
        finish_reason="tool_calls", model="m", tool_calls='[{"function":{"arguments":"{}","name":"look"}}]'
    ),
    "thinking": pl.Answer(model="m", text="4", thinking="2 + 2"),
    "embedding": pl.Answer(
        embeddings=(bytes.fromhex("0000803f000000c0"),), model="e", usage=pl.Usage(prompt_tokens=2)
    ),
    "empty": pl.Answer(),
    "validated": pl.Answer(
        model="m",
        text="no",
        validation=pl.Validation(level="high", reasons=("contact",), score=70, verdict="repair"),
    ),
}

KEYS: dict[str, tuple[str, str, str, str]] = {
    # name: namespace, backend kind, digest, request
    "chat": ("default", "embedded", "sha256:ab12", "chat"),
    "same-question-other-spelling": ("default", "embedded", "sha256:ab12", "chat-defaults-dropped"),
    "other-namespace": ("tenant-ñ", "embedded", "sha256:ab12", "chat"),
    "other-kind": ("default", "ollama", "sha256:ab12", "chat"),
    "other-digest": ("default", "embedded", "sha256:ab13", "chat"),
    "other-request": ("default", "embedded", "sha256:ab12", "embed"),
    "empty-namespace": ("", "scripted", "", "generate"),
}


def frame_vectors() -> list[tuple[str, str, list[bytes]]]:
    """(name, direction, frames) of at least one message of every type."""
    chat = packed("chat")
    answer = pl.pack_answer(ANSWERS["text"])
    return [
        ("request", "client -> broker",
         p.frames(p.REQUEST, request_id(1),
                  p.RequestHeader(model="default", deadline_ms=30000, deterministic=True), chat)),
        ("request-stream", "client -> broker",
         p.frames(p.REQUEST, request_id(2),
                  p.RequestHeader(model="walled-demo", deadline_ms=3000, priority="interactive", stream=True,
                                  accept=True, namespace="shop", session="conversation 17"),
                  packed("chat-conversation"))),
        ("request-refresh", "client -> broker",
         p.frames(p.REQUEST, request_id(3),
                  p.RequestHeader(model="m", deadline_ms=86400000, kind="embed", priority="batch",
                                  cache="refresh", deterministic=True, background=True), packed("embed"))),
        ("job", "broker -> worker",
         p.frames(p.REQUEST, JOB,
                  p.JobHeader(model="walled-demo", deadline_ms=29998, deterministic=True, store=True,
                              trace=request_id(1).hex()), chat)),
        ("job-second-attempt", "broker -> worker",
         p.frames(p.REQUEST, JOB,
                  p.JobHeader(model="m", deadline_ms=1, kind="generate", stream=True, namespace="shop",
                              session="s", attempt=2), packed("generate"))),
        ("accepted", "broker -> client",
         p.frames(p.ACCEPTED, request_id(2), p.AcceptedHeader(position=4, eta_s=1.25))),
        ("partial-first", "worker -> broker", p.frames(p.PARTIAL, JOB, p.PartialHeader(seq=0), b"Hel")),
        ("partial", "broker -> client",
         p.frames(p.PARTIAL, request_id(2), p.PartialHeader(seq=1), "lo, Íñigo".encode())),
        ("partial-restart", "broker -> client",
         p.frames(p.PARTIAL, request_id(2), p.PartialHeader(seq=0, restart=True), b"Hel")),
        ("final", "broker -> client",
         p.frames(p.FINAL, request_id(1),
                  p.FinalHeader(backend="embedded", worker=0, stored=True,
                                phases=p.Phases(queue_ms=1.5, prefill_ms=10.0, decode_ms=40.0,
                                                first_token_ms=12.0, store_ms=0.5, total_ms=55.25)), answer)),
        ("final-from-worker", "worker -> broker",
         p.frames(p.FINAL, JOB,
                  p.FinalHeader(backend="embedded", worker=0, partials=2, phases=p.Phases(decode_ms=40.0)),
                  answer)),
        ("final-cached", "broker -> client",
         p.frames(p.FINAL, request_id(1), p.FinalHeader(source="cache", age_s=61.5), answer)),
        ("error", "broker -> client",
         p.frames(p.ERROR, request_id(1),
                  p.ErrorHeader(code="worker_lost", message="the worker died while it answered",
                                retryable=True, retry_after_s=0.5))),
        ("error-of-a-frame", "broker -> client",
         p.frames(p.ERROR, b"",
                  p.ErrorHeader(code="protocol_error", message="a message has 5 frames, this one 2"))),
        ("busy", "broker -> client",
         p.frames(p.BUSY, request_id(9),
                  p.ErrorHeader(code="overloaded", message="the queue is full (2000 requests)",
                                retryable=True, retry_after_s=2.0))),
        ("cancel", "client -> broker", p.frames(p.CANCEL, request_id(2))),
        ("cancel-job", "broker -> worker", p.frames(p.CANCEL, JOB)),
        ("ready", "worker -> broker",
         p.frames(p.READY, b"",
                  p.ReadyHeader(worker=2, token=bytes(range(32)), pid=4711, backend="embedded",
                                kind="embedded", slots=4,
                                models=(p.ModelInfo("walled-demo", "sha256:ab12", ("chat", "generate"), 1024),
                                        p.ModelInfo("plain", "d"))))),
        ("credit", "worker -> broker", p.frames(p.CREDIT, b"", p.CreditHeader(slots=0))),
        ("heartbeat-broker", "broker -> worker, client",
         p.frames(p.HEARTBEAT, b"", p.HeartbeatHeader(epoch=EPOCH))),
        ("heartbeat-worker", "worker -> broker",
         p.frames(p.HEARTBEAT, b"", p.HeartbeatHeader(epoch=EPOCH, in_flight=3))),
        ("disconnect", "any -> any", p.frames(p.DISCONNECT, b"")),
        ("control-stream", "broker -> worker", p.frames(p.CONTROL, JOB, None, p.pack_map({"op": "stream"}))),
        ("control-deadline", "broker -> worker",
         p.frames(p.CONTROL, JOB, None, p.pack_map({"op": "deadline", "deadline_ms": 12000}))),
        ("control-status", "walled-ctl -> broker",
         p.frames(p.CONTROL, request_id(1), None, p.pack_control(p.ControlRequest("status")))),
        ("control-drain", "walled-ctl -> broker",
         p.frames(p.CONTROL, request_id(2), None,
                  p.pack_control(p.ControlRequest("workers.drain", worker=2)))),
        ("control-cancel", "walled-ctl -> broker",
         p.frames(p.CONTROL, request_id(3), None,
                  p.pack_control(p.ControlRequest("queue.cancel", request=request_id(1).hex())))),
        ("control-done", "broker -> walled-ctl",
         p.frames(p.CONTROL, request_id(2), None,
                  p.pack_map({"schema": "walled.done/1", "ok": True, "op": "workers.drain"}))),
        ("request-ladder", "client -> broker",
         p.frames(p.REQUEST, request_id(4),
                  p.RequestHeader(model="shop", deadline_ms=3000, stream=True, mode="hybrid",
                                  context={"item": "bici", "price": "80 €"}, restarts=True), chat)),
        ("job-context", "broker -> worker",
         p.frames(p.REQUEST, JOB,
                  p.JobHeader(model="m", deadline_ms=2900, context={"item": "bici"}), chat)),
        ("final-degraded", "broker -> client",
         p.frames(p.FINAL, request_id(4),
                  p.FinalHeader(source="template", degraded=True, reason="backend_timeout", attempts=2),
                  answer)),
    ]  # fmt: skip


def packed(name: str) -> bytes:
    return pl.pack_request(pl.request_from(REQUESTS[name]))


# --- file form ----------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """JSON values; bytes become {"hex": "..."}."""
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def files() -> dict[str, list[dict[str, Any]]]:
    """File name -> vectors."""
    # Decoded with msgpack, the codec of record, so that the readable form is not our own packer's opinion.
    import msgpack

    def opened(data: bytes) -> Any:
        return plain(msgpack.unpackb(data, strict_map_key=True))

    frames = [
        {
            "name": name,
            "direction": direction,
            "type": parts[1][0],
            "request_id": parts[2].hex(),
            "header": opened(parts[3]),
            "payload": parts[4].hex(),
            "frames": [part.hex() for part in parts],
        }
        for name, direction, parts in frame_vectors()
    ]
    requests = [
        {"name": name, "asked": plain(asked), "packed": opened(packed(name)), "hex": packed(name).hex()}
        for name, asked in REQUESTS.items()
    ]
    answers = []
    for name, answer in ANSWERS.items():
        data = pl.pack_answer(answer)
        answers.append({"name": name, "packed": opened(data), "hex": data.hex()})
    keys = []
    for name, (namespace, kind, digest, request) in KEYS.items():
        fingerprint = pl.model_fingerprint(kind, digest)
        keys.append(
            {
                "name": name,
                "namespace": namespace,
                "kind": kind,
                "digest": digest,
                "fingerprint": fingerprint.hex(),
                "payload": packed(request).hex(),
                "key": pl.cache_key(namespace, fingerprint, packed(request)).hex(),
            }
        )
    return {"frames.json": frames, "requests.json": requests, "answers.json": answers, "keys.json": keys}


def text_of(vectors: list[dict[str, Any]]) -> str:
    return json.dumps(vectors, ensure_ascii=False, indent=1) + "\n"


def main(arguments: list[str]) -> int:
    changed = [
        name
        for name, vectors in files().items()
        if not (HERE / name).exists() or (HERE / name).read_text("utf-8") != text_of(vectors)
    ]
    if not changed:
        print("the vectors are what the code makes")
        return 0
    if arguments != ["--replace"]:
        print(f"the code makes other bytes than {', '.join(changed)}; nothing was written (see --replace)")
        return 1
    for name in changed:
        (HERE / name).write_text(text_of(files()[name]), encoding="utf-8")
        print(f"replaced {HERE / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
