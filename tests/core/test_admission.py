"""Who waits, who makes room, who is refused, and how many a backend is handed, under too much load."""

from __future__ import annotations

from collections import Counter

import pytest
from broker_world import World
from hypothesis import given
from hypothesis import strategies as st

from walled import errors, protocol
from walled.core import events as ev
from walled.core.flights import Job
from walled.core.limit import HOLD_S
from walled.core.standing import series
from walled.protocol import PRIORITIES, FinalHeader, Phases


def busy(**broker: object) -> World:
    """One slot, taken."""
    world = World(broker=broker)
    world.ready()
    world.ask(b"running", b"running")
    return world


def learned(world: World, service_s: float) -> None:
    """The running answer ends after so long; the next one runs."""
    world.now += service_s
    world.finish()
    if not world.jobs():
        world.ask(b"running", b"running")


# --- a full queue ---------------------------------------------------------------------------------------


def test_a_better_class_takes_the_place_of_the_newest_of_the_lowest() -> None:
    world = busy(queue_max_requests=3)
    batch = [world.ask(b"c1", priority="batch") for _ in range(2)]
    normal = world.ask(b"c1")
    urgent = world.ask(b"c2", priority="interactive")
    assert world.code(batch[1]) == "overloaded"
    told = world.ending(batch[1])
    assert told.type == protocol.BUSY
    assert told.header.retry_after_s > 0
    assert not any(world.endings(request) for request in (batch[0], normal, urgent))
    another = world.ask(b"c3")
    assert world.code(batch[0]) == "overloaded"
    assert not world.endings(another)
    third = world.ask(b"c2", priority="interactive")
    assert not world.endings(third), "normal requests make room for interactive ones when no batch is left"
    assert world.code(another) == "overloaded", "the newest of them"
    assert world.code(world.ask(b"c2", priority="batch")) == "overloaded"
    assert world.broker.counters["shed.displaced"] == 3


def test_one_flooding_client_makes_room_for_others_of_its_class() -> None:
    world = busy(queue_max_requests=4)
    flood = [world.ask(b"flood") for _ in range(4)]
    assert world.code(world.ask(b"flood")) == "overloaded", "nobody but itself is in its way"
    modest = world.ask(b"modest")
    assert not world.endings(modest)
    assert world.code(flood[3]) == "overloaded"
    second = world.ask(b"modest")
    assert not world.endings(second)
    assert world.code(flood[2]) == "overloaded"
    assert world.code(world.ask(b"modest")) == "overloaded", "it has its share"
    assert not any(world.endings(request) for request in flood[:2])


def test_a_large_request_displaces_as_many_as_it_needs_or_none() -> None:
    world = busy(queue_max_bytes=1000)
    small = [world.ask(b"c1", b"x" * 200, priority="batch") for _ in range(5)]
    assert world.code(world.ask(b"c2", b"x" * 1001, priority="interactive")) == "overloaded"
    assert not any(world.endings(request) for request in small)
    large = world.ask(b"c2", b"x" * 500, priority="interactive")
    assert not world.endings(large)
    assert [bool(world.endings(request)) for request in small] == [False, False, True, True, True]


def test_all_callers_of_a_displaced_question_are_told() -> None:
    world = busy(queue_max_requests=1)
    first, second = world.share(b"c1", priority="batch"), world.share(b"c2", priority="batch")
    world.ask(b"c3", priority="interactive")
    assert {world.code(first), world.code(second)} == {"overloaded"}


def test_a_full_queue_keeps_nobody_from_a_worker_that_is_free() -> None:
    world = World(broker={"queue_max_requests": 1})
    world.ready(models=("m",), backend="script")
    world.ready(b"w1", 1, models=("other",), backend="second")
    world.ask()
    world.ask()
    request = world.ask(model="other")
    assert not world.endings(request)
    assert world.jobs(b"w1")


@given(
    st.lists(
        st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.sampled_from(PRIORITIES), st.booleans()),
        max_size=40,
    ),
    st.integers(1, 8),
)
def test_the_lowest_class_and_the_largest_share_make_room_first(
    asked: list[tuple[bytes, protocol.Priority, bool]], places: int
) -> None:
    world = busy(queue_max_requests=places)
    lane = world.broker.dispatcher.lanes["m"]
    for client, priority, served in asked:
        if served:
            world.finish()
        before = list(lane.waiting())
        lines = Counter((job.rank, job.client) for job in before)
        lowest = max((job.rank for job in before), default=-1)
        most = max((count for (rank, _), count in lines.items() if rank == lowest), default=0)
        request = world.ask(client, priority=priority, deadline_ms=3_000_000)
        rank = PRIORITIES.index(priority)
        shed = [job for job in before if not job.queued and job not in _running(world)]
        if world.endings(request):
            assert not shed, "nobody is refused for somebody who is refused"
            assert len(before) == places
            assert lowest <= rank, "a lower class would have made room"
            if lowest == rank:
                assert most <= lines[(rank, client)] + 1, "a larger share would have made room"
        elif shed:
            (job,) = shed
            assert len(before) == places
            assert job.rank == lowest
            assert lines[(lowest, job.client)] == most
            mine = [other for other in before if (other.rank, other.client) == (job.rank, job.client)]
            assert job is mine[-1], "the newest of its line"
            assert lowest > rank or most > lines[(rank, client)] + 1


