"""The ladder: what a request gets when its answer does not come, at chosen times."""

from __future__ import annotations

from typing import Any

import pytest

from tests.core.broker_world import World
from walled import errors, protocol
from walled.core import events as ev
from walled.core import ladder
from walled.errors import WalledError
from walled.protocol import ErrorHeader, FinalHeader, RequestHeader
from walled.sections import LadderConfig

BROKEN = errors.BackendError("500")


def long_lived(**sections: Any) -> World:
    """Its workers need not beat."""
    broker = {"worker_liveness_s": 1e5, **sections.pop("broker", {})}
    return World(broker=broker, **sections)


def two(**sections: Any) -> World:
    """Backends `one` and `two` that serve m, `two` small as well; a worker each."""
    world = long_lived(
        **{
            "backend": ["one", "two"],
            "backends": {"one": {"kind": "scripted"}, "two": {"kind": "scripted"}},
            "routes": {
                "both": {"targets": ["one/m", "two/m"]},
                "down": {"targets": ["one/m", "two/small"]},
                "all": {"targets": ["one/m", "two/m", "two/small"]},
            },
            **sections,
        }
    )
    world.ready(b"w1", 1, slots=2, models=("m",), backend="one")
    world.ready(b"w2", 2, slots=2, models=("m", "small"), backend="two")
    return world


def alone(**ladder: Any) -> World:
    world = long_lived(ladder=ladder)
    world.ready()
    return world


def job(world: World, identity: bytes = b"w0") -> protocol.JobHeader:
    header: protocol.JobHeader = world.sent(protocol.REQUEST, identity)[-1].header
    return header


def final(world: World, request: bytes) -> FinalHeader:
    ending = world.ending(request)
    assert ending.type == protocol.FINAL
    header: FinalHeader = ending.header
    return header


# --- retries --------------------------------------------------------------------------------------


def test_a_broken_call_is_made_again_at_the_same_place_after_a_pause() -> None:
    world = alone()
    request = world.ask(payload=b"q")
    world.fail(BROKEN)
    assert not world.endings(request)
    assert len(world.payloads()) == 1, "not at once"
    world.tick(0.2)
    assert world.payloads() == [b"q", b"q"]
    assert job(world).attempt == 2
    world.finish()
    header = final(world, request)
    assert (header.source, header.degraded, header.reason, header.attempts) == ("model", False, "", 2)
    assert world.broker.counters["retries_total.script"] == 1
    assert world.broker.counters["ladder_steps_total.retry"] == 1


@pytest.mark.parametrize(
    "error",
    [errors.BackendTimeout(), errors.BackendUnauthorized(), errors.ContentRefused(), errors.ModelNotFound()],
)
def test_what_a_second_try_cannot_mend_is_not_tried_again(error: WalledError) -> None:
    world = alone()
    request = world.ask()
    world.fail(error)
    assert world.code(request) == error.code
    assert len(world.payloads()) == 1


def test_a_callers_own_error_takes_no_step_at_all() -> None:
    world = two()
    world.stored[b"q"] = world.templates[b"q"] = b"lesser"
    request = world.ask(payload=b"q", model="all")
    world.fail(errors.BadRequest("no"), identity=b"w1")
    assert world.code(request) == "bad_request"


def test_nothing_is_tried_again_when_it_could_not_end_in_time() -> None:
    world = alone(retry_pause_s=1.0)
    request = world.ask(deadline_ms=900)
    world.fail(BROKEN)
    assert world.code(request) == "backend_error"


def test_retries_pause_longer_each_time_and_not_together() -> None:
    limits = LadderConfig(retry_pause_s=0.1)
    for retries in range(3):
        pauses = {ladder.pause_s(limits, retries, number.to_bytes(8, "big")) for number in range(50)}
        assert len(pauses) == 50
        assert 0.075 * 2**retries <= min(pauses) < max(pauses) <= 0.125 * 2**retries


def test_at_full_failure_calls_stay_within_the_budget() -> None:
    """Whatever the breaker does: here it never opens."""
    world = two(ladder={"breaker_failures": 100_000, "breaker_error_rate": 1.0, "breaker_window": 10_000})
    requests = [*range(600)]
    for number in requests:
        world.ask(model=("m", "both")[number % 2], payload=b"%d" % number)
        world.tick(0.05)
        for worker in (b"w1", b"w2"):
            for found in world.jobs(worker):
                world.fail(BROKEN, found, worker)
    for _ in range(20):
        world.tick(0.2)
        for worker in (b"w1", b"w2"):
            for found in world.jobs(worker):
                world.fail(BROKEN, found, worker)
    assert world.broker.idle
    calls = len(world.payloads(b"w1")) + len(world.payloads(b"w2"))
    assert len(requests) < calls <= 1.1 * len(requests) + 8


