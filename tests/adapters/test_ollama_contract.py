"""The Ollama adapter under the contract of all adapters, on the fake server and on a real one.

The real one is used when WALLED_TEST_OLLAMA_HOST is set (http://127.0.0.1:11434, say): it has to have the
model WALLED_TEST_OLLAMA_MODEL (default: walled-demo, the built-in model, made from the two lines
`FROM walled-demo.gguf` and `PARAMETER temperature 0`), and OLLAMA_NUM_PARALLEL of at least 2. Nothing on it
is changed.
"""

from __future__ import annotations

import json
import os
import socket
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.adapters.contract import AdapterContract, Started, chat
from tests.fakes.ollama_records import Model
from tests.fakes.ollama_server import Asked, FakeOllama, Turn
from walled.adapters.backend import Delta
from walled.adapters.ollama import OllamaBackend
from walled.config import OllamaConfig
from walled.errors import Cancelled, ContextTooLong, ModelNotFound
from walled.payload import Request, request_from

HOST = os.environ.get("WALLED_TEST_OLLAMA_HOST", "")
MODEL = os.environ.get("WALLED_TEST_OLLAMA_MODEL", "walled-demo")
SLOTS = 2

needs_real = pytest.mark.skipif(
    not HOST, reason="no real Ollama: set WALLED_TEST_OLLAMA_HOST (and WALLED_TEST_OLLAMA_MODEL) to use one"
)


