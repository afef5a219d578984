"""walled_client: ask the walled daemon, from threads or from asyncio. The public names, nothing else."""

from walled.errors import (
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnauthorized,
    BackendUnavailable,
    BadRequest,
    Blocked,
    Cancelled,
    ContentRefused,
    ContextTooLong,
    DaemonUnavailable,
    DeadlineExceeded,
    Draining,
    InternalError,
    ModelNotFound,
    NotCached,
    Overloaded,
    PromptBlocked,
    ProtocolError,
    StreamInterrupted,
    TooLarge,
    Truncated,
    Unavailable,
    Unsupported,
    VersionMismatch,
    WalledError,
    WorkerLost,
)  # fmt: skip
from walled.payload import Answer, Message, Usage, Validation
from walled.protocol import Phases
from walled_client.aio import AsyncClient, AsyncStream
from walled_client.client import Client, Stream
from walled_client.conversation import AsyncConversation, Conversation
from walled_client.observing import Observer
from walled_client.results import Accepted, Embedding, Reply, StreamChunk
from walled_client.subscriber import AsyncSubscriber, Subscriber

__all__ = [
    "Accepted", "Answer", "AsyncClient", "AsyncConversation", "AsyncStream", "AsyncSubscriber",
    "BackendError", "BackendOverloaded", "BackendTimeout", "BackendUnauthorized", "BackendUnavailable",
    "BadRequest", "Blocked", "Cancelled", "Client", "ContentRefused", "ContextTooLong", "Conversation",
    "DaemonUnavailable", "DeadlineExceeded", "Draining", "Embedding", "InternalError", "Message",
    "ModelNotFound", "NotCached", "Observer", "Overloaded", "Phases", "PromptBlocked", "ProtocolError",
    "Reply", "Stream", "StreamChunk", "StreamInterrupted", "Subscriber", "TooLarge", "Truncated",
    "Unavailable", "Unsupported", "Usage", "Validation", "VersionMismatch", "WalledError", "WorkerLost",
]  # fmt: skip