def test_at_full_failure_the_breaker_leaves_a_backend_alone() -> None:
    world = alone()
    for number in range(600):
        world.ask(payload=b"%d" % number)
        world.tick(0.1)
        for found in world.jobs():
            world.fail(BROKEN, found)
    assert len(world.payloads()) < 30, "five until it opens, then one probe a pause"


# --- other backends -------------------------------------------------------------------------------


def test_another_backend_with_the_same_model_answers_as_if_nothing_had_been() -> None:
    world = two(ladder={"retry_budget": 0})
    request = world.ask(model="both", payload=b"q")
    assert world.payloads(b"w1") == [b"q"]
    world.fail(BROKEN, identity=b"w1")
    assert world.payloads(b"w2") == [b"q"], "at once"
    world.finish(identity=b"w2")
    header = final(world, request)
    assert (header.source, header.degraded, header.backend, header.attempts) == ("model", False, "two", 2)
    assert world.broker.counters["ladder_steps_total.other_backend"] == 1


def test_a_plain_model_name_has_all_backends_that_serve_it() -> None:
    world = two(ladder={"retry_budget": 0})
    world.ask(model="m", payload=b"q")
    first, other = (b"w1", b"w2") if world.jobs(b"w1") else (b"w2", b"w1")
    world.fail(BROKEN, identity=first)
    assert world.payloads(other) == [b"q"]


def test_a_place_that_is_full_is_passed_over() -> None:
    world = two(broker={"queue_max_requests": 1})
    running = [world.ask(model="both", payload=b"a") for _ in range(2)]
    waiting = world.ask(model="both", payload=b"a")
    moved = world.ask(model="both", payload=b"b")
    assert world.payloads(b"w2") == [b"b"]
    assert not any(world.endings(request) for request in (*running, waiting, moved))


def test_a_share_of_the_time_for_each_place() -> None:
    world = two()
    world.ask(model="all", deadline_ms=3000)
    # 3 s less 0.25 s of reserve, for three places.
    assert job(world, b"w1").first_token_ms == pytest.approx(2750 / 3, abs=1)
    world.now += 1.0
    world.fail(errors.BackendTimeout(), identity=b"w1")
    assert job(world, b"w2").first_token_ms == pytest.approx(875, abs=1)
    world.fail(errors.BackendTimeout(), identity=b"w2")
    assert job(world, b"w2").model == "small"
    assert job(world, b"w2").first_token_ms == 0, "the last one has all that is left"


def test_a_job_that_waits_too_long_in_one_place_goes_to_the_next() -> None:
    world = two()
    for _ in range(2):
        world.ask(model="both", payload=b"long", deadline_ms=60_000)
    request = world.ask(model="both", payload=b"q", deadline_ms=3000)
    world.tick(1.3)
    assert world.payloads(b"w2") == []
    world.tick(0.1)
    assert world.payloads(b"w2") == [b"q"]
    world.finish(identity=b"w2")
    assert final(world, request).source == "model"


def test_a_job_stays_where_it_waits_when_no_other_place_takes_it() -> None:
    world = two()
    for model in ("both", "both", "small", "small"):
        world.ask(model=model, payload=b"long", deadline_ms=60_000)
    world.ask(model="small", payload=b"waits", deadline_ms=60_000)
    world.do(ev.Steer("shed", for_s=100.0))
    request = world.ask(model="both", payload=b"q", deadline_ms=3000, priority="interactive")
    world.tick(1.5)
    assert not world.endings(request)


# --- lesser answers -------------------------------------------------------------------------------


def failing(world: World, **header: Any) -> bytes:
    """A request all of whose models fail it."""
    request = world.ask(payload=b"q", **header)
    for _ in range(10):
        for worker in (b"w0", b"w1", b"w2"):
            for found in world.jobs(worker):
                world.fail(BROKEN, found, worker)
    return request


LESSER = [
    ("auto", True, True, "stale"),
    ("auto", False, True, "template"),
    ("auto", False, False, "backend_error"),
    ("ai_only", True, True, "stale"),
    ("ai_only", False, True, "backend_error"),
    ("hybrid", False, True, "template"),
]


