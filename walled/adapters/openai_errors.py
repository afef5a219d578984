"""What an OpenAI-compatible server refuses, in our errors.

May live here: HTTP statuses and error objects to exceptions. May not: any HTTP library. A server's own words
may quote the prompt: they are read for what they mean and never passed on.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from walled.errors import (
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    BadRequest,
    ContentRefused,
    ContextTooLong,
    ModelNotFound,
    TooLarge,
    Unsupported,
    WalledError,
)

LOADING_RETRY_S = 1.0
"""When a server that loads its model says nothing of how long."""
_CONTEXT = (
    "context length",
    "context_length",
    "context size",
    "context window",
    "maximum context",
    "exceed_context",
)
_LOADING = ("loading model", "model is loading")
_POLICY = (
    "content_policy_violation",
    "content_filter",
    "responsibleaipolicyviolation",
    "moderation_blocked",
    "content policy",
    "content management policy",
)
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_/-]{0,39}")
"""What the name of a category or code looks like; anything else may be words of the prompt."""

_decode = msgspec.json.Decoder().decode


class NoChat(Exception):
    """The model has no chat template, or the server no chat endpoint."""


def refusal(
    where: str,
    key_variable: str,
    status: int,
    data: bytes,
    *,
    path: str = "",
    retry_after_s: float | None = None,
) -> WalledError | NoChat:
    """The error for an HTTP status and the body that came with it."""
    try:
        said = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = None
    error = said.get("error", said) if isinstance(said, dict) else {}
    fields = error if isinstance(error, dict) else {"message": str(error)}
    text = " ".join(str(fields.get(name, "")) for name in ("code", "type", "message", "detail")).lower()
    if status not in (401, 404) and (reason := next((mark for mark in _POLICY if mark in text), "")):
        inner = fields.get("innererror")
        results = inner.get("content_filter_result") if isinstance(inner, dict) else None
        return refused(f"{where}: HTTP {status}, ", reason.replace(" ", "_"), filtered(results))
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
    if any(words in text for words in _LOADING):
        wait_s = LOADING_RETRY_S if retry_after_s is None else retry_after_s
        return BackendOverloaded(f"{where}: the server is loading the model", retry_after_s=wait_s)
    if status in (429, 503):
        return BackendOverloaded(
            f"{where}: HTTP {status}, the server takes no more", retry_after_s=retry_after_s
        )
    if status == 502:
        return BackendUnavailable(f"{where}: HTTP 502, the server is not behind its proxy")
    if status in (408, 504):
        return BackendTimeout(f"{where}: HTTP {status}, the server was too slow for its proxy")
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


def refused(where: str, reason: str, categories: list[str]) -> ContentRefused:
    """A refusal by content policy, with the server's own code and categories."""
    why = ": ".join(filter(None, (reason, ", ".join(categories))))
    return ContentRefused(f"{where}refused by the server's content policy ({why})")


def filtered(results: Any) -> list[str]:
    """The categories that a content filter names as the reason: {"hate": {"filtered": true, ...}, ...}."""
    if not isinstance(results, dict):
        return []
    return sorted(
        name
        for name, result in results.items()
        if isinstance(result, dict) and result.get("filtered") is True and _CODE.fullmatch(name)
    )
