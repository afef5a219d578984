"""The worker's book of jobs: merging, deadlines, exactly one ending. Time is an argument; nothing sleeps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from walled.core.jobs import GIVE_UP_S, MERGE_CHARS, MERGE_S, NEVER, Jobs, Running
from walled.errors import BackendTimeout, BadRequest, Cancelled, DeadlineExceeded, Overloaded
from walled.protocol import JobHeader


def header(stream: bool = True, deadline_ms: int = 10_000) -> JobHeader:
    return JobHeader(model="m", deadline_ms=deadline_ms, stream=stream)


def begin(jobs: Jobs, now: float = 0.0, wire_id: bytes = b"a", **fields: object) -> Running:
    return jobs.admit(wire_id, header(**fields), now)  # type: ignore[arg-type]


def test_never_more_jobs_than_slots() -> None:
    jobs = Jobs(2)
    first = begin(jobs, wire_id=b"a")
    begin(jobs, wire_id=b"b")
    with pytest.raises(Overloaded):
        begin(jobs, wire_id=b"c")
    assert jobs.end(first.number) is first
    begin(jobs, wire_id=b"c")


def test_an_id_in_use_is_refused_and_can_be_used_again_later() -> None:
    jobs = Jobs(4)
    first = begin(jobs)
    with pytest.raises(BadRequest):
        begin(jobs)
    jobs.end(first.number)
    assert begin(jobs).number != first.number


def test_a_job_ends_once() -> None:
    jobs = Jobs(1)
    job = begin(jobs)
    assert jobs.end(job.number) is job
    assert jobs.end(job.number) is None
    assert jobs.find(b"a") is None
    assert jobs.delta(job.number, "late", 1.0) is None


def test_the_first_delta_goes_at_once_and_the_next_ones_together() -> None:
    jobs = Jobs(1)
    job = begin(jobs)
    partial = jobs.delta(job.number, "one", 1.0)
    assert partial is not None
    assert (partial.seq, partial.text) == (0, "one")
    assert jobs.delta(job.number, " two", 1.001) is None
    assert jobs.delta(job.number, " three", 1.002) is None
    assert jobs.next_due_s() == pytest.approx(1.0 + MERGE_S)
    assert jobs.due(1.0 + MERGE_S / 2).partials == []
    [partial] = jobs.due(1.0 + MERGE_S).partials
    assert (partial.seq, partial.text) == (1, " two three")
    assert jobs.due(2.0).partials == []


def test_slow_deltas_are_never_held_back() -> None:
    jobs = Jobs(1)
    job = begin(jobs)
    for turn in range(5):
        partial = jobs.delta(job.number, "x", 1.0 + turn * 2 * MERGE_S)
        assert partial is not None
        assert partial.seq == turn


def test_much_text_does_not_wait() -> None:
    jobs = Jobs(1)
    job = begin(jobs)
    jobs.delta(job.number, "first", 1.0)
    partial = jobs.delta(job.number, "x" * MERGE_CHARS, 1.0)
    assert partial is not None
    assert len(partial.text) == MERGE_CHARS


def test_what_is_held_back_is_flushed_before_the_ending() -> None:
    jobs = Jobs(1)
    job = begin(jobs)
    jobs.delta(job.number, "a", 1.0)
    jobs.delta(job.number, "b", 1.0)
    assert jobs.end(job.number) is job
    partial = jobs.flush(job, 1.0)
    assert partial is not None
    assert (partial.seq, partial.text) == (1, "b")
    assert jobs.flush(job, 1.0) is None
    assert jobs.due(9.0).partials == [], "an ended job is not flushed by the clock"


def test_streaming_that_starts_late_begins_with_all_text_so_far() -> None:
    jobs = Jobs(1)
    job = begin(jobs, stream=False)
    assert jobs.delta(job.number, "one", 1.0) is None
    assert jobs.delta(job.number, " two", 1.1) is None
    assert jobs.flush(job, 1.1) is None
    partial = jobs.start_streaming(job, 1.2)
    assert partial is not None
    assert (partial.seq, partial.text) == (0, "one two")
    assert jobs.start_streaming(job, 1.2) is None, "once is enough"
    partial = jobs.delta(job.number, " three", 1.3)
    assert partial is not None
    assert (partial.seq, partial.text) == (1, " three")


def test_streaming_that_starts_before_the_first_text() -> None:
    jobs = Jobs(1)
    job = begin(jobs, stream=False)
    assert jobs.start_streaming(job, 1.0) is None
    partial = jobs.delta(job.number, "one", 1.0)
    assert partial is not None
    assert partial.seq == 0


def test_a_deadline_stops_the_job_and_its_backend_ends_it() -> None:
    jobs = Jobs(1)
    job = begin(jobs, 1.0, deadline_ms=500)
    assert jobs.next_due_s() == pytest.approx(1.5)
    assert jobs.due(1.499).expired == []
    assert jobs.due(1.5).expired == [job]
    assert isinstance(job.why, DeadlineExceeded)
    assert jobs.due(1.6).expired == [], "told once"
    assert jobs.end(job.number) is job
    assert jobs.credit == 1
    assert jobs.due(99.0) == ([], [], [])


def test_a_deadline_can_be_extended_but_not_shortened_and_nobody_is_revived() -> None:
    jobs = Jobs(1)
    job = begin(jobs, 1.0, deadline_ms=500)
    jobs.extend(job, 1000, 1.2)
    jobs.extend(job, 100, 1.2)
    assert jobs.due(1.5).expired == []
    assert jobs.next_due_s() == pytest.approx(2.2)
    assert jobs.due(2.2).expired == [job]
    jobs.extend(job, 9000, 2.3)
    assert jobs.due(2.2 + GIVE_UP_S).given_up == [job]


def test_a_backend_that_does_not_come_back_loses_its_slot_until_it_does() -> None:
    jobs = Jobs(2)
    job = begin(jobs, 1.0)
    assert jobs.stop(job, Cancelled("x"), 2.0)
    assert not jobs.stop(job, DeadlineExceeded("y"), 2.0)
    assert isinstance(job.why, Cancelled), "the first reason stays"
    assert jobs.due(2.0 + GIVE_UP_S - 0.01).given_up == []
    assert jobs.due(2.0 + GIVE_UP_S).given_up == [job]
    assert (jobs.credit, jobs.idle) == (1, False)
    begin(jobs, 4.0, b"b")
    with pytest.raises(Overloaded):
        begin(jobs, 4.0, b"c")
    assert jobs.end(job.number) is None, "it has been ended already"
    assert jobs.credit == 2


def test_a_stopped_job_sends_no_more_text() -> None:
    jobs = Jobs(1)
    job = begin(jobs)
    jobs.delta(job.number, "a", 1.0)
    jobs.stop(job, Cancelled("x"), 1.0)
    assert jobs.delta(job.number, "b", 5.0) is None


def test_abandoned_jobs_keep_their_slots_until_the_backend_lets_go() -> None:
    jobs = Jobs(2)
    numbers = [begin(jobs, wire_id=name).number for name in (b"a", b"b")]
    assert [job.number for job in jobs.abandon_all()] == numbers
    assert jobs.credit == 0
    assert jobs.find(b"a") is None
    for number in numbers:
        assert jobs.end(number) is None
    assert (jobs.credit, jobs.idle) == (2, True)
    assert begin(jobs, wire_id=b"a").number not in numbers, "a number is never used twice"


def test_a_closing_book_offers_nothing_and_takes_what_was_on_its_way() -> None:
    jobs = Jobs(2)
    jobs.closing = True
    assert jobs.credit == 0
    job = begin(jobs)
    assert jobs.end(job.number) is job
    assert (jobs.credit, jobs.idle) == (0, True)


def test_a_delta_is_urgent_when_it_would_be_sent_at_once() -> None:
    jobs = Jobs(2)
    job, quiet = begin(jobs, wire_id=b"a"), begin(jobs, wire_id=b"b", stream=False)
    assert jobs.urgent(job.number, 1.0)
    assert job.first_s == 1.0
    jobs.delta(job.number, "first", 1.0)
    assert not jobs.urgent(job.number, 1.0 + MERGE_S / 2)
    assert jobs.next_due_s() == pytest.approx(1.0 + MERGE_S), "the loop looks again by itself"
    assert jobs.due(1.0 + MERGE_S).partials == []
    assert jobs.urgent(job.number, 1.0 + MERGE_S)
    assert not jobs.urgent(quiet.number, 1.0), "nobody waits for it"
    assert quiet.first_s == 1.0
    jobs.start_streaming(quiet, 1.0)
    assert jobs.urgent(quiet.number, 1.0)
    assert not jobs.urgent(99, 1.0)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), max_size=40))
def test_a_loop_that_wakes_only_when_due_or_urgent_is_never_late(steps: list[tuple[int, int]]) -> None:
    """Three streams; deltas that are not urgent lie in the mailbox until the loop's next turn."""
    jobs = Jobs(3)
    numbers = [begin(jobs, wire_id=b"%d" % n).number for n in range(3)]
    mailbox: list[tuple[int, float]] = []
    now = 1.0

    def turn(at: float) -> None:
        for number, came in mailbox:
            assert at - came <= MERGE_S + 1e-9, "a delta waited longer than the merging time"
            jobs.delta(number, "x", at)
        mailbox.clear()
        if at >= jobs.next_due_s():
            jobs.due(at)

    for stream, gap in steps:
        later = now + gap * MERGE_S / 4
        while jobs.next_due_s() <= later and jobs._next_flush_s < NEVER and jobs.next_due_s() < 9.0:
            turn(max(now, jobs.next_due_s()))
        now = later
        mailbox.append((numbers[stream], now))
        if jobs.urgent(numbers[stream], now):
            turn(now)
    while mailbox or any(job.pending for job in jobs.running.values()):
        assert jobs.next_due_s() < now + 2 * MERGE_S, "text would be forgotten"
        now = max(now, jobs.next_due_s())
        turn(now)


