"""Is there certainly no daemon? So that a client of a dead one need not wait for its connect timeout.

May live here: looking at the lock file, its process, the socket. May not: taking the lock, not even for a
moment: a daemon that starts just then would believe that another one runs.

"Gone" means that the process that wrote the lock file has ended and nobody listens on the socket. A broker
that is being restarted has a living supervisor, so it is not gone. Without a lock file nothing is known. Seen
from another pid namespace a supervisor looks dead: then a restarting broker counts as gone.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

LOCK_NAME = "walled.lock"
IPC = "ipc://"


def gone(run_dir: Path, endpoint: str) -> bool:
    """Whether the daemon of a run directory has certainly ended. A few system calls, never waits."""
    if not endpoint.startswith(IPC):
        return False
    try:
        with (run_dir / LOCK_NAME).open("rb") as file:
            pid = int(file.read(32))
    except (OSError, ValueError):
        return False
    return pid > 0 and not _lives(pid) and not _listens(endpoint.removeprefix(IPC))


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read(512).rpartition(b")")[2].split()[0]
    except (OSError, IndexError):
        return True
    return state not in (b"Z", b"X")


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError:
            return True
    return True
