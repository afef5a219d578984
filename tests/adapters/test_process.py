"""Links, children and what a process does to itself."""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon_process import ROOT, ended
from walled.adapters import process
from walled.adapters.process import Link, LinkClosed
from walled.errors import ProtocolError
from walled.link import MAX_LINK_BYTES, Ask, Order, Status


@pytest.fixture
def links() -> Iterator[tuple[Link, Link]]:
    ours, theirs = map(Link, socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    yield ours, theirs
    ours.close()
    theirs.close()


def test_messages_arrive_whole_and_in_order(links: tuple[Link, Link]) -> None:
    ours, theirs = links
    sent = [Status("loading"), Status("ready", detail="d", answered=True), Ask("worker.restart", worker=3)]
    assert ours.receive() == []
    assert all(theirs.send(message) for message in sent)
    assert ours.wait(5)
    assert ours.receive() == sent
    assert ours.receive() == []


def test_last_words_come_before_the_end(links: tuple[Link, Link]) -> None:
    ours, theirs = links
    theirs.send(Status("stopping", detail="why"))
    theirs.close()
    assert ours.receive() == [Status("stopping", detail="why")]
    for _ in range(2):
        with pytest.raises(LinkClosed):
            ours.receive()
    assert ours.send(Order("stop")) is False


def test_a_full_link_says_so_and_does_not_block(links: tuple[Link, Link]) -> None:
    ours, theirs = links
    sent = 0
    while ours.send(Order("tree", tree={"n": sent})):
        sent += 1
    assert sent > 20
    assert [message.tree["n"] for message in theirs.receive() if isinstance(message, Order)] == list(
        range(sent)
    )
    assert ours.send(Order("stop"))


def test_the_largest_message_fits(links: tuple[Link, Link]) -> None:
    ours, theirs = links
    message = Order("tree", tree={"x": "y" * (MAX_LINK_BYTES - 100)})
    assert ours.send(message)
    assert theirs.receive() == [message]
    with pytest.raises(ProtocolError, match="at most"):
        ours.send(Order("tree", tree={"x": "y" * MAX_LINK_BYTES}))


def test_bytes_that_are_no_message_are_a_protocol_error(links: tuple[Link, Link]) -> None:
    ours, theirs = links
    with socket.socket(fileno=os.dup(theirs.fileno())) as raw:
        raw.send(b"\xc1")
    with pytest.raises(ProtocolError):
        ours.receive()


ECHO = """
import sys
from walled.adapters.process import Link, LinkClosed
link = Link.adopt(int(sys.argv[sys.argv.index("--fd") + 1]))
link.wait(20)
for message in link.receive():
    link.send(message)
link.wait(20)
try:
    link.receive()
except LinkClosed:
    sys.exit(7)
"""


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-c", code)


@pytest.mark.process
def test_a_child_is_born_with_a_link_and_a_sentinel() -> None:
    child = process.spawn("worker", python(ECHO))
    try:
        assert child.exit_code() is None
        child.link.send(Order("drain", deadline_s=2.5))
        assert child.link.wait(20)
        assert child.link.receive() == [Order("drain", deadline_s=2.5)]
        child.link.close()
        assert select.select([child.sentinel], [], [], 20)[0]
        assert child.exit_code() == 7, "it saw the end of the pipe: no other process holds our end"
    finally:
        child.kill()
        child.wait()
        child.close()


@pytest.mark.process
def test_a_second_child_does_not_hold_the_first_ones_link() -> None:
    first = process.spawn("worker", python(ECHO))
    second = process.spawn("worker", python(ECHO))
    try:
        first.kill()
        assert select.select([first.sentinel], [], [], 20)[0]
        with pytest.raises(LinkClosed):
            first.link.receive()
        assert first.exit_code() == -signal.SIGKILL
    finally:
        for child in (first, second):
            child.kill()
            child.wait()
            child.close()


@pytest.mark.process
def test_a_child_has_its_own_process_group_no_stdin_and_none_of_systemds_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "1")
    look = """
import os, sys
from walled.adapters.process import Link
from walled.link import Status
link = Link.adopt(int(sys.argv[2]))
left = [n for n in os.environ if n.startswith(("NOTIFY", "WATCHDOG"))]
own_group = os.getpgid(0) == os.getpid()
link.send(Status("ready", detail=f"{own_group} {sys.stdin.read()!r} {left} {sys.argv[1:]}"))
link.wait(20)
"""
    child = process.spawn("worker", python(look))
    try:
        assert child.link.wait(20)
        (status,) = child.link.receive()
        assert isinstance(status, Status)
        assert status.detail.startswith("True '' [] ['--fd', ")
        assert status.detail.endswith(", 'worker']")
    finally:
        child.kill()
        child.wait()
        child.close()


def test_what_cannot_be_run_is_an_os_error_and_leaves_no_descriptor() -> None:
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="missing"):
        process.spawn("worker", ("/missing/python",))
    assert set(os.listdir("/proc/self/fd")) == before


ORPHAN = """
import os, sys, time
from walled.adapters import process
link_r, link_w = os.pipe()
middle = os.fork()
if middle == 0:
    if os.fork() == 0:
        process.die_with_parent()
        os.write(int(sys.argv[1]), b"%d" % os.getpid())
        os.read(link_r, 1)  # for ever: this process itself holds the other end
    os.read(link_r, 1)
else:
    os.waitpid(middle, 0)
"""


@pytest.mark.process
def test_a_process_dies_with_its_parent() -> None:
    reader, writer = os.pipe()
    top = subprocess.Popen(
        [sys.executable, "-c", ORPHAN, str(writer)],
        pass_fds=(writer,),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        assert select.select([reader], [], [], 20)[0]
        pid = int(os.read(reader, 32))
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(parent, signal.SIGKILL)
        assert ended(pid, 2.0)
    finally:
        top.kill()
        top.wait()
        os.close(reader)
        os.close(writer)


@pytest.mark.process
def test_no_core_is_written_whatever_the_kernel_does_with_cores() -> None:
    code = (
        "import resource as r; from walled.adapters import process; process.forbid_core_dumps(); "
        "print(*r.getrlimit(r.RLIMIT_CORE))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    assert done.stdout.split() == (["0", "0"] if hard == 0 else ["1", "1"])


@pytest.mark.process
def test_nobody_but_the_supervisor_starts_a_child() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "walled.child", "worker"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "run: walled --config FILE" in done.stderr
