"""The broker's decisions: events with chosen times in, effects out. No sleeps, no sockets."""

from __future__ import annotations

import pytest
from broker_world import World

from walled import errors, protocol
from walled.core import events as ev
from walled.core.invariants import story
from walled.core.lanes import place
from walled.core.record import Record
from walled.protocol import FinalHeader


@pytest.fixture
def world() -> World:
    world = World()
    world.ready()
    return world


def test_a_request_is_dispatched_at_once_and_ends_once(world: World) -> None:
    request = world.ask(payload=b"question")
    assert world.payloads() == [b"question"]
    world.now += 0.25
    world.finish()
    final = world.ending(request)
    assert final.payload == b"answer"
    assert final.header.source == "model"
    assert final.header.phases.total_ms == pytest.approx(250)
    assert world.broker.idle


def test_a_second_ending_for_a_job_is_dropped_and_counted(world: World) -> None:
    request = world.ask()
    job = world.jobs()[0]
    world.finish(job)
    world.do(ev.WorkerFinal(b"w0", job, FinalHeader(), b"again"))
    assert len(world.endings(request)) == 1
    assert world.broker.counters["late_results"] == 1


def test_a_duplicate_request_id_is_not_run_twice(world: World) -> None:
    header = protocol.RequestHeader(model="m", deadline_ms=1000)
    for _ in range(2):
        world.do(ev.ClientRequest(b"c", b"id", header, b"q"))
    assert len(world.payloads()) == 1


def test_never_more_than_the_slots_are_sent(world: World) -> None:
    for _ in range(5):
        world.ask()
    assert len(world.jobs()) == 1
    assert world.broker.dispatcher.queued == 4
    world.finish()
    assert len(world.jobs()) == 1


def test_least_loaded_worker_first(world: World) -> None:
    world = World()
    world.ready(b"w0", 0, slots=4)
    world.ready(b"w1", 1, slots=2)
    for _ in range(3):
        world.ask()
    assert (len(world.jobs(b"w0")), len(world.jobs(b"w1"))) == (2, 1)


def test_a_session_returns_to_its_worker_while_it_has_room() -> None:
    world = World()
    world.ready(b"w0", 0, slots=2)
    world.ready(b"w1", 1, slots=2)
    world.ask(session="s")
    home = b"w0" if world.jobs(b"w0") else b"w1"
    world.ask()  # makes the other one equally loaded
    world.ask(session="s")
    assert len(world.jobs(home)) == 2
    world.ask(session="s")  # home is full: anywhere is better than waiting
    assert len(world.jobs(home)) == 2
    assert world.broker.dispatcher.queued == 0


# --- order ----------------------------------------------------------------------------------------


def test_classes_in_order_and_clients_in_turn(world: World) -> None:
    world.ask(payload=b"running")
    for n in range(3):
        world.ask(b"greedy", b"g%d" % n)
    world.ask(b"modest", b"m0")
    world.ask(b"late", b"i0", priority="interactive")
    world.ask(b"late", b"b0", priority="batch")
    for _ in range(6):
        world.finish()
    assert world.payloads()[1:] == [b"i0", b"g0", b"m0", b"g1", b"g2", b"b0"]


def test_ageing_starves_nobody(world: World) -> None:
    """A steady flood of interactive requests delays a batch request by its ageing steps, not for ever."""
    world.ask(payload=b"running")
    world.ask(b"batch", b"patient", priority="batch")
    served = 0
    while b"patient" not in world.payloads():
        world.ask(b"flood", b"f", priority="interactive")
        world.ask(b"flood", b"f", priority="interactive")
        world.tick(0.5)
        world.finish()
        served += 1
        assert served < 40, "starved"
    assert world.now - 100.0 >= 2 * world.config.broker.age_step_s - 1


def test_background_requests_come_last(world: World) -> None:
    world.ask(payload=b"running")
    world.ask(payload=b"refresh", background=True, priority="interactive")
    world.ask(payload=b"batch", priority="normal")
    world.finish()
    assert world.payloads()[1] == b"batch"


# --- bounds ---------------------------------------------------------------------------------------


def test_queue_is_bounded_in_count() -> None:
    world = World(broker={"queue_max_requests": 3})
    world.ready()
    requests = [world.ask() for _ in range(5)]
    refused = world.ending(requests[4])
    assert refused.type == protocol.BUSY
    assert refused.header.code == "overloaded"
    assert refused.header.retry_after_s >= 0.1


