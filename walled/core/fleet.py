"""The workers the broker knows, what each can take, and which one gets a job.

May live here: worker table, credit, limits of backends, least-loaded and session-sticky choice. May not:
queues, callers, how a limit is learned (limit.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from typing import TYPE_CHECKING

from walled.core.lanes import place
from walled.core.limit import Limit
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
        self.limits: dict[str, Limit] = {}
        """Adaptive limits by backend; one that is not here has its slots as its only limit."""
        self.tight: dict[str, Limit] = {}
        """Those of `limits` that are below the slots."""
        self._by_backend: dict[str, list[Worker]] = {}
        self._slots: dict[str, int] = {}
        self._backends: dict[str, tuple[str, ...]] = {}
        self.several = False
        """Some model is served by more than one backend."""
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
        self.by_place, self._by_backend, self._slots, self._backends = {}, {}, {}, {}
        for worker in self.workers.values():
            slots = 0 if worker.draining else worker.slots
            self._by_backend.setdefault(worker.backend, []).append(worker)
            for model in worker.models:
                for name in (model, place(model, worker.backend)):
                    self.by_place.setdefault(name, []).append(worker)
                    self._slots[name] = self._slots.get(name, 0) + slots
                    known = self._backends.get(name, ())
                    if worker.backend not in known:
                        self._backends[name] = (*known, worker.backend)
        self.several = any(len(backends) > 1 for backends in self._backends.values())
        for backend, slots in self.slots_by_backend().items():
            # A backend whose only worker is being replaced has learned nothing by that.
            if slots and (limit := self.limits.get(backend)) is not None:
                limit.resize(slots)
        self.tighten()

    def slots_by_backend(self) -> dict[str, int]:
        """Slots of workers that take jobs, by backend."""
        return {
            backend: sum(worker.slots for worker in workers if not worker.draining)
            for backend, workers in self._by_backend.items()
        }

    def limit(self, backend: str, adaptive: bool) -> None:
        """Whether the limit of a backend is learned."""
        if not adaptive:
            self.limits.pop(backend, None)
        elif backend not in self.limits:
            self.limits[backend] = Limit(
                sum(worker.slots for worker in self.workers.values() if worker.backend == backend)
            )
        self.tighten()

    def tighten(self) -> None:
        """A limit has changed."""
        self.tight = {backend: limit for backend, limit in self.limits.items() if limit.tight}

    def running(self, backend: str) -> int:
        """Jobs at a backend."""
        workers = self._by_backend.get(backend, ())
        if len(workers) == 1:
            return len(workers[0].jobs)
        return sum([len(worker.jobs) for worker in workers])

    def of_slot(self, slot: int) -> list[Worker]:
        """Workers of a slot number: two while a replacement takes over."""
        return [worker for worker in self.workers.values() if worker.slot == slot]

    def slots_for(self, name: str) -> int:
        """How many requests of a place (lanes.place) can run at once."""
        slots = self._slots.get(name, 0)
        if self.tight and slots:
            shares: dict[str, int] = {}
            for worker in self.by_place[name]:
                if not worker.draining:
                    shares[worker.backend] = shares.get(worker.backend, 0) + worker.slots
            slots = sum(
                min(share, self.tight[backend].value) if backend in self.tight else share
                for backend, share in shares.items()
            )
        return slots

    def open_to(self, name: str) -> bool:
        """Whether some worker of a place takes jobs, now or when it has room."""
        return any(
            worker.slots and not worker.draining and worker.backend not in self.blocked
            for worker in self.by_place.get(name, ())
        )

    def backends_of(self, name: str) -> tuple[str, ...]:
        """The backends that serve a place, in order of appearance."""
        return self._backends.get(name, ())

    def choose(self, name: str, session: str = "", shut: Collection[str] = ()) -> Worker | None:
        """The worker that should run one more job of a place now, or None when all are busy or blocked, or
        of a backend that is `shut` to it.

        The session's last worker while it has room (its KV prefix is warm), else the least loaded.
        """
        best: Worker | None = None
        best_load = 1.0
        home = self._sessions.get(session) if session else None
        tight = self.tight
        for worker in self.by_place.get(name, ()):
            busy = len(worker.jobs)
            if busy >= worker.slots or worker.draining or worker.backend in self.blocked:
                continue
            if tight and (limit := tight.get(worker.backend)) and self.running(worker.backend) >= limit.value:
                continue
            if shut and worker.backend in shut:
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
