"""The monitor process, alone with a parent that is the test: deltas in, publications out."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from walled_client import Client
from walled_client.subscriber import Subscriber
from walled_client.telling import MAX_PENDING

from tests.monitor_process import DEADLINE_S, MonitorProcess, published
from walled import protocol
from walled.adapters.datagrams import Pen
from walled.core.registry import MAX_APP_FAMILIES
from walled.errors import BadRequest
from walled.link import Order

pytestmark = pytest.mark.process


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[MonitorProcess]:
    fixture = MonitorProcess(tmp_path)
    yield fixture
    fixture.close()


def delta(source: str, **counters: float) -> bytes:
    return protocol.pack_map({"from": source, "counters": counters, "gauges": {"depth": 1}})


def test_it_is_ready_at_once_and_beats_on(monitor: MonitorProcess) -> None:
    started_s = time.monotonic()
    assert [monitor.status().phase for _ in range(4)] == ["ready"] * 4
    assert time.monotonic() - started_s < 10


def test_deltas_are_summed_and_published_with_epoch_and_seq(monitor: MonitorProcess) -> None:
    port = monitor.subscribe(b"metric.counters")
    monitor.tell(delta("broker", asked=2))
    monitor.tell(delta("worker 0", asked=3, tokens=1.5))
    message = published(port, lambda m: m["counters"].get("asked") == 5)
    assert message["counters"]["tokens"] == 1.5
    assert message["gauges"] == {"broker": {"depth": 1}, "worker 0": {"depth": 1}}
    following = published(port)
    assert following["epoch"] == message["epoch"]
    assert following["seq"] == message["seq"] + 1
    assert abs(following["time_s"] - time.time()) < 10


def test_a_late_subscriber_gets_the_last_value_at_once(tmp_path: Path, monitor: MonitorProcess) -> None:
    first = monitor.subscribe(b"metric.processes")
    seq = published(first)["seq"]
    # Published every five seconds: what comes sooner is the last value again.
    late = monitor.subscribe(b"metric.processes")
    started_s = time.monotonic()
    assert published(late)["seq"] in (seq, seq + 1)
    assert time.monotonic() - started_s < 4.0


def test_processes_are_the_supervisor_and_its_children(monitor: MonitorProcess) -> None:
    message = published(monitor.subscribe(b"metric.processes"))
    by_pid = {sample["pid"]: sample for sample in message["processes"]}
    assert by_pid[monitor.child.pid]["name"] == "monitor"
    assert by_pid[monitor.child.pid]["rss_bytes"] > by_pid[monitor.child.pid]["uss_bytes"] > 1_000_000
    assert os.getpid() in by_pid


def test_nonsense_is_counted_and_harms_nothing(monitor: MonitorProcess) -> None:
    port = monitor.subscribe(b"metric.counters")
    for junk in (b"", b"\xc1", b"[]", protocol.pack_map({"from": 3}), b"\x81" * 5000):
        monitor.tell(junk)
    monitor.tell(delta("broker", asked=1), b"a second frame")
    assert published(port, lambda m: m["counters"].get("asked") == 1)["refused"] == 5


def test_it_stops_when_told(monitor: MonitorProcess) -> None:
    monitor.status()
    monitor.child.link.send(Order("stop"))
    while monitor.status().phase != "stopping":
        pass
    monitor.child.wait()
    assert monitor.child.exit_code() == 0


def test_it_goes_when_its_supervisor_is_gone(monitor: MonitorProcess) -> None:
    monitor.status()
    monitor.child.link.close()
    monitor.child.wait()
    assert monitor.child.exit_code() == 1


def test_sigterm_means_nothing_to_it(monitor: MonitorProcess) -> None:
    monitor.status()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(monitor.child.pid, number)
    assert [monitor.status().phase for _ in range(3)] == ["ready"] * 3


def test_families_are_published_and_questions_answered(monitor: MonitorProcess) -> None:
    observed = {"observations": [["walled_request_queue_seconds", ["m"], [0.5, 4.0]]]}
    port = monitor.subscribe(b"metric.walled_request_queue_seconds")
    monitor.tell(protocol.pack_map({"from": "broker", **observed}))
    (row,) = published(port, lambda m: m["series"])["series"]
    assert (row["labels"], row["value"], row["sum"]) == ({"model": "m"}, 2.0, 4.5)
    assert monitor.ask(op="metrics.list")["ok"]
    reply = monitor.ask(op="history", metric="walled_process_uss_bytes", since_s=60)
    assert any(points for points in reply["series"].values()), reply
    assert "walled_system_memory_used_ratio" in monitor.ask(op="dashboard")["metrics"]
    assert monitor.ask(op="history", metric="nothing")["error"]["code"] == "bad_request"
    assert "metrics.list" in monitor.ask(op="nonsense")["error"]["message"]


def test_a_client_tells_what_is_its_own_and_nothing_else(tmp_path: Path, monitor: MonitorProcess) -> None:
    monitor.tell(protocol.pack_map({"from": "broker", "models": {"m": "m"}}))
    published(monitor.subscribe(b"metric.counters"), lambda m: m["deltas"] == 1)
    port = monitor.subscribe(b"metric.walled_app_carts")
    pen, junk = Pen(), [b"", b"\xc1", b"x" * 70_000, protocol.pack_map({"counts": 7})]
    for data in junk:
        pen.send(monitor.ends.tell, data)
    told = {"series": [["walled_queue_bytes", [], 7]], "app": [["carts", {"shop": "a"}, 3, "gauge"]]}
    counts = {"counts": [["served", "m", "cache", "", 4]]}
    assert pen.send(monitor.ends.tell, protocol.pack_map(told | counts))
    assert published(port)["series"] == [{"labels": {"shop": "a"}, "value": 3.0}]
    dashboard = monitor.ask(op="dashboard")
    assert dashboard["metrics"]["walled_queue_bytes"] == []
    (row,) = dashboard["totals"]["walled_requests_total"]
    assert (row["labels"], row["value"]) == ({"model": "m", "outcome": "ok", "source": "cache"}, 4)
    assert dashboard["totals"]["walled_metrics_refused_total"][0]["value"] >= 3
    assert os.stat(tmp_path / "tell.sock").st_mode & 0o777 == 0o660


def test_a_client_program_is_heard(tmp_path: Path, monitor: MonitorProcess) -> None:
    port = monitor.subscribe(b"metric.walled_app_")
    with Client(run_dir=tmp_path) as client:
        client.metric("carts", 3, {"shop": "a"})
        assert published(port)["series"] == [{"labels": {"shop": "a"}, "value": 3.0}]
        for _ in range(100_000):  # a flood: added up, sent once a second
            client.metric("sold_total", 1, kind="counter")
        client.metric("carts", 4, {"shop": "a"})
        message = published(port, lambda m: m["name"] == "walled_app_carts")
        assert message["series"][0]["value"] == 4.0, "sent by itself within a second"
        for number in range(MAX_PENDING + 10):
            client.metric(f"many_{number}", number)
        assert client.counters()["metrics_dropped"] >= 10
        for name, value, labels in (("Bad", 1, {}), ("n", float("nan"), {}), ("n", 1, {"a": "x" * 81})):
            with pytest.raises(BadRequest, match=r"^metric '"):
                client.metric(name, value, labels)
    sold = b"metric.walled_app_sold_total"
    published(monitor.subscribe(sold), lambda m: m["series"][0]["value"] == 100_000)
    series = monitor.ask(op="metrics.list")["metrics"]
    assert sum(row["name"].startswith("walled_app_") for row in series) == MAX_APP_FAMILIES


def test_history_survives_and_a_broken_state_begins_anew(tmp_path: Path, monitor: MonitorProcess) -> None:
    published(monitor.subscribe(b"metric.walled_system_memory_total_bytes"))
    monitor.child.link.send(Order("stop"))
    monitor.child.wait()
    assert (tmp_path / "monitor.state").stat().st_size > 100
    again = MonitorProcess(tmp_path)
    try:
        series = again.ask(op="metrics.list")["series"]
        assert "walled_system_memory_total_bytes" in series
    finally:
        again.close()
    (tmp_path / "monitor.state").write_bytes(b"rubbish")
    third = MonitorProcess(tmp_path)
    try:
        assert third.status().phase == "ready"
    finally:
        third.close()


def test_a_subscriber_learns_of_a_new_epoch(tmp_path: Path, monitor: MonitorProcess) -> None:
    with Subscriber(tmp_path, topics=["metric.counters"]) as subscriber:
        first = subscriber.next(DEADLINE_S)
        assert first is not None
        assert first.topic == "metric.counters"
        monitor.child.kill()
        monitor.child.wait()
        again = MonitorProcess(tmp_path)
        try:
            topics = set()
            while "event.epoch" not in topics:
                message = subscriber.next(DEADLINE_S)
                assert message is not None
                topics.add(message.topic)
        finally:
            again.close()