def test_nothing_to_do_is_never_due() -> None:
    jobs = Jobs(1)
    assert jobs.next_due_s() == NEVER
    job = begin(jobs)
    jobs.end(job.number)
    jobs.due(jobs.next_due_s())
    assert jobs.next_due_s() == NEVER


TEXTS = st.lists(st.text(min_size=1, max_size=6) | st.just("y" * MERGE_CHARS), max_size=12)
GAPS = st.sampled_from([0.0, 0.001, 0.004, 0.010, 0.2])


@given(texts=TEXTS, gaps=st.lists(GAPS, min_size=12, max_size=12), late=st.none() | st.integers(0, 11))
def test_partials_join_to_the_text_in_sequence_and_in_time(
    texts: list[str], gaps: list[float], late: int | None
) -> None:
    """However text and time fall, and whenever streaming begins."""
    jobs = Jobs(1)
    job = begin(jobs, stream=late is None)
    now, sent = 1.0, []
    for turn, text in enumerate(texts):
        if turn == late:
            sent.append(jobs.start_streaming(job, now))
        due = jobs.due(now)
        sent += due.partials
        before = now
        sent.append(jobs.delta(job.number, text, now))
        if job.streaming and job.pending:
            assert jobs.next_due_s() <= before + MERGE_S, "held back text is flushed in time"
        now += gaps[turn]
    if late is not None:
        sent.append(jobs.start_streaming(job, now))
    jobs.end(job.number)
    sent.append(jobs.flush(job, now))
    partials = [partial for partial in sent if partial is not None]
    assert "".join(partial.text for partial in partials) == "".join(texts)
    assert [partial.seq for partial in partials] == list(range(len(partials)))
    assert job.sent == len(partials)
    assert job.chars == len("".join(texts))