def test_queue_is_bounded_in_bytes() -> None:
    world = World(broker={"queue_max_bytes": 1000})
    world.ready()
    world.ask()
    fits, over = world.ask(payload=b"x" * 900), world.ask(payload=b"x" * 101)
    assert not world.endings(fits)
    assert world.code(over) == "overloaded"
    world.cancel(fits)
    assert world.broker.dispatcher.queued_bytes == 0


def test_position_and_eta_are_told(world: World) -> None:
    world.ask()
    world.now += 2.0
    world.finish()  # one service time of 2 s is known now
    for _ in range(3):
        world.ask(accept=True)
    accepted = [e.header for e in world.to_client if e.type == protocol.ACCEPTED]
    assert [(a.position, a.eta_s) for a in accepted] == [(0, 2.0), (1, 4.0)]


def test_what_cannot_start_before_its_deadline_is_refused_at_once(world: World) -> None:
    world.ask()
    world.now += 10.0
    world.finish()
    for _ in range(3):
        world.ask()
    hopeless = world.ask(deadline_ms=15_000)
    assert world.code(hopeless) == "overloaded"
    assert not world.endings(world.ask(deadline_ms=60_000))


def test_an_estimate_alone_never_refuses_an_empty_lane(world: World) -> None:
    world.ask()
    world.now += 25.0
    world.finish()
    quick = world.ask(deadline_ms=1000)
    assert not world.endings(quick)


# --- deadlines ------------------------------------------------------------------------------------


def test_a_deadline_ends_a_waiting_request(world: World) -> None:
    world.ask()
    waiting = world.ask(deadline_ms=500)
    world.tick(0.499)
    assert not world.endings(waiting)
    world.tick(0.004)
    assert world.code(waiting) == "deadline_exceeded"
    assert world.broker.dispatcher.queued == 0


def test_a_deadline_ends_a_running_request_and_cancels_it_at_the_worker(world: World) -> None:
    request = world.ask(deadline_ms=500)
    job = world.jobs()[0]
    world.tick(0.51)
    assert world.code(request) == "deadline_exceeded"
    assert [e.request_id for e in world.sent(protocol.CANCEL)] == [job]
    world.ask(payload=b"next")
    assert len(world.payloads()) == 1, "the slot is not free before the worker says so"
    world.fail(errors.Cancelled(), job)
    assert world.payloads()[1] == b"next"


def test_a_deadline_is_checked_at_dispatch(world: World) -> None:
    world.ask()
    late = world.ask(deadline_ms=500, payload=b"late")
    world.now += 0.6  # no tick between: the worker's FINAL comes first
    world.finish()
    assert world.code(late) == "deadline_exceeded"
    assert b"late" not in world.payloads()


def test_deadlines_are_rebased_and_capped() -> None:
    world = World(broker={"max_deadline_s": 10})
    world.ready()
    world.ask(deadline_ms=3_600_000)
    world.ask(deadline_ms=3_600_000)
    world.now += 4
    world.finish()
    assert [e.header.deadline_ms for e in world.sent(protocol.REQUEST)] == [10_000, 6_000]


# --- coalescing -----------------------------------------------------------------------------------


def test_identical_requests_cost_one_generation(world: World) -> None:
    first, second = world.share(b"c1"), world.share(b"c2")
    other = world.share(b"c3", b"different")
    assert world.payloads() == [b"same"]
    world.finish()
    assert (world.code(first), world.code(second)) == ("model", "coalesced")
    assert not world.endings(other)


def test_requests_with_sampling_are_not_shared(world: World) -> None:
    world.ask(payload=b"same")
    world.ask(payload=b"same")
    assert world.broker.dispatcher.queued == 1


def test_other_namespace_is_another_request(world: World) -> None:
    world.share()
    world.share(namespace="tenant")
    assert world.broker.dispatcher.queued == 1


def test_a_late_joiner_gets_what_was_already_said_then_the_rest(world: World) -> None:
    first = world.share(stream=True)
    world.say(b"Hel", 0)
    second = world.share(b"c2", stream=True)
    world.say(b"lo", 1)
    world.finish()
    assert world.texts(first) == world.texts(second) == [b"Hel", b"lo"]


def test_a_streaming_joiner_turns_streaming_on(world: World) -> None:
    plain = world.share()
    streaming = world.share(b"c2", stream=True)
    order = protocol.unpack_map(world.sent(protocol.CONTROL)[-1].payload)
    assert order == {"op": "stream"}
    world.say(b"all so far", 0)
    world.finish()
    assert world.texts(streaming) == [b"all so far"]
    assert world.texts(plain) == []


