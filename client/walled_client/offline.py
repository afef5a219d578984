"""What a caller gets when the daemon cannot answer: a stale answer, a template; and templates that go first.

May live here: the client's part of the ladder, over the cache file and the templates published in it; whether
a refused call is worth asking again. May not: sockets, waiting, fresh answers (local.py).
"""

from __future__ import annotations

import random
import time

import msgspec

from walled.core import templates as tp
from walled.errors import (
    BackendOverloaded,
    DaemonUnavailable,
    DeadlineExceeded,
    Draining,
    Overloaded,
    Unavailable,
    WalledError,
)
from walled.payload import Answer, unpack_answer, unpack_request
from walled.protocol import Phases
from walled_client.calls import Asked
from walled_client.exchange import Call
from walled_client.local import LocalCache
from walled_client.results import Reply

RETRY_SHARE = 0.5
"""Of the time left: a pause that takes more of it is not made."""
JITTER = 0.25
"""Share by which a pause is lengthened at random, so that refused clients do not come back all at once."""
MIN_PAUSE_S = 0.01
REFUSALS = (Overloaded, Draining, BackendOverloaded, Unavailable)
NO_RULES = tp.Rules()


def pause_s(call: Call, error: WalledError, left_s: float) -> float | None:
    """Seconds to wait before a refused call is asked again; None: it is not worth it.

    Only what the daemon itself refused with a time to come back, before any text.
    """
    if (
        call.ending is None
        or call.text_seen
        or not isinstance(error, REFUSALS)
        or error.retry_after_s is None
    ):
        return None
    pause = max(MIN_PAUSE_S, error.retry_after_s) * (1 + JITTER * random.random())
    return pause if pause <= RETRY_SHARE * left_s else None


def without_daemon(call: Call | None, error: WalledError) -> bool:
    """Whether a call ended because no daemon answers, and not by the word of one.

    A daemon that answers has taken its own steps down the ladder; its error is the last word.
    """
    if call is not None and (call.ending is not None or call.text_seen):
        return False
    return isinstance(error, (DaemonUnavailable, DeadlineExceeded))


class Offline:
    """The ladder of one client, over the cache file of its daemon."""

    def __init__(self, cache: LocalCache) -> None:
        self._cache = cache
        self._packed: bytes | None = None
        self._set: tp.TemplateSet | None = None

    def first(self, asked: Asked, started_s: float) -> Reply | None:
        """The template that goes before any model: modes template_only and hybrid. None: go on."""
        templates = self._templates()
        if templates is None:
            self._cache.first = False
            return None
        rules = templates.rules
        modes = {rules.mode, *rules.route_modes.values()}
        self._cache.first = bool(modes & {"template_only", "hybrid"})
        mode = _mode(asked, rules)
        if not rules.templates or mode not in ("template_only", "hybrid"):
            return None
        if mode == "hybrid":
            if not rules.hybrid_intents:
                return None
            if tp.matches(templates, unpack_request(asked.payload)) not in rules.hybrid_intents:
                return None
        return self._counted(
            asked, self._template(templates, asked, started_s, "", only_intents=mode == "hybrid")
        )

    def instead(self, asked: Asked, error: WalledError, started_s: float) -> Reply | None:
        """A lesser answer in place of an error, marked as such: stale, else a template; None: neither."""
        templates = self._templates()
        rules = NO_RULES if templates is None else templates.rules
        mode = _mode(asked, rules)
        if mode != "template_only" and rules.stale:
            reply = self._stale(asked, error.code, started_s)
            if reply is not None:
                return self._counted(asked, reply)
        if mode == "ai_only" or templates is None or not rules.templates:
            return None
        return self._counted(asked, self._template(templates, asked, started_s, error.code))

    def _counted(self, asked: Asked, reply: Reply | None) -> Reply | None:
        if reply is not None:
            self._cache.answered(asked, reply.source, degraded=reply.degraded)
        return reply

    def _templates(self) -> tp.TemplateSet | None:
        packed = self._cache.reader.templates()
        if packed is not self._packed:
            self._packed = packed
            self._set = None if packed is None else tp.unpack(packed)
        return self._set

    def _stale(self, asked: Asked, reason: str, started_s: float) -> Reply | None:
        key = self._cache.key_to_read(asked)
        if key is None:
            return None
        now_s = time.time()
        record = self._cache.reader.get(key, now_s)
        if record is None:
            return None
        try:
            answer = unpack_answer(record.answer)
        except (msgspec.DecodeError, RecursionError):
            return None
        fresh = now_s < record.fresh_until_s  # stored while we waited
        elapsed_ms = (time.perf_counter() - started_s) * 1000
        return Reply(
            answer=answer,
            source="cache" if fresh else "stale",
            degraded=not fresh,
            reason="" if fresh else reason,
            backend=record.backend,
            age_s=max(0.0, now_s - record.created_s),
            stored=True,
            phases=Phases(total_ms=elapsed_ms),
            elapsed_ms=elapsed_ms,
        )

    def _template(
        self,
        templates: tp.TemplateSet,
        asked: Asked,
        started_s: float,
        reason: str,
        *,
        only_intents: bool = False,
    ) -> Reply | None:
        if asked.kind == "embed":
            return None
        settings = asked.settings
        choice = tp.choose(templates, unpack_request(asked.payload), settings.context, settings.session)
        if choice is None or (only_intents and choice.intent == tp.FALLBACK):
            return None
        elapsed_ms = (time.perf_counter() - started_s) * 1000
        return Reply(
            answer=Answer(text=choice.text),
            source="template",
            degraded=bool(reason),
            reason=reason,
            phases=Phases(total_ms=elapsed_ms),
            elapsed_ms=elapsed_ms,
        )


def _mode(asked: Asked, rules: tp.Rules) -> str:
    settings = asked.settings
    return settings.mode or rules.route_modes.get(settings.model) or rules.mode or "auto"