@pytest.mark.parametrize(("mode", "stored", "template", "got"), LESSER)
@pytest.mark.parametrize("asked", ["request", "config"])
def test_lesser_answers_by_mode(mode: str, stored: bool, template: bool, got: str, asked: str) -> None:
    world = alone(retry_budget=0, **({"mode": mode} if asked == "config" else {}))
    if stored:
        world.stored[b"q"] = b"old"
    if template:
        world.templates[b"q"] = b"written"
    request = failing(world, **({"mode": mode} if asked == "request" else {}))
    assert world.code(request) == got
    if got in ("stale", "template"):
        header = final(world, request)
        assert (header.degraded, header.reason, header.attempts) == (True, "backend_error", 1)
        assert world.ending(request).payload == (b"old" if got == "stale" else b"written")
        assert world.broker.counters[f"ladder_steps_total.{got}"] == 1
        assert world.broker.counters[f"ended.{got}"] == 1
        assert not world.broker.counters["ended.model"]
    else:
        assert world.broker.counters["ladder_steps_total.refusal"] == 1


def test_the_mode_of_a_route_is_that_of_its_requests_unless_they_ask_for_another() -> None:
    world = alone(retry_budget=0)
    world = long_lived(ladder={"retry_budget": 0}, routes={"r": {"targets": ["script/m"], "mode": "ai_only"}})
    world.ready(slots=4)
    world.templates[b"q"] = b"written"
    assert world.code(failing(world, model="r")) == "backend_error"
    assert world.code(failing(world, model="r", mode="auto")) == "template"


@pytest.mark.parametrize("switch", ["stale", "templates"])
def test_each_lesser_answer_can_be_switched_off(switch: str) -> None:
    world = alone(retry_budget=0, **{switch: False})
    world.stored[b"q"] = world.templates[b"q"] = b"lesser"
    assert world.code(failing(world)) == {"stale": "template", "templates": "stale"}[switch]


@pytest.mark.parametrize("cache", ["bypass", "refresh"])
def test_who_wants_a_new_answer_gets_no_old_one(cache: str) -> None:
    world = alone(retry_budget=0)
    world.stored[b"q"] = b"old"
    assert world.code(failing(world, cache=cache)) == "backend_error"


def test_nobody_waits_for_a_refresh_so_it_gets_no_lesser_answer() -> None:
    world = alone(retry_budget=0)
    world.stored[b"q"] = world.templates[b"q"] = b"lesser"
    assert world.code(failing(world, background=True)) == "backend_error"


def test_an_embedding_is_never_a_template() -> None:
    world = alone(retry_budget=0)
    world.templates[b"q"] = b"written"
    assert world.code(failing(world, kind="embed")) == "backend_error"


def test_stale_before_a_fallback_model_before_a_template() -> None:
    world = two(ladder={"retry_budget": 0})
    world.templates[b"q"] = b"written"
    request = world.ask(model="all", payload=b"q")
    world.fail(BROKEN, identity=b"w1")
    world.fail(BROKEN, identity=b"w2")
    assert job(world, b"w2").model == "small"
    world.finish(identity=b"w2")
    header = final(world, request)
    assert (header.source, header.degraded, header.reason) == ("fallback_model", True, "backend_error")
    assert header.attempts == 3
    world.stored[b"r"] = b"old"
    assert world.code(request) == "fallback_model"
    request = world.ask(model="all", payload=b"r")
    world.fail(BROKEN, identity=b"w1")
    if world.jobs(b"w2"):
        world.fail(BROKEN, identity=b"w2")
    assert world.code(request) == "stale"


def test_a_target_that_was_never_there_is_passed_over_and_its_absence_is_the_reason() -> None:
    world = long_lived(
        backend=["one", "two"],
        backends={"one": {"kind": "scripted"}, "two": {"kind": "scripted"}},
        routes={"both": {"targets": ["one/m", "two/m"]}, "down": {"targets": ["one/m", "two/small"]}},
    )
    world.ready(b"w2", 2, slots=2, models=("m", "small"), backend="two")
    same, other = world.ask(model="both"), world.ask(model="down")
    for found in list(world.jobs(b"w2")):
        world.finish(found, b"w2")
    assert (final(world, same).source, final(world, same).degraded) == ("model", False)
    assert (final(world, other).source, final(world, other).reason) == ("fallback_model", "unavailable")


