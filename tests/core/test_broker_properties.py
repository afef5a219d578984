"""Whatever happens in whatever order, every request ends exactly once and every invariant holds."""

from __future__ import annotations

from broker_world import World
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from walled import errors
from walled.core import events as ev

CLIENTS = st.sampled_from([b"c1", b"c2", b"c3"])
WORKERS = st.sampled_from([b"w0", b"w1"])
FAULTS = [
    errors.Cancelled,
    errors.BackendError,
    errors.BackendTimeout,
    errors.BackendOverloaded,
    errors.BackendUnavailable,
    errors.Truncated,
    errors.ContentRefused,
    errors.ContextTooLong,
    errors.BadRequest,
    errors.Draining,
    errors.DeadlineExceeded,
    errors.Overloaded,
]


class BrokerLife(RuleBasedStateMachine):
    """Random events; World validates the state after each of them."""

    @initialize(
        limit=st.sampled_from([0, 1]),
        slots=st.integers(1, 3),
        queue=st.sampled_from([2, 100]),
        mode=st.sampled_from(["auto", "hybrid"]),
        failures=st.sampled_from([1, 5]),
        budget=st.sampled_from([0.0, 1.0]),
        patient=st.booleans(),
    )
    def build(
        self, limit: int, slots: int, queue: int, mode: str, failures: int, budget: float, patient: bool
    ) -> None:
        self.world = World(
            broker={"queue_max_requests": queue, "min_residence_s": 1, "max_wait_s": 3},
            ladder={
                "mode": mode,
                "hybrid_intents": ["greeting"],
                "breaker_failures": failures,
                "breaker_open_s": 1.0,
                "retry_budget": budget,
            },
            backend=["one", "two"],
            backends={"one": {"kind": "scripted"}, "two": {"kind": "scripted"}},
            routes={
                "both": {"targets": ["one/a", "two/a"]},
                "down": {"targets": ["one/a", "two/b"]},
                "other": {"targets": ["two/b", "one/b", "one/a"], "mode": "ai_only"},
            },
        )
        self.world.patient = patient
        self.world.stored = {b"p": b"stale"}
        self.world.templates = {b"q": b"template"}
        self.limit, self.slots = limit, slots
        self.gone: set[bytes] = set()
        self.left: set[bytes] = set()

    def _job(self, worker: bytes, pick: int) -> bytes | None:
        jobs = self.world.jobs(worker)
        return jobs[pick % len(jobs)] if jobs else None

    @rule(
        client=CLIENTS,
        model=st.sampled_from(["a", "b", "default", "nope", "both", "down", "other"]),
        mode=st.sampled_from(["", "auto", "ai_only", "template_only", "hybrid"]),
        restarts=st.booleans(),
        cache=st.sampled_from(["default", "bypass", "refresh"]),
        background=st.booleans(),
        shared=st.booleans(),
        stream=st.booleans(),
        priority=st.sampled_from(["interactive", "normal", "batch"]),
        deadline_ms=st.sampled_from([1, 400, 5000, 60_000]),
        payload=st.sampled_from([b"p", b"q", b"x" * 500]),
        session=st.sampled_from(["", "s1", "s2"]),
    )
    def ask(self, client: bytes, shared: bool, payload: bytes, **header: object) -> None:
        self.world.ask(client, payload, deterministic=shared, accept=True, **header)

    @rule(worker=WORKERS)
    def ready(self, worker: bytes) -> None:
        if worker not in self.world.broker.dispatcher.fleet.workers:
            self.world.ready(
                worker, int(worker[1:]), self.slots, models=("a", "b"), max_loaded_models=self.limit,
                backend=("one", "two")[int(worker[1:]) % 2],
            )  # fmt: skip

    @rule(worker=WORKERS, pick=st.integers(0, 5), text=st.binary(max_size=3))
    def say(self, worker: bytes, pick: int, text: bytes) -> None:
        if job := self._job(worker, pick):
            self.world.say(text, 0, job, worker)

    @rule(worker=WORKERS, pick=st.integers(0, 5))
    def finish(self, worker: bytes, pick: int) -> None:
        if job := self._job(worker, pick):
            self.world.finish(job, worker)

    @rule(
        worker=WORKERS,
        pick=st.integers(0, 5),
        error=st.sampled_from(FAULTS),
        wait_s=st.sampled_from([None, 0.5]),
    )
    def fail(self, worker: bytes, pick: int, error: type[errors.WalledError], wait_s: float | None) -> None:
        if job := self._job(worker, pick):
            self.world.fail(error(retry_after_s=wait_s), job, worker)

    @rule()
    def look(self) -> None:
        if self.world.looked_up:
            self.world.look()

    @rule(what=st.sampled_from(["shed", "fallback"]))
    def steer(self, what: str) -> None:
        self.world.do(ev.Steer(what, for_s=1.0))  # type: ignore[arg-type]

    @rule(worker=WORKERS)
    def die(self, worker: bytes) -> None:
        self.world.die(worker)

    @rule(worker=WORKERS, slots=st.integers(0, 4))
    def credit(self, worker: bytes, slots: int) -> None:
        self.world.do(ev.WorkerCredit(worker, b"", slots))

    @rule(pick=st.integers(0, 200))
    def cancel(self, pick: int) -> None:
        if self.world.asked:
            client, request = self.world.asked[pick % len(self.world.asked)]
            self.world.cancel(request, client)

    @rule(client=CLIENTS)
    def client_gone(self, client: bytes) -> None:
        waiting = self.world.broker.clients.get(client, {})
        self.gone |= set(waiting)
        self.world.do(ev.ClientGone(client))

    @rule(seconds=st.sampled_from([0.001, 0.3, 1.0, 1.2]))
    def time_passes(self, seconds: float) -> None:
        for worker in list(self.world.broker.dispatcher.fleet.workers):
            self.world.do(ev.WorkerBeat(worker))
        self.world.tick(seconds)

    @invariant()
    def never_two_endings(self) -> None:
        if not hasattr(self, "world"):
            return
        for _, request in self.world.asked[-20:]:
            assert len(self.world.endings(request)) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        world.do(ev.Abort(errors.Draining("end of the test")))
        for _, request in world.asked:
            expected = 0 if request in self.gone else 1
            assert len(world.endings(request)) == expected
        assert world.broker.idle
        assert world.broker.dispatcher.queued == world.broker.dispatcher.queued_bytes == 0
        assert world.broker.deadlines.due(world.now + 1e6) == []
        descent = world.broker.descent
        assert len(descent.between) == len(descent.resting) == len(descent.lookups.first) == 0
        assert descent.alarms.due(world.now + 1e6) == []


TestBrokerLife = BrokerLife.TestCase
TestBrokerLife.settings = settings(
    max_examples=60, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
