"""An OpenAI-compatible server on raw sockets, so that a stream can break in every way a stream can break.

May live here: HTTP/1.1 by hand, one thread per connection, behaviours chosen by the first word of the last
message. May not: any HTTP library (it would refuse to misbehave).

Words: `say N` N words; `cut` breaks off after two words; `cutquiet` ends the body properly without an end
mark; `nodone` ends with a finish_reason only; `donely` with [DONE] only; `stall` stops after one word;
`silent` never answers; `hangup` closes before the status line; `once` does so on the first try only; `status
N [AFTER]` answers HTTP N with Retry-After; `error` an error inside the stream; `garbage` no JSON; `filter` a
content filter; `tools` a tool call in pieces; `crumbs` one byte per packet; `context`, `template` the
refusals of vLLM and of llama-server; `think` reasoning before the answer; `endless` goes on for ever.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any

PAUSE_S = 0.002


class FakeOpenAI:
    """A server on a loopback port. `requests` keeps what was asked."""

    def __init__(self, models: tuple[str, ...] = ("real-name",), key: str = "", chat: bool = True) -> None:
        self.models = models
        self.key = key
        self.chat = chat
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.connections = 0
        self.open = 0
        self.most_open = 0
        self.dropped = threading.Semaphore(0)
        """Released whenever a client closes a connection in the middle of an answer."""
        self._once: set[str] = set()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.drop_idle()

    def drop_idle(self) -> None:
        """Close every connection, as a server does with those that were idle for too long."""
        with self._lock:
            for connection in self._sockets:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._sockets.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with self._lock:
            self.open += 1
            self.most_open = max(self.most_open, self.open)
        try:
            with connection, connection.makefile("rb") as reader:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while self._one(connection, reader):
                    pass
        except (BrokenPipeError, ConnectionResetError):
            self.dropped.release()
        except OSError:
            pass
        finally:
            with self._lock:
                self.open -= 1
                self._sockets.discard(connection)

    def _one(self, connection: socket.socket, reader: Any) -> bool:
        """Read and answer one request; False when the connection is to be closed."""
        line = reader.readline()
        if not line:
            return False
        method, path, _ = line.decode().split()
        headers = {}
        while (line := reader.readline().strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.lower()] = value.strip()
        body = json.loads(reader.read(int(headers.get("content-length", 0))) or b"{}")
        self.requests.append((path, body))
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return self._error(connection, 401, "invalid api key")
        if method == "GET" and path == "/v1/models":
            listed = [
                {"id": name, "object": "model", "owned_by": "fake", "max_model_len": 4096}
                for name in self.models
            ]
            return self._json(connection, 200, {"object": "list", "data": listed})
        if body.get("model") not in self.models:
            return self._error(connection, 404, f"The model `{body.get('model')}` does not exist.")
        if path == "/v1/embeddings":
            rows = [{"index": i, "embedding": [float(len(t)), 1.0]} for i, t in enumerate(body["input"])]
            return self._json(connection, 200, {"data": rows[::-1], "usage": {"prompt_tokens": 7}})
        if path == "/v1/completions":
            return self._answer(connection, body["prompt"], body, chat=False)
        if path == "/v1/chat/completions" and self.chat:
            content = body["messages"][-1]["content"]
            return self._answer(connection, content if isinstance(content, str) else "say 1", body, chat=True)
        return self._error(connection, 404, "Not Found")

    def _answer(self, connection: socket.socket, text: str, body: dict[str, Any], *, chat: bool) -> bool:
        word, *rest = text.split()
        if word == "silent":
            self._wait_for_close(connection)
            return False
        if word == "hangup" or (word == "once" and text not in self._once):
            self._once.add(text)
            return False
        if word == "status":
            after = [f"Retry-After: {' '.join(rest[1:])}"] if len(rest) > 1 else []
            return self._error(connection, int(rest[0]), text, after)
        if word == "context":
            what = f"This model's maximum context length is 4096 tokens. Your prompt: {text}"
            return self._error(connection, 400, what)
        if word == "template" and chat:
            return self._error(connection, 400, "default chat template is no longer allowed")
        if not body.get("stream"):
            choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "x"}}
            return self._json(connection, 200, {"choices": [choice]})
        return _Stream(self, connection, chat, text).play(word, rest, body)

    def _wait_for_close(self, connection: socket.socket) -> None:
        if connection.recv(1) == b"":
            self.dropped.release()

    def _error(
        self, connection: socket.socket, status: int, message: str, headers: list[str] | None = None
    ) -> bool:
        kind = {404: "NotFoundError", 400: "BadRequestError"}.get(status, "error")
        error = {"error": {"message": message, "type": kind, "code": status}}
        return self._json(connection, status, error, headers)

    def _json(
        self, connection: socket.socket, status: int, value: Any, headers: list[str] | None = None
    ) -> bool:
        data = json.dumps(value).encode()
        lines = [
            f"HTTP/1.1 {status} X",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
            *(headers or []),
        ]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
        return True


class _Stream:
    """One chunked server-sent stream."""

    def __init__(self, server: FakeOpenAI, connection: socket.socket, chat: bool, text: str) -> None:
        self.server = server
        self.connection = connection
        self.chat = chat
        self.crumbs = text.startswith("crumbs")
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )

    def raw(self, data: bytes) -> None:
        pieces = [data[i : i + 1] for i in range(len(data))] if self.crumbs else [data]
        for piece in pieces:
            self.connection.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))

    def event(self, value: Any) -> None:
        self.raw(b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n")

    def say(self, text: str) -> None:
        part = {"delta": {"content": text}} if self.chat else {"text": text}
        self.event({"choices": [{"index": 0, "finish_reason": None, **part}]})

    def finish(self, reason: str, usage: bool = True) -> None:
        part: dict[str, Any] = {"delta": {}} if self.chat else {"text": ""}
        self.event({"choices": [{"index": 0, "finish_reason": reason, **part}]})
        if usage:
            self.event({"choices": [], "usage": {"completion_tokens": 5, "prompt_tokens": 9}})

    def over(self) -> bool:
        self.connection.sendall(b"0\r\n\r\n")
        return True

    def play(self, word: str, rest: list[str], body: dict[str, Any]) -> bool:
        if self.chat:
            self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}}]})
        self.raw(b": a comment\n\n")
        if word == "garbage":
            self.event(b"{not json")
            return self.over()
        if word == "error":
            self.event(
                {"error": {"message": "secretword out of memory", "code": 500, "type": "server_error"}}
            )
            return self.over()
        if word == "think":
            self.event({"choices": [{"index": 0, "delta": {"reasoning_content": "let me see"}}]})
        if word == "tools":
            pieces = [
                {
                    "index": 0,
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "price", "arguments": ""},
                },
                {"index": 0, "function": {"arguments": '{"item":'}},
                {"index": 0, "function": {"arguments": '"bike"}'}},
            ]
            for piece in pieces:
                self.event({"choices": [{"index": 0, "delta": {"tool_calls": [piece]}}]})
            self.finish("tool_calls")
            self.event(b"[DONE]")
            return self.over()
        return self._words(word, rest, body)

    def _words(self, word: str, rest: list[str], body: dict[str, Any]) -> bool:
        limit = body.get("max_tokens") or 1_000_000
        wanted = int(rest[0]) if word in ("say", "crumbs") and rest and rest[0].isdigit() else 4
        if word == "endless":
            wanted = 1_000_000
        for number in range(min(wanted, limit)):
            self.say(f"wörd{number} ")
            if word == "cut" and number == 1:
                return False
            if word == "stall":
                self.server._wait_for_close(self.connection)
                return False
            if word == "endless":
                self.server._ended.wait(PAUSE_S)
        if word == "cutquiet":
            return self.over()
        if word == "donely":
            self.event(b"[DONE]")
            return self.over()
        reason = "content_filter" if word == "filter" else ("length" if limit < wanted else "stop")
        self.finish(reason, usage=word != "nodone")
        if word == "nodone":
            return False
        if word != "nousage":
            self.event(b"[DONE]")
        return self.over()