def test_a_fallback_answer_is_neither_stored_nor_shared() -> None:
    world = two(ladder={"retry_budget": 0})
    first, second = world.share(b"c1", model="down"), world.share(b"c2", model="down")
    assert job(world, b"w1").store
    world.fail(BROKEN, identity=b"w1")
    assert job(world, b"w2").model == "small"
    assert not job(world, b"w2").store
    third = world.share(b"c3", model="down")
    assert len(world.payloads(b"w1")) == 2, "who asks now asks the model itself"
    world.finish(identity=b"w2")
    assert [final(world, r).source for r in (first, second)] == ["fallback_model"] * 2
    assert not world.endings(third)


def test_a_full_queue_sends_down_the_ladder() -> None:
    world = long_lived(broker={"queue_max_requests": 1})
    world.ready()
    world.templates[b"q"] = b"written"
    world.ask(), world.ask()
    request, refused = world.ask(payload=b"q"), world.ask(payload=b"r")
    header = final(world, request)
    assert (header.source, header.degraded, header.reason, header.attempts) == (
        "template",
        True,
        "overloaded",
        0,
    )
    assert world.ending(refused).type == protocol.BUSY
    assert world.code(refused) == "overloaded"


def test_what_is_too_slow_for_the_deadline_goes_down_now() -> None:
    world = alone()
    world.templates[b"q"] = b"written"
    world.ask()
    world.now += 10.0
    world.finish()
    for _ in range(3):
        world.ask()
    assert world.code(world.ask(payload=b"q", deadline_ms=15_000)) == "template"


def test_while_replies_are_slow_who_would_wait_gets_the_lesser_answer_now() -> None:
    world = alone()
    world.templates[b"q"] = b"written"
    world.do(ev.Steer("fallback", for_s=10.0))
    world.ask(payload=b"q")
    assert world.code(world.ask(payload=b"q")) == "template"
    waiting = world.ask(payload=b"r")
    assert not world.endings(waiting), "without one it waits on"


# --- time -----------------------------------------------------------------------------------------


def test_before_the_deadline_a_lesser_answer_takes_the_place_of_one_that_has_not_come() -> None:
    world = alone(reserve_s=0.25)
    world.templates[b"q"] = b"written"
    request = world.ask(payload=b"q", deadline_ms=3000)
    running = world.jobs()[0]
    world.tick(2.74)
    assert not world.endings(request)
    world.tick(0.02)
    header = final(world, request)
    assert (header.source, header.reason) == ("template", "deadline_exceeded")
    assert header.phases.total_ms == pytest.approx(2760)
    assert [e.request_id for e in world.sent(protocol.CANCEL)] == [running]


def test_the_reserve_is_a_fifth_of_a_short_deadline() -> None:
    world = alone(reserve_s=0.25)
    world.templates[b"q"] = b"written"
    request = world.ask(payload=b"q", deadline_ms=500)
    world.tick(0.39)
    assert not world.endings(request)
    world.tick(0.02)
    assert world.code(request) == "template"


def test_without_a_lesser_answer_all_the_time_is_used() -> None:
    world = alone()
    late = world.ask(deadline_ms=3000)
    world.tick(2.9)
    world.finish()
    assert world.code(late) == "model"
    never = world.ask(deadline_ms=3000)
    world.tick(3.01)
    assert world.code(never) == "deadline_exceeded"


def test_a_worker_that_comes_back_soon_is_waited_for() -> None:
    world = alone()
    world.templates[b"q"] = b"written"
    world.die()
    request = world.ask(payload=b"q")
    world.tick(0.5)
    world.ready(b"new")
    world.finish(identity=b"new")
    assert world.code(request) == "model"


def test_a_worker_that_does_not_come_back_is_not() -> None:
    world = alone()
    world.templates[b"q"] = b"written"
    world.die()
    request, other = world.ask(payload=b"q"), world.ask(payload=b"none")
    for _ in range(3):
        world.tick(0.5)
    header = final(world, request)
    assert (header.source, header.reason) == ("template", "unavailable")
    assert world.code(world.ask(payload=b"q")) == "template", "who comes later does not wait any more"
    assert not world.endings(other)
    world.ready(b"new")
    world.finish(identity=b"new")
    assert world.code(other) == "model"
    assert not world.endings(world.ask(payload=b"q")), "it is back"


def test_before_the_first_worker_is_ready_lesser_answers_are_there() -> None:
    world = long_lived()
    world.stored[b"q"] = b"old"
    request, other = world.ask(payload=b"q"), world.ask(payload=b"r")
    world.tick(0.9)
    assert not world.endings(request)
    world.tick(0.2)
    assert world.code(request) == "stale"
    assert not world.endings(other)
    world.tick(10.0)
    assert world.code(other) == "unavailable"


