"""THE wire contract: preamble, message types, headers, limits, encoding and decoding of frames.

The only place where frames of the client, worker, control and metric sockets are shaped; docs/protocol.md
says the same in prose, tests/golden holds both to it. May not live here: sockets, the payload's meaning
(payload.py), any decision.

A message is exactly five frames (a ROUTER adds the peer's identity in front):

    +----------+------+------------+-------------------+-----------------------+
    | preamble | type | request id | header            | payload               |
    | WLD 0x01 | 1 B  | 0..32 B    | MessagePack map,  | opaque to the broker: |
    |          |      |            | <= 4 KiB          | request, answer, text |
    +----------+------+------------+-------------------+-----------------------+

Unknown magic, version, type or a wrong frame count is a ProtocolError whose `reason` is counted. Unknown
header fields are ignored (a newer peer may add some); missing or ill-typed ones are refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeVar

import msgspec

from walled.errors import ProtocolError, VersionMismatch, WalledError

PROTOCOL_VERSION: Final = 1
MAGIC: Final = b"WLD"
PREAMBLE: Final = MAGIC + bytes([PROTOCOL_VERSION])
FRAME_COUNT: Final = 5

MAX_HEADER_BYTES: Final = 4096
MAX_READY_HEADER_BYTES: Final = 256 * 1024
"""READY lists the models of a backend; a worker is trusted more than a client, but not without bound."""
MAX_CONTEXT_BYTES: Final = 2048
"""What a client accepts as context, so that the header holds it beside the longest names."""
MAX_REQUEST_ID_BYTES: Final = 32
MAX_PAYLOAD_BYTES: Final = 32 * 1024 * 1024
"""Hard cap (ZMQ_MAXMSGSIZE) of one frame; the configuration may only lower it."""
MAX_DEADLINE_MS: Final = 24 * 3600 * 1000
MAX_ERROR_CHARS: Final = 1024
MAX_ERROR_BYTES: Final = 3072

# Message types. One byte each; stable for ever.
REQUEST: Final = b"\x01"  # client -> broker, broker -> worker
ACCEPTED: Final = b"\x02"  # broker -> client: queued, with position and eta
PARTIAL: Final = b"\x03"  # worker -> broker -> client: more text; also proof of life
FINAL: Final = b"\x04"  # worker -> broker -> client: the whole answer; ends the request
ERROR: Final = b"\x05"  # worker -> broker -> client: typed error; ends the request
BUSY: Final = b"\x06"  # broker -> client: refused at admission with retry_after_s; ends the request
CANCEL: Final = b"\x07"  # client -> broker -> worker
READY: Final = b"\x08"  # worker -> broker: who I am, what I serve, how many slots
CREDIT: Final = b"\x09"  # worker -> broker: my number of slots is now N
HEARTBEAT: Final = b"\x0a"  # both ways: from the working loop, never from an I/O thread
DISCONNECT: Final = b"\x0b"  # both ways: the peer leaves on purpose
CONTROL: Final = b"\x0c"  # walled-ctl <-> broker; broker -> worker (start streaming a running job)
TYPES: Final = frozenset(bytes([n]) for n in range(1, 13))

Priority = Literal["interactive", "normal", "batch"]
PRIORITIES: Final[tuple[Priority, ...]] = ("interactive", "normal", "batch")
CachePolicy = Literal["default", "always", "bypass", "refresh", "only"]
Mode = Literal["", "auto", "ai_only", "template_only", "hybrid"]
Source = Literal["model", "cache", "coalesced", "stale", "fallback_model", "template"]

Name = Annotated[str, msgspec.Meta(max_length=256)]
Label = Annotated[str, msgspec.Meta(max_length=128)]
Context = Annotated[
    dict[Annotated[str, msgspec.Meta(max_length=64)], Annotated[str, msgspec.Meta(max_length=512)]],
    msgspec.Meta(max_length=32),
]
"""Names and values; together with the rest of a header at most MAX_HEADER_BYTES."""


class _Header(msgspec.Struct, omit_defaults=True, frozen=True, gc=False):
    """Base of all headers: immutable maps whose default values are left out."""


class RequestHeader(_Header, frozen=True):
    """How a request is to be delivered; client -> broker."""

    model: Name
    """A model name or alias of the configuration; "default" is always one."""
    deadline_ms: Annotated[int, msgspec.Meta(ge=1, le=MAX_DEADLINE_MS)]
    """Milliseconds left at sending; every hop subtracts what it used."""
    kind: Literal["chat", "generate", "embed"] = "chat"
    priority: Priority = "normal"
    cache: CachePolicy = "default"
    deterministic: bool = False
    """The client's reading of the payload (temperature 0, a seed, an embedding); the worker checks it."""
    stream: bool = False
    accept: bool = False
    """Send ACCEPTED when the request has to wait."""
    background: bool = False
    """Nobody waits for the answer (a refresh): send only the ending, and shed it first."""
    namespace: Label = "default"
    session: Label = ""
    """Requests of one session go to the same worker while that is possible (KV prefix reuse)."""
    mode: Mode = ""
    """Steps of the ladder this request may be answered from; "" is the route's or the configuration's."""
    context: Context = {}
    """Facts for the slots of templates and the rules that look at them; part of the cache key when given."""
    restarts: bool = False
    """The caller understands a PARTIAL with `restart`; without it a stream that broke off is ended."""


