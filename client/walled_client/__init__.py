"""walled_client: ask the walled daemon, from threads or from asyncio. The public names, nothing else."""

from walled.errors import (
    BackendError,
    BackendUnavailable,
    BadRequest,
    Cancelled,
    ContextTooLong,
    DaemonUnavailable,
    DeadlineExceeded,
    Draining,
    InternalError,
    ModelNotFound,
    NotCached,
    Overloaded,
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
from walled.payload import Answer, Message, Usage
from walled.protocol import Phases
from walled_client.aio import AsyncClient, AsyncStream
from walled_client.client import Client, Stream
from walled_client.conversation import AsyncConversation, Conversation
from walled_client.results import Accepted, Embedding, Reply, StreamChunk

__all__ = [
    "Accepted", "Answer", "AsyncClient", "AsyncConversation", "AsyncStream", "BackendError",
    "BackendUnavailable", "BadRequest", "Cancelled", "Client", "ContextTooLong", "Conversation",
    "DaemonUnavailable", "DeadlineExceeded", "Draining", "Embedding", "InternalError", "Message",
    "ModelNotFound", "NotCached", "Overloaded", "Phases", "ProtocolError", "Reply", "Stream", "StreamChunk",
    "StreamInterrupted", "TooLarge", "Truncated", "Unavailable", "Unsupported", "Usage", "VersionMismatch",
    "WalledError", "WorkerLost",
]  # fmt: skip
