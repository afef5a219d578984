"""The workers the broker knows, what each can take, and which one gets a job.

May live here: worker table, credit, least-loaded and session-sticky choice. May not: queues, callers.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

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
    """All connected workers. `by_model` is what dispatch reads; it is rebuilt when a worker comes or goes."""

    def __init__(self) -> None:
        self.workers: dict[bytes, Worker] = {}
        self.by_model: dict[str, list[Worker]] = {}
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
        self.by_model, self._slots = {}, {}
        for worker in self.workers.values():
            for name in worker.models:
                self.by_model.setdefault(name, []).append(worker)
                slots = 0 if worker.draining else worker.slots
                self._slots[name] = self._slots.get(name, 0) + slots

    def of_slot(self, slot: int) -> list[Worker]:
        """Workers of a slot number: two while a replacement takes over."""
        return [worker for worker in self.workers.values() if worker.slot == slot]

    def slots_for(self, model: str) -> int:
        """How many requests of a model can run at once."""
        return self._slots.get(model, 0)

    def choose(self, model: str, session: str = "") -> Worker | None:
        """The worker that should run one more job of the model now, or None when all are busy.

        The session's last worker while it has room (its KV prefix is warm), else the least loaded.
        """
        best: Worker | None = None
        best_load = 1.0
        home = self._sessions.get(session) if session else None
        for worker in self.by_model.get(model, ()):
            busy = len(worker.jobs)
            if busy >= worker.slots or worker.draining:
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