@given(
    st.lists(
        st.tuples(st.sampled_from(["admit", "stop", "end", "tick", "abandon"]), st.integers(0, 9)),
        max_size=60,
    )
)
def test_slots_are_never_oversold_and_every_job_ends_once(steps: list[tuple[str, int]]) -> None:
    jobs = Jobs(3)
    at_backend: list[int] = []
    admitted: set[int] = set()
    ended: list[int] = []
    now = 0.0
    for turn, (step, pick) in enumerate(steps):
        now += 0.3
        if step == "admit":
            try:
                job = begin(jobs, now, b"%d" % turn, deadline_ms=700)
            except Overloaded:
                assert len(at_backend) >= 3
                continue
            at_backend.append(job.number)
            admitted.add(job.number)
        elif step == "stop" and jobs.running:
            jobs.stop(list(jobs.running.values())[pick % len(jobs.running)], Cancelled("x"), now)
        elif step == "end" and at_backend:
            found = jobs.end(at_backend.pop(pick % len(at_backend)))
            ended += [found.number] if found else []
        elif step == "tick":
            ended += [job.number for job in jobs.due(now).given_up]
        elif step == "abandon":
            ended += [job.number for job in jobs.abandon_all()]
        assert len(at_backend) <= 3
        assert jobs.credit == 3 - len(set(at_backend) - set(jobs.running))
    for number in at_backend:
        found = jobs.end(number)
        ended += [found.number] if found else []
    assert sorted(ended) == sorted(admitted)
    assert (jobs.idle, jobs.credit) == (True, 3)


