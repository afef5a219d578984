"""Order within a lane: classes, turns, ageing; whatever is pushed comes out once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from walled.core.flights import Job
from walled.core.lanes import LEARN, Lane


def job(client: str, rank: int = 1, now: float = 0.0) -> Job:
    return Job(b"%d" % id(client), client.encode(), "m", b"", rank, now)


def drain(lane: Lane) -> list[str]:
    order = []
    while (found := lane.pop(0.0)) is not None:
        order.append(found.client.decode())
    return order


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=30), st.data())
def test_everything_pushed_comes_out_once_unless_dropped(
    arrivals: list[tuple[str, int]], data: st.DataObject
) -> None:
    lane = Lane("m")
    jobs = [job(client, rank, float(n)) for n, (client, rank) in enumerate(arrivals)]
    for n, pushed in enumerate(jobs):
        lane.push(pushed, float(n))
    dropped = data.draw(st.sets(st.sampled_from(range(len(jobs))))) if jobs else set()
    for n in dropped:
        lane.drop(jobs[n])
    lane.age(data.draw(st.floats(0, 60)), 5.0)
    assert lane.count == len(jobs) - len(dropped) == len(list(lane.waiting()))
    out = []
    while (found := lane.pop(0.0)) is not None:
        out.append(found)
    assert len(out) == len(set(map(id, out))) == len(jobs) - len(dropped)
    assert lane.count == 0
    assert lane.head() is None


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40))
def test_turns_are_fair(arrivals: list[str]) -> None:
    """Between two turns of one client every other waiting client has had a turn."""
    lane = Lane("m")
    left = {client: arrivals.count(client) for client in arrivals}
    for n, client in enumerate(arrivals):
        lane.push(job(client), float(n))
    last_turn: dict[str, int] = {}
    order = drain(lane)
    for turn, client in enumerate(order):
        if client in last_turn:
            between = set(order[last_turn[client] + 1 : turn])
            waiting = {other for other, count in left.items() if count and other != client}
            assert waiting <= between
        last_turn[client] = turn
        left[client] -= 1


def test_one_client_is_served_in_order() -> None:
    lane = Lane("m")
    jobs = [job("a", now=float(n)) for n in range(5)]
    for n, pushed in enumerate(jobs):
        lane.push(pushed, float(n))
    assert [lane.pop(0.0) for _ in jobs] == jobs


def test_ageing_moves_up_one_class_at_a_time_and_resets_the_clock() -> None:
    lane = Lane("m")
    patient = job("a", 2)
    lane.push(patient, 0.0)
    lane.age(4.9, 5.0)
    assert patient.rank == 2
    lane.age(5.0, 5.0)
    assert patient.rank == 1
    lane.age(9.9, 5.0)
    assert patient.rank == 1
    lane.age(10.0, 5.0)
    assert patient.rank == 0
    assert lane.oldest_s() == 0.0


def test_service_time_is_a_moving_average() -> None:
    lane = Lane("m")
    for _ in range(LEARN):
        lane.observe(8.0)
    lane.observe(8.0 + LEARN)
    assert lane.service_s == 9.0


def test_what_was_given_up_tells_that_it_takes_longer() -> None:
    lane = Lane("m")
    lane.observe(2.0)
    lane.outlasted(1.0)
    assert lane.service_s == 2.0
    lane.outlasted(4.0)
    assert lane.service_s == 3.0