# --- what must not be asked again -----------------------------------------------------------------


@pytest.mark.parametrize("error", [errors.ContentRefused("hate"), errors.Blocked("score 90")])
def test_a_refusal_goes_to_another_model_never_to_the_same_elsewhere(error: WalledError) -> None:
    world = two()
    request = world.ask(model="all", payload=b"q")
    world.fail(error, identity=b"w1")
    assert [e.header.model for e in world.sent(protocol.REQUEST, b"w2")] == ["small"]
    world.fail(error, identity=b"w2")
    header = world.ending(request).header
    assert isinstance(header, ErrorHeader)
    assert (header.code, header.message) == (error.code, error.message)
    world.templates[b"q"] = b"written"
    request = world.ask(model="both", payload=b"q")
    world.fail(error, identity=b"w1")
    assert (final(world, request).source, final(world, request).reason) == ("template", error.code)


def test_a_refusal_speaks_for_its_backend_not_against_it() -> None:
    world = alone(breaker_failures=2)
    for _ in range(5):
        world.ask()
        world.fail(errors.ContentRefused())
    assert world.broker.descent.circuits.states(world.now) == {"script": "closed"}


@pytest.mark.parametrize(("window", "asked"), [(8192, True), (0, True), (4096, False), (1024, False)])
def test_a_context_too_long_goes_to_a_larger_window_only(window: int, asked: bool) -> None:
    world = long_lived(
        backend=["one", "two"],
        backends={"one": {"kind": "scripted"}, "two": {"kind": "scripted"}},
        routes={"down": {"targets": ["one/m", "two/small"]}},
    )
    world.ready(b"w1", 1, models=("m",), backend="one", windows={"m": 4096})
    world.ready(b"w2", 2, models=("small",), backend="two", windows={"small": window})
    request = world.ask(model="down", payload=b"q")
    world.fail(errors.ContextTooLong("9000 tokens"), identity=b"w1")
    if asked:
        world.finish(identity=b"w2")
        assert (final(world, request).source, final(world, request).reason) == (
            "fallback_model",
            "context_too_long",
        )
    else:
        assert world.payloads(b"w2") == []
        assert world.code(request) == "context_too_long"


def test_a_request_that_killed_two_workers_is_not_tried_on_a_third() -> None:
    world = two()
    world.templates[b"q"] = b"written"
    request = world.ask(model="all", payload=b"q")
    world.die(b"w1")
    assert world.payloads(b"w2") == [b"q"]
    world.die(b"w2")
    world.ready(b"w3", 1, models=("m",), backend="one")
    assert world.payloads(b"w3") == []
    header = final(world, request)
    assert (header.source, header.reason, header.attempts) == ("template", "worker_lost", 2)


# --- circuit breakers -----------------------------------------------------------------------------


def test_a_circuit_opens_probes_once_closes_and_traffic_returns() -> None:
    world = long_lived(ladder={"retry_budget": 0, "breaker_failures": 3, "breaker_open_s": 5.0})
    world.ready(slots=4)
    for _ in range(3):
        world.ask()
        world.fail(BROKEN)
    shut = world.ask()
    assert world.ending(shut).type == protocol.BUSY, "nothing was begun"
    assert world.code(shut) == "unavailable"
    assert world.ending(shut).header.retry_after_s == pytest.approx(5.0)
    world.tick(5.0)
    probe, beside = world.ask(payload=b"probe"), world.ask()
    assert world.payloads()[3:] == [b"probe"]
    assert world.code(beside) == "unavailable"
    world.finish()
    assert world.code(probe) == "model"
    for _ in range(4):
        world.ask()
    assert len(world.jobs()) == 4
    assert world.broker.counters["breaker_opened"] == world.broker.counters["breaker_closed"] == 1


def test_who_waits_for_a_backend_whose_circuit_opens_goes_on_at_once() -> None:
    world = long_lived(ladder={"retry_budget": 0, "breaker_failures": 1})
    world.ready()
    world.templates[b"q"] = b"written"
    world.ask(payload=b"first")
    templated, refused = world.ask(payload=b"q"), world.ask(payload=b"r")
    world.fail(BROKEN)
    assert (world.code(templated), world.code(refused)) == ("template", "unavailable")
    assert world.ending(refused).type == protocol.BUSY
    assert world.payloads() == [b"first"]


