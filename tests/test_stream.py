"""The stream as subscribers see it: its schema, callbacks, gaps, a new monitor, subscribers that misbehave.

May live here: a real monitor with the client's subscribers. May not: what alerts mean (core), the daemon.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from walled_client import AsyncSubscriber, Subscriber

from tests.monitor_process import DEADLINE_S, MonitorProcess, published
from walled import protocol
from walled.adapters.sockets import Hub

pytestmark = pytest.mark.process

DOCUMENT = Path(__file__).parents[1] / "docs/metrics.md"
ALWAYS = {"fire": 0.0, "clear": 0.0, "for_s": 0.0, "window_s": 2.0, "actions": ["log", "shed"]}


def documented() -> dict[str, set[str]]:
    """Topic, with a word in capitals for any, -> fields of its messages."""
    part = DOCUMENT.read_text().split("## The stream\n")[1].split("\n## ")[0]
    found = {}
    for line in part.splitlines():
        if line.startswith("| `"):
            topics, fields = line.split("|")[1:3]
            for topic in re.findall(r"`([^`]+)`", topics):
                found[topic] = set(re.findall(r"`([^`]+)`", fields))
    return found


def kind_of(topic: str) -> str:
    if topic in documented():
        return topic
    return "alert.RULE" if topic.startswith("alert.") else "metric.FAMILY"


def test_messages_have_the_fields_the_document_says(tmp_path: Path) -> None:
    """Every kind of message is made to happen, and none has other fields."""
    monitor = MonitorProcess(tmp_path, alerts={"rules": {"memory": ALWAYS}})
    missing, gone = set(documented()), set()
    try:
        with Subscriber(tmp_path) as subscriber:
            delta = {"observations": [["walled_request_queue_seconds", ["m"], [0.5]]]}
            monitor.tell(protocol.pack_map({"from": "broker", **delta}))
            counted = {"memory_remedies_total.gc": 1}
            monitor.tell(protocol.pack_map({"from": "worker 0", "counters": counted, "gauges": {}}))
            brief = subprocess.Popen(
                ["walled: brief", "-c", "import sys; sys.stdin.read()"],
                executable=sys.executable,
                stdin=subprocess.PIPE,
            )
            until_s = time.monotonic() + DEADLINE_S
            while missing or "brief" not in gone:
                assert time.monotonic() < until_s, missing
                message = subscriber.next(DEADLINE_S)
                assert message is not None, missing
                topic, body = message
                kind = kind_of(topic)
                optional = {"quantiles"} if kind == "metric.FAMILY" else set()
                assert set(body) >= documented()[kind] - optional, topic
                assert set(body) <= documented()[kind] | {"epoch", "seq", "time_s"}, topic
                if "quantiles" in body or kind != "metric.FAMILY":
                    missing.discard(kind)
                if topic == "event.process_born" and body["process"] == "brief":
                    brief.communicate()
                if topic == "event.process_gone":
                    gone.add(body["process"])
                for row in body.get("series", ()):
                    assert set(row) in ({"labels", "value"}, {"labels", "value", "sum", "buckets"})
    finally:
        monitor.close()


def test_a_callback_for_a_rule_and_a_monitor_that_is_replaced(tmp_path: Path) -> None:
    """Callbacks that raise are counted and keep nothing back; SIGKILL of the monitor is one event."""
    heard: list[dict[str, Any]] = []

    def hear(body: dict[str, Any]) -> None:
        heard.append(body)
        raise RuntimeError("the callback's own trouble")

    async def watch() -> list[str]:
        monitors = [MonitorProcess(tmp_path, alerts={"rules": {"memory": ALWAYS}})]
        topics: list[str] = []
        try:
            async with AsyncSubscriber(tmp_path, on_alert={"memory": hear}) as subscriber:
                async with asyncio.timeout(DEADLINE_S):
                    async for topic, _ in subscriber:
                        topics.append(topic)
                        if topic == "alert.memory" and len(monitors) == 1:
                            monitors[0].child.kill()
                            monitors[0].child.wait()
                            monitors.append(MonitorProcess(tmp_path, alerts={"rules": {"memory": ALWAYS}}))
                        if "event.epoch" in topics and topics[-1] == "health":
                            break
                assert subscriber.callback_failures == len(heard) >= 1
        finally:
            for monitor in monitors:
                monitor.close()
        return topics

    topics = asyncio.run(watch())
    assert topics.count("event.epoch") == 1
    assert heard[0]["status"] == "firing"
    assert topics.count("alert.memory") == 1, "told before the monitor died, and not again"


def test_a_subscriber_that_subscribes_without_end_costs_others_nothing(tmp_path: Path) -> None:
    monitor = MonitorProcess(tmp_path)
    flooding = Hub()
    try:
        calm = monitor.subscribe(b"metric.counters")
        first = published(calm)
        port = flooding.subscriber(monitor.ends.metrics, [])
        port.connect()
        until_s = time.monotonic() + 1.0
        while time.monotonic() < until_s:
            for number in range(200):
                port.subscribe(b"")
                port.subscribe(b"metric.x%d" % number)
                port.receive()
        last = published(calm, lambda m: m["seq"] >= first["seq"] + 10)
        assert last["time_s"] - first["time_s"] < 10.0, "published on at its pace"
        (row,) = monitor.ask(op="dashboard")["totals"]["walled_subscriptions_merged_total"]
        assert row["value"] > 100
    finally:
        flooding.close()
        monitor.close()


def test_what_a_slow_subscriber_lost_is_reported_and_counted(tmp_path: Path) -> None:
    """It does not read while more is published than its queue and the publisher's hold."""
    monitor = MonitorProcess(tmp_path, monitor={"publish_interval_s": 0.0001})
    try:
        with Subscriber(tmp_path, topics=["metric.counters"], queue=100) as subscriber:
            assert subscriber.next(DEADLINE_S) is not None
            seen = published(monitor.subscribe(b"metric.counters"))["seq"]
            published(monitor.subscribe(b"metric.counters"), lambda m: m["seq"] > seen + 4000)
            topics = []
            while "event.gap" not in topics:
                message = subscriber.next(DEADLINE_S)
                assert message is not None
                topics.append(message.topic)
            lost = subscriber.lost
            assert lost > 100
        drops = published(monitor.subscribe(b"metric.walled_pub_drops_total"))["series"]
        assert drops[0]["value"] >= 100
    finally:
        monitor.close()
