"""The bare prototype the miss path is compared with: client -> broker -> worker and back, and nothing else.

May live here: its two processes (`python -m walled_bench.prototype broker|worker DIR`), which end when their
standard input does, and the client's side. May not: anything that makes it more than a floor: no queue, no
credit, no cache, no deadline, no coalescing, no liveness.

It speaks the same five frames with typed headers, over the same kind of sockets, and its worker decodes the
request and packs an answer, so that the difference to walled is walled.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from walled import protocol
from walled.adapters.probe import FamilyProbe
from walled.adapters.sockets import Hub, Poller, Port
from walled.payload import Answer, Request, pack_answer, unpack_answer
from walled_bench import questions

HWM = 10_000
MAX_BYTES = 1 << 20
WAIT_S = 5.0


def _ends(directory: Path) -> tuple[str, str]:
    return f"ipc://{directory / 'front'}", f"ipc://{directory / 'back'}"


def _broker(directory: Path) -> None:
    hub = Hub()
    front, back = (hub.router(end, hwm=HWM, max_bytes=MAX_BYTES) for end in _ends(directory))
    poller = Poller([front, back], [0])
    worker = b""
    while True:
        ready = poller.wait(None)
        if back in ready:
            for parts in back.receive():
                if parts[2] == protocol.READY:
                    worker = parts[0]
                else:
                    front.send_to(parts[1], parts[2:])
        if front in ready:
            for parts in front.receive():
                # The client's identity travels along: there is no table.
                back.send_to(worker, parts)
        if 0 in ready:
            break
    hub.close()


def _worker(directory: Path, tokens: int) -> None:
    hub = Hub()
    port = hub.dealer(_ends(directory)[1], hwm=HWM)
    port.connect()
    decode = msgspec.msgpack.Decoder(Request).decode
    poller = Poller([port], [0])
    while not port.send([protocol.PREAMBLE, protocol.READY, b"", b"\x80", b""]):
        if 0 in poller.wait(0.01):
            return
    while True:
        ready = poller.wait(None)
        if port in ready:
            for parts in port.receive():
                protocol.decode_header(protocol.RequestHeader, parts[4])
                request = decode(parts[5])
                text = questions.echo(request.messages[-1].content, tokens)
                answer = pack_answer(Answer(model="bare", text=text))
                final = protocol.FinalHeader(backend="bare", worker=0)
                port.send([parts[0], *protocol.frames(protocol.FINAL, parts[3], final, answer)])
        if 0 in ready:
            break
    hub.close()


class Prototype:
    """Both processes, and a client that keeps a number of requests in flight. A context manager."""

    def __init__(self, directory: Path, tokens: int) -> None:
        self._directory = directory
        self._tokens = tokens
        self._children: list[subprocess.Popen[bytes]] = []
        self._probe = FamilyProbe(os.getpid())
        self._hub = Hub()
        self._counter = 0
        self._encode = msgspec.msgpack.Encoder().encode

    def __enter__(self) -> Self:
        self._directory.mkdir(parents=True, exist_ok=True)
        try:
            for role in ("broker", "worker"):
                command = [sys.executable, "-m", __name__, role, str(self._directory), str(self._tokens)]
                self._children.append(subprocess.Popen(command, stdin=subprocess.PIPE))
            self._port: Port = self._hub.dealer(_ends(self._directory)[0], hwm=HWM)
            self._port.connect()
            self._poller = Poller([self._port])
            self._await_answer()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for child in self._children:
            assert child.stdin is not None
            child.stdin.close()
        for child in self._children:
            try:
                child.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._hub.close()

    def _await_answer(self) -> None:
        """Until a request comes back: a broker without a worker drops them."""
        end_s = time.monotonic() + WAIT_S
        while time.monotonic() < end_s:
            self._port.send(self._frames(questions.chat(0)))
            self._poller.wait(0.1)
            if self._port.receive():
                break
        else:
            raise RuntimeError("the prototype did not start")
        while self._poller.wait(0.2):  # answers to what was sent while it started
            self._port.receive()

    def _frames(self, messages: list[dict[str, Any]]) -> list[bytes]:
        self._counter += 1
        payload = self._encode({"kind": "chat", "messages": messages})
        header = protocol.RequestHeader("default", 30_000)
        return protocol.frames(protocol.REQUEST, self._counter.to_bytes(16, "big"), header, payload)

    def ask(self, messages: list[dict[str, Any]]) -> Answer:
        """One request, one answer."""
        self._port.send(self._frames(messages))
        while True:
            if not self._poller.wait(WAIT_S):
                raise RuntimeError("the prototype does not answer")
            for parts in self._port.receive():
                return unpack_answer(parts[4])

    def flood(self, asked: Iterable[list[dict[str, Any]]], in_flight: int) -> int:
        """All of them, so many at a time; how many answers came."""
        answers = out = 0
        left = iter(asked)
        done = False
        while not done or out:
            while not done and out < in_flight:
                messages = next(left, None)
                if messages is None:
                    done = True
                else:
                    self._port.send(self._frames(messages))
                    out += 1
            if out and not self._poller.wait(WAIT_S):
                raise RuntimeError("the prototype does not answer")
            for parts in self._port.receive():
                unpack_answer(parts[4])
                out -= 1
                answers += 1
        return answers

    def cpu_s(self) -> float:
        """Processor time both processes have used."""
        pids = {child.pid for child in self._children}
        return sum(sample.cpu_s for sample in self._probe.sample() if sample.pid in pids)


if __name__ == "__main__":
    if sys.argv[1] == "broker":
        _broker(Path(sys.argv[2]))
    else:
        _worker(Path(sys.argv[2]), int(sys.argv[3]))