def test_a_joiner_with_more_time_extends_the_job(world: World) -> None:
    short = world.share(deadline_ms=1000)
    long = world.share(b"c2", deadline_ms=9000)
    order = protocol.unpack_map(world.sent(protocol.CONTROL)[-1].payload)
    assert order == {"op": "deadline", "deadline_ms": 9000}
    world.tick(1.1)
    assert world.code(short) == "deadline_exceeded"
    assert not world.sent(protocol.CANCEL)
    world.finish()
    assert world.ending(long).type == protocol.FINAL


def test_the_leader_may_leave_and_the_others_keep_the_generation(world: World) -> None:
    leader, follower = world.share(b"c1"), world.share(b"c2")
    world.cancel(leader)
    assert world.code(leader) == "cancelled"
    assert not world.sent(protocol.CANCEL)
    world.finish()
    assert world.ending(follower).type == protocol.FINAL


def test_the_last_one_out_cancels(world: World) -> None:
    leader, follower = world.share(b"c1"), world.share(b"c2")
    world.cancel(leader)
    world.cancel(follower, b"c2")
    assert len(world.sent(protocol.CANCEL)) == 1
    again = world.share(b"c3")
    assert not world.endings(again), "a cancelled generation is not joined"
    assert world.broker.dispatcher.queued == 1


def test_a_more_urgent_joiner_pulls_the_waiting_job_forward(world: World) -> None:
    world.ask()
    world.share(b"c1", b"shared", priority="batch")
    world.ask(b"c2", b"normal")
    world.share(b"c3", b"shared", priority="interactive")
    world.finish()
    assert world.payloads()[1] == b"shared"


def test_a_long_stream_is_not_replayed_without_its_beginning(world: World) -> None:
    world.share(stream=True)
    for seq in range(5):
        world.say(b"x" * 300_000, seq)
    late = world.share(b"c2", stream=True)
    world.say(b"tail", 5)
    world.finish(payload=b"whole")
    assert world.texts(late) == []
    assert world.ending(late).payload == b"whole"


# --- the cache ------------------------------------------------------------------------------------


def test_a_cached_answer_ends_the_request_without_a_worker(world: World) -> None:
    record = Record(
        key=b"k" * 32, namespace="default", model="m", backend="script",
        created_s=1000.0, fresh_until_s=2000.0, stale_until_s=3000.0, answer=b"stored",
    )  # fmt: skip
    header = protocol.RequestHeader(model="m", deadline_ms=1000)
    world.do(ev.ClientRequest(b"c", b"id", header, b"q", record.key, None, record, 7.0))
    final = world.ending(b"id")
    assert (final.header.source, final.header.age_s, final.payload) == ("cache", 7.0, b"stored")
    assert not world.payloads()


def test_only_never_generates(world: World) -> None:
    assert world.code(world.share(cache="only")) == "not_cached"
    assert not world.payloads()


@pytest.mark.parametrize(
    ("policy", "deterministic", "store"),
    [("default", True, True), ("default", False, False), ("always", False, True), ("bypass", True, False)],
)
def test_the_worker_is_told_whether_to_store(
    world: World, policy: protocol.CachePolicy, deterministic: bool, store: bool
) -> None:
    world.ask(cache=policy, deterministic=deterministic)
    assert world.sent(protocol.REQUEST)[0].header.store is store


# --- models ---------------------------------------------------------------------------------------


def test_unknown_model_names_the_known_ones(world: World) -> None:
    request = world.ask(model="nope")
    assert world.code(request) == "model_not_found"
    assert "known: m" in world.ending(request).header.message


def test_the_name_of_a_place_is_no_name_of_a_model(world: World) -> None:
    """A model at one backend has a lane of its own, which only routes may choose."""
    (backend,) = {worker.backend for worker in world.broker.dispatcher.fleet.workers.values()}
    assert place("m", backend) in world.broker.dispatcher.lanes
    request = world.ask(model=place("m", backend))
    assert world.code(request) == "model_not_found"
    message = world.ending(request).header.message
    assert message.endswith("known: m")
    assert message.isprintable()


def test_default_and_aliases_resolve() -> None:
    world = World(models={"fast": {"alias_of": "m"}})
    world.ready()
    world.ask(model="default")
    world.finish()
    world.ask(model="fast")
    assert [e.header.model for e in world.sent(protocol.REQUEST)] == ["m", "m"]


def test_a_request_before_the_first_worker_waits_for_it() -> None:
    world = World()
    request = world.ask()
    assert not world.endings(request)
    world.ready()
    assert world.payloads() == [b"q"]
    world.finish()
    assert world.ending(request).type == protocol.FINAL


