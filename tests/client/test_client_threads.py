"""Client shared by threads, batches, forks and signals, against a real ROUTER."""

from __future__ import annotations

import os
import signal

import pytest
from walled_client import Client

from tests.client.fake_broker import Asking, FakeBroker, Held, Peer, echo
from walled import protocol
from walled.errors import Cancelled, DeadlineExceeded, StreamInterrupted, WalledError
from walled.protocol import ControlRequest, ErrorHeader

# --- threads ---------------------------------------------------------------------------------------


def test_the_leader_hands_on_when_its_own_answer_comes_first(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        asking = {}
        for name in ("a", "b", "c"):
            asking[name] = Asking(lambda name=name: client.chat(name, deadline_s=20))  # type: ignore[misc]
            held.peer(name)
        for name in ("a", "b", "c"):
            held.do(name, lambda peer, name=name: peer.final(name))  # type: ignore[misc]
            assert str(asking[name].result(5)) == name


def test_followers_are_answered_while_the_leader_waits(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        leader = Asking(lambda: client.chat("leader", deadline_s=20))
        held.peer("leader")
        for name in ("b", "c"):
            follower = Asking(lambda name=name: client.chat(name, deadline_s=20))  # type: ignore[misc]
            held.do(name, lambda peer, name=name: peer.final(name))  # type: ignore[misc]
            assert str(follower.result(5)) == name
        held.do("leader", lambda peer: peer.final("leader"))
        assert str(leader.result(5)) == "leader"


def test_a_follower_with_a_short_deadline_does_not_wait_for_the_leader(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        leader = Asking(lambda: client.chat("leader", deadline_s=20))
        held.peer("leader")
        with pytest.raises(DeadlineExceeded):
            client.chat("short", deadline_s=0.1)
        held.do("leader", lambda peer: peer.final("done"))
        assert str(leader.result(5)) == "done"


def test_many_threads_each_get_their_own_answers(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint) as client:

        def ask(name: int) -> int:
            for n in range(60):
                text = f"thread {name} question {n}"
                if n % 5 == 0:
                    assert client.stream(text).finish().text == text
                elif n % 7 == 0:
                    assert [str(r) for r in client.batch([text, "b"])] == [text, "b"]
                else:
                    assert client.chat(text).text == text
            return name

        askers = [Asking(lambda name=name: ask(name)) for name in range(16)]  # type: ignore[misc]
        assert [asker.result(60) for asker in askers] == list(range(16))
        assert client.in_flight() == []
        assert client.counters()["late_replies"] == 0


def test_cancel_from_another_thread(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        asking, other = Asking(lambda: client.chat("x")), Asking(lambda: client.chat("y"))
        request_id = held.peer("x").request_id.hex()
        held.peer("y")
        assert set(client.in_flight()) == {request_id, held.peer("y").request_id.hex()}
        assert client.cancel(request_id) == 1
        with pytest.raises(Cancelled):
            asking.result(5)
        assert broker.next(protocol.CANCEL).request_id.hex() == request_id
        assert client.cancel("00") == 0
        assert client.cancel() == 1
        with pytest.raises(Cancelled):
            other.result(5)


def test_close_ends_every_call_and_tells_the_broker(broker: FakeBroker) -> None:
    def confirm(peer: Peer) -> None:
        if peer.message.type == protocol.CANCEL:
            peer.send(protocol.ERROR, ErrorHeader("cancelled"))
        else:
            held._hold(peer)

    held = Held(broker)
    broker.behaviour = confirm
    client = Client(endpoint=broker.endpoint)
    asking = [Asking(lambda name=name: client.chat(name)) for name in ("a", "b", "c")]  # type: ignore[misc]
    for name in ("a", "b", "c"):
        held.peer(name)
    client.close()
    client.close()
    for asker in asking:
        with pytest.raises(Cancelled):
            asker.result(5)
    assert len([broker.next(protocol.CANCEL) for _ in range(3)]) == 3
    with pytest.raises(Cancelled):
        client.chat("x")


def test_a_closed_stream_is_cancelled_even_if_the_program_ends_at_once(broker: FakeBroker) -> None:
    def confirm(peer: Peer) -> None:
        if peer.message.type == protocol.CANCEL:
            peer.send(protocol.ERROR, ErrorHeader("cancelled"))

    broker.behaviour = confirm
    with Client(endpoint=broker.endpoint) as client:
        stream = client.stream("x")
        stream.close()
    assert broker.next(protocol.CANCEL).request_id.hex() == stream.request_id
    assert broker.next(protocol.DISCONNECT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_that_raise_at_any_moment_leave_a_client_that_works(broker: FakeBroker) -> None:
    class Rung(Exception):
        pass

    def ring(*_: object) -> None:
        raise Rung

    def ring_and_echo(peer: Peer) -> None:
        if peer.message.type == protocol.REQUEST:
            os.kill(os.getpid(), signal.SIGUSR1)
        echo(peer)

    old = signal.signal(signal.SIGUSR1, ring)
    rung = 0
    try:
        with Client(endpoint=broker.endpoint) as client:
            client.chat("connect")
            follower = Asking(lambda: [client.chat(f"f{n}", deadline_s=5) for n in range(50)] and None)
            broker.behaviour = ring_and_echo
            for n in range(300):
                try:
                    assert client.chat(f"q{n}", deadline_s=5).text == f"q{n}"
                except Rung:
                    rung += 1
            broker.behaviour = echo
            try:
                follower.result(60)
            except DeadlineExceeded:
                pass  # its answer was in the hands of the thread that the signal struck
            assert client.chat("after").text == "after"
    except Rung:
        pytest.fail("the bell rang after its time")
    finally:
        signal.signal(signal.SIGUSR1, old)
    assert rung > 0


# --- batch -----------------------------------------------------------------------------------------


def test_a_batch_answers_in_order_with_errors_in_place(broker: FakeBroker) -> None:
    def sometimes(peer: Peer) -> None:
        if peer.prompt() == "bad":
            peer.send(protocol.ERROR, ErrorHeader("backend_error", "no"))
        else:
            peer.final(peer.prompt())

    broker.behaviour = sometimes
    requests: list[object] = [f"q{n}" for n in range(50)]
    requests[7] = {"messages": "bad"}
    requests[9] = {"prompt": "", "temperature": 0}
    requests[11] = {"prompt": "p", "deadline_s": 4, "namespace": "n"}
    requests[13] = 5
    with Client(endpoint=broker.endpoint) as client:
        results = client.batch(requests, concurrency=4)  # type: ignore[arg-type]
    errors = {n: r.code for n, r in enumerate(results) if isinstance(r, WalledError)}
    assert errors == {7: "backend_error", 9: "bad_request", 13: "bad_request"}
    assert [str(results[n]) for n in (0, 11, 49)] == ["q0", "p", "q49"]


def test_a_batch_is_bounded(broker: FakeBroker) -> None:
    held = Held(broker)
    with Client(endpoint=broker.endpoint) as client:
        asking = Asking(lambda: client.batch([f"q{n}" for n in range(5)], concurrency=2))
        for n in range(5):
            held.peer(f"q{n}")
            assert f"q{n + 2}" not in held._peers
            if n + 1 < 5:
                held.peer(f"q{n + 1}")
            held.do(f"q{n}", lambda peer, n=n: peer.final(f"q{n}"))  # type: ignore[misc]
        assert [str(r) for r in asking.result(5)] == [f"q{n}" for n in range(5)]  # type: ignore[attr-defined]


# --- control and fork ------------------------------------------------------------------------------


def test_models_and_status_come_over_the_client_socket(broker: FakeBroker) -> None:
    def control(peer: Peer) -> None:
        op = protocol.unpack_control(peer.message.payload).op
        peer.send(protocol.CONTROL, None, protocol.pack_map({"schema": "x/1", "ok": True, "op": op}))

    broker.behaviour = control
    with Client(endpoint=broker.endpoint) as client:
        assert client.models()["op"] == "models.list"
        assert client.status() == {"schema": "x/1", "ok": True, "op": "status"}
    assert ControlRequest("status").op == "status"


def test_after_a_fork_both_sides_go_on_with_connections_of_their_own(broker: FakeBroker) -> None:
    with Client(endpoint=broker.endpoint) as client:
        assert client.chat("before").text == "before"
        held = Held(broker)
        stream = client.stream("s")
        held.do("s", lambda peer: peer.partial(0, "a"))
        next(stream)
        broker.behaviour = echo
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            outcome = b"no"
            try:
                text = client.chat("in the child").text
                try:
                    next(stream)
                except StreamInterrupted:
                    outcome = text.encode()
            finally:
                os.write(write, outcome)
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            assert pipe.read() == b"in the child"
        assert os.waitpid(child, 0)[1] == 0
        held.do("s", lambda peer: peer.final("a"))
        assert stream.finish().text == "a"
        assert client.chat("after").text == "after"