def test_an_open_circuit_sends_to_the_next_backend_without_a_call() -> None:
    world = two(ladder={"retry_budget": 0, "breaker_failures": 1})
    world.ask(model="both", payload=b"a")
    world.fail(BROKEN, identity=b"w1")
    world.finish(identity=b"w2")
    request = world.ask(model="both", payload=b"b")
    assert b"b" not in world.payloads(b"w1")
    world.finish(identity=b"w2")
    header = final(world, request)
    assert (header.source, header.degraded, header.attempts) == ("model", False, 1)


def test_a_backend_that_says_when_to_come_back_is_left_alone_until_then() -> None:
    world = two()
    request = world.ask(model="both", payload=b"a")
    world.fail(errors.BackendOverloaded("429", retry_after_s=2.0), identity=b"w1")
    assert world.payloads(b"w2") == [b"a"]
    world.finish(identity=b"w2")
    assert world.code(request) == "model"
    world.tick(1.9)
    world.ask(model="both", payload=b"b")
    assert world.payloads(b"w1") == [b"a"]
    world.tick(0.2)
    world.ask(model="both", payload=b"c")
    assert world.payloads(b"w1") == [b"a", b"c"]
    assert world.broker.descent.circuits.states(world.now)["one"] == "closed", "it did not fail"


def test_one_of_several_hosts_does_not_speak_for_all() -> None:
    world = long_lived(
        backend=["o"], backends={"o": {"kind": "ollama", "hosts": ["http://h1:1", "http://h2:1"]}}
    )
    world.ready(backend="o")
    world.ask(payload=b"q")
    world.fail(errors.BackendOverloaded("429", retry_after_s=60.0))
    world.tick(0.2)
    assert world.payloads() == [b"q", b"q"], "its worker has chosen another host"


def test_deaths_of_workers_open_the_circuit_of_their_backend_and_of_no_other() -> None:
    world = two(ladder={"breaker_failures": 3})
    for number in range(3):
        world.ask(model="both", payload=b"%d" % number)
        dead = b"w1" if not number else b"w1-%d" % number
        world.die(dead)
        for found in world.jobs(b"w2"):
            world.finish(found, b"w2")
        world.ready(b"w1-%d" % (number + 1), 1, models=("m",), backend="one")
    states = world.broker.descent.circuits.states(world.now)
    assert states["two"] == "closed"
    assert world.broker.counters["breaker_opened"] == 1


def test_a_backend_that_only_lets_deadlines_pass_is_left_alone_too() -> None:
    world = long_lived(ladder={"breaker_failures": 3})
    world.ready(slots=8)
    world.ask()
    world.now += 0.5
    world.finish()
    for _ in range(3):
        world.ask(deadline_ms=3000)
    world.tick(3.01)
    assert world.broker.descent.circuits.states(world.now)["script"] == "open"


def test_callers_in_a_hurry_do_not_open_a_circuit() -> None:
    world = long_lived(ladder={"breaker_failures": 3})
    world.ready(slots=8)
    world.ask()
    world.now += 0.5
    world.finish()
    for _ in range(5):
        world.ask(deadline_ms=100)
    world.tick(0.11)
    assert world.broker.descent.circuits.states(world.now)["script"] == "closed"


# --- streams --------------------------------------------------------------------------------------


def partials(world: World, request: bytes) -> list[tuple[int, bool, bytes]]:
    found = []
    for effect in world.to_client:
        if effect.request_id == request and effect.type == protocol.PARTIAL:
            header = effect.header
            if isinstance(header, bytes):
                header = protocol.decode_header(protocol.PartialHeader, header)
            found.append((header.seq, header.restart, effect.payload))
    return found


def test_a_begun_stream_is_restarted_in_band_at_another_backend() -> None:
    world = two()
    request = world.ask(model="both", stream=True, restarts=True)
    world.say(b"Hel", identity=b"w1")
    world.fail(errors.Truncated(), identity=b"w1")
    assert world.jobs(b"w2"), "never a retry at the same place: text was shown"
    world.say(b"Bon", 0, identity=b"w2")
    world.say(b"jour", 1, identity=b"w2")
    world.finish(identity=b"w2")
    assert partials(world, request) == [(0, False, b"Hel"), (0, True, b"Bon"), (1, False, b"jour")]
    assert final(world, request).attempts == 2


