"""Generations on their way and the callers who wait for them.

May live here: Job (one generation), Waiter (one caller of it), what each of them knows. May not: decisions.
A job with several waiters is a coalesced one: identical questions, one generation.
"""

from __future__ import annotations

from walled.core.fleet import Worker
from walled.core.ladder import Stage
from walled.core.routes import NO_ROUTE
from walled.protocol import ErrorHeader, RequestHeader

MAX_REPLAY_BYTES = 1024 * 1024
"""Streamed text kept for late joiners; past this a late joiner gets the whole answer at the end."""


class Waiter:
    """One caller's request. It ends exactly once, when it leaves the broker's `waiters` table."""

    __slots__ = (
        "arrived_s", "client", "deadline_s", "due_s", "hard", "header", "job", "reason", "request_id",
        "restart", "route", "streamed", "takes_text", "ticket",
    )  # fmt: skip

    def __init__(
        self, client: bytes, request_id: bytes, header: RequestHeader, arrived_s: float, deadline_s: float
    ) -> None:
        self.client = client
        self.request_id = request_id
        self.header = header
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.due_s = deadline_s
        """When it is looked at next: its deadline, or before that the beginning of its reserve."""
        self.route = NO_ROUTE
        """What it asked for; known once it is admitted."""
        self.job: Job | None = None
        self.streamed = False
        """Some text of the answer was sent to this caller."""
        self.takes_text = header.stream
        """Gets PARTIALs; a late joiner of a stream too long to replay gets only the whole answer."""
        self.restart = False
        """The text it has seen was of an attempt that died: what comes next begins anew."""
        self.ticket = 0
        """Of the lookup that is under way for it; 0 for none."""
        self.hard = False
        """Its job takes no step before that lookup has brought something or nothing."""
        self.reason = ""
        """What the answer of its last lookup stands in for: the code of an error."""


class Job:
    """One generation: waiting in a lane, running at a worker, or abandoned there."""

    __slots__ = (
        "alarm_s", "among", "attempt", "begun", "call_s", "client", "created_s", "dispatched_s", "emitted",
        "emitted_bytes", "fall", "fallback", "job_id", "key", "lane", "payload", "payload_bytes", "queued",
        "rank", "replayable", "restarting", "store", "streaming", "ticket", "waiters", "waits_until_s",
        "worker",
    )  # fmt: skip

    @property
    def model(self) -> str:
        """The model, by its configured name."""
        return self.lane.rpartition("\0")[2]

    def __init__(
        self, job_id: bytes, client: bytes, lane: str, payload: bytes, rank: int, now: float
    ) -> None:
        self.job_id = job_id
        self.created_s = now
        self.client = client
        """Whose turn it takes: the first caller's."""
        self.lane = lane
        """Where it waits and runs: lanes.place of a model, at one backend or anywhere."""
        self.payload = payload
        self.payload_bytes = len(payload)
        self.rank = rank
        self.key: bytes | None = None
        """Cache key by which identical requests find this job; None when it may not be shared."""
        self.store = False
        self.waiters: list[Waiter] = []
        self.worker: Worker | None = None
        self.queued = False
        self.ticket = 0
        """Of its present place in the lane."""
        self.call_s = float("inf")
        """While the queue of its class stands: from then on it goes before newer ones."""
        self.waits_until_s = float("inf")
        """...and then it is refused."""
        self.dispatched_s = 0.0
        self.among = 0
        """How many ran at its backend when it was handed over, itself included."""
        self.begun = False
        """The time to its first token is known."""
        self.attempt = 0
        """Calls made so far: the number of the one that runs."""
        self.streaming = False
        """The worker was told to send PARTIALs."""
        self.emitted: list[tuple[bytes, bytes]] = []
        """(header, text) of the PARTIALs so far, for late joiners."""
        self.emitted_bytes = 0
        self.replayable = True
        self.restarting = False
        """A caller has seen text of an attempt that died, and none yet of this one."""
        self.fallback = False
        """Runs on another model than was asked for."""
        self.alarm_s = 0.0
        """When Descent looks at it again; 0: not."""
        self.fall: Fall | None = None
        """Its way down the ladder; None while all is well."""


class Fall:
    """How far down the ladder a job has come (descent.py), and why."""

    __slots__ = ("barred", "deaths", "error", "models_over", "retries", "stage", "tried", "window")

    def __init__(self, error: ErrorHeader) -> None:
        self.error = error
        """Why it is not where it was asked to be: what its callers are told."""
        self.stage = Stage.SAME
        self.tried: frozenset[tuple[str, str]] = frozenset()
        """(backend, model) that have failed it."""
        self.barred: frozenset[str] = frozenset()
        """Models that must not be asked again."""
        self.window = 0
        """Tokens that were too few; 0: none were."""
        self.models_over = False
        """No model is asked any more."""
        self.deaths = 0
        """Workers that died with it."""
        self.retries = 0
