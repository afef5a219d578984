"""A broker for tests of the client: a real ROUTER in a thread, answering as a test tells it to.

May live here: the fake and the ready-made behaviours tests share. May not: tests.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec

from walled import protocol
from walled.adapters.sockets import Hub, Poller, Port
from walled.errors import ProtocolError
from walled.payload import Answer, Usage, pack_answer, unpack_request
from walled.protocol import Envelope, FinalHeader, PartialHeader, RequestHeader


class Peer:
    """One message's sender, to be answered."""

    def __init__(self, port: Port, identity: bytes, message: Envelope) -> None:
        self._port = port
        self._identity = identity
        self.message = message
        self.request_id = message.request_id

    def header(self) -> RequestHeader:
        return protocol.decode_header(RequestHeader, self.message.header)

    def prompt(self) -> str:
        request = unpack_request(self.message.payload)
        return request.messages[-1].content if request.messages else (request.prompt or request.input[0])

    def send(self, kind: bytes, header: msgspec.Struct | None = None, payload: bytes = b"") -> None:
        self.raw(protocol.frames(kind, self.request_id, header, payload))  # type: ignore[arg-type]

    def raw(self, parts: list[bytes]) -> None:
        self._port.send_to(self._identity, parts)

    def final(self, text: str, partials: int = 0, **header: object) -> None:
        answer = Answer(text=text, model="fake", usage=Usage(completion_tokens=2, prompt_tokens=3))
        self.send(protocol.FINAL, FinalHeader(partials=partials, **header), pack_answer(answer))  # type: ignore[arg-type]

    def partial(self, seq: int, text: str, *, restart: bool = False) -> None:
        self.send(protocol.PARTIAL, PartialHeader(seq, restart), text.encode())


Behaviour = Callable[[Peer], None]


def echo(peer: Peer) -> None:
    """Answer every request with its own last text; streams word by word."""
    if peer.message.type != protocol.REQUEST:
        return
    text = peer.prompt()
    words = text.split(" ")
    if peer.header().stream:
        for seq, word in enumerate(words):
            peer.partial(seq, word if seq == 0 else " " + word)
    peer.final(text, partials=len(words), backend="fake", worker=0)


class FakeBroker:
    """A ROUTER on `<directory>/client.sock`, alive between `start` and `stop`."""

    def __init__(self, directory: Path, behaviour: Behaviour = echo) -> None:
        self.endpoint = f"ipc://{directory}/client.sock"
        self.behaviour = behaviour
        self.seen: queue.Queue[Envelope] = queue.Queue()
        """Every message received, in order."""
        self.malformed = 0
        self._orders: queue.Queue[Callable[[], None]] = queue.Queue()
        self._thread: threading.Thread | None = None
        self._wake_read = self._wake_write = -1
        self._stopping = False

    def start(self) -> FakeBroker:
        self._stopping = False
        self._wake_read, self._wake_write = os.pipe()
        up = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(up,), daemon=True)
        self._thread.start()
        assert up.wait(5)
        return self

    def do(self, order: Callable[[], None]) -> None:
        """Run something in the broker's thread: only there may a Peer be used later."""
        self._orders.put(order)
        os.write(self._wake_write, b"o")

    def next(self, kind: bytes, timeout_s: float = 5.0) -> Envelope:
        """The next message of that type; others before it are passed over."""
        while True:
            message = self.seen.get(timeout=timeout_s)
            if message.type == kind:
                return message

    def stop(self) -> None:
        if self._thread is not None:
            self._stopping = True
            os.write(self._wake_write, b"s")
            self._thread.join(5)
            assert not self._thread.is_alive()
            self._thread = None
            os.close(self._wake_read)
            os.close(self._wake_write)

    def __enter__(self) -> FakeBroker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, up: threading.Event) -> None:
        hub = Hub()
        port = hub.router(self.endpoint, hwm=100_000, max_bytes=1 << 24)
        poller = Poller([port], [self._wake_read])
        up.set()
        try:
            while not self._stopping:
                ready = poller.wait(10)
                if self._wake_read in ready:
                    os.read(self._wake_read, 1)
                    while not self._orders.empty():
                        self._orders.get()()
                for parts in port.receive():
                    try:
                        message = protocol.parse(parts[1:])
                    except ProtocolError:
                        self.malformed += 1
                        continue
                    self.seen.put(message)
                    if message.type != protocol.DISCONNECT:
                        self.behaviour(Peer(port, parts[0], message))
        finally:
            port.close()
            hub.close()


class Held:
    """A behaviour that answers nothing by itself; the test takes the requests by their text."""

    def __init__(self, broker: FakeBroker) -> None:
        self._broker = broker
        self._peers: dict[str, Peer] = {}
        self._news = threading.Condition()
        broker.behaviour = self._hold

    def _hold(self, peer: Peer) -> None:
        if peer.message.type == protocol.REQUEST:
            with self._news:
                self._peers[peer.prompt()] = peer
                self._news.notify_all()

    def peer(self, text: str) -> Peer:
        with self._news:
            assert self._news.wait_for(lambda: text in self._peers, 5), f"{text} never came"
            return self._peers[text]

    def do(self, text: str, action: Callable[[Peer], object]) -> None:
        """Have the broker's thread act on the request with that text."""
        peer = self.peer(text)
        self._broker.do(lambda: action(peer) and None)


class Asking(threading.Thread):
    """A call in a thread of its own; `result()` returns or raises what the call did."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._outcome: object = None
        self.start()

    def run(self) -> None:
        try:
            self._outcome = self._call()
        except BaseException as exc:
            self._outcome = exc

    def result(self, timeout_s: float = 5.0) -> object:
        self.join(timeout_s)
        assert not self.is_alive(), "the call hangs"
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome
