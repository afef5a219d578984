"""Generations on their way and the callers who wait for them.

May live here: Job (one generation), Waiter (one caller of it), what each of them knows. May not: decisions.
A job with several waiters is a coalesced one: identical questions, one generation.
"""

from __future__ import annotations

from walled.core.fleet import Worker
from walled.protocol import RequestHeader

MAX_REPLAY_BYTES = 1024 * 1024
"""Streamed text kept for late joiners; past this a late joiner gets the whole answer at the end."""


class Waiter:
    """One caller's request. It ends exactly once, when it leaves the broker's `waiters` table."""

    __slots__ = ("arrived_s", "client", "deadline_s", "header", "job", "request_id", "streamed", "takes_text")

    def __init__(
        self, client: bytes, request_id: bytes, header: RequestHeader, arrived_s: float, deadline_s: float
    ) -> None:
        self.client = client
        self.request_id = request_id
        self.header = header
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.job: Job | None = None
        self.streamed = False
        """Some text of the answer was sent to this caller."""
        self.takes_text = header.stream
        """Gets PARTIALs; a late joiner of a stream too long to replay gets only the whole answer."""


class Job:
    """One generation: waiting in a lane, running at a worker, or abandoned there."""

    __slots__ = (
        "among", "attempt", "begun", "call_s", "client", "created_s", "dispatched_s", "emitted",
        "emitted_bytes", "job_id", "key", "lane", "payload", "payload_bytes", "queued", "rank", "replayable",
        "store", "streaming", "ticket", "waiters", "waits_until_s", "worker",
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
        self.attempt = 1
        self.streaming = False
        """The worker was told to send PARTIALs."""
        self.emitted: list[tuple[bytes, bytes]] = []
        """(header, text) of the PARTIALs so far, for late joiners."""
        self.emitted_bytes = 0
        self.replayable = True