def test_a_begun_stream_whose_caller_knows_no_restarts_ends_with_the_error() -> None:
    world = two()
    world.templates[b"q"] = b"written"
    request = world.ask(model="all", stream=True, payload=b"q")
    world.say(b"Hel", identity=b"w1")
    world.fail(errors.Truncated(), identity=b"w1")
    assert world.code(request) == "truncated"
    assert partials(world, request) == [(0, False, b"Hel")]
    assert not world.jobs(b"w2")


def test_a_begun_stream_that_ends_in_a_template_takes_back_what_was_shown() -> None:
    world = alone()
    world.templates[b"q"] = b"written"
    request = world.ask(stream=True, restarts=True, payload=b"q")
    world.say(b"Hel")
    world.fail(errors.Truncated())
    assert partials(world, request) == [(0, False, b"Hel"), (0, True, b"")]
    assert world.code(request) == "template"


def test_a_stream_that_runs_is_left_alone_until_the_last_moment() -> None:
    world = alone()
    world.templates[b"q"] = b"written"
    request = world.ask(stream=True, restarts=True, payload=b"q", deadline_ms=3000)
    silent = world.ask(stream=True, payload=b"q", deadline_ms=3000)
    world.say(b"Hel")
    world.tick(2.76)
    assert world.code(silent) == "template"
    world.tick(0.2)
    assert not world.endings(request)
    world.tick(0.03)
    assert world.code(request) == "template"
    assert partials(world, request)[-1] == (0, True, b"")


def test_a_worker_that_dies_in_a_stream_is_followed_by_a_restart() -> None:
    world = alone()
    seen = world.share(b"c1", stream=True, restarts=True)
    plain = world.share(b"c2", stream=True)
    world.say(b"Hel")
    world.die()
    assert world.code(plain) == "worker_lost"
    world.ready(b"new")
    late = world.share(b"c3", stream=True)
    world.say(b"Hi", 0, identity=b"new")
    world.finish(identity=b"new")
    assert partials(world, seen) == [(0, False, b"Hel"), (0, True, b"Hi")]
    assert partials(world, late) == [(0, False, b"Hi")]


def test_an_attempt_that_ends_without_text_still_takes_back_what_was_shown() -> None:
    world = two()
    request = world.ask(model="both", stream=True, restarts=True)
    world.say(b"Hel", identity=b"w1")
    world.fail(errors.BackendTimeout(), identity=b"w1")
    world.finish(identity=b"w2")
    assert partials(world, request) == [(0, False, b"Hel"), (0, True, b"")]


# --- callers who share a generation ---------------------------------------------------------------


def test_callers_of_one_generation_end_each_by_its_own_ladder() -> None:
    world = alone(retry_budget=0)
    world.templates[b"same"] = b"written"
    auto, pure = world.share(b"c1"), world.share(b"c2", mode="ai_only")
    world.fail(BROKEN)
    assert (world.code(auto), world.code(pure)) == ("template", "backend_error")


def test_callers_of_one_generation_end_each_by_its_own_deadline() -> None:
    world = alone()
    world.templates[b"same"] = b"written"
    hurried = world.share(b"c1", deadline_ms=1000)
    patient = world.share(b"c2", deadline_ms=10_000)
    pure = world.share(b"c3", deadline_ms=2000, mode="ai_only")
    world.tick(0.81)
    assert world.code(hurried) == "template"
    world.tick(1.2)
    assert world.code(pure) == "deadline_exceeded"
    assert not world.sent(protocol.CANCEL), "one still waits"
    world.finish()
    assert world.code(patient) == "model"


def test_callers_of_one_generation_who_came_by_other_routes_go_on_by_their_own() -> None:
    world = two(ladder={"retry_budget": 0})
    routed = world.share(b"c1", model="down")
    plain = world.share(b"c2", model="both")
    assert len(world.payloads(b"w1")) == 1, "one generation"
    world.fail(BROKEN, identity=b"w1")
    models = [e.header.model for e in world.sent(protocol.REQUEST, b"w2")]
    assert sorted(models) == ["m", "small"]
    for found in list(world.jobs(b"w2")):
        world.finish(found, b"w2")
    assert (final(world, routed).source, final(world, plain).source) == ("fallback_model", "model")


def test_who_joins_while_a_generation_rests_before_its_retry_gets_its_answer() -> None:
    world = alone()
    first = world.share(b"c1")
    world.fail(BROKEN)
    second = world.share(b"c2", stream=True)
    world.tick(0.2)
    assert job(world).stream
    world.finish()
    assert (world.code(first), world.code(second)) == ("model", "coalesced")


