"""File descriptors: as many as may be had, and a door that is shut before they are used up.

May live here: the limit, how near it is, hiding and showing a socket file. May not: ZeroMQ (sockets.py).

libzmq ends the process (abort) when `accept` or a new context finds no descriptor left. So nobody may come
that near: clients are kept out while the listener's file is hidden - they find no socket, which is a typed
error at once - and those that are connected are served on.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

RESERVE_RATIO = 0.25
"""Of the limit: kept free for a rush between two looks, and for files."""
RESERVE_MIN = 16
RESERVE_MAX = 2048
HIDDEN = ".shut"
OWN = "/proc/self/fd"


def raise_limit() -> int:
    """As many descriptors as this process may have without asking anybody; the limit from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def taken() -> int:
    """How many this process has open; all it may have when even counting them needs one more."""
    try:
        # Since Linux 6.2 the size of the directory is their number; before, they have to be listed.
        return os.stat(OWN).st_size or len(os.listdir(OWN))
    except OSError:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def available(count: int) -> bool:
    """Whether so many could be opened now."""
    found: list[int] = []
    try:
        for _ in range(count):
            found.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    except OSError:
        return False
    finally:
        for number in found:
            os.close(number)
    return True


class Door:
    """The socket file new clients come through."""

    def __init__(self, endpoint: str) -> None:
        self._path = Path(endpoint.removeprefix("ipc://"))
        self._hidden = self._path.with_name(self._path.name + HIDDEN)
        with contextlib.suppress(OSError):
            self._hidden.unlink()  # of a process that died with its door shut
        self.shut = False

    def look(self) -> bool:
        """Shut it or open it as descriptors are short or not; whether that has changed."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        reserve = max(RESERVE_MIN, min(int(limit * RESERVE_RATIO), RESERVE_MAX))
        free = limit - taken()
        shut = free < reserve * 1.5 if self.shut else free < reserve
        if shut == self.shut:
            return False
        source, target = (self._path, self._hidden) if shut else (self._hidden, self._path)
        # A file that is gone has gone with its directory; the supervisor sees to that.
        with contextlib.suppress(OSError):
            source.rename(target)
        self.shut = shut
        return True
