"""What the stream is taken for: rates, shares, a new life of the monitor; and how numbers are drawn."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from walled_client.ctl import drawing, panels
from walled_client.ctl.health import next_action
from walled_client.ctl.panels import View
from walled_client.ctl.values import SPAN
from walled_client.picture import POINTS, Picture
from walled_client.profiling import added_up

from walled.core import health
from walled.sections import HealthConfig


def told(picture: Picture, second: int, ok: float, failed: float = 0.0, hits: float = 0.0) -> None:
    rows = [
        {"labels": {"outcome": "ok", "source": "model"}, "value": ok},
        {"labels": {"outcome": "backend_error", "source": "none"}, "value": failed},
        {"labels": {"outcome": "cancelled", "source": "none"}, "value": 1000.0 * second},
        {"labels": {"outcome": "ok", "source": "cache"}, "value": hits},
    ]
    picture.take("metric.walled_requests_total", {"series": rows})
    picture.take("metric.walled_tokens_total", {"series": [{"labels": {"type": "output"}, "value": ok * 7}]})
    assert picture.take("health", {"score": 90, "time_s": float(second)})
    picture.tick(float(second))


def test_rates_are_of_the_last_seconds_and_callers_faults_are_no_errors() -> None:
    picture = Picture()
    told(picture, 1, 0)
    assert (picture.requests_per_s, picture.error_ratio) == (None, None)
    for second in range(2, 20):
        told(picture, second, 6.0 * second, 2.0 * second, 2.0 * second)
    assert picture.tokens_per_s == pytest.approx(42)
    assert picture.error_ratio == pytest.approx(0.2)
    assert picture.hit_ratio == pytest.approx(0.25)
    for second in range(20, 30):
        told(picture, second, 114, 38, 38)
    assert (picture.tokens_per_s, picture.error_ratio) == (0, None)
    assert picture.health["score"] == 90


def test_a_new_life_of_the_monitor_is_no_fall_and_no_leap() -> None:
    picture = Picture()
    for second in range(10):
        told(picture, second, 100.0 * second)
    told(picture, 10, 5)
    assert picture.requests_per_s is None
    picture.take(
        "metric.walled_requests_total", {"series": [{"labels": {"outcome": "ok"}, "value": 90_000.0}]}
    )
    told(picture, 11, 5)
    assert picture.requests_per_s is not None
    assert picture.requests_per_s >= 0


def test_what_the_monitor_remembers_comes_before_what_is_heard() -> None:
    picture = Picture()
    counted = {
        'walled_requests_total{outcome="ok"}': [[96.0, 10.0], [97.0, 14.0], [99.0, 20.0]],
        'walled_requests_total{outcome="bad"}': [[97.0, 0.0], [99.0, 2.0]],
    }
    waits = {'walled_request_queue_seconds{quantile="0.95"}': [[98.0, 0.5], [99.0, 0.25]],
             'walled_request_queue_seconds{quantile="0.5"}': [[98.0, 9.0]]}  # fmt: skip
    picture.remember({"requests": counted, "queue": waits}, 99.5)
    assert list(picture.series["requests"])[-4:] == [None, 4.0, 4.0, 4.0], (
        "a second nobody looked at is filled"
    )
    assert list(picture.series["queue"])[-3:] == [None, 0.5, 0.25]
    told(picture, 100, 5)
    assert len(picture.series["queue"]) == POINTS


def test_lines_are_bounded() -> None:
    picture = Picture()
    picture.seed_history("requests", [float(n) for n in range(300)])
    for second in range(300):
        told(picture, second, second)
    assert {len(line) for line in picture.series.values()} == {POINTS}


VALUES = st.lists(st.none() | st.floats(min_value=0, max_value=1e12), max_size=50)


@given(VALUES, st.integers(min_value=0, max_value=60))
def test_a_sparkline_is_as_wide_as_asked_and_shows_what_is_not_nothing(
    values: list[float | None], width: int
) -> None:
    drawn = drawing.sparkline(values, width)
    assert len(drawn) == width
    shown = values[-width:] if width else []
    for value, character in zip(reversed(shown), reversed(drawn), strict=False):
        assert (character == " ") == (value is None)
        if value:
            assert character != drawing.BLOCKS[0]
    assert len(drawing.squeezed(values, width)) <= max(len(values), width)


@given(st.floats(min_value=0, max_value=1e15))
def test_numbers_are_short(value: float) -> None:
    assert len(drawing.span(min(value, 1e6))) <= 7
    assert len(drawing.rate(value)) <= 7
    assert len(drawing.percent(min(value, 1.0))) <= 6


def test_numbers_for_people() -> None:
    spans = (None, 0, 0.00025, 0.0042, 0.052, 4.25, 75, 200, 18_000)
    assert [drawing.span(s) for s in spans] == [
        "-", "0 ms", "250 us", "4.2 ms", "52 ms", "4.2 s", "75 s", "3 min", "5.0 h",
    ]  # fmt: skip
    assert [drawing.rate(v) for v in (None, 0, 3.25, 210.4, 14_500, 2e6)] == [
        "-", "0", "3.2", "210", "14.5k", "2.0M",
    ]  # fmt: skip
    assert [drawing.percent(v) for v in (None, 0, 0.004, 0.31, 1)] == ["-", "0 %", "0.4 %", "31 %", "100 %"]
    assert drawing.bar(0.5, 8) == "████····"
    assert drawing.clipped("abcdef", 4) == "abc…"
    assert [SPAN.convert(text, None, None) for text in ("30", "10m", "2h", "1.5d")] == [
        30,
        600,
        7200,
        129_600,
    ]


def everything() -> Picture:
    picture = Picture()
    told(picture, 1, 5)
    picture.daemon = {
        "version": "9.9", "state": "ready",
        "workers": [{"worker": 0, "in_flight": 1, "slots": 2, "served": 7}],
        "tree": {"supervisor": {"pid": 1, "uptime_s": 9e4}, "children": [
            {"role": "worker", "slot": 0, "pid": 2, "phase": "failed", "restarts": 3, "detail": "x" * 300},
        ]},
    }  # fmt: skip
    picture.health = health.judge(HealthConfig(), {"workers": 1.0, "queue": 99.0}).plain()
    picture.alerts = [
        {"rule": "r" * 60, "state": "firing", "severity": "critical", "for_s": 9.0, "value": 1e9,
         "silence": None, "schema": {"fire": 1.0, "operator": ">"}},
    ]  # fmt: skip
    rows = [{"labels": {"class": name}, "value": 3} for name in ("interactive", "normal", "batch")]
    picture.take("metric.walled_queue_depth", {"series": rows})
    picture.take("metric.walled_workers_live", {"series": [{"labels": {"backend": "gpu"}, "value": 0}]})
    picture.take("metric.walled_breaker_state", {"series": [{"labels": {"backend": "gpu"}, "value": 2}]})
    return picture


@pytest.mark.parametrize("width", [20, 40, 80, 131, 132, 200, 400])
@pytest.mark.parametrize("picture", [Picture(), everything()])
def test_no_line_of_the_screen_is_longer_than_the_terminal(picture: Picture, width: int) -> None:
    for silent_s in (0.0, 60.0):
        view = View(explain=True, silent_s=silent_s, events=("e" * 300,))
        lines = panels.screen(picture, width, view)
        assert max(panels.length(line) for line in lines) <= width
        assert {style for line in lines for _, style in line} <= set(panels.STYLES)


def test_the_screen_says_what_hurts_and_what_is_not_known() -> None:
    text = "\n".join(panels.plain(line) for line in panels.screen(everything(), 80, View(explain=True)))
    for words in (
        "unhealthy, at most 49",
        "cause   ",
        "1 firing",
        "normal 3",
        "failed",
        "3 restarts",
        "breaker open",
    ):
        assert words in text
    empty = "\n".join(panels.plain(line) for line in panels.screen(Picture(), 80, View()))
    for words in (
        "the broker does not answer",
        "the monitor does not answer",
        "no rules",
        "no worker has told",
    ):
        assert words in empty


def test_what_is_down_comes_before_what_hurts() -> None:
    gone = {"role": "worker", "slot": 1, "phase": "failed", "detail": "exit status 1"}
    ready = {"state": "ready", "tree": {"children": [gone]}}
    sick = {"deductions": [{"points": 20, "action": "walled-ctl queue"}]}
    assert "broker" in next_action(None, sick, ())
    assert "walled-ctl workers restart 1" in next_action(ready, sick, ())
    assert next_action({"state": "ready"}, sick, ()) == "walled-ctl queue"
    assert "monitor" in next_action({"state": "ready"}, None, ())
    assert "errors" in next_action({"state": "ready"}, {}, [{"state": "firing", "rule": "errors"}])
    assert next_action({"state": "ready"}, {"deductions": []}, ()) == ""


def test_the_actions_health_recommends_are_verbs() -> None:
    from walled_client.ctl.program import program

    named = [word for one in health.INDICATORS.values() for word in one.action.split("walled-ctl ")[1:]]
    assert named
    assert {words.split()[0].strip(";:,") for words in named} <= set(program.verbs)


def test_collapsed_stacks_are_added_up_by_function() -> None:
    waiting = "a (x.py:1);Poller.wait (walled/adapters/sockets.py:354) 50\n"
    busy = "a (x.py:1);b (x.py:5) 3\na (x.py:1);b (x.py:7) 1\na (x.py:9) 4\nnonsense\n"
    rows, samples = added_up(waiting + busy)
    assert samples == 8
    assert {row.function: (row.own, row.total) for row in rows} == {
        "a (x.py)": (0.5, 1.0),
        "b (x.py)": (0.5, 0.5),
    }
    assert added_up("") == ([], 0)
