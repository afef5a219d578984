"""sd_notify datagrams."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from walled.adapters.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(5)
        yield sock


def lines(sock: socket.socket) -> list[str]:
    return sock.recv(4096).decode().split("\n")


def test_every_message_in_its_form(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("all well\nREADY=0")
    assert lines(manager) == ["READY=1", "STATUS=all well READY=0", f"MAINPID={os.getpid()}"]
    notifier.reloading()
    first, second = lines(manager)
    assert first == "RELOADING=1"
    assert int(second.removeprefix("MONOTONIC_USEC=")) > 0
    notifier.stopping("bye")
    assert lines(manager) == ["STOPPING=1", "STATUS=bye"]
    notifier.status("s")
    assert lines(manager) == ["STATUS=s"]
    notifier.watchdog()
    assert lines(manager) == ["WATCHDOG=1"]


def test_abstract_addresses() -> None:
    name = f"walled-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + name)
        sock.settimeout(5)
        Notifier({"NOTIFY_SOCKET": "@" + name}).status("here")
        assert lines(sock) == ["STATUS=here"]


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}])
def test_without_a_manager_nothing_happens(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    notifier.ready("x")
    assert notifier.watchdog_s == 0.0


def test_a_manager_that_is_gone_or_deaf_stops_nobody(tmp_path: Path, manager: socket.socket) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")}).ready("x")
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    for _ in range(5000):
        notifier.status("x" * 200)


@pytest.mark.parametrize(
    ("usec", "pid", "expected_s"),
    [("30000000", "", 15.0), ("30000000", str(os.getpid()), 15.0), ("30000000", "1", 0.0), ("soon", "", 0.0)],
)
def test_watchdog_at_half_the_limit(manager: socket.socket, usec: str, pid: str, expected_s: float) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    assert Notifier(environment).watchdog_s == expected_s
