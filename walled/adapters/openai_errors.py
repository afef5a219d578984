"""What an OpenAI-compatible server refuses, in our errors.

May live here: HTTP statuses and error objects to exceptions. May not: any HTTP library. A server's own words
may quote the prompt: they are read for what they mean and never passed on.
"""

from __future__ import annotations

import contextlib
import email.utils
import time
from typing import Any

import msgspec

from walled.errors import (
    BackendError,
    BackendUnauthorized,
    BadRequest,
    ContextTooLong,
    ModelNotFound,
    Overloaded,
    TooLarge,
    Unsupported,
    WalledError,
)

MAX_RETRY_AFTER_S = 3600.0
_CONTEXT = (
    "context length",
    "context_length",
    "context size",
    "context window",
    "maximum context",
    "exceed_context",
)

_decode = msgspec.json.Decoder().decode


class NoChat(Exception):
    """The model has no chat template, or the server no chat endpoint."""


def refusal(
    where: str, key_variable: str, status: int, data: bytes, *, path: str = "", retry_after: str = ""
) -> WalledError | NoChat:
    """The error for an HTTP status and the body that came with it."""
    try:
        said = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = None
    error = said.get("error", said) if isinstance(said, dict) else {}
    fields = error if isinstance(error, dict) else {"message": str(error)}
    text = " ".join(str(fields.get(name, "")) for name in ("code", "type", "message", "detail")).lower()
    chat = path == "chat/completions"
    if chat and status in (400, 500, 501) and "chat template" in text:
        return NoChat()
    if status in (400, 413, 422, 500) and any(words in text for words in _CONTEXT):
        return ContextTooLong("the prompt does not fit the model's context window; shorten the conversation")
    if status in (401, 403):
        how = (
            f"it does not accept the key in {key_variable}"
            if key_variable
            else "name an environment variable with it in backends.*.api_key_env"
        )
        return BackendUnauthorized(f"{where}: HTTP {status}, the server wants an API key; {how}")
    if status == 404:
        if "model" in text:
            return ModelNotFound(f"{where}: the server does not have the model")
        if chat:
            return NoChat()
        return Unsupported(f"{where}: HTTP 404 for {path}; base_url should end with /v1")
    if status in (429, 503):
        return Overloaded(
            f"{where}: HTTP {status}, the server takes no more", retry_after_s=_seconds(retry_after)
        )
    if status == 501:
        return Unsupported(f"{where}: the server cannot do that")
    if status == 413:
        return TooLarge(f"{where}: HTTP 413, the request is too large for the server")
    if status in (400, 422):
        field = str(fields.get("param") or "")
        named = f" (field {field})" if field.isidentifier() else ""
        return BadRequest(f"{where}: HTTP {status}, the server refuses the request{named}")
    return BackendError(f"{where}: HTTP {status}")


def status_of(error: Any) -> int:
    """The HTTP status that an error object inside a stream stands for."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _seconds(retry_after: str) -> float | None:
    """Retry-After, a number of seconds or a date; None when it is neither."""
    with contextlib.suppress(ValueError):
        return min(max(0.0, float(retry_after)), MAX_RETRY_AFTER_S)
    with contextlib.suppress(ValueError, TypeError):
        left_s = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        return min(max(0.0, left_s), MAX_RETRY_AFTER_S)
    return None