def _running(world: World) -> list[Job]:
    return list(world.broker.dispatcher.fleet.workers[b"w0"].jobs.values())


# --- a queue that stands --------------------------------------------------------------------------------


def standing(**broker: object) -> World:
    """A queue of four that has not shortened for long enough; an answer takes 1 s."""
    world = busy(age_step_s=1000, **broker)
    learned(world, 1.0)
    for n in range(4):
        world.ask(b"c1", b"old%d" % n, deadline_ms=60_000)
    for _ in range(16):
        world.do(ev.WorkerBeat(b"w0"))
        world.tick(0.25)
    assert world.broker.dispatcher.lanes["m"].codels[1].standing
    return world


def test_the_newest_starts_first_while_a_queue_stands() -> None:
    world = standing()
    world.ask(b"c1", b"new", deadline_ms=60_000)
    world.finish()
    assert world.payloads()[-1] == b"new"
    world.finish()
    assert world.payloads()[-1] == b"old3"


def test_who_has_waited_most_of_its_patience_is_called_before_the_newest() -> None:
    world = standing()
    job = next(iter(world.broker.dispatcher.lanes["m"].waiting()))
    world.now = job.call_s
    world.do(ev.WorkerBeat(b"w0"))
    world.ask(b"c1", b"new", deadline_ms=60_000)
    world.finish()
    assert world.payloads()[-1] == b"old0"


def test_clients_take_turns_while_a_queue_stands() -> None:
    world = standing()
    for n in range(2):
        world.ask(b"c2", b"other%d" % n, deadline_ms=60_000)
    for _ in range(4):
        world.finish()
    assert world.payloads()[-4:] == [b"old3", b"other1", b"old2", b"other0"]


def test_a_newcomer_is_taken_while_its_turn_comes_well_within_its_patience() -> None:
    world = standing(queue_patience=4.0)
    # Half of 8 s is patience enough to wait for, 4 of the queue and then some are not.
    refused = world.ask(b"c1", deadline_ms=8_000)
    assert world.code(refused) == "overloaded"
    assert world.ending(refused).header.retry_after_s > 0
    assert not world.endings(world.ask(b"c1", deadline_ms=60_000))
    assert not world.endings(world.ask(b"c2", deadline_ms=8_000)), "another client's turn comes sooner"


def test_who_came_to_a_standing_queue_is_refused_when_its_patience_ends_not_at_its_deadline() -> None:
    world = standing(queue_patience=4.0)
    request = world.ask(b"c2", b"late", deadline_ms=12_000)
    waited = 0.0
    while not world.endings(request):
        world.do(ev.WorkerBeat(b"w0"))  # the worker lives, and finishes nothing
        world.tick(0.25)
        waited += 0.25
    assert world.code(request) == "overloaded"
    assert waited == pytest.approx(6.0, abs=0.3), "half of its time, more than 4 answers take"
    assert world.broker.counters["shed.late"] == 1


def test_patience_switched_off_leaves_the_deadline_alone() -> None:
    world = standing(queue_patience=0)
    request = world.ask(b"c1", deadline_ms=8_000)
    assert not world.endings(request)
    for _ in range(31):
        world.do(ev.WorkerBeat(b"w0"))
        world.tick(0.25)
    assert not world.endings(request)


def test_what_can_no_longer_be_answered_in_time_is_not_begun_while_others_wait() -> None:
    world = busy()
    learned(world, 2.0)
    hopeless = world.ask(b"c1", b"hopeless", deadline_ms=4_500)
    world.ask(b"c1", b"other")
    world.do(ev.WorkerBeat(b"w0"))
    world.now += 3.0
    world.finish()
    assert world.code(hopeless) == "overloaded"
    assert world.payloads()[-1] == b"other"
    alone = world.ask(b"c1", b"alone", deadline_ms=2_500)
    world.now += 1.0
    world.finish()
    assert not world.endings(alone), "with nobody behind it, it is tried"
    assert world.payloads()[-1] == b"alone"


def test_an_estimate_learns_from_what_was_given_up() -> None:
    world = busy()
    learned(world, 1.0)
    request = world.ask(b"c1", deadline_ms=10_000)
    world.finish()
    for _ in range(40):
        world.do(ev.WorkerBeat(b"w0"))
        world.tick(0.25)
    world.tick(0.01)
    assert world.code(request) == "deadline_exceeded"
    before_s = world.broker.dispatcher.lanes["m"].service_s
    world.fail(errors.Cancelled())
    assert world.broker.dispatcher.lanes["m"].service_s > before_s + 1


def test_a_batch_request_of_another_model_is_not_starved_either() -> None:
    world = World()
    world.ready(models=("a", "b"))
    world.ask(b"flood", model="a", priority="interactive")
    world.ask(b"nightly", b"patient", model="b", priority="batch")
    served = 0
    while b"patient" not in world.payloads():
        world.ask(b"flood", model="a", priority="interactive")
        world.do(ev.WorkerBeat(b"w0"))
        world.tick(0.5)
        world.finish()
        served += 1
        assert served < 40, "starved"
    assert served > 19, "twice five seconds"


