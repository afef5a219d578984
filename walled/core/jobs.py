"""A worker's book of running jobs: slots, deadlines, merging of deltas, exactly one ending each.

May live here: what is known of each job and what is due when. May not: sockets, backends, clocks (`now` is
an argument), the shape of frames.

A job's life:

    admit --> running --------------------------> end          (the backend's Done or Failed)
                 |                                  ^
                 | stop (deadline, silence,         |
                 |       CANCEL, drain)             |
                 v                                  |
              stopping ------------------------> end           (the backend came back in time)
                 |
                 | GIVE_UP_S without the backend's ending
                 v
              lost: ended for the caller, the slot stays taken until the backend's ending comes

`end` hands a job out once; a second ending, or one of a job that was given up, finds nothing.

Silence is judged here for every backend alike: until the first sign of life a job may take the backend's
first_token_timeout_s or what the broker allows it (`first_token_ms`), whichever is less, and between two
signs inter_token_timeout_s. A sign is a delta, be it without text (a thought, a piece of a tool call).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from walled.errors import BackendTimeout, BadRequest, DeadlineExceeded, Overloaded, WalledError
from walled.protocol import JobHeader

if TYPE_CHECKING:
    from walled.core.validating import Check  # loaded only by workers that judge answers

MERGE_S = 0.010
"""Deltas that follow a PARTIAL within this time travel together in the next one."""
MERGE_CHARS = 4096
"""...or as soon as this much text has gathered."""
GIVE_UP_S = 1.0
"""How long a stopped job waits for its backend before it is ended without it."""

NEVER = float("inf")


class Running:
    """One job between admission and ending."""

    __slots__ = (
        "chars",
        "check",
        "deadline_s",
        "first_s",
        "flush_at_s",
        "give_up_s",
        "header",
        "heard",
        "limit_asked",
        "number",
        "pending",
        "pending_chars",
        "received_s",
        "sent",
        "silent_at_s",
        "store_key",
        "streaming",
        "why",
        "wire_id",
    )

    def __init__(self, number: int, wire_id: bytes, header: JobHeader, now: float) -> None:
        self.number = number
        """Ours, never used twice in one process: a new broker may reuse wire ids."""
        self.wire_id = wire_id
        self.header = header
        self.received_s = now
        self.deadline_s = now + header.deadline_ms * 0.001
        self.streaming = header.stream
        self.pending: list[str] = []
        """Text not sent yet; of a job that does not stream, all of it."""
        self.pending_chars = 0
        self.chars = 0
        self.sent = 0
        """PARTIALs sent; the next one's seq."""
        self.flush_at_s = 0.0
        """Before this, further text waits to be merged."""
        self.first_s = 0.0
        """When the first text came; 0 while none has."""
        self.heard = False
        """The backend has given a sign of life."""
        self.silent_at_s = NEVER
        """When its silence has lasted too long."""
        self.why: WalledError | None = None
        """Why the job was told to stop; decides how it ends."""
        self.give_up_s = NEVER
        self.store_key = b""
        """Cache key when a complete answer is to be stored."""
        self.check: Check | None = None
        """How its answer is judged; its guard decides what of a stream may leave."""
        self.limit_asked = False
        """The request itself set max_tokens, so an answer cut there is what was asked for."""


class Partial(NamedTuple):
    """Text to send now."""

    job: Running
    seq: int
    text: str


class Due(NamedTuple):
    """What the passing of time demands."""

    expired: list[Running]
    """Just told to stop because their deadline passed, or for silence: cancel them at the backend."""
    given_up: list[Running]
    """End them now without their backend; their slots are lost until it comes back."""
    partials: list[Partial]