def test_a_request_before_the_first_worker_is_refused_in_time_when_none_comes() -> None:
    world = World(broker={"start_wait_s": 3})
    request = world.ask()
    world.tick(2.9)
    assert not world.endings(request)
    world.tick(0.2)
    assert world.code(request) == "unavailable"
    assert world.ending(request).header.retry_after_s > 0


def test_a_model_without_workers_is_waited_for_then_refused(world: World) -> None:
    world.die()
    request = world.ask()
    world.tick(9.9)
    assert not world.endings(request)
    world.tick(0.2)
    assert world.code(request) == "unavailable"


# --- cancellation and leaving -----------------------------------------------------------------------


def test_cancel_of_a_waiting_request_never_reaches_a_worker(world: World) -> None:
    world.ask()
    waiting = world.ask(payload=b"waiting")
    world.cancel(waiting)
    world.finish()
    assert world.code(waiting) == "cancelled"
    assert b"waiting" not in world.payloads()


def test_cancel_after_the_ending_says_nothing_more(world: World) -> None:
    request = world.ask()
    world.finish()
    world.cancel(request)
    assert len(world.endings(request)) == 1


def test_nobody_can_cancel_anothers_request(world: World) -> None:
    request = world.ask(b"c1")
    world.cancel(request, b"thief")
    world.finish()
    assert world.ending(request).type == protocol.FINAL


def test_a_client_that_left_costs_no_more_work(world: World) -> None:
    world.ask(b"gone")
    world.ask(b"gone", b"queued")
    world.do(ev.ClientGone(b"gone"))
    assert len(world.sent(protocol.CANCEL)) == 1
    assert world.broker.idle
    assert world.broker.dispatcher.queued == 0


# --- workers that die -------------------------------------------------------------------------------


def test_a_lost_request_runs_once_more(world: World) -> None:
    world.ready(b"w1", 1)
    request = world.ask()
    first = b"w0" if world.jobs(b"w0") else b"w1"
    second = b"w1" if first == b"w0" else b"w0"
    world.die(first)
    assert len(world.jobs(second)) == 1
    world.finish(identity=second)
    assert world.ending(request).header.attempts == 2


def test_a_request_that_kills_two_workers_ends_with_an_error(world: World) -> None:
    request = world.ask()
    world.die()
    world.ready(b"w0b")
    world.die(b"w0b")
    assert world.code(request) == "worker_lost"
    assert world.ending(request).header.retryable


def test_a_stream_that_was_seen_is_not_restarted_behind_the_callers_back(world: World) -> None:
    seen, unseen = world.share(b"c1", stream=True), world.share(b"c2")
    world.say(b"Hel")
    world.die()
    assert world.code(seen) == "worker_lost"
    world.ready(b"new")
    world.finish(identity=b"new")
    assert world.ending(unseen).type == protocol.FINAL


def test_a_lost_request_goes_to_the_front(world: World) -> None:
    world.ask(payload=b"first")
    world.ask(b"c2", payload=b"second", priority="interactive")
    world.die()
    world.ready(b"new")
    assert world.payloads(b"new") == [b"first"]


def test_a_silent_worker_is_given_up(world: World) -> None:
    request = world.ask()
    for _ in range(6):
        world.tick(0.5)
    assert b"w0" not in world.broker.dispatcher.fleet.workers
    world.ready(b"new")
    world.finish(identity=b"new")
    assert world.ending(request).type == protocol.FINAL


def test_beats_and_work_keep_a_worker_alive(world: World) -> None:
    world.ask(stream=True)
    for seq in range(10):
        world.tick(0.5)
        world.do(ev.WorkerBeat(b"w0")) if seq % 2 else world.say(b"x", seq)
    assert world.jobs()


def test_a_broker_that_was_stopped_itself_does_not_blame_its_workers(world: World) -> None:
    world.ask()
    world.tick(0.5)
    world.tick(60.0)  # SIGSTOP, suspend: the beats are waiting in the sockets
    assert world.jobs()


def test_a_stranger_is_told_to_introduce_itself(world: World) -> None:
    world.do(ev.WorkerBeat(b"who"))
    assert world.sent(protocol.DISCONNECT, b"who")


def test_an_error_of_the_backend_reaches_all_who_wait() -> None:
    world = World(ladder={"retry_budget": 0})
    world.ready()
    first, second = world.share(b"c1"), world.share(b"c2")
    world.fail(errors.BackendError("upstream said 500", retry_after_s=3))
    assert world.code(first) == world.code(second) == "backend_error"
    assert world.ending(first).header.retry_after_s == 3


