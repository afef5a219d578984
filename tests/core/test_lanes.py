"""Order within a lane: classes, turns, newest first while it stands; whatever is pushed comes out once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from walled.core.flights import Job
from walled.core.lanes import LEARN, Lane


def job(client: str, rank: int = 1, now: float = 0.0) -> Job:
    return Job(b"%d" % id(client), client.encode(), "m", b"", rank, now)


class Stands(Lane):
    """A lane whose queue stands, whatever its times."""

    def _look(self, rank: int, now: float) -> bool:
        self.codels[rank].standing = True
        return True


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
    assert lane.count == len(jobs) - len(dropped) == len(list(lane.waiting()))
    out = []
    while (found := lane.pop(0.0)) is not None:
        out.append(found)
    assert len(out) == len(set(map(id, out))) == len(jobs) - len(dropped)
    assert lane.count == 0
    assert lane.head() is None


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=40), st.booleans())
def test_turns_are_fair(arrivals: list[str], standing: bool) -> None:
    """Between two turns of one client every other waiting client has had a turn, whether the queue stands or
    not."""
    lane = Stands("m") if standing else Lane("m")
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


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 20)), min_size=1, max_size=30))
def test_while_it_stands_a_client_gets_its_newest_unless_one_was_called(
    arrivals: list[tuple[str, float]],
) -> None:
    lane, now = Stands("m"), 10.0
    for n, (client, call_s) in enumerate(arrivals):
        pushed = job(client, now=float(n))
        pushed.call_s = call_s
        lane.push(pushed, float(n))
    while waiting := list(lane.waiting()):
        found = lane.pop(now)
        assert found is not None
        mine = [each for each in waiting if each.client == found.client]
        called = [each for each in mine if each.call_s <= now]
        if called:
            assert found.call_s == min(each.call_s for each in called)
        else:
            assert found is mine[-1]


def test_who_has_waited_too_long_is_overdue_only_while_it_stands() -> None:
    for lane, expected in ((Stands("m"), ["batch", "normal"]), (Lane("m"), [])):
        for name, rank, call_s, until_s in (
            ("normal", 1, 8.0, 10.0), ("later", 1, 8.0, 10.1), ("batch", 2, 1.0, 2.0), ("new", 0, 11.0, 12.0),
        ):  # fmt: skip
            pushed = job(name, rank)
            pushed.call_s, pushed.waits_until_s = call_s, until_s
            lane.push(pushed, 9.99)
        assert [each.client.decode() for each in lane.overdue(10.0)] == expected, "the lowest class first"
        assert lane.count == 4, "they are looked at, not taken out"


def test_what_a_new_job_has_to_let_pass_depends_on_whose_it_is() -> None:
    lane = Lane("m")
    for n in range(10):
        lane.push(job("flood", 1, float(n)), float(n))
    lane.push(job("other", 1), 11.0)
    lane.push(job("urgent", 0), 12.0)
    lane.push(job("batch", 2), 13.0)
    assert lane.ahead_of(1) == 12
    assert lane.ahead_of_client(1, b"modest") == 3, "one turn of each of two others, and the urgent one"
    assert lane.ahead_of_client(1, b"flood") == 12
    assert lane.ahead_of_client(1, b"other") == 4
    assert lane.ahead_of_client(0, b"modest") == 1


def test_one_client_is_served_in_order() -> None:
    lane = Lane("m")
    jobs = [job("a", now=float(n)) for n in range(5)]
    for n, pushed in enumerate(jobs):
        lane.push(pushed, float(n))
    assert [lane.pop(0.0) for _ in jobs] == jobs


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
