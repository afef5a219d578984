"""The workers the broker knows, what each can take, and which one gets a job.

May live here: worker table, credit, least-loaded and session-sticky choice. May not: queues, callers.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from walled.core.lanes import place
from walled.protocol import ModelInfo, ReadyHeader

if TYPE_CHECKING:
    from walled.core.flights import Job

MAX_SESSIONS = 10_000


class Worker:
    """One connected worker."""

    __slots__ = (
        "backend", "drained_told", "draining", "heard_s", "identity", "jobs", "kind", "models", "pid",
        "served", "shrunk", "slot", "slots",
    )  # fmt: skip

    def __init__(self, identity: bytes, header: ReadyHeader, now: float) -> None:
        self.identity = identity
        self.slot = header.worker
        self.pid = header.pid
        self.backend = header.backend
        self.kind = header.kind
        self.slots = header.slots
        self.models: dict[str, ModelInfo] = {model.name: model for model in header.models}
        self.jobs: dict[bytes, Job] = {}
        self.draining = False
        self.drained_told = False
        self.heard_s = now
        self.served = 0
        self.shrunk = False
        """It runs more than its slots because it gave some back."""

    @property
    def state(self) -> str:
        return "draining" if self.draining else "ready"


class Fleet:
    """All connected workers. `by_place` is what dispatch reads; it is rebuilt when one comes or goes."""

    def __init__(self) -> None:
        self.workers: dict[bytes, Worker] = {}
        self.by_place: dict[str, list[Worker]] = {}
        """By the key of a lane (lanes.place)."""
        self.blocked: set[str] = set()
        """Backends that get nothing at present: their circuit breaker is open, or they asked for a pause."""
        self._slots: dict[str, int] = {}
        self._sessions: OrderedDict[str, bytes] = OrderedDict()

    def add(self, worker: Worker) -> None:
        self.workers[worker.identity] = worker
        self.index()

    def remove(self, identity: bytes) -> Worker | None:
        worker = self.workers.pop(identity, None)
        if worker is not None:
            self.index()
        return worker

    def index(self) -> None:
        """Build what dispatch reads; to be called after any change of a worker's slots or state."""
        self.by_place, self._slots = {}, {}
        for worker in self.workers.values():
            slots = 0 if worker.draining else worker.slots
            for model in worker.models:
                for name in (model, place(model, worker.backend)):
                    self.by_place.setdefault(name, []).append(worker)
                    self._slots[name] = self._slots.get(name, 0) + slots

    def of_slot(self, slot: int) -> list[Worker]:
        """Workers of a slot number: two while a replacement takes over."""
        return [worker for worker in self.workers.values() if worker.slot == slot]

    def slots_for(self, name: str) -> int:
        """How many requests of a place (lanes.place) can run at once."""
        return self._slots.get(name, 0)

    def open_to(self, name: str) -> bool:
        """Whether some worker of a place takes jobs, now or when it has room."""
        return any(
            not worker.draining and worker.backend not in self.blocked
            for worker in self.by_place.get(name, ())
        )

    def choose(self, name: str, session: str = "") -> Worker | None:
        """The worker that should run one more job of a place now, or None when all are busy or blocked.

        The session's last worker while it has room (its KV prefix is warm), else the least loaded.
        """
        best: Worker | None = None
        best_load = 1.0
        home = self._sessions.get(session) if session else None
        for worker in self.by_place.get(name, ()):
            busy = len(worker.jobs)
            if busy >= worker.slots or worker.draining or worker.backend in self.blocked:
                continue
            if worker.identity == home:
                best = worker
                break
            load = busy / worker.slots
            if load < best_load:
                best, best_load = worker, load
        if best is not None and session:
            self._sessions[session] = best.identity
            self._sessions.move_to_end(session)
            if len(self._sessions) > MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return best
