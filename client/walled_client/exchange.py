"""The conversation with the broker as a pure state machine: which calls are open, what arrived for which.

May live here: request ids, the table of pending calls, correlation, due times, what to send again after a
lost connection, assembling a stream. May not: sockets, clocks (`now_s` is an argument, monotonic), threads.

Both clients drive it the same way:
- `open` a call, try to send `frames(call)`, tell `sent(call)` when that worked;
- hand every received message to `receive`, every lost connection to `lost`;
- at `due_s` or later ask `expire`; after a wake-up try the calls in `unsent` again.
A message whose request id is not in the table is dropped and counted: it can never reach another call.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from walled import protocol
from walled.errors import (
    Cancelled,
    DaemonUnavailable,
    DeadlineExceeded,
    InternalError,
    ProtocolError,
    StreamInterrupted,
    WalledError,
    from_wire,
)  # fmt: skip
from walled.payload import unpack_answer
from walled.protocol import (
    AcceptedHeader,
    ControlRequest,
    Envelope,
    ErrorHeader,
    FinalHeader,
    HeartbeatHeader,
    PartialHeader,
    RequestHeader,
)  # fmt: skip
from walled_client.results import Accepted, Reply, StreamChunk

GRACE_S = 0.1
"""How long past its deadline a call waits for the broker's own verdict before ending by itself."""
MAX_CANCELLING = 4096
"""Cancelled calls whose ending is still remembered, so that it is not counted as late."""
_ENDINGS = frozenset({protocol.FINAL, protocol.ERROR, protocol.BUSY, protocol.CONTROL})
_NEVER = float("inf")
LOOK_S = 0.05
"""Between two looks whether there is a daemon at all, while calls wait to be sent."""