class JobHeader(_Header, frozen=True):
    """A request as a worker gets it; the request id of the frame is the broker's job id."""

    model: Name
    deadline_ms: int
    kind: Literal["chat", "generate", "embed"] = "chat"
    stream: bool = False
    deterministic: bool = False
    store: bool = False
    """Put a complete answer into the cache under (namespace, model, payload)."""
    namespace: Label = "default"
    session: Label = ""
    context: Context = {}
    trace: str = ""
    """Hexadecimal request id of the first client, for logs."""
    attempt: int = 1
    first_token_ms: int = 0
    """The backend may be silent for so long before its first token; after that another one is to have its
    chance. 0: its own first_token_timeout_s alone counts."""


class Phases(_Header, frozen=True):
    """Where the time of one answer went, in milliseconds; absent when a phase did not happen."""

    queue_ms: float = 0.0
    load_ms: float = 0.0
    prefill_ms: float = 0.0
    decode_ms: float = 0.0
    first_token_ms: float = 0.0
    """From the worker's receipt of the job to its first token."""
    store_ms: float = 0.0
    total_ms: float = 0.0
    """From the broker's (on a client's local hit: the client's) receipt to the ending."""


class AcceptedHeader(_Header, frozen=True):
    position: int
    """Requests that are expected to start earlier; 0 is next."""
    eta_s: float
    """Expected seconds until the answer starts."""


class PartialHeader(_Header, frozen=True):
    seq: int
    """0, 1, 2, ... within one attempt; a gap means text was lost and the stream must be failed."""
    restart: bool = False
    """The text before this was of an attempt that died: drop it."""


class FinalHeader(_Header, frozen=True):
    """Ends a request well. The payload is the whole answer, whatever was streamed before."""

    source: Source = "model"
    degraded: bool = False
    reason: Label = ""
    """Why the answer is degraded: the code of the error it stands in for."""
    backend: Label = ""
    worker: int = -1
    """Slot of the worker that generated; -1 when none did."""
    attempts: int = 1
    partials: int = 0
    """How many PARTIALs the worker sent for this attempt."""
    age_s: float = 0.0
    """Age of a cached answer."""
    stored: bool = False
    phases: Phases = Phases()


class ErrorHeader(_Header, frozen=True):
    """Ends a request badly (ERROR, BUSY), or refuses a frame."""

    code: Label
    message: Annotated[str, msgspec.Meta(max_length=MAX_ERROR_CHARS)] = ""
    retryable: bool = False
    retry_after_s: float | None = None


class ModelInfo(_Header, frozen=True):
    """One model a worker can run."""

    name: Name
    """The name requests use (the configuration's, not the upstream's)."""
    digest: Name
    """Weights plus every server-side setting that can change an answer; goes into the cache key."""
    capabilities: tuple[Label, ...] = ("chat", "generate")
    """Of: chat, generate, embed, tools, images, schema."""
    context_tokens: int = 0
    """Context window of one request; 0 when unknown."""


class ReadyHeader(_Header, frozen=True):
    worker: int
    token: bytes
    """The run's secret, handed to children at spawn: nobody else may call itself a worker."""
    pid: int
    backend: Label
    kind: Label
    slots: Annotated[int, msgspec.Meta(ge=0, le=65536)]
    models: tuple[ModelInfo, ...] = ()
    max_loaded_models: int = 0
    """How many models the backend holds at once; 0 when that is no limit."""


class CreditHeader(_Header, frozen=True):
    slots: Annotated[int, msgspec.Meta(ge=0, le=65536)]


class HeartbeatHeader(_Header, frozen=True):
    epoch: bytes = b""
    """The sender's incarnation: a change means the peer was restarted and knows nothing."""
    in_flight: int = 0


class Envelope(NamedTuple):
    """A message taken apart, header still packed."""

    type: bytes
    request_id: bytes
    header: bytes
    payload: bytes


H = TypeVar("H", bound=_Header)