# --- the limit of a backend -----------------------------------------------------------------------------


def eight_slots(**sections: object) -> World:
    world = World(**sections)
    world.ready(slots=8)
    for _ in range(12):
        world.ask()
    assert len(world.jobs()) == 8
    return world


def test_a_backend_that_refuses_for_load_is_handed_fewer_at_once() -> None:
    world = eight_slots()
    world.fail(errors.BackendOverloaded("429"))
    assert world.broker.dispatcher.fleet.limits["script"].value == 6
    assert len(world.jobs()) == 7, "what it has is not taken away"
    world.finish()
    assert len(world.jobs()) == 6
    world.finish()
    assert len(world.jobs()) == 6
    assert world.broker.dispatcher.fleet.slots_for("m") == 6


def test_first_tokens_that_time_out_lower_the_limit_once_a_moment() -> None:
    world = eight_slots()
    for _ in range(3):
        world.fail(errors.BackendTimeout("silence"))
    assert world.broker.dispatcher.fleet.limits["script"].value == 6
    world.now += HOLD_S
    world.do(ev.WorkerBeat(b"w0"))
    world.fail(errors.BackendTimeout("silence"))
    assert world.broker.dispatcher.fleet.limits["script"].value < 6


def test_a_stream_that_stalls_in_the_middle_says_nothing_about_load() -> None:
    world = eight_slots()
    world.say(b"begun")
    world.fail(errors.BackendTimeout("stalled"))
    assert world.broker.dispatcher.fleet.limits["script"].value == 8


@pytest.mark.parametrize("stream", [True, False])
def test_first_tokens_that_wait_inside_the_backend_lower_its_limit(stream: bool) -> None:
    world = World()
    world.ready(slots=8)

    def answer(first_s: float, job: bytes) -> None:
        world.now += first_s
        began_s = world.broker.dispatcher.fleet.workers[b"w0"].jobs[job].dispatched_s
        phases = Phases(first_token_ms=(world.now - began_s) * 1000)
        if stream:
            world.say(b"x", 0, job)
        world.now += 1.0
        world.do(ev.WorkerBeat(b"w0"))
        world.do(ev.WorkerFinal(b"w0", job, FinalHeader(phases=phases), b"answer"))

    for _ in range(5):
        world.ask(stream=stream)
        answer(0.1, world.jobs()[0])
    limits = world.broker.dispatcher.fleet.limits
    for _ in range(30):
        while world.broker.dispatcher.queued < 3:
            world.ask(stream=stream, deadline_ms=3_000_000)
        answer(2.0, world.jobs()[0])
    assert limits["script"].value < 8
    assert len(world.jobs()) == limits["script"].value


def test_the_time_to_load_a_model_is_not_the_time_to_the_first_token() -> None:
    world = World()
    world.ready()
    world.ask()
    phases = Phases(first_token_ms=20_050.0, load_ms=20_000.0)
    world.do(ev.WorkerFinal(b"w0", world.jobs()[0], FinalHeader(phases=phases), b"answer"))
    limit = world.broker.dispatcher.fleet.limits["script"]
    assert limit.typical_s(1) == pytest.approx(0.05)


def test_a_limit_can_be_switched_off_while_it_runs() -> None:
    sections = {"backends": {"script": {"kind": "scripted", "adaptive_limit": False}}}
    world = eight_slots()
    world.fail(errors.BackendOverloaded("429"))
    world.broker.reconfigure(World(**sections).config)
    world.finish()
    assert len(world.jobs()) == 8
    world.fail(errors.BackendOverloaded("429"))
    assert len(world.jobs()) == 8
    assert not world.broker.dispatcher.fleet.limits
    never = eight_slots(**sections)
    never.fail(errors.BackendOverloaded("429"))
    assert len(never.jobs()) == 8


def test_a_limit_counts_all_workers_of_a_backend() -> None:
    world = World()
    world.ready(b"w0", 0, slots=4)
    world.ready(b"w1", 1, slots=4)
    for _ in range(12):
        world.ask()
    world.fail(errors.BackendOverloaded("429"))
    for _ in range(8):
        world.finish(identity=b"w0" if world.jobs(b"w0") else b"w1")
        assert len(world.jobs(b"w0")) + len(world.jobs(b"w1")) <= 7
    assert world.broker.dispatcher.fleet.limits["script"].slots == 8


def test_limit_and_standing_queue_are_seen_by_the_monitor() -> None:
    world = standing()
    world.fail(errors.BackendOverloaded("429"))
    world.ready(b"w1", 1, slots=3, models=("n",), backend="other")
    found = {(name, *labels): value for name, labels, value in series(world.broker, ["script"], world.now)}
    assert found["walled_backend_limit", "script"] == 1
    assert found["walled_backend_limit", "other"] == 3
    assert found["walled_queue_standing", "normal"] == 1
    assert found["walled_queue_standing", "interactive"] == 0