class Call:
    """One call from its opening to its ending."""

    __slots__ = (
        "accepted", "end_by_s", "ended", "ending", "error", "header", "inbox", "next_seq", "opened_s",
        "parts", "payload", "reach_by_s", "request_id", "restarted", "sent", "text_seen", "waiter",
    )  # fmt: skip

    def __init__(
        self,
        request_id: bytes,
        header: RequestHeader | None,
        payload: bytes,
        now_s: float,
        deadline_s: float,
        reach_by_s: float,
        waiter: Any,
    ) -> None:
        self.request_id = request_id
        self.header = header
        """None: a control request."""
        self.payload = payload
        self.opened_s = now_s
        self.end_by_s = now_s + deadline_s + GRACE_S
        self.reach_by_s = reach_by_s
        """The daemon must have been reached by then."""
        self.waiter = waiter
        """Whom the shell wakes; means nothing here."""
        self.sent = False
        self.ended = False
        self.ending: Envelope | None = None
        self.error: WalledError | None = None
        self.accepted: Accepted | None = None
        self.inbox: deque[Envelope] | None = deque() if header is not None and header.stream else None
        """PARTIALs not taken yet; None when the call does not stream."""
        self.text_seen = False
        self.next_seq = 0
        self.parts: list[str] = []
        self.restarted = False
        """An empty part announced a new attempt: its first part is numbered 0, or 1 after that one."""

    @property
    def news(self) -> bool:
        """Whether the caller has something to take."""
        return self.ended or bool(self.inbox)

    def reply(self, now_s: float) -> Reply:
        """The whole answer of an ended call; raises how it ended otherwise."""
        if self.error is not None:
            raise self.error
        ending = self.ending
        assert ending is not None, "the call has not ended"
        if ending.type != protocol.FINAL:
            raise _wire_error(ending)
        header = protocol.decode_header(FinalHeader, ending.header)
        try:
            answer = unpack_answer(ending.payload)
        except (msgspec.DecodeError, RecursionError):
            raise ProtocolError("the daemon's answer cannot be decoded", reason="answer") from None
        return Reply(
            answer=answer,
            source=header.source,
            degraded=header.degraded,
            reason=header.reason,
            backend=header.backend,
            worker=header.worker,
            attempts=header.attempts,
            age_s=header.age_s,
            stored=header.stored,
            phases=header.phases,
            elapsed_ms=(now_s - self.opened_s) * 1000,
            request_id=self.request_id.hex(),
        )

    def control_reply(self) -> dict[str, Any]:
        """The map a control request was answered with; raises how it ended otherwise."""
        if self.error is not None:
            raise self.error
        ending = self.ending
        assert ending is not None, "the call has not ended"
        if ending.type != protocol.CONTROL:
            raise _wire_error(ending)
        reply = protocol.unpack_map(ending.payload, protocol.MAX_PAYLOAD_BYTES)
        if reply.get("ok") is False:
            refusal = reply.get("error")
            refusal = refusal if isinstance(refusal, dict) else {}
            raise from_wire(
                str(refusal.get("code") or "internal"), str(refusal.get("message") or "refused by the daemon")
            )
        return reply

    def take(self, now_s: float) -> StreamChunk | Reply | None:
        """The next chunk of a stream, the Reply after the last one, None when nothing has come yet.

        Raises how the stream ended when it ended badly: StreamInterrupted when text is missing or differs
        from the whole answer.
        """
        if self.inbox:
            return self._chunk(self.inbox.popleft())
        if not self.ended:
            return None
        reply = self.reply(now_s)
        streamed = "".join(self.parts)
        if streamed == reply.text:
            return reply
        if self.next_seq == 0:
            # Nothing was streamed (a cached answer): the whole text is the one chunk.
            self.parts = [reply.text]
            self.next_seq = 1
            return StreamChunk(reply.text)
        raise StreamInterrupted(
            f"the streamed text ({len(streamed)} characters) is not the whole answer "
            f"({len(reply.text)} characters); drop it and ask again"
        )

    def _chunk(self, message: Envelope) -> StreamChunk:
        header = protocol.decode_header(PartialHeader, message.header)
        if header.restart:
            self.parts.clear()
            self.next_seq = 0
        if header.seq != self.next_seq and not (self.restarted and header.seq == 1):
            raise StreamInterrupted(
                f"part {self.next_seq} of the stream is missing (part {header.seq} came); ask again"
            )
        try:
            text = message.payload.decode()
        except UnicodeDecodeError:
            raise ProtocolError("a part of the stream is not UTF-8", reason="utf8") from None
        self.restarted = header.restart and not text
        self.next_seq = 0 if self.restarted else header.seq + 1
        self.parts.append(text)
        return StreamChunk(text, header.restart)