# --- silence -----------------------------------------------------------------------------------------


def silent(jobs: Jobs, now: float) -> str:
    """Why the one job is stopped now; "" when it is not."""
    expired = jobs.due(now).expired
    assert all(isinstance(job.why, BackendTimeout) for job in expired)
    return expired[0].why.message if expired and expired[0].why else ""


def test_the_first_token_has_a_limit_of_its_own() -> None:
    jobs = Jobs(1, first_token_s=2.0, inter_token_s=0.5)
    begin(jobs, now=10.0)
    assert jobs.next_due_s() == pytest.approx(12.0)
    assert not silent(jobs, 11.9)
    assert "within 2 s (first_token_timeout_s)" in silent(jobs, 12.0)


def test_the_next_token_has_another() -> None:
    jobs = Jobs(1, first_token_s=60.0, inter_token_s=0.5)
    job = begin(jobs, now=0.0, stream=False)
    jobs.delta(job.number, "a", 5.0)
    assert jobs.next_due_s() <= 5.5, "less than the first one's limit"
    jobs.delta(job.number, "b", 5.4)
    assert not silent(jobs, 5.6)
    assert "0.5 s (inter_token_timeout_s)" in silent(jobs, 5.9)


def test_a_delta_without_text_is_a_sign_of_life_and_no_first_token() -> None:
    jobs = Jobs(1, first_token_s=1.0, inter_token_s=3.0)
    job = begin(jobs, now=0.0)
    assert jobs.delta(job.number, "", 0.9) is None
    assert not silent(jobs, 3.8)
    assert job.first_s == 0.0
    assert silent(jobs, 3.9)


def test_the_broker_can_shorten_the_first_limit_but_not_lengthen_it() -> None:
    jobs = Jobs(2, first_token_s=2.0, inter_token_s=9.0)
    jobs.admit(b"a", JobHeader(model="m", deadline_ms=60_000, first_token_ms=1500), 0.0)
    jobs.admit(b"b", JobHeader(model="m", deadline_ms=60_000, first_token_ms=9000), 0.0)
    assert "1.5 s (the rest is for other backends)" in silent(jobs, 1.6)
    assert "2 s (first_token_timeout_s)" in silent(jobs, 2.1)


def test_silence_is_told_once_and_never_of_a_stopped_job() -> None:
    jobs = Jobs(1, first_token_s=1.0)
    job = begin(jobs)
    jobs.stop(job, Cancelled("c"), 0.9)
    assert not silent(jobs, 1.5)
    [given_up] = jobs.due(0.9 + GIVE_UP_S).given_up
    assert isinstance(given_up.why, Cancelled)


@given(
    st.floats(0.1, 5.0),
    st.floats(0.1, 5.0),
    st.lists(st.floats(0.01, 4.0), max_size=12),
    st.floats(0.5, 20.0),
)
def test_a_job_is_stopped_at_its_first_overlong_silence_or_its_deadline(
    first_s: float, next_s: float, gaps: list[float], deadline_s: float
) -> None:
    """Woken exactly when `next_due_s` says, as the worker's loop is."""
    jobs = Jobs(1, first_s, next_s)
    job = jobs.admit(b"a", JobHeader(model="m", deadline_ms=int(deadline_s * 1000)), 0.0)
    deadline_s = int(deadline_s * 1000) * 0.001
    signs, at = [], 0.0
    for gap in gaps:
        at += gap
        signs.append(at)
    expected, limit_at = deadline_s, first_s
    for sign in [*signs, NEVER]:
        if sign >= limit_at:
            expected = min(deadline_s, limit_at)
            break
        limit_at = sign + next_s
    stopped_at = NEVER
    for sign in [*signs, NEVER]:
        while stopped_at == NEVER and (wake := jobs.next_due_s()) <= sign and wake != NEVER:
            if jobs.due(wake).expired:
                stopped_at = wake
        if stopped_at != NEVER:
            break
        jobs.delta(job.number, "", sign)
    assert stopped_at == pytest.approx(expected)