def test_a_generation_goes_on_without_those_who_leave_meanwhile() -> None:
    world = two(ladder={"retry_budget": 0})
    world.patient = True
    stays, leaves = world.share(b"c1", model="down"), world.share(b"c2", model="down")
    world.fail(BROKEN, identity=b"w1")
    world.look()
    world.cancel(leaves, b"c2")
    assert job(world, b"w2").model == "small"
    world.finish(identity=b"w2")
    assert (world.code(stays), world.code(leaves)) == ("fallback_model", "cancelled")


def test_a_lookup_that_comes_too_late_changes_nothing() -> None:
    world = alone(retry_budget=0)
    world.patient = True
    world.templates[b"q"] = b"written"
    request = world.ask(payload=b"q", deadline_ms=1000)
    world.fail(BROKEN)
    world.tick(1.01)
    assert world.code(request) == "deadline_exceeded"
    while world.looked_up:
        world.look()
    assert len(world.endings(request)) == 1


def test_an_answer_of_an_earlier_lookup_is_not_given_to_a_request_of_the_same_id() -> None:
    world = alone()
    world.patient = True
    world.templates[b"first"] = b"written"
    header = RequestHeader(model="m", deadline_ms=1000, mode="template_only")
    world.do(ev.ClientRequest(b"c", b"id", header, b"first"))
    world.cancel(b"id", b"c")
    world.do(ev.ClientRequest(b"c", b"id", RequestHeader(model="m", deadline_ms=1000), b"second"))
    world.look()
    assert [e.header.code for e in world.endings(b"id")] == ["cancelled"]


# --- templates first ------------------------------------------------------------------------------


def test_template_only_asks_no_model_and_is_not_degraded() -> None:
    world = alone()
    world.templates[b"q"] = b"written"
    world.stored[b"r"] = b"old"
    request, without = (
        world.ask(payload=b"q", mode="template_only"),
        world.ask(b"c", b"r", mode="template_only"),
    )
    header = final(world, request)
    assert (header.source, header.degraded, header.reason, header.attempts) == ("template", False, "", 0)
    assert world.code(without) == "no_template"
    assert world.payloads() == []
    assert not world.broker.counters["ladder_steps_total.template"], "it is what was asked for"


def test_hybrid_answers_the_configured_intents_from_templates_and_the_rest_from_the_model() -> None:
    world = alone(hybrid_intents=["greeting"])
    world.patient = True
    world.templates[b"hello"] = b"Hi!"
    greeting, question = world.ask(payload=b"hello", mode="hybrid"), world.ask(payload=b"q", mode="hybrid")
    assert [asked.steps for asked in world.looked_up] == [("intent",), ("intent",)]
    world.look()
    assert (final(world, greeting).source, final(world, greeting).degraded) == ("template", False)
    world.look()
    world.finish()
    assert world.code(question) == "model"


def test_templates_that_are_switched_off_leave_the_model() -> None:
    world = long_lived(ladder={"templates": False, "mode": "hybrid", "hybrid_intents": ["greeting"]})
    world.ready()
    world.templates[b"hello"] = b"Hi!"
    world.ask(payload=b"hello")
    assert world.payloads() == [b"hello"]
    assert world.code(world.ask(payload=b"hello", mode="template_only")) == "no_template"


# --- the table ------------------------------------------------------------------------------------


def test_every_code_of_the_table_is_an_errors() -> None:
    assert set(ladder.VERDICTS) <= set(errors.BY_CODE)
    assert set(ladder.VERDICTS) >= ladder.TELLING | ladder.NOT_BEGUN


def test_every_failure_of_a_backend_has_a_verdict_of_its_own() -> None:
    backend = {cls.code for cls in errors.BY_CODE.values() if issubclass(cls, errors.BackendError)}
    assert backend <= set(ladder.VERDICTS)


def test_the_first_error_is_told_unless_a_later_one_says_more() -> None:
    def header(code: str) -> ErrorHeader:
        return ErrorHeader(code)

    told = [
        ("backend_error", "backend_timeout", "backend_error"),
        ("backend_error", "content_refused", "content_refused"),
        ("overloaded", "backend_error", "backend_error"),
        ("unavailable", "overloaded", "unavailable"),
        ("backend_error", "unavailable", "backend_error"),
    ]
    for before, error, cause in told:
        assert ladder.cause(header(before), header(error)).code == cause
