"""Conversation and AsyncConversation: history, system prompt, session, token budget.

May live here: what of a conversation is sent, and what becomes part of it. May not: sockets.

Budget: what is sent must leave room for the answer in the model's context window. Tokens are estimated as
characters / 4, corrected by the ratio the model itself reports after each answer. When the estimate is over
the budget the oldest turns are dropped for good, down to three quarters of it, so that the prefix the model
has already read changes seldom; the system prompt and the newest message always stay. An answer becomes
part of the history only when it is whole: an error leaves the history as it was.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Self, Unpack

from walled.errors import WalledError
from walled_client.aio import AsyncClient, AsyncStream
from walled_client.calls import ChatFields, TurnFields
from walled_client.client import Client, Stream
from walled_client.results import Reply, StreamChunk

CHARS_PER_TOKEN = 4.0
MESSAGE_TOKENS = 5
"""What a chat template adds to each message, about."""
DEFAULT_CONTEXT_TOKENS = 2048
"""Assumed where the daemon does not know the model's window."""
SMALLEST_CONTEXT_TOKENS = 128
KEEP_SHARE = 0.75

Turn = dict[str, str]


class History:
    """What has been said, within a token budget. No client in it: both conversations use it."""

    def __init__(self, system: str, budget_tokens: int | None) -> None:
        self.system = system
        self.turns: list[Turn] = []
        """Turns still remembered, oldest first, without the system prompt. A degraded answer has the further
        key `degraded`: its source, for the caller; models are not sent it."""
        self.dropped = 0
        """Turns dropped for the budget so far."""
        self.budget_tokens = budget_tokens
        self._chars_per_token = CHARS_PER_TOKEN

    def tokens(self, turns: list[Turn]) -> int:
        """Estimated tokens of these turns and the system prompt."""
        chars = len(self.system) + sum(len(turn["content"]) for turn in turns)
        return int(chars / self._chars_per_token) + MESSAGE_TOKENS * (len(turns) + bool(self.system))

    def fits_anywhere(self, text: str) -> bool:
        """Whether the window of no model could be too small, so that nobody need be asked for it."""
        return self.tokens([*self.turns, {"role": "user", "content": text}]) <= SMALLEST_CONTEXT_TOKENS // 2

    def window(self, text: str, answer_tokens: int | None) -> list[Turn]:
        """The turns to send with a new message: all that fit, the newest always."""
        turns = [*self.turns, {"role": "user", "content": text}]
        total = self.budget_tokens or DEFAULT_CONTEXT_TOKENS
        budget = max(1, total - (answer_tokens or total // 4))
        if self.tokens(turns) <= budget:
            return turns
        while len(turns) > 1 and self.tokens(turns) > budget * KEEP_SHARE:
            # A question goes together with its answer, so that the window begins with a question.
            del turns[: 2 if len(turns) > 2 else 1]
        return turns

    def messages(self, window: list[Turn]) -> list[Turn]:
        sent = [{"role": turn["role"], "content": turn["content"]} for turn in window]
        return [{"role": "system", "content": self.system}, *sent] if self.system else sent

    def keep(self, window: list[Turn], reply: Reply) -> None:
        """The exchange went well: it is history now."""
        self.dropped += len(self.turns) + 1 - len(window)
        answer = {"role": "assistant", "content": reply.text}
        if reply.degraded:
            answer["degraded"] = reply.source
        self.turns = [*window, answer]
        tokens = reply.usage.prompt_tokens - MESSAGE_TOKENS * (len(window) + bool(self.system))
        if tokens > 0:
            chars = len(self.system) + sum(len(turn["content"]) for turn in window)
            self._chars_per_token = max(0.5, min(8.0, chars / tokens))


def context_tokens(models: dict[str, Any], model: str) -> int | None:
    """The context window of a model in a `walled.models/1` map; None when it is not known."""
    name = models.get("default") if model == "default" else model
    for entry in models.get("models") or ():
        if name == entry.get("name") or name in (entry.get("aliases") or ()):
            return int(entry.get("context_tokens") or 0) or None
    return None


class Conversation:
    """A conversation that remembers. Every call goes to the same session, so that the worker that has read
    the beginning reads only what is new.

    `fields` of the constructor apply to every turn (model, temperature, deadline_s, ...); those of `say` and
    `stream` to one. `budget_tokens`: context window to stay within; default: the model's own.
    """

    def __init__(
        self,
        client: Client,
        *,
        budget_tokens: int | None = None,
        **fields: Unpack[ChatFields],
    ) -> None:
        self.history = History(fields.pop("system", ""), budget_tokens)
        self.session = fields.pop("session", "") or secrets.token_hex(8)
        self._client = client
        self._given_budget_tokens = budget_tokens
        self._fields: dict[str, Any] = {**fields, "session": self.session}

    def say(self, text: str, **fields: Unpack[TurnFields]) -> Reply:
        """Say something; the whole answer."""
        merged: Any = {**self._fields, **fields}
        window = self._window(text, merged)
        reply = self._client.chat(self.history.messages(window), **merged)
        self.history.keep(window, reply)
        return reply

    def stream(self, text: str, **fields: Unpack[TurnFields]) -> ConversationStream:
        """Say something; the answer while it is being made. Left early, it never becomes history."""
        merged: Any = {**self._fields, **fields}
        window = self._window(text, merged)
        inner = self._client.stream(self.history.messages(window), **merged)
        return ConversationStream(inner, lambda reply: self.history.keep(window, reply))

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.history.turns = []

    def use_model(self, model: str) -> None:
        """Talk to another model from now on, within its own context window."""
        self._fields["model"] = model
        self.history.budget_tokens = self._given_budget_tokens

    def _window(self, text: str, fields: dict[str, Any]) -> list[Turn]:
        if self.history.budget_tokens is None and not self.history.fits_anywhere(text):
            try:
                found = context_tokens(self._client.models(deadline_s=2.0), fields.get("model") or "default")
                self.history.budget_tokens = found or DEFAULT_CONTEXT_TOKENS
            except WalledError:
                pass  # the call itself will say what is wrong; asked again next time
        return self.history.window(text, fields.get("max_tokens"))


class ConversationStream:
    """The chunks of an answer; at its end the exchange becomes history."""

    def __init__(self, inner: Stream, ended: Callable[[Reply], None]) -> None:
        self._inner = inner
        self._ended: Callable[[Reply], None] | None = ended

    def __iter__(self) -> Iterator[StreamChunk]:
        return self

    def __next__(self) -> StreamChunk:
        try:
            return next(self._inner)
        except StopIteration:
            ended, self._ended = self._ended, None
            if ended is not None and self._inner.finished:
                ended(self._inner.reply)
            raise

    @property
    def reply(self) -> Reply:
        return self._inner.reply

    def finish(self) -> Reply:
        """Read the rest and return the whole answer."""
        for _ in self:
            pass
        return self.reply

    def close(self) -> None:
        """Stop; cancels the generation, and the question is forgotten."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncConversation:
    """Conversation for AsyncClient."""

    def __init__(
        self,
        client: AsyncClient,
        *,
        budget_tokens: int | None = None,
        **fields: Unpack[ChatFields],
    ) -> None:
        self.history = History(fields.pop("system", ""), budget_tokens)
        self.session = fields.pop("session", "") or secrets.token_hex(8)
        self._client = client
        self._given_budget_tokens = budget_tokens
        self._fields: dict[str, Any] = {**fields, "session": self.session}

    async def say(self, text: str, **fields: Unpack[TurnFields]) -> Reply:
        """Say something; the whole answer."""
        merged: Any = {**self._fields, **fields}
        window = await self._window(text, merged)
        reply = await self._client.chat(self.history.messages(window), **merged)
        self.history.keep(window, reply)
        return reply

    async def stream(self, text: str, **fields: Unpack[TurnFields]) -> AsyncConversationStream:
        """Say something; await it for the stream of the answer. Left early, it never becomes history."""
        merged: Any = {**self._fields, **fields}
        window = await self._window(text, merged)
        inner = self._client.stream(self.history.messages(window), **merged)
        return AsyncConversationStream(inner, lambda reply: self.history.keep(window, reply))

    def clear(self) -> None:
        """Forget all turns; the system prompt stays."""
        self.history.turns = []

    def use_model(self, model: str) -> None:
        """Talk to another model from now on, within its own context window."""
        self._fields["model"] = model
        self.history.budget_tokens = self._given_budget_tokens

    async def _window(self, text: str, fields: dict[str, Any]) -> list[Turn]:
        if self.history.budget_tokens is None and not self.history.fits_anywhere(text):
            try:
                models = await self._client.models(deadline_s=2.0)
                found = context_tokens(models, fields.get("model") or "default")
                self.history.budget_tokens = found or DEFAULT_CONTEXT_TOKENS
            except WalledError:
                pass  # the call itself will say what is wrong; asked again next time
        return self.history.window(text, fields.get("max_tokens"))


class AsyncConversationStream:
    """The chunks of an answer; at its end the exchange becomes history."""

    def __init__(self, inner: AsyncStream, ended: Callable[[Reply], None]) -> None:
        self._inner = inner
        self._ended: Callable[[Reply], None] | None = ended

    def __aiter__(self) -> AsyncIterator[StreamChunk]:
        return self

    async def __anext__(self) -> StreamChunk:
        try:
            return await anext(self._inner)
        except StopAsyncIteration:
            ended, self._ended = self._ended, None
            if ended is not None and self._inner.finished:
                ended(self._inner.reply)
            raise

    @property
    def reply(self) -> Reply:
        return self._inner.reply

    async def finish(self) -> Reply:
        """Read the rest and return the whole answer."""
        async for _ in self:
            pass
        return self.reply

    async def close(self) -> None:
        """Stop; cancels the generation, and the question is forgotten."""
        await self._inner.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._inner.close()
