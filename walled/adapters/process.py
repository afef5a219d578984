"""Child processes and the pipe to them: the only door to subprocess, prctl and setproctitle.

May live here: starting and killing a child, its sentinel, the link's socket, what a child does to itself at
birth. May not: when to start or kill (core/supervision.py), the meaning of link messages (link.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import walled
from walled import link as wire
from walled.errors import BootError

CHILD_COMMAND: tuple[str, ...] = (sys.executable, "-P", "-m", "walled.child")
"""How a child is started; `--fd N ROLE` follows. -P: a module in the working directory is never imported."""

_PR_SET_PDEATHSIG = 1
_PRIVATE_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Only the supervisor speaks to systemd."""


class LinkClosed(Exception):
    """The other side of the link is gone: its process is dead or dying."""


class Link:
    """One end of the SOCK_SEQPACKET pair between supervisor and child. Never blocks, except `wait`."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            # A packet must fit whole; the default is barely enough for MAX_LINK_BYTES.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * wire.MAX_LINK_BYTES)
        self._socket = sock

    @classmethod
    def adopt(cls, fd: int) -> Link:
        """The child's end, from the descriptor number it was started with."""
        sock = socket.socket(fileno=fd)
        sock.set_inheritable(False)
        return cls(sock)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> list[wire.Message]:
        """All messages that have arrived. Raises LinkClosed when there are none and the other side is gone.

        Raises ProtocolError on a packet that is not a message.
        """
        messages: list[wire.Message] = []
        try:
            while (message := self.receive_one()) is not None:
                messages.append(message)
        except LinkClosed:
            if not messages:
                raise
            # Last words first; the end is still there at the next call.
        return messages

    def receive_one(self) -> wire.Message | None:
        """The next message that has arrived, if any. Raises as `receive` does."""
        try:
            packet = self._socket.recv(wire.MAX_LINK_BYTES)
        except BlockingIOError:
            return None
        except OSError as exc:
            raise LinkClosed(str(exc)) from None
        if not packet:
            raise LinkClosed("end of the pipe")
        return wire.unpack(packet)

    def send(self, message: wire.Message) -> bool:
        """Send now or not at all. False when the pipe is full or the other side is gone (`receive` tells)."""
        packet = wire.pack(message)
        try:
            self._socket.send(packet, socket.MSG_NOSIGNAL)
        except OSError:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Whether `receive` has something to say within the time; for a child that waits for its Spawn."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return bool(poller.poll(int(timeout_s * 1000)))

    def close(self) -> None:
        self._socket.close()


class Child:
    """A started child: its pid, its link, and `sentinel`, a descriptor readable once it has ended."""

    def __init__(self, process: subprocess.Popen[bytes], sentinel: int, link: Link) -> None:
        self._process = process
        self.sentinel = sentinel
        self.link = link
        self.pid = process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal. Reaps the process."""
        return self._process.poll()

    def kill(self) -> None:
        """SIGKILL; harmless when it has ended."""
        self._process.kill()

    def wait(self) -> None:
        """Until it has ended; only after `kill`."""
        self._process.wait()

    def close(self) -> None:
        """Give back the descriptors of a child that has ended."""
        self.link.close()
        with contextlib.suppress(OSError):
            os.close(self.sentinel)


def spawn(role: str, command: Sequence[str] = CHILD_COMMAND) -> Child:
    """Start a child and return without waiting for it. Raises OSError when the system refuses.

    Its own process group: Ctrl-C in a terminal reaches only the supervisor, which decides.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        try:
            process = subprocess.Popen(
                [*command, "--fd", str(theirs.fileno()), role],
                stdin=subprocess.DEVNULL,
                stdout=2,  # nothing of a child is data; what a library prints belongs to the log
                pass_fds=(theirs.fileno(),),
                env=_child_environment(os.environ),
                process_group=0,
            )
        except OSError:
            ours.close()
            raise
    try:
        sentinel = os.pidfd_open(process.pid)
    except OSError as exc:
        process.kill()
        process.wait()
        ours.close()
        if exc.errno == errno.ENOSYS:
            raise BootError("this kernel has no pidfd_open (Linux 5.3 or newer is needed)") from None
        raise
    return Child(process, sentinel, Link(ours))


def _child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The supervisor's, without systemd's variables, and with the walled the supervisor itself runs."""
    child = {name: value for name, value in environment.items() if name not in _PRIVATE_VARIABLES}
    root = Path(walled.__file__).parent.parent
    if root.name not in ("site-packages", "dist-packages"):
        # Run from a source tree: -P would not find it.
        child["PYTHONPATH"] = os.pathsep.join(filter(None, (str(root), environment.get("PYTHONPATH", ""))))
    return child


# --- what a process does to itself -----------------------------------------------------------------


def die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the parent dies.

    It holds only from the call on; who calls must look at getppid() or at the link afterwards.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")


def ignore_signals() -> None:
    """A child obeys its supervisor, not the terminal: SIGINT, SIGTERM and SIGHUP mean nothing to it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def forbid_core_dumps() -> None:
    """Prompts never land in a core file.

    1 and not 0: with a core_pattern that pipes, the kernel heeds no limit but this value.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = 1 if hard == resource.RLIM_INFINITY else min(1, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def volunteer_for_oom(points: int) -> bool:
    """When the machine runs out of memory, have the kernel end this process before its equals.

    `points`: thousandths of the machine's memory this process counts as larger than it is. Whoever started
    the daemon may have given more already; False where the kernel does not let us.
    """
    path = Path("/proc/self/oom_score_adj")
    try:
        if int(path.read_text()) < points:
            path.write_text(str(points))
    except (OSError, ValueError):
        return False
    return True


def give_freed_memory_back() -> bool:
    """Have glibc return to the system what Python has freed; False with another C library, or for nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim(0)) if trim is not None else False


def set_title(title: str) -> None:
    """What `ps` shows."""
    import setproctitle

    setproctitle.setproctitle(title)
