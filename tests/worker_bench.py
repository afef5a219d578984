"""What tests of the worker stand on: a broker's end of the worker socket, and a worker running against it.

May live here: receiving with a deadline, framing, starting a worker in a thread. May not: assertions about
behaviour.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from walled import config as cfg
from walled import link as lk
from walled import payload as pl
from walled import protocol as wire
from walled.adapters.process import Link
from walled.adapters.sockets import Hub, Poller, SendResult

TOKEN = b"t" * 16
DEADLINE_S = 10.0


class BrokerEnd:
    """A ROUTER that plays the broker: keeps every message per worker, answers nothing by itself."""

    def __init__(self, config: cfg.Config) -> None:
        self.hub = Hub()
        self.endpoint = cfg.endpoints(cfg.run_dir(config)).worker
        self.open()
        self.epoch = b"epoch--1"
        self.closed = False

    def open(self) -> None:
        self.port = self.hub.router(self.endpoint, hwm=10_000, max_bytes=wire.MAX_PAYLOAD_BYTES)
        self.poller = Poller([self.port])
        self.inbox: list[tuple[bytes, wire.Envelope]] = []
        self.identity = b""

    def close(self) -> None:
        self.closed = True
        self.port.close()
        self.hub.close()

    def send(self, kind: bytes, request_id: bytes = b"", header: Any = None, payload: bytes = b"") -> None:
        parts = wire.frames(kind, request_id, header, payload)
        assert self.port.send_to(self.identity, parts) is SendResult.SENT

    def beat(self) -> None:
        self.send(wire.HEARTBEAT, b"", wire.HeartbeatHeader(self.epoch))

    def expect(
        self, wanted: Callable[[wire.Envelope], bool] | bytes, deadline_s: float = DEADLINE_S
    ) -> wire.Envelope:
        """The first message not yet taken that fits; fails the test at the deadline."""
        fits = (lambda envelope: envelope.type == wanted) if isinstance(wanted, bytes) else wanted
        until = time.monotonic() + deadline_s
        while True:
            for index, (identity, envelope) in enumerate(self.inbox):
                if fits(envelope):
                    del self.inbox[index]
                    if envelope.type == wire.READY:
                        self.identity = identity
                    return envelope
            left = until - time.monotonic()
            assert left > 0, f"nothing that fits came; there is {[e.type for _, e in self.inbox]}"
            self.poller.wait(left)
            self.inbox += [(parts[0], wire.parse(parts[1:])) for parts in self.port.receive()]

    def ready(self) -> wire.ReadyHeader:
        return wire.decode_header(wire.ReadyHeader, self.expect(wire.READY).header)

    def ask(self, request_id: bytes, text: str = "hello world", **header: Any) -> None:
        """A chat."""
        options = header.pop("options", {})
        fields = {"kind": "chat", "messages": [{"role": "user", "content": text}], "options": options}
        request = pl.request_from(fields)
        given = {"model": "scripted", "deadline_ms": 30_000, "deterministic": pl.deterministic(request)}
        self.send(wire.REQUEST, request_id, wire.JobHeader(**{**given, **header}), pl.pack_request(request))

    def ending(self, request_id: bytes, deadline_s: float = DEADLINE_S) -> wire.Envelope:
        return self.expect(
            lambda e: e.request_id == request_id and e.type in (wire.FINAL, wire.ERROR), deadline_s
        )

    def answer(self, request_id: bytes) -> tuple[wire.FinalHeader, pl.Answer]:
        envelope = self.ending(request_id)
        assert envelope.type == wire.FINAL, wire.decode_header(wire.ErrorHeader, envelope.header)
        return wire.decode_header(wire.FinalHeader, envelope.header), pl.unpack_answer(envelope.payload)

    def error(self, request_id: bytes, deadline_s: float = DEADLINE_S) -> wire.ErrorHeader:
        envelope = self.ending(request_id, deadline_s)
        assert envelope.type == wire.ERROR
        return wire.decode_header(wire.ErrorHeader, envelope.header)

    def partials(self, request_id: bytes) -> list[tuple[int, str]]:
        """PARTIALs of a request that have come so far, in order."""
        return [
            (wire.decode_header(wire.PartialHeader, e.header).seq, e.payload.decode())
            for _, e in self.inbox
            if e.type == wire.PARTIAL and e.request_id == request_id
        ]


class RunningWorker:
    """A worker's loop in a thread, with a real link to this side."""

    def __init__(self, config: cfg.Config, slot: int = 0) -> None:
        from walled import worker

        backend = next(iter(config.enabled_backends()))
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link, self._theirs = Link(ours), Link(theirs)
        self.spawn = lk.Spawn("worker", slot, backend, TOKEN, cfg.to_plain(config), os.getpid(), 1)
        self.status: int | None = None
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(worker.main,), daemon=True)
        self.thread.start()

    def _run(self, main: Callable[..., int]) -> None:
        try:
            self.status = main(self.spawn, self._theirs)
        except BaseException as exc:
            self.failure = exc

    def order(self, op: Any, **fields: Any) -> None:
        assert self.link.send(lk.Order(op, **fields))

    def join(self, deadline_s: float = DEADLINE_S) -> int | None:
        """Wait for its end; the exit status."""
        self.thread.join(deadline_s)
        assert not self.thread.is_alive(), "the worker does not end"
        if self.failure is not None:
            raise self.failure
        return self.status


def scripted_config(directory: Path, *, broker: dict[str, Any] | None = None, **backend: Any) -> cfg.Config:
    """A configuration whose one backend is scripted, with sockets and cache below `directory`."""
    return cfg.from_plain(
        {
            "backend": "s",
            "daemon": {"run_dir": str(directory), "allow_scripted": True},
            "cache": {"path": str(directory / "cache")},
            "broker": broker or {"worker_liveness_s": 60.0},
            "backends": {"s": {"kind": "scripted", **backend}},
        }
    )
