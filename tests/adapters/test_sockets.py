"""walled/adapters/sockets.py: each trap of ZeroMQ, sprung against the real library.

May live here: what sockets do with full queues, dead peers, oversized frames and forks. May not: meanings of
frames. Nothing sleeps: every wait polls for an event with a deadline.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from walled.adapters.sockets import MAX_FRAMES, ConnectionEvent, Hub, Poller, Port, SendResult
from walled.errors import BootError

PATIENCE_S = 10.0


@pytest.fixture
def directory() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="walled-"))  # pytest's own paths are too long for sockets
    yield place
    shutil.rmtree(place)


@pytest.fixture
def hub() -> Iterator[Hub]:
    found = Hub()
    yield found
    closer = threading.Thread(target=found.close, daemon=True)
    closer.start()
    closer.join(PATIENCE_S)
    assert not closer.is_alive(), "the context does not end: a socket lingers"


@pytest.fixture
def endpoint(directory: Path) -> str:
    return f"ipc://{directory / 'test.sock'}"


def until(port: Port, done: Callable[[], Any], why: str) -> Any:
    """Poll a port until `done` says something true."""
    poller = Poller([port])
    end_s = time.monotonic() + PATIENCE_S
    while not (found := done()):
        left_s = end_s - time.monotonic()
        assert left_s > 0, why
        poller.wait(min(left_s, 0.05))
    return found


def received(port: Port, count: int = 1) -> list[list[bytes]]:
    """At least `count` messages."""
    found: list[list[bytes]] = []

    def enough() -> bool:
        found.extend(port.receive())
        return len(found) >= count

    until(port, enough, f"{count} messages did not come, only {len(found)}")
    return found


def connected(hub: Hub, endpoint: str, **options: Any) -> Port:
    """A DEALER whose connection is up."""
    port = hub.dealer(endpoint, **options)
    port.watch()
    port.connect()
    until(port, lambda: ConnectionEvent.UP in port.connection_events(), "no connection")
    return port


def introduced(router: Port, dealer: Port) -> bytes:
    """The identity of a dealer that has said hello."""
    until(dealer, lambda: dealer.send([b"hello"]), "the hello was not taken")
    return received(router)[0][0]


# --- a ROUTER drops silently at its high-water mark or to an unknown peer ---------------------------


def test_router_says_gone_for_a_peer_it_does_not_know(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=10, max_bytes=1000)
    assert router.send_to(b"nobody", [b"x"]) is SendResult.GONE
    assert router.send_to(b"\x00" * 255, [b"a", b"b", b"c"]) is SendResult.GONE


def test_router_says_gone_for_a_peer_that_has_left(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=10, max_bytes=1000)
    dealer = connected(hub, endpoint)
    identity = introduced(router, dealer)
    assert router.send_to(identity, [b"x"]) is SendResult.SENT
    dealer.close()
    until(router, lambda: router.send_to(identity, [b"x"]) is SendResult.GONE, "never noticed")


def test_router_says_full_for_a_peer_that_does_not_read_and_loses_nothing(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=10, max_bytes=100_000)
    dealer = connected(hub, endpoint, hwm=10)
    identity = introduced(router, dealer)
    sent = 0
    while router.send_to(identity, [b"%d" % sent, b"x" * 50_000]) is SendResult.SENT:
        sent += 1
        assert sent < 1000, "the high-water mark does not hold"
    # Not a frame is lost, and there is room again once the peer reads.
    numbers = [parts[0] for parts in received(dealer, sent)]
    assert numbers == [b"%d" % number for number in range(sent)]
    until(router, lambda: router.send_to(identity, [b"again"]) is SendResult.SENT, "no room again")


def test_router_that_is_full_for_one_peer_is_open_for_another(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=5, max_bytes=100_000)
    slow, quick = connected(hub, endpoint, hwm=1), connected(hub, endpoint)
    slow_id, quick_id = introduced(router, slow), introduced(router, quick)
    while router.send_to(slow_id, [b"x" * 50_000]) is SendResult.SENT:
        pass
    for _ in range(3):
        assert router.send_to(quick_id, [b"x"]) is SendResult.SENT
    received(quick, 3)


def test_a_refused_message_leaves_no_half_of_itself_behind(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=5, max_bytes=100_000)
    dealer = connected(hub, endpoint)
    identity = introduced(router, dealer)
    for _ in range(3):
        assert router.send_to(b"nobody", [b"a", b"b", b"c"]) is SendResult.GONE
        assert router.send_to(identity, [b"1", b"2"]) is SendResult.SENT
    assert received(dealer, 3) == [[b"1", b"2"]] * 3


# --- a DEALER queues to nobody ----------------------------------------------------------------------


def test_dealer_sends_nothing_to_nobody(hub: Hub, endpoint: str) -> None:
    dealer = hub.dealer(endpoint)
    dealer.connect()
    assert not dealer.writable()
    assert dealer.send([b"a", b"b"]) is False
    router = hub.router(endpoint, hwm=10, max_bytes=1000)
    until(dealer, dealer.writable, "no connection")
    assert dealer.send([b"c"]) is True
    assert [parts[1:] for parts in received(router)] == [[b"c"]]  # nothing of the first message


def test_dealer_does_not_keep_messages_for_a_peer_that_died(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=10, max_bytes=1000)
    dealer = connected(hub, endpoint)
    router.close()
    until(dealer, lambda: ConnectionEvent.DOWN in dealer.connection_events(), "the end was not seen")
    # The event may be a moment ahead of the socket: what is sent in between is lost, so clients wait for UP.
    until(dealer, lambda: not dealer.writable(), "still writable")
    assert dealer.send([b"lost"]) is False
    again = hub.router(endpoint, hwm=10, max_bytes=1000)
    until(dealer, lambda: dealer.send([b"new"]), "no new connection")
    assert [parts[1:] for parts in received(again)] == [[b"new"]]


def test_a_full_dealer_refuses_whole_messages_and_never_blocks(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=5, max_bytes=100_000)
    dealer = connected(hub, endpoint, hwm=5)
    sent, started_s = 0, time.monotonic()
    while dealer.send([b"%d" % sent, b"x" * 50_000, b"end"]):
        sent += 1
        assert sent < 1000
    assert time.monotonic() - started_s < 5.0
    assert [parts[1::2] for parts in received(router, sent)] == [[b"%d" % n, b"end"] for n in range(sent)]


def test_push_drops_when_nobody_listens(hub: Hub, endpoint: str) -> None:
    push = hub.push(endpoint)
    push.connect()
    assert push.send([b"x"]) is False
    pull = hub.pull(endpoint)
    until(push, lambda: push.send([b"y"]), "no connection")
    assert received(pull) == [[b"y"]]


# --- MAXMSGSIZE is unlimited by default -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["router", "pull"])
def test_a_frame_over_the_cap_costs_its_sender_the_connection(hub: Hub, endpoint: str, kind: str) -> None:
    bound = (
        hub.router(endpoint, hwm=10, max_bytes=1000)
        if kind == "router"
        else hub.pull(endpoint, max_bytes=1000)
    )
    good = connected(hub, endpoint) if kind == "router" else hub.push(endpoint)
    bad = hub.dealer(endpoint) if kind == "router" else hub.push(endpoint)
    bad.watch()
    bad.connect()
    if kind == "pull":
        good.connect()
    until(bad, lambda: bad.send([b"x" * 1001]), "not taken")
    until(bad, lambda: ConnectionEvent.DOWN in bad.connection_events(), "the connection was not closed")
    until(good, lambda: good.send([b"x" * 1000]), "not taken")
    assert received(bound)[0][-1] == b"x" * 1000


def test_nine_bytes_that_announce_a_gigabyte_reserve_nothing(hub: Hub, directory: Path) -> None:
    """A raw ZMTP peer: greeting, NULL handshake, then a long frame of 1 GB of which nothing comes."""
    path = directory / "test.sock"
    router = hub.router(f"ipc://{path}", hwm=10, max_bytes=1000)
    before_bytes = _vm_bytes()
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(PATIENCE_S)
        raw.connect(str(path))
        raw.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
        ready = b"\x05READY" + b"\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
        raw.sendall(b"\x04" + bytes([len(ready)]) + ready)
        _read_until(raw, b"Socket-Type")
        raw.sendall(b"\x02" + (1 << 30).to_bytes(8, "big"))
        assert _ends(raw), "the connection stays open"
    assert _vm_bytes() - before_bytes < 200 * 1024 * 1024
    introduced(router, connected(hub, f"ipc://{path}"))


def test_a_peer_that_never_shakes_hands_is_thrown_out(hub: Hub, directory: Path) -> None:
    path = directory / "test.sock"
    router = hub.router(f"ipc://{path}", hwm=10, max_bytes=1000)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(PATIENCE_S)
        raw.connect(str(path))
        started_s = time.monotonic()
        assert _ends(raw), "the connection stays open"
        assert 1.0 < time.monotonic() - started_s < 5.0
    introduced(router, connected(hub, f"ipc://{path}"))


def test_a_peer_that_does_not_speak_zmtp_keeps_nobody_from_being_served(hub: Hub, directory: Path) -> None:
    """ZeroMQ may take it for its own oldest version: then it is one more message that protocol.py refuses."""
    path = directory / "test.sock"
    router = hub.router(f"ipc://{path}", hwm=10, max_bytes=1000)
    with socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(PATIENCE_S)
        raw.connect(str(path))
        raw.sendall(b"GET / HTTP/1.1\r\nHost: walled\r\n\r\n" * 10)
        dealer = connected(hub, f"ipc://{path}")
        assert dealer.send([b"hello"])
        until(router, lambda: any(parts[1:] == [b"hello"] for parts in router.receive()), "not served")


def _read_until(raw: socket.socket, mark: bytes) -> None:
    seen = b""
    while mark not in seen:
        data = raw.recv(4096)
        assert data, "closed during the handshake"
        seen += data


def _ends(raw: socket.socket) -> bool:
    """Whether the other side closes the connection before our patience ends."""
    try:
        while raw.recv(4096):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def _vm_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


# --- framing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, MAX_FRAMES - 1])
def test_messages_keep_their_frames(hub: Hub, endpoint: str, count: int) -> None:
    router = hub.router(endpoint, hwm=100, max_bytes=100_000)
    dealer = connected(hub, endpoint)
    message = [b"", *[b"%d" % n * n * 100 for n in range(1, count)]]
    for _ in range(3):
        assert dealer.send(message)
    for parts in received(router, 3):
        assert parts[1:] == message
        assert router.send_to(parts[0], message) is SendResult.SENT
    assert received(dealer, 3) == [message] * 3


def test_a_message_of_a_thousand_frames_is_cut_and_the_next_one_is_whole(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=100, max_bytes=1000)
    dealer = connected(hub, endpoint)
    assert dealer.send([b"%d" % n for n in range(1000)])
    assert dealer.send([b"next", b"message"])
    long, following = received(router, 2)
    assert len(long) == MAX_FRAMES
    assert long[1:3] == [b"0", b"1"]
    assert following[1:] == [b"next", b"message"]


def test_receive_stops_at_its_limit_and_goes_on_there(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=100, max_bytes=1000)
    dealer = connected(hub, endpoint)
    for number in range(10):
        assert dealer.send([b"%d" % number])
    first = until(router, lambda: router.receive(limit=4), "nothing came")
    assert len(first) <= 4
    rest = received(router, 10 - len(first))
    assert [parts[1] for parts in [*first, *rest]] == [b"%d" % number for number in range(10)]


# --- identities -------------------------------------------------------------------------------------


def test_a_second_peer_of_the_same_identity_cannot_take_over_the_first(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=10, max_bytes=1000)
    first = connected(hub, endpoint, identity=b"worker-1")
    assert introduced(router, first) == b"worker-1"
    thief = hub.dealer(endpoint, identity=b"worker-1")
    thief.connect()
    witness = connected(hub, endpoint)
    until(thief, thief.writable, "the thief never got through")
    thief.send([b"mine now"])
    introduced(router, witness)
    assert router.send_to(b"worker-1", [b"secret"]) is SendResult.SENT
    assert received(first) == [[b"secret"]]
    assert thief.receive() == []
    assert router.receive() == []


# --- binding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ["tcp://127.0.0.1:0", "tcp://*:5555", "inproc://x", "/run/x.sock"])
def test_bind_refuses_whatever_is_not_a_unix_socket(hub: Hub, endpoint: str) -> None:
    with pytest.raises(BootError, match="only ipc:// is served"):
        hub.router(endpoint, hwm=1, max_bytes=1)


def test_bind_refuses_to_replace_a_file_and_leaves_it_alone(hub: Hub, directory: Path) -> None:
    path = directory / "precious"
    path.write_text("data")
    with pytest.raises(BootError, match="is not a socket"):
        hub.router(f"ipc://{path}", hwm=1, max_bytes=1)
    assert path.read_text() == "data"


def test_bind_into_a_directory_that_is_not_there_says_where(hub: Hub, directory: Path) -> None:
    with pytest.raises(BootError, match=r"gone/x\.sock: cannot be bound"):
        hub.pull(f"ipc://{directory}/gone/x.sock")


def test_bind_takes_the_place_of_a_dead_daemons_socket(hub: Hub, directory: Path) -> None:
    path = directory / "test.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    router = hub.router(f"ipc://{path}", hwm=10, max_bytes=1000)
    introduced(router, connected(hub, f"ipc://{path}"))


@pytest.mark.parametrize(("mode", "maker"), [(0o660, "router"), (0o600, "pull"), (0o660, "publisher")])
def test_a_bound_socket_has_the_file_mode_of_its_kind(
    hub: Hub, directory: Path, mode: int, maker: str
) -> None:
    path = directory / "test.sock"
    options = {"hwm": 1, "max_bytes": 1} if maker == "router" else {}
    getattr(hub, maker)(f"ipc://{path}", **options)
    assert stat.S_IMODE(path.stat().st_mode) == mode


# --- waiting ----------------------------------------------------------------------------------------


def test_the_descriptor_is_edge_triggered_so_one_edge_may_stand_for_many_messages(
    hub: Hub, endpoint: str
) -> None:
    router = hub.router(endpoint, hwm=100, max_bytes=1000)
    dealer = connected(hub, endpoint)
    poller = select.poll()
    poller.register(router.fileno(), select.POLLIN)
    for number in range(20):
        assert dealer.send([b"%d" % number])
    found: list[list[bytes]] = []
    end_s = time.monotonic() + PATIENCE_S
    while len(found) < 20:
        assert time.monotonic() < end_s, "an edge was lost"
        if not router.readable():
            poller.poll(50)
        found += router.receive()
    assert [parts[1] for parts in found] == [b"%d" % number for number in range(20)]
    assert not router.readable()


def test_wait_returns_at_once_for_what_came_before_it(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=100, max_bytes=1000)
    dealer = connected(hub, endpoint)
    dealer.send([b"x"])
    poller = Poller([router])
    assert poller.wait(PATIENCE_S) == {router}
    assert poller.wait(PATIENCE_S) == {router}  # still unread
    router.receive()
    assert poller.wait(0.0) == set()


def test_wait_sees_descriptors_too_and_waits_no_less_than_asked(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=100, max_bytes=1000)
    reader, writer = os.pipe()
    try:
        poller = Poller([router], [reader])
        started_s = time.monotonic()
        assert poller.wait(0.0205) == set()
        assert time.monotonic() - started_s >= 0.0205
        os.write(writer, b"x")
        assert poller.wait(None) == {reader}
    finally:
        os.close(reader)
        os.close(writer)


def test_connection_events_come_in_order_and_wake_the_poller(hub: Hub, endpoint: str) -> None:
    dealer = hub.dealer(endpoint)
    dealer.watch()
    dealer.connect()
    poller = Poller([dealer])
    events: list[ConnectionEvent] = []

    def wait_for(count: int) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while len(events) < count:
            assert time.monotonic() < end_s, events
            poller.wait(0.1)
            events.extend(dealer.connection_events())

    for expected in (1, 3):
        router = hub.router(endpoint, hwm=1, max_bytes=1)
        wait_for(expected)
        router.close()
        wait_for(expected + 1)
    up, down = ConnectionEvent.UP, ConnectionEvent.DOWN
    assert events == [up, down, up, down]


def test_an_unwatched_port_has_no_events(hub: Hub, endpoint: str) -> None:
    dealer = hub.dealer(endpoint)
    dealer.connect()
    assert dealer.connection_events() == []


# --- publishing -------------------------------------------------------------------------------------


def test_a_late_subscriber_is_announced_so_that_it_can_get_the_last_value(hub: Hub, endpoint: str) -> None:
    publisher = hub.publisher(endpoint)
    assert publisher.send([b"metric.a", b"before"])
    subscribers = []
    for _ in range(2):  # the second subscriber of the same topic is announced too
        subscriber = hub.subscriber(endpoint, [b"metric."])
        subscribers.append(subscriber)
        subscriber.connect()
        announced: list[list[bytes]] = []

        def is_announced(port: Port = subscriber, seen: list[list[bytes]] = announced) -> bool:
            assert port.receive() == []  # its subscription goes out only while it looks at its socket
            seen.extend(parts for parts in publisher.receive() if parts[0][:1] == b"\x01")
            return bool(seen)

        until(publisher, is_announced, "not announced")
        assert announced == [[b"\x01metric."]]
        publisher.send([b"metric.a", b"last value"])
        publisher.send([b"other", b"x"])
        publisher.send([b"metric.b", b"end"])
        assert received(subscriber, 2) == [[b"metric.a", b"last value"], [b"metric.b", b"end"]]


# --- the end ----------------------------------------------------------------------------------------


def test_closing_cannot_hang_with_unsent_messages_and_watchers_left(directory: Path) -> None:
    hub = Hub()
    router = hub.router(f"ipc://{directory}/a.sock", hwm=1000, max_bytes=10_000)
    dealer = connected(hub, f"ipc://{directory}/a.sock", hwm=1000)
    identity = introduced(router, dealer)
    for _ in range(500):
        router.send_to(identity, [b"x" * 10_000])
        dealer.send([b"x" * 1_000])
    lost = hub.dealer(f"ipc://{directory}/nobody.sock")
    lost.watch()
    lost.connect()
    lost.send([b"x"])
    closer = threading.Thread(target=hub.close, daemon=True)
    closer.start()
    closer.join(PATIENCE_S)
    assert not closer.is_alive()


def test_a_last_message_gets_out_when_the_port_lingers(directory: Path) -> None:
    endpoint = f"ipc://{directory}/test.sock"
    receiving, sending = Hub(), Hub()
    try:
        router = receiving.router(endpoint, hwm=10, max_bytes=1000)
        dealer = connected(sending, endpoint)
        assert dealer.send([b"goodbye"])
        dealer.close(linger_s=2.0)
        sending.close()
        assert received(router)[0][1] == b"goodbye"
    finally:
        sending.close()
        receiving.close()


def test_a_forked_child_that_closes_the_hub_hurts_nobody(hub: Hub, endpoint: str) -> None:
    router = hub.router(endpoint, hwm=10, max_bytes=1000)
    dealer = connected(hub, endpoint)
    identity = introduced(router, dealer)
    child = os.fork()
    if not child:
        hub.close()
        os._exit(0)
    sentinel = os.pidfd_open(child)
    try:
        assert Poller((), [sentinel]).wait(PATIENCE_S), "the child hangs"
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        os.close(sentinel)
    assert router.send_to(identity, [b"still here"]) is SendResult.SENT
    assert received(dealer) == [[b"still here"]]


def test_what_came_before_the_first_look_is_not_missed(hub: Hub, endpoint: str) -> None:
    """ZeroMQ signals a descriptor only for what comes after its socket was once found empty.

    A connection that was up before the poller existed would never be heard of: nothing else comes after it.
    """
    router = hub.router(endpoint, hwm=10, max_bytes=1024)
    for _ in range(20):
        port = hub.dealer(endpoint)
        port.watch()
        port.connect()
        until_s = time.monotonic() + 5
        while not port.writable():  # up, as far as ZeroMQ is concerned; its event is waiting
            assert time.monotonic() < until_s
        poller, events = Poller([port]), []
        while not events:
            assert poller.wait(5), "the event was there before the poller, and was never told"
            events += port.connection_events()
        assert events == [ConnectionEvent.UP]
        port.close()
    router.close()
