"""Every exception of walled that can cross a process boundary, and nothing else.

Each class carries its wire code (`code`) and whether repeating the very same call later can help
(`retryable`). A code is stable for ever: clients in other languages switch on it. The table of codes
is part of docs/protocol.md; a test holds the two together.
"""

from __future__ import annotations

from typing import ClassVar


class WalledError(Exception):
    """Base of all errors a caller of walled can see.

    `retry_after_s`: seconds after which a repetition has a fair chance; None when walled cannot say.
    `message` says what is wrong, where, and what to do. It never contains a prompt or an answer.
    """

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str = "", *, retry_after_s: float | None = None) -> None:
        super().__init__(message or self.__class__.__name__)
        self.message = message or self.__class__.__name__
        self.retry_after_s = retry_after_s


class InternalError(WalledError):
    """A defect of walled itself."""

    code = "internal"


# --- the caller's fault: the same call will fail again ---------------------------------------------


class BadRequest(WalledError):
    """The request is malformed or absurd: empty messages, a negative limit, an unknown option."""

    code = "bad_request"


class TooLarge(BadRequest):
    """The request is larger than a cap of the protocol or of the configuration."""

    code = "too_large"


class Unsupported(WalledError):
    """The backend of this model cannot do what was asked (tools, images, embeddings, a JSON schema)."""

    code = "unsupported"


class ModelNotFound(WalledError):
    """No configured backend serves a model of that name."""

    code = "model_not_found"


class ContextTooLong(WalledError):
    """Prompt and answer do not fit the model's context window; never resent unchanged."""

    code = "context_too_long"


class ContentRefused(WalledError):
    """The model server refuses the content by its policy; never sent to the same model again."""

    code = "content_refused"


class PromptBlocked(BadRequest):
    """An inbound rule of the configuration forbids the prompt."""

    code = "prompt_blocked"


class Blocked(WalledError):
    """The model's answers were withheld by the validation rules, and no lesser answer could be had."""

    code = "blocked"


class NotCached(WalledError):
    """Cache policy `only` was asked for and no fresh answer is stored."""

    code = "not_cached"


class NoTemplate(WalledError):
    """Mode `template_only` was asked for and no template fits the request."""

    code = "no_template"


class Cancelled(WalledError):
    """The caller, or an operator through walled-ctl, cancelled the request."""

    code = "cancelled"


# --- protocol: their bug, named apart from ours ----------------------------------------------------


class ProtocolError(WalledError):
    """The peer sent bytes outside docs/protocol.md. `reason` is the counter it is counted under."""

    code = "protocol_error"

    def __init__(
        self, message: str = "", *, reason: str = "malformed", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.reason = reason


class VersionMismatch(ProtocolError):
    """The peer speaks another version of the protocol."""

    code = "version_mismatch"

    def __init__(
        self, message: str = "", *, reason: str = "version", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, reason=reason, retry_after_s=retry_after_s)


# --- the moment's fault: a repetition can succeed --------------------------------------------------


class DeadlineExceeded(WalledError):
    """The answer could not be had before the request's deadline."""

    code = "deadline_exceeded"
    retryable = True


class Overloaded(WalledError):
    """The queue is full, or the request could not have been started before its deadline."""

    code = "overloaded"
    retryable = True


class Draining(WalledError):
    """The daemon is stopping or restarting and takes no new requests."""

    code = "draining"
    retryable = True


class Unavailable(WalledError):
    """No worker serves the model at this moment (starting, restarting or failed)."""

    code = "unavailable"
    retryable = True


class DaemonUnavailable(Unavailable):
    """The client could not reach the daemon within its connect timeout, or lost it."""

    code = "daemon_unavailable"


class WorkerLost(WalledError):
    """The worker died with the request in its hands and the request could not be run again."""

    code = "worker_lost"
    retryable = True


class StreamInterrupted(WalledError):
    """A stream ended before its FINAL: what was received is incomplete and marked so."""

    code = "stream_interrupted"
    retryable = True


class BackendError(WalledError):
    """The model server failed the request."""

    code = "backend_error"
    retryable = True


class BackendUnauthorized(BackendError):
    """The model server wants another API key."""

    code = "backend_unauthorized"
    retryable = False


class BackendTimeout(BackendError):
    """The model server took longer than its connect, first-token or inter-token timeout."""

    code = "backend_timeout"


class BackendOverloaded(BackendError):
    """The model server has too many requests (HTTP 429, 503), or is loading the model."""

    code = "backend_overloaded"


class BackendUnavailable(BackendError):
    """The model server refuses connections or does not answer."""

    code = "backend_unavailable"


class Truncated(BackendError):
    """The model server's answer broke off before its end mark; it is never passed on as complete."""

    code = "truncated"


# --- local to one process: these never travel ------------------------------------------------------


class ConfigError(WalledError):
    """The configuration is wrong. The message has one line per problem: file, key path, what was expected."""

    code = "config_error"


class BootError(WalledError):
    """A process cannot start and will not be able to on a second try (bad GGUF, socket in use)."""

    code = "boot_error"


BOOT_ERROR_EXIT = 78
"""Exit status of a child whose start can never succeed (EX_CONFIG of sysexits.h): halt, do not respawn."""


def _subclasses(cls: type[WalledError]) -> list[type[WalledError]]:
    return [cls, *(found for sub in cls.__subclasses__() for found in _subclasses(sub))]


BY_CODE: dict[str, type[WalledError]] = {cls.code: cls for cls in _subclasses(WalledError)}
"""Wire code -> class. `internal` is InternalError, not the base: a caller can catch it by name."""


def from_wire(code: str, message: str, retry_after_s: float | None = None) -> WalledError:
    """The exception for a wire code. An unknown code (a newer daemon) becomes InternalError naming it."""
    cls = BY_CODE.get(code)
    if cls is None:
        return InternalError(f"{code}: {message}", retry_after_s=retry_after_s)
    return cls(message, retry_after_s=retry_after_s)