_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""All that a decoder raises on hostile bytes; text that is not UTF-8 is not a DecodeError to msgspec."""

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type[_Header], msgspec.msgpack.Decoder[Any]] = {
    cls: msgspec.msgpack.Decoder(cls)
    for cls in (
        RequestHeader, JobHeader, AcceptedHeader, PartialHeader, FinalHeader, ErrorHeader, ReadyHeader,
        CreditHeader, HeartbeatHeader,
    )
}  # fmt: skip

encode_header = _encoder.encode
"""Pack one header."""


def frames(
    kind: bytes, request_id: bytes, header: _Header | None = None, payload: bytes = b""
) -> list[bytes]:
    """The five frames of a message."""
    return [PREAMBLE, kind, request_id, b"\x80" if header is None else _encoder.encode(header), payload]


def parse(parts: Sequence[bytes], max_payload_bytes: int = MAX_PAYLOAD_BYTES) -> Envelope:
    """Check shape, version and sizes of a received message (identity frame already taken off).

    Raises ProtocolError (VersionMismatch) whose `reason` is one of: frames, magic, version, type,
    request_id, header_size, payload_size.
    """
    if len(parts) != FRAME_COUNT:
        raise ProtocolError(f"a message has {FRAME_COUNT} frames, this one {len(parts)}", reason="frames")
    preamble, kind, request_id, header, payload = parts
    if preamble != PREAMBLE:
        if preamble[:3] == MAGIC and len(preamble) == 4:
            raise VersionMismatch(
                f"peer speaks protocol {preamble[3]}, this side {PROTOCOL_VERSION}; install matching versions"
            )
        raise ProtocolError("the first frame is not the walled preamble", reason="magic")
    if kind not in TYPES:
        raise ProtocolError("unknown message type", reason="type")
    if len(request_id) > MAX_REQUEST_ID_BYTES:
        raise ProtocolError(f"request id over {MAX_REQUEST_ID_BYTES} bytes", reason="request_id")
    if len(header) > (MAX_READY_HEADER_BYTES if kind == READY else MAX_HEADER_BYTES):
        raise ProtocolError("header too large", reason="header_size")
    if len(payload) > max_payload_bytes:
        raise ProtocolError(
            f"payload of {len(payload)} bytes; at most {max_payload_bytes} are taken", reason="payload_size"
        )
    return Envelope(kind, request_id, header, payload)


def decode_header(cls: type[H], data: bytes) -> H:
    """Unpack a header. Raises ProtocolError (reason `header`) naming the offending field."""
    try:
        header: H = _decoders[cls].decode(data)
    except _UNDECODABLE as exc:
        raise ProtocolError(f"{cls.__name__}: {exc}", reason="header") from None
    return header


def error_header(error: WalledError) -> ErrorHeader:
    """The wire form of an error. The message is cut so that the header always fits MAX_HEADER_BYTES."""
    message = error.message[:MAX_ERROR_CHARS].encode("utf-8", "replace")[:MAX_ERROR_BYTES]
    return ErrorHeader(
        code=error.code,
        message=message.decode("utf-8", "ignore"),
        retryable=error.retryable,
        retry_after_s=error.retry_after_s,
    )


# --- control: small JSON-like maps, both ways ------------------------------------------------------


class ControlRequest(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, frozen=True):
    """One verb of walled-ctl. `op` is `noun.verb` as listed in docs/protocol.md, section Control."""

    op: Label
    worker: int = -1
    request: Label = ""
    """Hexadecimal request id."""


_control_decoder = msgspec.msgpack.Decoder(ControlRequest)


def pack_control(request: ControlRequest) -> bytes:
    return _encoder.encode(request)


def unpack_control(data: bytes) -> ControlRequest:
    """Raises ProtocolError (reason `control`)."""
    try:
        return _control_decoder.decode(data)
    except _UNDECODABLE as exc:
        raise ProtocolError(f"control request: {exc}", reason="control") from None


def pack_map(value: dict[str, Any]) -> bytes:
    """Pack a control reply, a metric message or a delta."""
    return _encoder.encode(value)


_map_decoder = msgspec.msgpack.Decoder(dict[str, Any])


def unpack_map(data: bytes, max_bytes: int = 1024 * 1024) -> dict[str, Any]:
    """Unpack a map that our own process sent (control reply, metric message). Raises ProtocolError."""
    if len(data) > max_bytes:
        raise ProtocolError(f"map of {len(data)} bytes; at most {max_bytes} are taken", reason="map_size")
    try:
        return _map_decoder.decode(data)
    except _UNDECODABLE as exc:
        raise ProtocolError(f"map: {exc}", reason="map") from None