class Jobs:
    """All jobs of one worker. `slots` may change at any time; running jobs are never affected by it."""

    def __init__(self, slots: int, first_token_s: float = NEVER, inter_token_s: float = NEVER) -> None:
        self.slots = slots
        self._first_token_s = first_token_s
        self._inter_token_s = inter_token_s
        self.offer = 4096
        """At most so many slots are offered from now on; what was on its way for others is still taken."""
        self.closing = False
        """The broker is told to send no more; what was on its way is still taken."""
        self.running: dict[int, Running] = {}
        self._by_wire: dict[bytes, Running] = {}
        self._lost: set[int] = set()
        self._merging: dict[int, Running] = {}
        """Streams that have sent something within MERGE_S."""
        self._last_number = 0
        # Lower bounds, made exact when they come due: a finished job leaves them too early, never too late.
        self._next_deadline_s = NEVER
        self._next_flush_s = NEVER

    @property
    def credit(self) -> int:
        """Slots the broker may count on."""
        return 0 if self.closing else max(0, min(self.offer, self.slots - len(self._lost)))

    @property
    def admitted(self) -> int:
        """Jobs taken so far."""
        return self._last_number

    @property
    def idle(self) -> bool:
        """No job waits for the backend, given-up ones included."""
        return not self.running and not self._lost

    def admit(self, wire_id: bytes, header: JobHeader, now: float) -> Running:
        """Book a job. Raises Overloaded when all slots are taken, BadRequest when the id is in use."""
        if len(self.running) + len(self._lost) >= self.slots:
            raise Overloaded(f"this worker runs {self.slots} jobs at once and has no free slot")
        if wire_id in self._by_wire:
            raise BadRequest("a job of this id is running")
        self._last_number = number = self._last_number + 1
        job = Running(number, wire_id, header, now)
        self.running[number] = job
        self._by_wire[wire_id] = job
        job.silent_at_s = now + self._first_token_limit_s(header)
        self._next_deadline_s = min(self._next_deadline_s, job.deadline_s, job.silent_at_s)
        return job

    def find(self, wire_id: bytes) -> Running | None:
        return self._by_wire.get(wire_id)

    def urgent(self, number: int, now: float) -> bool:
        """Whether a delta that came at `now` (to be read after it was put where the loop finds it) needs the
        loop at once. If not, nobody waits for it, or it is merged by the `due` that is set for its job.

        May be called from any thread: it only reads, but for the time of the first text.
        """
        job = self.running.get(number)
        if job is None:
            return False
        if not job.first_s:
            job.first_s = now
        return job.streaming and now >= job.flush_at_s

    def delta(self, number: int, text: str, now: float) -> Partial | None:
        """Take more text; what has to be sent of it at once, if anything."""
        job = self.running.get(number)
        if job is None:
            return None
        job.silent_at_s = now + self._inter_token_s
        if not job.heard:
            job.heard = True
            self._next_deadline_s = min(self._next_deadline_s, job.silent_at_s)
        if not text:
            return None
        if not job.first_s:
            job.first_s = now
        job.chars += len(text)
        if job.check is not None and job.streaming:
            text = job.check.guard.feed(text)
            if not text:
                return None
        job.pending.append(text)
        if not job.streaming or job.why is not None:
            return None
        job.pending_chars += len(text)
        if now >= job.flush_at_s or job.pending_chars >= MERGE_CHARS:
            return self._flushed(job, now)
        return None

    def start_streaming(self, job: Running, now: float) -> Partial | None:
        """Stream a job from now on: its text so far, if there is any, is the first PARTIAL."""
        if job.streaming:
            return None
        job.streaming = True
        if job.check is not None and job.pending:
            passed = job.check.guard.feed("".join(job.pending))
            job.pending = [passed] if passed else []
        return self._flushed(job, now) if job.pending else None

    def again(self, job: Running, now: float) -> None:
        """Begin a job anew, under a new number: its answer was withheld, and nothing of it was sent."""
        del self.running[job.number]
        self._merging.pop(job.number, None)
        self._last_number = job.number = self._last_number + 1
        self.running[job.number] = job
        job.pending.clear()
        job.pending_chars = job.chars = 0
        job.first_s = 0.0
        job.heard = False
        job.why = None
        job.give_up_s = NEVER
        job.silent_at_s = now + self._first_token_limit_s(job.header)
        self._next_deadline_s = min(self._next_deadline_s, job.deadline_s, job.silent_at_s)

    def extend(self, job: Running, deadline_ms: int, now: float) -> None:
        """A later caller of the same job has more time. A job already told to stop is not revived."""
        job.deadline_s = max(job.deadline_s, now + deadline_ms * 0.001)

    def flush(self, job: Running, now: float) -> Partial | None:
        """The text a streaming job still holds back; before its ending."""
        return self._flushed(job, now) if job.streaming and job.pending else None

    def _flushed(self, job: Running, now: float) -> Partial:
        text = job.pending[0] if len(job.pending) == 1 else "".join(job.pending)
        job.pending.clear()
        job.pending_chars = 0
        job.flush_at_s = now + MERGE_S
        if job.number in self.running:
            self._merging[job.number] = job
            self._next_flush_s = min(self._next_flush_s, job.flush_at_s)
        seq = job.sent
        job.sent = seq + 1
        return Partial(job, seq, text)

    def stop(self, job: Running, why: WalledError, now: float) -> bool:
        """Tell a job to stop; False when it has been told before (the first reason stays)."""
        if job.why is not None:
            return False
        job.why = why
        job.give_up_s = now + GIVE_UP_S
        self._next_deadline_s = min(self._next_deadline_s, job.give_up_s)
        return True

    def end(self, number: int) -> Running | None:
        """The backend ended a job: hand it out, once. None for a job that has been ended already; a slot
        that was lost is won back then (see `credit`)."""
        job = self.running.pop(number, None)
        if job is None:
            self._lost.discard(number)
            return None
        self._forget(job)
        return job

    def abandon_all(self) -> list[Running]:
        """The broker is gone: nobody waits for any job. Their slots are lost until the backend ends them."""
        jobs = list(self.running.values())
        self.running.clear()
        for job in jobs:
            self._forget(job)
            self._lost.add(job.number)
        return jobs

    def _forget(self, job: Running) -> None:
        del self._by_wire[job.wire_id]
        self._merging.pop(job.number, None)

    def _first_token_limit_s(self, header: JobHeader) -> float:
        allowed_s = header.first_token_ms * 0.001 if header.first_token_ms else NEVER
        return min(self._first_token_s, allowed_s)

    def _silence(self, job: Running) -> BackendTimeout:
        if job.heard:
            limit_s = self._inter_token_s
            return BackendTimeout(
                f"the model server stopped in its answer for {limit_s:g} s (inter_token_timeout_s)"
            )
        limit_s = self._first_token_limit_s(job.header)
        why = "first_token_timeout_s" if limit_s >= self._first_token_s else "the rest is for other backends"
        return BackendTimeout(f"the model server sent nothing of an answer within {limit_s:g} s ({why})")

    def next_due_s(self) -> float:
        """When `due` has to be called at the latest; infinity when nothing is pending."""
        return min(self._next_deadline_s, self._next_flush_s)

    def due(self, now: float) -> Due:
        """Everything whose time has come."""
        expired: list[Running] = []
        given_up: list[Running] = []
        partials: list[Partial] = []
        if now >= self._next_flush_s:
            for job in [job for job in self._merging.values() if now >= job.flush_at_s]:
                if job.pending:
                    partials.append(self._flushed(job, now))
                else:
                    del self._merging[job.number]
            self._next_flush_s = min((job.flush_at_s for job in self._merging.values()), default=NEVER)
        if now >= self._next_deadline_s:
            for job in self.running.values():
                if job.why is None and now >= job.deadline_s:
                    self.stop(job, DeadlineExceeded("the answer was not complete at the deadline"), now)
                    expired.append(job)
                elif job.why is None and now >= job.silent_at_s:
                    self.stop(job, self._silence(job), now)
                    expired.append(job)
                elif now >= job.give_up_s:
                    given_up.append(job)
            for job in given_up:
                del self.running[job.number]
                self._forget(job)
                self._lost.add(job.number)
            self._next_deadline_s = min(
                (
                    min(job.deadline_s, job.silent_at_s) if job.why is None else job.give_up_s
                    for job in self.running.values()
                ),
                default=NEVER,
            )
        return Due(expired, given_up, partials)
