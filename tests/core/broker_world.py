"""A broker core with hand-set time, fake clients and fake workers: what its tests are written in."""

from __future__ import annotations

from typing import Any

from walled import config as cfg
from walled import protocol
from walled.core import events as ev
from walled.core.broker import Broker
from walled.core.invariants import validate
from walled.errors import WalledError
from walled.protocol import ErrorHeader, FinalHeader, ModelInfo, ReadyHeader, RequestHeader

ENDINGS = (protocol.FINAL, protocol.ERROR, protocol.BUSY)


def config_of(**sections: Any) -> cfg.Config:
    plain: dict[str, Any] = {
        "backend": "script",
        "daemon": {"allow_scripted": True},
        "backends": {"script": {"kind": "scripted"}},
    }
    for name, value in sections.items():
        plain[name] = {**plain.get(name, {}), **value} if isinstance(value, dict) else value
    return cfg.from_plain(plain)


class World:
    """Drives one Broker; checks every invariant after every event."""

    def __init__(self, **sections: Any) -> None:
        self.config = config_of(**sections)
        self.broker = Broker(self.config, b"epoch")
        self.now = 100.0
        self.asked: list[tuple[bytes, bytes]] = []
        self.to_client: list[ev.ToClient] = []
        self.to_worker: list[ev.ToWorker] = []
        self.others: list[ev.Effect] = []
        self.stored: dict[bytes, bytes] = {}
        """Stale answers by payload."""
        self.templates: dict[bytes, bytes] = {}
        self.looked_up: list[ev.LookUp] = []
        """Those that wait for `look`; only when `patient`."""
        self.patient = False
        self._ids = 0

    def do(self, event: ev.Event) -> list[ev.Effect]:
        effects = self.broker.handle(event, self.now)
        for effect in effects:
            if isinstance(effect, ev.ToClient):
                self.to_client.append(effect)
            elif isinstance(effect, ev.ToWorker):
                self.to_worker.append(effect)
            elif isinstance(effect, ev.LookUp):
                self.looked_up.append(effect)
            else:
                self.others.append(effect)
        validate(self.broker)
        while self.looked_up and not self.patient:
            self.look()
        return effects

    def look(self) -> None:
        """Answer the lookup that was asked for first."""
        asked = self.looked_up.pop(0)
        tables = {"stale": self.stored, "template": self.templates, "intent": self.templates}
        for step in asked.steps:
            answer = tables[step].get(asked.payload)
            if answer is not None:
                source = "stale" if step == "stale" else "template"
                self.do(ev.Found(asked.client, asked.request_id, asked.ticket, source, answer))
                return
        self.do(ev.Found(asked.client, asked.request_id, asked.ticket))

    def tick(self, seconds: float = 0.0) -> list[ev.Effect]:
        self.now += seconds
        return self.do(ev.Tick())

    # --- clients

    def ask(self, client: bytes = b"c1", payload: bytes = b"q", **header: Any) -> bytes:
        self._ids += 1
        request_id = self._ids.to_bytes(4, "big")
        header.setdefault("model", "m")
        header.setdefault("deadline_ms", 30_000)
        self.asked.append((client, request_id))
        self.do(ev.ClientRequest(client, request_id, RequestHeader(**header), payload))
        return request_id

    def share(self, client: bytes = b"c1", payload: bytes = b"same", **header: Any) -> bytes:
        """A deterministic request: identical ones coalesce."""
        return self.ask(client, payload, deterministic=True, **header)

    def cancel(self, request_id: bytes, client: bytes = b"c1") -> None:
        self.do(ev.ClientCancel(client, request_id))

    def endings(self, request_id: bytes) -> list[ev.ToClient]:
        return [e for e in self.to_client if e.request_id == request_id and e.type in ENDINGS]

    def ending(self, request_id: bytes) -> ev.ToClient:
        found = self.endings(request_id)
        assert len(found) == 1, f"{len(found)} endings"
        return found[0]

    def code(self, request_id: bytes) -> str:
        """Error code of the ending, or the source of a FINAL."""
        header = self.ending(request_id).header
        return header.code if isinstance(header, ErrorHeader) else header.source

    def texts(self, request_id: bytes) -> list[bytes]:
        return [
            e.payload for e in self.to_client if e.request_id == request_id and e.type == protocol.PARTIAL
        ]

    # --- workers

    def ready(
        self,
        identity: bytes = b"w0",
        slot: int = 0,
        slots: int = 1,
        models: tuple[str, ...] = ("m",),
        **more: Any,
    ) -> None:
        windows = more.pop("windows", {})
        infos = tuple(
            ModelInfo(name=name, digest=f"digest-{name}", context_tokens=windows.get(name, 0))
            for name in models
        )
        header = ReadyHeader(
            worker=slot, token=b"t", pid=1, backend=more.pop("backend", "script"), kind="scripted",
            slots=slots, models=infos, **more,
        )  # fmt: skip
        self.do(ev.WorkerReady(identity, b"", header))

    def jobs(self, identity: bytes = b"w0") -> list[bytes]:
        worker = self.broker.dispatcher.fleet.workers.get(identity)
        return list(worker.jobs) if worker is not None else []

    def payloads(self, identity: bytes = b"w0") -> list[bytes]:
        """Payloads the worker was sent, in order."""
        return [e.payload for e in self.to_worker if e.worker == identity and e.type == protocol.REQUEST]

    def sent(self, kind: bytes, identity: bytes = b"w0") -> list[ev.ToWorker]:
        return [e for e in self.to_worker if e.worker == identity and e.type == kind]

    def finish(self, job: bytes | None = None, identity: bytes = b"w0", payload: bytes = b"answer") -> None:
        job = self.jobs(identity)[0] if job is None else job
        self.do(ev.WorkerFinal(identity, job, FinalHeader(), payload))

    def say(self, text: bytes, seq: int = 0, job: bytes | None = None, identity: bytes = b"w0") -> None:
        job = self.jobs(identity)[0] if job is None else job
        header = protocol.encode_header(protocol.PartialHeader(seq=seq))
        self.do(ev.WorkerPartial(identity, job, header, text))

    def fail(self, error: WalledError, job: bytes | None = None, identity: bytes = b"w0") -> None:
        job = self.jobs(identity)[0] if job is None else job
        self.do(ev.WorkerError(identity, job, protocol.error_header(error)))

    def die(self, identity: bytes = b"w0") -> None:
        self.do(ev.WorkerGone(identity))