class Exchange:
    """All open calls of one connection."""

    def __init__(
        self, prefix: bytes, peer: str, connect_timeout_s: float, gone: Callable[[], bool] | None = None
    ) -> None:
        """`prefix`: 8 random bytes that make this connection's request ids unique; `peer`: for messages.

        `gone`: whether there is certainly no daemon; then nobody waits for the connect timeout.
        """
        self._gone = gone
        self._look_s = _NEVER
        """When `gone` is to be asked."""
        self._prefix = prefix
        self._peer = peer
        self._connect_timeout_s = connect_timeout_s
        self._counter = 0
        self._epoch = b""
        self._cancelling: dict[bytes, None] = {}
        self._ended: list[Call] = []
        self.asked = False
        """A request was sent on this connection, so the broker keeps something of us."""
        self.pending: dict[bytes, Call] = {}
        self.unsent: dict[bytes, Call] = {}
        """Calls the broker has not got: not connected, or its queue is full. In order of opening."""
        self.due_s = _NEVER
        """Nothing expires before this."""
        self.counters = {"late_replies": 0, "malformed": 0, "resent": 0, "connections_lost": 0}

    # --- opening and sending ---------------------------------------------------------------------

    def open(
        self, header: RequestHeader, payload: bytes, now_s: float, deadline_s: float, waiter: Any
    ) -> Call:
        """A new call. `deadline_s`: seconds it may take."""
        return self._open(header, payload, now_s, deadline_s, waiter)

    def open_control(
        self, request: ControlRequest | dict[str, Any], now_s: float, deadline_s: float, waiter: Any
    ) -> Call:
        """A new control request; a map is a question to the monitor."""
        pack = protocol.pack_control if isinstance(request, ControlRequest) else protocol.pack_map
        return self._open(None, pack(request), now_s, deadline_s, waiter)  # type: ignore[arg-type]

    def _open(
        self, header: RequestHeader | None, payload: bytes, now_s: float, deadline_s: float, waiter: Any
    ) -> Call:
        self._counter += 1
        request_id = self._prefix + self._counter.to_bytes(8, "big")
        reach_by_s = now_s + min(self._connect_timeout_s, deadline_s)
        call = Call(request_id, header, payload, now_s, deadline_s, reach_by_s, waiter)
        self.pending[request_id] = call
        self.unsent[request_id] = call
        self.due_s = min(self.due_s, reach_by_s)
        return call

    def frames(self, call: Call, now_s: float) -> list[bytes]:
        """The message to send for an open call, with the time it has left."""
        header = call.header
        if header is None:
            return protocol.frames(protocol.CONTROL, call.request_id, None, call.payload)
        self.asked = True
        left_ms = max(1, int((call.end_by_s - GRACE_S - now_s) * 1000))
        if left_ms < header.deadline_ms:
            header = msgspec.structs.replace(header, deadline_ms=left_ms)
        return protocol.frames(protocol.REQUEST, call.request_id, header, call.payload)

    def unsendable(self, now_s: float) -> None:
        """A call could not be sent: it will be seen at the next `expire` whether a daemon is there at all."""
        if self._gone is not None and self._look_s == _NEVER:
            self._look_s = now_s
            self.due_s = min(self.due_s, now_s)

    def sent(self, call: Call) -> None:
        """The message was taken by a connected broker."""
        call.sent = True
        self.unsent.pop(call.request_id, None)

    # --- what comes in ---------------------------------------------------------------------------

    def receive(self, parts: Sequence[bytes], now_s: float) -> Call | None:
        """Take a message; the call that has news from it, if any."""
        try:
            message = protocol.parse(parts)
        except ProtocolError as exc:
            self._count_malformed(exc.reason)
            return None
        kind = message.type
        call = self.pending.get(message.request_id)
        if call is None:
            if kind == protocol.HEARTBEAT:
                self._heartbeat(message, now_s)
            elif message.request_id not in self._cancelling:
                self.counters["late_replies"] += 1
            elif kind in _ENDINGS:
                del self._cancelling[message.request_id]
            return None
        if kind in _ENDINGS:
            if (kind == protocol.FINAL and call.header is None) or (
                kind == protocol.CONTROL and call.header is not None
            ):
                self._count_malformed("kind")
                call.error = ProtocolError(
                    "the daemon answered with the wrong type of message", reason="kind"
                )
            call.ending = message
            self._end(call)
            return call
        if kind == protocol.PARTIAL:
            if call.inbox is None:
                return None
            call.text_seen = True
            call.inbox.append(message)
            return call
        if kind == protocol.ACCEPTED:
            try:
                header = protocol.decode_header(AcceptedHeader, message.header)
            except ProtocolError as exc:
                self._count_malformed(exc.reason)
                return None
            call.accepted = Accepted(header.position, header.eta_s)
            return None
        if kind != protocol.HEARTBEAT:
            self._count_malformed("direction")
        return None

    def _heartbeat(self, message: Envelope, now_s: float) -> None:
        try:
            epoch = protocol.decode_header(HeartbeatHeader, message.header).epoch
        except ProtocolError as exc:
            self._count_malformed(exc.reason)
            return
        if self._epoch and epoch != self._epoch:
            self.lost(now_s)  # another broker answers on this connection: it knows nothing of our calls
        self._epoch = epoch

    def _count_malformed(self, reason: str) -> None:
        self.counters["malformed"] += 1
        name = f"malformed_{reason}"
        self.counters[name] = self.counters.get(name, 0) + 1

    def lost(self, now_s: float) -> None:
        """The connection is gone and with it all the broker knew; `expire` yields the calls that ended by it.

        A stream that has delivered text cannot be taken up again, and an order of an operator must not be
        given twice; everything else is sent once more.
        """
        self._epoch = b""
        self._cancelling.clear()
        self.counters["connections_lost"] += 1
        reach_by_s = now_s + self._connect_timeout_s
        for call in list(self.pending.values()):
            if not call.sent:
                continue
            if call.text_seen:
                error: WalledError = StreamInterrupted(
                    "the connection to the daemon was lost in the middle of the answer; ask again"
                )
            elif call.header is None:
                error = DaemonUnavailable(
                    "the connection to the daemon was lost; whether the order was carried out is not known"
                )
            else:
                call.sent = False
                call.reach_by_s = reach_by_s
                self.counters["resent"] += 1
                continue
            call.error = error
            self._end(call)
            self._ended.append(call)
        self.unsent = dict(self.pending)
        if self._ended:
            self.due_s = now_s
        elif self.pending:
            self.due_s = min(self.due_s, reach_by_s)
        if self.pending:
            self.unsendable(now_s)

    # --- endings of our own ----------------------------------------------------------------------

    def expire(self, now_s: float) -> list[Call]:
        """End the calls whose time is up. Those that were sent deserve `cancel_frames`."""
        if now_s < self.due_s:
            return []
        ended, self._ended = self._ended, []
        due_s = _NEVER
        gone = self._looked(now_s)
        for call in list(self.pending.values()):
            if now_s >= call.end_by_s:
                call.error = DeadlineExceeded(
                    "no answer before the call's deadline" if call.sent
                    else f"the call's deadline passed before the daemon at {self._peer} could be reached"
                )  # fmt: skip
            elif not call.sent and (gone or now_s >= call.reach_by_s):
                call.error = DaemonUnavailable(
                    f"no daemon takes requests at {self._peer}; start it with `walled`, or "
                    "check the run directory",
                    retry_after_s=1.0,
                )
            else:
                due_s = min(due_s, call.end_by_s if call.sent else min(call.end_by_s, call.reach_by_s))
                continue
            self._forget(call)
            ended.append(call)
        self.due_s = min(due_s, self._look_s)
        return ended

    def _looked(self, now_s: float) -> bool:
        """Whether there is certainly no daemon; looked at when it is time, while calls wait to be sent."""
        if not self.unsent or self._gone is None:
            self._look_s = _NEVER
            return False
        if now_s < self._look_s:
            return False
        if self._gone():
            self._look_s = _NEVER
            return True
        self._look_s = now_s + LOOK_S
        return False

    def cancel(self, call: Call, reason: str = "the call was cancelled by its caller") -> bool:
        """End a call now. True when the broker should be told (`cancel_frames`)."""
        if call.ended:
            return False
        call.error = Cancelled(reason)
        told = call.sent
        self._forget(call)
        return told

    def cancel_frames(self, call: Call) -> list[bytes]:
        return protocol.frames(protocol.CANCEL, call.request_id)

    @property
    def cancelling(self) -> int:
        """Cancelled calls whose ending has not come yet."""
        return len(self._cancelling)

    def _forget(self, call: Call) -> None:
        self._end(call)
        if call.sent:
            self._cancelling[call.request_id] = None
            if len(self._cancelling) > MAX_CANCELLING:
                del self._cancelling[next(iter(self._cancelling))]

    def _end(self, call: Call) -> None:
        call.ended = True
        self.pending.pop(call.request_id, None)
        self.unsent.pop(call.request_id, None)


def _wire_error(ending: Envelope) -> WalledError:
    if ending.type not in (protocol.ERROR, protocol.BUSY):
        return ProtocolError("the daemon answered with the wrong type of message", reason="kind")
    try:
        header = protocol.decode_header(ErrorHeader, ending.header)
    except ProtocolError as exc:
        return exc
    error = from_wire(header.code, header.message, header.retry_after_s)
    return error if error.message else InternalError(header.code)