def endless(**options: Any) -> Request:
    """A schema that keeps a model writing for long."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 1900}
    return chat("tell me everything", format=schema, options={"temperature": 0, **options})


def no_embeddings() -> Request:
    return request_from({"kind": "embed", "input": ["hello"]})


class TestOnTheFake(AdapterContract):
    slow = endless()
    unsupported = no_embeddings()
    unsupported_word = "embed"

    @pytest.fixture
    def started(self) -> Iterator[Started]:
        def script(asked: Asked) -> Turn:
            return Turn(hold_at=1) if asked.body.get("format") else Turn()

        with FakeOllama(parallel=SLOTS) as fake:
            fake.script = script
            running = Started(OllamaBackend(OllamaConfig(hosts=(fake.url,)), SLOTS))
            yield running
            running.backend.close()


@pytest.fixture
def real() -> Iterator[Started]:
    config = OllamaConfig(hosts=(HOST,), models={"demo": MODEL})
    running = Started(OllamaBackend(config, SLOTS))
    yield running
    running.backend.close()


@needs_real
class TestOnARealServer(AdapterContract):
    slow = endless()
    unsupported = no_embeddings()
    unsupported_word = "embed"

    @pytest.fixture
    def started(self, real: Started) -> Started:
        return real

    def test_cancel_frees_the_servers_slot(self, real: Started) -> None:
        """Both slots of the server write without end; after a cancel a third request is answered."""
        worst_ms = 0.0
        for _ in range(5):
            real.seen.events.clear()  # searched through at every event; thousands of them hold up the emitter
            jobs = [real.submit(self.slow) for _ in range(SLOTS)]
            for job in jobs:
                real.seen.wait(lambda e, job=job: isinstance(e, Delta) and e.job_id == job)  # type: ignore[misc]
            began_s = time.monotonic()
            for job in jobs:
                real.backend.cancel(job)
            for job in jobs:
                assert isinstance(real.seen.error(job), Cancelled)
            worst_ms = max(worst_ms, (time.monotonic() - began_s) * 1000)
            real.seen.done(real.submit(self.quick))
            freed_ms = (time.monotonic() - began_s) * 1000
            assert freed_ms < 5000
        print(f"\ncancel to ending: worst {worst_ms:.1f} ms")
        assert worst_ms < 1000

    def test_a_request_cannot_reload_the_model(self, real: Started) -> None:
        real.seen.done(real.submit(self.quick))
        requests = [
            chat("hi", options={"temperature": 1.5, "top_k": 3, "top_p": 0.5, "seed": 3, "max_tokens": 5}),
            chat("hi", options={"repeat_penalty": 1.2, "stop": ["zz"], "max_tokens": 5}),
            request_from({"kind": "generate", "prompt": "hi", "options": {"max_tokens": 5}}),
            chat("hi", format="json", options={"max_tokens": 5}),
        ]
        loads_ms = [real.seen.done(real.submit(request)).timings.load_ms for request in requests]
        print(f"\nload_ms of {len(loads_ms)} different requests: {[round(ms, 1) for ms in loads_ms]}")
        assert max(loads_ms) < 200, "a load takes over 250 ms"

    def test_a_schema_is_kept(self, real: Started) -> None:
        schema = {
            "type": "object",
            "properties": {"price": {"type": "integer", "maximum": 99}, "kind": {"enum": ["a", "b"]}},
            "required": ["price", "kind"],
        }
        text = real.seen.done(real.submit(chat("how much?", format=schema))).answer.text
        assert json.loads(text)["kind"] in ("a", "b")

    def test_a_long_prompt_is_refused_whole(self, real: Started) -> None:
        assert isinstance(real.seen.error(real.submit(chat("hello " * 50_000))), ContextTooLong)

    def test_an_unknown_model(self, real: Started) -> None:
        assert isinstance(real.seen.error(real.submit(self.quick, model="nope")), ModelNotFound)

    def test_the_servers_digest_is_the_models(self, real: Started) -> None:
        with urllib.request.urlopen(f"{HOST}/api/tags", timeout=5) as reply:
            listed = {model["name"]: model["digest"] for model in json.load(reply)["models"]}
        assert real.info.models[0].digest == listed[f"{MODEL}:latest" if ":" not in MODEL else MODEL]


# --- the fake is what the real one is ----------------------------------------------------------------

HELLO = [{"role": "user", "content": "hello"}]
FEW = {"num_predict": 4, "seed": 1}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
EXCHANGES: dict[str, tuple[str, str, Any]] = {
    "version": ("GET", "/api/version", None),
    "tags": ("GET", "/api/tags", None),
    "chat": ("POST", "/api/chat", {"messages": HELLO, "options": FEW}),
    "generate": ("POST", "/api/generate", {"prompt": "hello", "options": FEW}),
    "ps": ("GET", "/api/ps", None),
    "no messages": ("POST", "/api/chat", {"messages": []}),
    "no model": ("POST", "/api/chat", {"model": "nope", "messages": HELLO}),
    "no model to embed": ("POST", "/api/embed", {"model": "nope", "input": ["x"]}),
    "no model to show": ("POST", "/api/show", {"model": "nope"}),
    "no embeddings": ("POST", "/api/embed", {"input": ["x"]}),
    "too long": (
        "POST", "/api/chat",
        {"messages": [{"role": "user", "content": "hello " * 50_000}], "truncate": False},
    ),
    "bad schema": ("POST", "/api/chat", {"messages": HELLO, "format": {"type": "nonsense"}}),
    "no images": ("POST", "/api/chat", {"messages": [{"role": "user", "content": "x", "images": ["iVBO"]}]}),
    "failed pull": ("POST", "/api/pull", {"model": "127.0.0.1:9/library/nope:latest", "insecure": True}),
    "malformed": ("POST", "/api/chat", b'{"model":'),
    "no endpoint": ("GET", "/api/nope", None),
}  # fmt: skip


def raw(url: str, method: str, path: str, body: Any) -> bytes:
    """The bytes of one answer."""
    host, _, port = url.removeprefix("http://").partition(":")
    data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(data)}\r\n\r\n"
    received = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(head.encode() + data)
        while not whole(received):
            piece = connection.recv(65536)
            assert piece, received[-200:]
            received += piece
    return received


def whole(received: bytes) -> bool:
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return False
    if b"Transfer-Encoding: chunked" in head:
        return body.endswith(b"0\r\n\r\n")
    length = next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length:"))
    return len(body) >= int(length.split()[1])


def shape(received: bytes) -> list[Any]:
    """What must be the same on both: status, headers in order, chunking, and the keys of every JSON map."""
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = [line if line.startswith("Content-Type") else line.partition(":")[0] for line in lines[1:]]
    if b"Transfer-Encoding: chunked" not in head:
        return [lines[0], headers, keys(body)]
    records: list[Any] = []
    while body:
        size, _, body = body.partition(b"\r\n")
        chunk, body = body[: int(size, 16)], body[int(size, 16) + 2 :]
        found = (keys(chunk), chunk.endswith(b"\n"))
        if found not in records[-1:]:
            records.append(found)
    return [lines[0], headers, records]


def keys(data: bytes) -> Any:
    """The outline of JSON: keys in order, first elements of lists, types of leaves."""

    def outline(value: Any) -> Any:
        if isinstance(value, dict):
            return [(key, outline(inner)) for key, inner in value.items()]
        if isinstance(value, list):
            return [outline(value[0])] if value else []
        return type(value).__name__

    try:
        return outline(json.loads(data))
    except ValueError:
        return data.decode()


@needs_real
@pytest.mark.parametrize("name", EXCHANGES)
def test_the_fake_answers_as_the_real_one(name: str) -> None:
    method, path, body = EXCHANGES[name]
    if isinstance(body, dict) and method == "POST":
        body = {"model": MODEL, **body}
    with urllib.request.urlopen(f"{HOST}/api/tags", timeout=5) as reply:
        names = [model["name"] for model in json.load(reply)["models"]]
    with FakeOllama({listed: Model() for listed in names}) as fake:
        fake.loaded[f"{MODEL}:latest"] = ()
        assert shape(raw(fake.url, method, path, body)) == shape(raw(HOST, method, path, body))
