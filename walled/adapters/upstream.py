"""HTTP to a model server, whatever its dialect: what breaks in transit made ours, bodies read with a bound.

May live here: transport failures -> typed errors, Retry-After, bytes and lines. May not: statuses and words
of a dialect (openai_errors.py, ollama_wire.py), pools, jobs, time limits but the connect timeout's name.

Nothing is ever sent twice from here, not even over a kept connection that the server closed in the meantime:
whether a server had begun on a request cannot be told from outside, and the broker's retries have a budget. A
kept connection that was closed while idle is noticed by the pool before it is used, which costs nothing.
"""

from __future__ import annotations

import contextlib
import email.utils
import socket
import ssl
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import httpx

from walled.errors import BackendError, BackendTimeout, BackendUnavailable, Truncated

MAX_REPLY_BYTES = 64 * 1024 * 1024
MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_RETRY_AFTER_S = 3600.0
RETRY_S = 1.0
"""After which a server that could not be reached has a fair chance to be back."""

_CUT = ("closed", "incomplete", "disconnected")
"""In what h11 says of a connection that ended early; anything else it says is of bytes that are not HTTP."""


class Unreached(BackendUnavailable):
    """No connection came about, so nothing was sent: another host may be asked, and it is asked once."""


class SlowConnect(BackendTimeout):
    """The same, after connect_timeout_s."""


def unanswered(where: str, exc: httpx.RequestError, connect_timeout_s: float) -> BackendError:
    """The error for a call that ended before a status line came."""
    if isinstance(exc, httpx.ConnectTimeout | httpx.PoolTimeout):
        return SlowConnect(f"{where}: no connection within {connect_timeout_s:g} s (connect_timeout_s)")
    if isinstance(exc, httpx.ConnectError | httpx.UnsupportedProtocol):
        return Unreached(f"{where} cannot be reached: {_why_not(exc)}", retry_after_s=RETRY_S)
    if isinstance(exc, httpx.RemoteProtocolError) and not _cut(exc):
        return BackendError(f"{where} answers what is not HTTP")
    # From a server that went away over TLS comes an SSL error too, so only connecting blames TLS.
    kind = type(exc).__name__
    return BackendUnavailable(
        f"{where} closed the connection without an answer ({kind})", retry_after_s=RETRY_S
    )


def broken(where: str, exc: httpx.RequestError) -> BackendError:
    """The error for an answer that broke off or turned into nonsense after its status line."""
    if isinstance(exc, httpx.TransportError) and (
        not isinstance(exc, httpx.RemoteProtocolError) or _cut(exc)
    ):
        return Truncated(f"{where} broke off its answer ({type(exc).__name__})")
    return BackendError(f"{where}: the answer is not sound HTTP ({type(exc).__name__})")


def _cut(exc: httpx.RemoteProtocolError) -> bool:
    return any(word in str(exc) for word in _CUT)


def _why_not(exc: BaseException) -> str:
    """Which of DNS, TLS and the connection itself failed."""
    link: BaseException | None = exc
    while link is not None:
        if isinstance(link, socket.gaierror):
            return "DNS does not resolve the host's name; check its spelling and the resolver"
        if isinstance(link, ssl.SSLCertVerificationError):
            return f"TLS: its certificate is not accepted ({link.verify_message})"
        if isinstance(link, ssl.SSLError):
            return f"TLS: the handshake failed ({link.reason or 'no reason given'}); is it an https port?"
        link = link.__cause__ or link.__context__
    return f"{type(exc).__name__}; is the server running there?"


def retry_after_s(value: str) -> float | None:
    """Retry-After, a number of seconds or a date; None when it is neither."""
    with contextlib.suppress(ValueError):
        return min(max(0.0, float(value)), MAX_RETRY_AFTER_S)
    with contextlib.suppress(ValueError, TypeError):
        left_s = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        return min(max(0.0, left_s), MAX_RETRY_AFTER_S)
    return None


class Line(NamedTuple):
    """A line of a body. `whole` is false for what came before a connection's end that may have cut it."""

    data: bytes
    whole: bool


async def lines(response: httpx.Response, where: str) -> AsyncIterator[Line]:
    """The lines of a body, without their ends. Raises Truncated or BackendError."""
    rest = b""
    try:
        async for part in response.aiter_bytes():
            *whole, rest = (rest + part).split(b"\n")
            for line in whole:
                yield Line(line.rstrip(b"\r"), True)
            if len(rest) > MAX_LINE_BYTES:
                raise BackendError(f"{where}: a line of more than {MAX_LINE_BYTES} bytes in the answer")
    except httpx.RequestError as exc:
        raise broken(where, exc) from None
    if rest:
        # HTTP's own framing was kept to its end, or there was none and the connection's end is all there is.
        framed = "content-length" in response.headers or "transfer-encoding" in response.headers
        yield Line(rest, framed)


async def read(response: httpx.Response, where: str, limit_bytes: int = MAX_REPLY_BYTES) -> bytes:
    """A whole body. Raises Truncated or BackendError."""
    parts, size = [], 0
    try:
        async for part in response.aiter_bytes():
            size += len(part)
            if size > limit_bytes:
                raise BackendError(f"{where}: a reply of more than {limit_bytes} bytes")
            parts.append(part)
    except httpx.RequestError as exc:
        raise broken(where, exc) from None
    return b"".join(parts)