def test_credit_changes_what_is_sent(world: World) -> None:
    for _ in range(4):
        world.ask()
    world.do(ev.WorkerCredit(b"w0", b"", 3))
    assert len(world.jobs()) == 3
    world.do(ev.WorkerCredit(b"w0", b"", 0))
    world.finish()
    assert len(world.jobs()) == 2


def test_a_draining_worker_finishes_and_gets_nothing_more(world: World) -> None:
    world.ready(b"w1", 1)
    world.ask()
    world.ask()
    world.do(ev.DrainWorker(0))
    world.ask()
    assert len(world.jobs(b"w0")) == 1
    assert world.others == []
    world.finish(identity=b"w0")
    assert world.others == [ev.WorkerDrained(0)]
    assert world.jobs(b"w0") == []


# --- the daemon's life --------------------------------------------------------------------------------


def test_draining_refuses_the_new_and_finishes_the_old(world: World) -> None:
    running, queued = world.ask(), world.ask()
    world.do(ev.Drain())
    late = world.ask()
    assert world.code(late) == "draining"
    assert world.ending(late).header.retry_after_s > 0
    world.finish()
    world.finish()
    assert world.code(running) == world.code(queued) == "model"
    assert world.broker.idle


def test_abort_ends_everything_at_once(world: World) -> None:
    requests = [world.ask() for _ in range(3)]
    world.do(ev.Abort(errors.Draining("stopped")))
    assert {world.code(request) for request in requests} == {"draining"}


def test_a_story_names_events_but_no_content(world: World) -> None:
    world.ask(payload=b"SECRET-PROMPT")
    text = story(world.broker, "something broke")
    assert "ClientRequest" in text
    assert "SECRET" not in text


# --- grouping by model ----------------------------------------------------------------------------------


def one_model_world() -> World:
    world = World(broker={"min_residence_s": 2, "max_wait_s": 10})
    world.ready(slots=2, models=("a", "b"), max_loaded_models=1)
    return world


def test_a_one_model_backend_serves_the_loaded_model_first() -> None:
    world = one_model_world()
    for model in "abab":
        world.ask(model=model, payload=model.encode())
    assert world.payloads() == [b"a", b"a"], "both slots go to the loaded model"
    world.now += 1
    world.finish()
    world.finish()
    assert world.payloads() == [b"a", b"a"], "b waits for the minimum residence"
    world.tick(1.5)
    assert world.payloads() == [b"a", b"a", b"b", b"b"]
    assert world.broker.dispatcher.residences["script"].swaps == 2


def test_the_other_models_queue_waits_no_longer_than_the_maximum() -> None:
    world = one_model_world()
    world.ask(model="a", payload=b"a")
    world.ask(model="b", payload=b"b")
    waited = 0.0
    while b"b" not in world.payloads():
        world.ask(model="a", payload=b"a")  # the loaded model's work never ends
        world.tick(0.5)
        world.do(ev.WorkerBeat(b"w0"))
        if world.jobs():
            world.finish()
        waited += 0.5
        assert waited < 15, "starved by the loaded model"
    assert waited >= 10


# --- remedies ------------------------------------------------------------------------------------------


def test_shedding_takes_what_is_urgent_or_need_not_wait_and_ends_by_itself() -> None:
    world = World()
    world.ready(slots=1)
    world.do(ev.Steer("shed", for_s=1.0))
    batch = world.ask(priority="batch", payload=b"0")
    assert world.code(batch) == "overloaded"
    assert world.ending(batch).header.retry_after_s is not None
    running = world.ask(payload=b"1")
    assert world.payloads() == [b"1"], "a normal request that need not wait is taken"
    assert world.code(world.ask(payload=b"2")) == "overloaded"
    urgent = world.ask(priority="interactive", payload=b"3")
    world.tick(1.1)
    late = world.ask(priority="batch", payload=b"4")
    for request in (running, urgent, late):
        world.finish()
        assert world.code(request) == "model"
    assert world.broker.counters["shed"] == 2


def test_shedding_is_ended_by_word_too_and_cached_answers_are_never_shed() -> None:
    world = World()
    world.ready()
    shared = world.share(payload=b"same")
    world.do(ev.Steer("shed", for_s=15.0))
    joined = world.share(client=b"c2", payload=b"same", priority="batch")
    world.finish()
    assert (world.code(shared), world.code(joined)) == ("model", "coalesced")
    world.do(ev.Steer("shed"))
    world.ask(priority="batch", payload=b"b")
    assert world.payloads()[-1] == b"b"
