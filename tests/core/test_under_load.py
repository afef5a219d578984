"""Overload in hand-set time: goodput, refusals, floods, turns, a backend that stumbles. Seconds are events.

The same promises are measured with real processes by `make bench-overload`.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from load import Asked, Ended, Load, arrivals

from walled.core.dispatch import AGED_EVERY
from walled.protocol import PRIORITIES

SLOTS, SERVICE_S = 8, 0.06
CAPACITY = SLOTS / SERVICE_S
SECONDS, WARM_S = 5.0, 1.0


def steady(now: float, running: int) -> float:
    return SERVICE_S


def load(seed: int = 0, spread: float = 0.0) -> Load:
    dice = random.Random(seed)
    return Load(SLOTS, lambda now, running: SERVICE_S * dice.uniform(1 - spread, 1 + spread))


def goodput(ended: list[Ended]) -> float:
    """Answers in time, of those the slots could give."""
    good = sum(
        each.answered
        and each.after_s <= each.asked.deadline_s
        and WARM_S <= each.asked.at_s + each.after_s < SECONDS
        for each in ended
    )
    return good / (SECONDS - WARM_S) / CAPACITY


def p95_s(ended: list[Ended]) -> float:
    times = sorted(each.after_s for each in ended if each.answered)
    return times[int(len(times) * 0.95)]


@pytest.mark.parametrize("spread", [0.0, 0.5])
@pytest.mark.parametrize("factor", [2, 4, 10])
def test_overload_costs_the_excess_and_not_the_service(factor: int, spread: float) -> None:
    peak = goodput(load(1, spread).run(arrivals(CAPACITY, SECONDS, 1)))
    world = load(2, spread)
    ended = world.run(arrivals(CAPACITY * factor, SECONDS, 2))
    assert goodput(ended) >= 0.95 * peak
    refused = [each.after_s for each in ended if each.code == "overloaded"]
    assert sum(after_s > 0.01 for after_s in refused) <= len(refused) / 100
    assert all(each.retry_after_s for each in ended if each.code == "overloaded")
    assert Counter(each.code for each in ended)["deadline_exceeded"] <= len(ended) / 200
    assert world.most_queued < 1.1 * 1.5 * CAPACITY


def test_answers_stay_quick_while_a_queue_stands() -> None:
    ended = [each for each in load().run(arrivals(CAPACITY * 4, SECONDS, 3)) if each.asked.at_s > 2 * WARM_S]
    assert p95_s(ended) < 0.6 * 1.5, "not at the last moment before the deadline"


@pytest.mark.parametrize(("seconds", "deadline_s", "clients"), [(SECONDS, 1.5, 1), (20.0, 60.0, 50)])
def test_interactive_requests_do_not_feel_a_batch_flood(
    seconds: float, deadline_s: float, clients: int
) -> None:
    """Be it of one client or of many, be it refused at once or have it waited for long."""
    quiet = arrivals(CAPACITY / 5, seconds, 4, client=b"people", priority="interactive")
    alone = load().run(quiet)
    flood = [
        each._replace(client=b"nightly %d" % (number % clients))
        for number, each in enumerate(
            arrivals(CAPACITY * 4, seconds, 5, priority="batch", deadline_s=deadline_s)
        )
    ]
    beside = [each for each in load().run(quiet + flood) if each.asked.client == b"people"]
    assert all(each.answered for each in beside)
    assert p95_s(beside) <= 1.2 * p95_s(alone) + SERVICE_S


def test_a_flooding_client_pays_for_its_flood_and_nobody_else_does() -> None:
    quiet = arrivals(CAPACITY / 5, SECONDS, 6, client=b"modest")
    flood = arrivals(CAPACITY * 4, SECONDS, 7, client=b"flood")
    ended = load().run(quiet + flood)
    modest = [each for each in ended if each.asked.client == b"modest"]
    assert sum(each.answered for each in modest) >= 0.99 * len(modest)
    assert p95_s(modest) <= 3 * SERVICE_S
    assert sum(not each.answered for each in ended if each.asked.client == b"flood") > 0.5 * len(flood)


def test_many_clients_get_equal_shares() -> None:
    clients = [b"%d" % n for n in range(8)]
    asked = [
        each
        for number, client in enumerate(clients)
        # The first asks for far more than the last; all for more than their share.
        for each in arrivals(CAPACITY * (1 - number / 16), SECONDS, number, client=client)
    ]
    answered = Counter(each.asked.client for each in load().run(asked) if each.answered)
    assert max(answered.values()) <= 1.35 * min(answered.values())


def test_a_batch_request_waits_for_its_ageing_and_no_longer() -> None:
    flood = arrivals(CAPACITY * 2, 30.0, 8, client=b"flood", priority="interactive")
    batch = [Asked(2.0 + n, b"nightly", "batch", 25.0) for n in range(5)]
    ended = [each for each in load().run(flood + batch) if each.asked.client == b"nightly"]
    assert all(each.answered for each in ended)
    steps_s = 2 * load().broker.config.broker.age_step_s
    assert max(each.after_s for each in ended) <= steps_s + 0.5 + 2 * SERVICE_S


def test_old_requests_of_a_worse_class_get_a_share_and_no_more() -> None:
    urgent = arrivals(CAPACITY * 2, 25.0, 11, client=b"people", priority="interactive")
    old = arrivals(CAPACITY * 2, 5.0, 12, client=b"nightly", priority="batch", deadline_s=60.0)
    world = load()
    world.run(urgent + old)
    began = Counter(
        asked.client
        for asked, at_s in zip(world.started, world.started_s, strict=True)
        if 12.0 <= at_s < 24.0
    )
    share = began[b"nightly"] / began.total()
    assert share == pytest.approx(1 / AGED_EVERY, abs=0.03)


def test_a_backend_that_stumbles_is_forgiven() -> None:
    """Four times slower for two seconds: what was promised by the old estimate is refused or answered, and
    afterwards all is as before."""

    def service_s(now: float, running: int) -> float:
        return SERVICE_S * (4 if 2.0 <= now < 4.0 else 1)

    ended = Load(SLOTS, service_s).run(arrivals(CAPACITY * 1.2, 10.0, 9))
    after = [each for each in ended if each.asked.at_s >= 6.0]
    assert sum(each.answered for each in after) >= 0.75 * len(after)
    dead = sum(each.code == "deadline_exceeded" for each in ended)
    assert dead <= len(ended) / 20


def test_who_comes_back_when_it_was_told_to_is_answered() -> None:
    """A burst of ten times what can wait, with callers who have time."""
    burst = arrivals(CAPACITY * 10, 0.5, 10, deadline_s=6.0, retries=4)
    patient = load().run(burst)
    assert sum(each.answered for each in patient) >= 0.95 * len(burst)
    proud = load().run([each._replace(retries=0, deadline_s=1.5) for each in burst])
    assert sum(each.answered for each in proud) < 0.5 * len(burst)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 5), st.sampled_from([b"a", b"b", b"c"]), st.sampled_from(PRIORITIES),
            st.sampled_from([0.05, 0.5, 2.0, 30.0]),
        ),
        max_size=120,
    ),
    st.integers(1, 4),
    st.floats(0.01, 3),
    st.sampled_from([0.0, 2.0, 10.0]),
    st.sampled_from([3, 50]),
)  # fmt: skip
def test_every_request_ends_once_and_before_its_deadline(
    asked: list[tuple[float, bytes, str, float]],
    slots: int,
    service_s: float,
    patience: float,
    places: int,
) -> None:
    dice = random.Random(len(asked))
    world = Load(
        slots,
        lambda now, running: service_s * dice.uniform(0.1, 3),
        broker={"queue_patience": patience, "queue_max_requests": places, "age_step_s": 1},
    )
    schedule = [Asked(*each) for each in asked]
    ended = world.run(schedule)
    assert Counter(each.asked for each in ended) == Counter(schedule)
    for each in ended:
        assert each.after_s <= each.asked.deadline_s + 0.005
        assert each.answered or each.code in ("overloaded", "deadline_exceeded")
    assert world.broker.idle
    assert world.broker.dispatcher.queued == 0
