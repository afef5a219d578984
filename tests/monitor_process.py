"""A monitor process for tests, with this process in the supervisor's place. Nothing here sleeps."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from walled import config as configuration
from walled import protocol
from walled.adapters import process
from walled.adapters.sockets import Hub, Poller, Port
from walled.link import Ask, Message, Spawn, Status

DEADLINE_S = 20.0


class MonitorProcess:
    """A monitor with its sockets."""

    def __init__(self, directory: Path, **sections: Any) -> None:
        plain = {"daemon": {"run_dir": str(directory)}, "monitor": {"publish_interval_s": 0.1}}
        self.config = configuration.from_plain({**plain, **sections})
        self.ends = configuration.endpoints(directory)
        self.child = process.spawn("monitor")
        self.child.link.send(
            Spawn("monitor", 0, "", b"", configuration.to_plain(self.config), os.getpid(), 1)
        )
        self.hub = Hub()
        self.deltas = self.hub.push(self.ends.delta)
        self.deltas.connect()

    def said(self) -> Message:
        """The next message on the link."""
        assert self.child.link.wait(DEADLINE_S)
        message = self.child.link.receive_one()
        assert message is not None
        return message

    def status(self) -> Status:
        while not isinstance(message := self.said(), Status):
            pass
        return message

    def wish(self) -> Ask:
        """The next thing the monitor wants of its supervisor."""
        while not isinstance(message := self.said(), Ask):
            pass
        return message

    def tell(self, *frames: bytes) -> None:
        """A PUSH takes nothing until it is connected, and nothing tells when it is."""
        until_s = time.monotonic() + DEADLINE_S
        idle = Poller([], [self.child.sentinel])
        while not self.deltas.send(frames):
            assert time.monotonic() < until_s
            idle.wait(0.02)

    def subscribe(self, topic: bytes) -> Port:
        port = self.hub.subscriber(self.ends.metrics, [topic])
        port.connect()
        return port

    def ask(self, **question: Any) -> dict[str, Any]:
        """One question to the monitor's socket."""
        port = self.hub.dealer(self.ends.monitor)
        port.connect()
        poller, until_s = Poller([port]), time.monotonic() + DEADLINE_S
        frames = protocol.frames(protocol.CONTROL, b"r", None, protocol.pack_map(question))
        idle = Poller([], [self.child.sentinel])
        while not port.send(frames):
            assert time.monotonic() < until_s
            idle.wait(0.02)
        while time.monotonic() < until_s:
            poller.wait(until_s - time.monotonic())
            for parts in port.receive():
                return protocol.unpack_map(protocol.parse(parts).payload)
        raise AssertionError("no reply")

    def close(self) -> None:
        self.hub.close()
        self.child.kill()
        self.child.wait()
        self.child.close()


def published(port: Port, wanted: Any = lambda message: True) -> dict[str, Any]:
    """The first message like that; what came with it is lost to the next call on the same port."""
    poller, until_s = Poller([port]), time.monotonic() + DEADLINE_S
    while time.monotonic() < until_s:
        poller.wait(until_s - time.monotonic())
        for topic, body in port.receive():
            message = {"topic": topic, **protocol.unpack_map(body)}
            if wanted(message):
                return message
    raise AssertionError("nothing such was published")
