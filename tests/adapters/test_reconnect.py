"""A peer that comes back is found again soon, and what finds it is cheap to import."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from walled.adapters.sockets import ConnectionEvent, Hub, Poller, Port

DEADLINE_S = 5.0
ABSENT_S = 1.2
FOUND_WITHIN_S = 0.35
TRIES = 3


def _await(port: Port, poller: Poller, wanted: ConnectionEvent) -> None:
    end_s = time.monotonic() + DEADLINE_S
    while wanted not in port.connection_events():
        assert time.monotonic() < end_s, f"no {wanted} within {DEADLINE_S} s"
        poller.wait(end_s - time.monotonic())


def _found_after_s(endpoint: str) -> float:
    """Seconds from the return of a peer that was away for some time to the connection's UP."""
    client, server = Hub(), Hub()
    try:
        listening = server.router(endpoint, hwm=10, max_bytes=1024)
        port = client.dealer(endpoint)
        port.watch()
        port.connect()
        poller = Poller([port])
        _await(port, poller, ConnectionEvent.UP)
        listening.close()
        server.close()
        _await(port, poller, ConnectionEvent.DOWN)
        # By now a backoff without a low ceiling has grown long.
        back_s = time.monotonic() + ABSENT_S
        while (left_s := back_s - time.monotonic()) > 0:
            poller.wait(left_s)
            assert port.connection_events() == []
            assert port.receive() == []
        server = Hub()
        listening = server.router(endpoint, hwm=10, max_bytes=1024)
        back_s = time.monotonic()
        _await(port, poller, ConnectionEvent.UP)
        return time.monotonic() - back_s
    finally:
        client.close()
        server.close()


def test_a_peer_that_was_away_for_a_second_is_found_again_soon(tmp_path: Path) -> None:
    times = []
    for number in range(TRIES):
        times.append(_found_after_s(f"ipc://{tmp_path / str(number)}"))
        if times[-1] < FOUND_WITHIN_S:
            return
    raise AssertionError(f"found again after {times} s")


def test_sockets_do_not_import_asyncio() -> None:
    """It would be a seventh of the time a broker needs to be back after its death."""
    code = "import sys, walled.adapters.sockets; sys.exit('asyncio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
