"""Children that misbehave as a test wants: walled.child with other roles.

What a worker does is named by its backend's `text`; broker and monitor behave well but do no work, except
that the broker's manners are named by the environment variable STAND_IN_BROKER.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable

from walled import child
from walled.adapters.process import Link
from walled.errors import BackendUnavailable, BootError
from walled.link import Ask, Order, Phase, Spawn, Status


def obey(link: Link, phase: Phase = "ready", *, on_drain: Phase = "stopping", answered: bool = False) -> int:
    """Beat until told to stop."""
    poller = select.poll()
    poller.register(link.fileno(), select.POLLIN)
    while True:
        link.send(Status(phase, answered=answered))
        poller.poll(200)
        for order in link.receive():
            assert isinstance(order, Order)
            if order.op == "stop":
                return 0
            if order.op == "drain":
                phase = on_drain


def broker(spawn: Spawn, link: Link) -> int:
    manners = os.environ.get("STAND_IN_BROKER", "")
    if manners == "stop":
        link.send(Ask("stop"))
    elif manners == "restart":
        link.send(Ask("worker.restart", worker=0))
    return obey(link, answered=manners != "mute", on_drain="draining" if manners == "busy" else "stopping")


def monitor(spawn: Spawn, link: Link) -> int:
    return obey(link)


def worker(spawn: Spawn, link: Link) -> int:
    manners = spawn.config["backends"][spawn.backend]["text"]
    if manners == "boot error":
        raise BootError("no such model file")
    if manners == "later" and spawn.incarnation == 1:
        raise BackendUnavailable("nobody listens there")
    if manners == "defect":
        raise ValueError("a secret prompt that must not be logged")
    if manners == "garbage" and spawn.incarnation == 1:
        socket.socket(fileno=os.dup(link.fileno())).send(b"\xc1 not a message")
    if manners == "stubborn":
        link.send(Status("ready"))
        while True:
            time.monotonic()  # a loop that never looks at its link
            select.select([], [], [], 0.5)
            link.send(Status("ready"))
    return obey(link)


ROLES: dict[str, Callable[[], child.RoleMain]] = {
    "broker": lambda: broker,
    "monitor": lambda: monitor,
    "worker": lambda: worker,
}

if __name__ == "__main__":
    witness = os.environ.get("STAND_IN_WITNESS")
    if witness:
        # Tell the test that this process exists, before it knows anything.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as line:
            line.sendto(b"%d" % os.getpid(), witness)
    child.leave(child.run(sys.argv[1:], ROLES))
