"""Lesser answers of the broker: what the cache still holds, what the templates say.

May live here: carrying out one ev.LookUp. May not: when one is asked for (core/descent.py), sockets, writing.

A lookup costs tens of microseconds and is made only where an answer did not come: a template is the one thing
for which the broker unpacks a payload, so big payloads get none.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Literal

from walled.adapters import template_files
from walled.adapters.cache import CacheReader
from walled.config import Config
from walled.core import events as ev
from walled.core import templates as tp
from walled.core.policy import Plan, freshness
from walled.core.record import ModelMeta
from walled.errors import BadRequest, ConfigError
from walled.payload import Answer, pack_answer, unpack_request
from walled.protocol import RequestHeader

log = logging.getLogger(__name__)

MAX_PAYLOAD_BYTES = 256 * 1024
"""Of a request a template is looked for."""

Prepare = Callable[[RequestHeader, bytes, ModelMeta | None], tuple[bytes | None, Plan]]
"""Broker.prepare: the key and plan of a request."""


class Lesser:
    """Stale answers and templates under one configuration."""

    def __init__(self, config: Config, cache: CacheReader | None, prepare: Prepare) -> None:
        self._cache = cache
        self._prepare = prepare
        self._templates: tp.TemplateSet | None = None
        self._config = config

    def reconfigure(self, config: Config) -> None:
        """Templates of another configuration; files that cannot be used leave those that are there."""
        self._config = config
        if self._templates is not None:
            self._load()

    def find(self, asked: ev.LookUp) -> ev.Found:
        """The first of the lesser answers asked for that there is."""
        for step in asked.steps:
            found = self._stale(asked) if step == "stale" else self._template(asked, step)
            if found is not None:
                return found
        return ev.Found(asked.client, asked.request_id, asked.ticket)

    def _stale(self, asked: ev.LookUp) -> ev.Found | None:
        cache = self._cache
        if cache is None:
            return None
        key, plan = self._prepare(asked.header, asked.payload, cache.meta(asked.header.model))
        if key is None or not plan.read:
            return None
        now_s = time.time()
        record = cache.get(key, now_s)
        if record is None:
            return None
        state = freshness(record, now_s)
        if state == "dead":
            return None
        # Fresh: stored while its caller waited.
        source: Literal["cache", "stale"] = "cache" if state == "fresh" else "stale"
        age_s = max(0.0, now_s - record.created_s)
        return ev.Found(
            asked.client, asked.request_id, asked.ticket, source, record.answer, record.backend, age_s
        )

    def _template(self, asked: ev.LookUp, step: str) -> ev.Found | None:
        if len(asked.payload) > MAX_PAYLOAD_BYTES:
            return None
        if self._templates is None:
            self._load()
        templates = self._templates
        if templates is None:
            return None
        try:
            request = unpack_request(asked.payload)
        except BadRequest:
            return None  # its worker would have said so
        if step == "intent" and tp.matches(templates, request) not in self._config.ladder.hybrid_intents:
            return None
        choice = tp.choose(templates, request, asked.header.context, asked.header.session)
        if choice is None or (step == "intent" and choice.intent == tp.FALLBACK):
            return None
        answer = pack_answer(Answer(text=choice.text))
        return ev.Found(asked.client, asked.request_id, asked.ticket, "template", answer)

    def _load(self) -> None:
        try:
            self._templates = template_files.load(self._config)
        except ConfigError as exc:
            log.error("templates: %s; those loaded last stay", exc.message)
            self._templates = self._templates or tp.TemplateSet({}, {})
