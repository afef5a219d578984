"""The Ollama servers of one backend: which of them answer, and which takes the next request.

May live here: health, proofs, pulls, leases of a host's slots. May not: the `ollama` package (a host is
reached through HostClient), jobs and their events (ollama.py), JSON shapes (ollama_wire.py).

A host is up once it has listed its models and generated one token. It is listed every `health_interval_s`,
and proved again when it comes back, when a request met trouble there, or when it was silent for
`probe_interval_s`. An idle host is proved only with a loaded model, and with the keep_alive that is left of
its last real use: the proof must neither load a model nor keep one that nobody uses.

All of it runs in one event loop; nothing here is thread-safe or needs to be.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple, Protocol

from walled.adapters import ollama_wire as wire
from walled.adapters.backend import BackendInfo
from walled.adapters.logs import safe_traceback
from walled.adapters.ollama_catalogue import Catalogue, Facts, Listed
from walled.adapters.upstream import SlowConnect
from walled.config import OllamaConfig
from walled.errors import (
    BackendError,
    BackendOverloaded,
    BackendTimeout,
    BackendUnavailable,
    BootError,
    ModelNotFound,
    Truncated,
    WalledError,
)

LIST_TIMEOUT_S = 5.0
DOWN_CHECK_S = 1.0
"""A host that is down is looked at this often, so that service is back soon after it is."""
AVOID_S = 1.0
"""After a failed request others go elsewhere for so long, if they can."""
HANG_S = 0.2
"""A request cancelled after so much silence puts its host in doubt; one cancelled sooner tells nothing."""
PULL_SILENCE_S = 600.0
"""Verifying tens of gigabytes is the longest that Ollama says nothing during a pull."""
PULL_RETRY_S = 60.0
PULL_LOG_S = 5.0
RELOAD_MS = 200.0
"""A load_duration over this is a load (the smallest model: 255 ms); without a load it is 1 to 5, busy 100."""
RELOAD_WARN_S = 60.0

_log = logging.getLogger("walled.ollama")


class Progress(NamedTuple):
    """A step of a pull."""

    status: str
    done_bytes: int
    total_bytes: int


class HostClient(Protocol):
    """What is needed of one server; everything raises only WalledErrors."""

    async def tags(self) -> dict[str, Listed]: ...

    async def facts(self, model: str) -> Facts: ...

    async def loaded(self) -> set[str]: ...

    async def call(self, path: str, body: dict[str, Any], model: str) -> dict[str, Any]: ...

    def records(
        self, path: str, body: dict[str, Any], model: str
    ) -> AsyncGenerator[dict[str, Any], None]: ...

    def pulling(self, model: str) -> AsyncGenerator[Progress, None]: ...

    async def close(self) -> None: ...


class Host:
    """One server and what is known of it."""

    def __init__(self, url: str, client: HostClient, cap: int) -> None:
        self.url = url
        self.client = client
        self.cap = cap
        """Most requests in flight here."""
        self.in_flight = 0
        self.up = False
        self.doubted = True
        """To be proved at the next check."""
        self.trouble: WalledError | None = None
        self.avoid_until_s = 0.0
        """Requests go elsewhere until then, if they can: a request failed here, or it asked for time."""
        self.listed: dict[str, Listed] = {}
        self.heard_s = 0.0
        """When it last sent something of an answer, by loop time."""
        self.used_s: dict[str, float] = {}
        """Model -> when it last answered a request."""
        self.reloads = 0
        self.reload_warned_s = -RELOAD_WARN_S
        self.checked = asyncio.Event()
        """The first check is over."""
        self.wake = asyncio.Event()
        self.proof: asyncio.Task[None] | None = None
        """A generation of one token under way."""
        self.pulls: dict[str, asyncio.Task[None]] = {}
        self.pull_again_s: dict[str, float] = {}
        self.pull_trouble = ""
        self.warned: set[str] = set()

    @property
    def unsure(self) -> bool:
        """It has yet to be proved."""
        return self.doubted or self.proof is not None


class Hosts:
    """All servers of the backend. `changed` is told whenever what they serve together changes."""

    def __init__(
        self,
        config: OllamaConfig,
        slots: int,
        clients: Mapping[str, HostClient],
        changed: Callable[[BackendInfo], None],
    ) -> None:
        self._config = config
        self.load_options: dict[str, Any] = dict(config.load_options)
        """The one set every request of this backend carries."""
        if config.context_tokens:
            self.load_options["num_ctx"] = config.context_tokens
        self.catalogue = Catalogue(config, slots, self.load_options)
        cap = min(-(-slots // len(clients)), config.connections)
        self._hosts = [Host(url, client, cap) for url, client in clients.items()]
        self._changed = changed
        self._told: BackendInfo | None = None
        self._moved = asyncio.Event()
        """Set, and replaced, whenever a slot or a host may have become free."""
        self._watchers: list[asyncio.Task[None]] = []

    async def open(self) -> BackendInfo:
        """Return as soon as one host can answer. Raises BackendUnavailable or BootError when none can."""
        self._watchers = [asyncio.create_task(self._watch(host)) for host in self._hosts]
        waiting = {asyncio.create_task(host.checked.wait()) for host in self._hosts}
        try:
            while waiting and not any(host.up for host in self._hosts):
                _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        if not any(host.up for host in self._hosts):
            raise self._hopeless()
        info = self._told = self._info()
        return info

    async def close(self) -> None:
        """Stop watching, proving and pulling; close every connection."""
        tasks = list(self._watchers)
        for host in self._hosts:
            tasks += host.pulls.values()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for host in self._hosts:
            await host.client.close()

    # --- what a job needs ---

    @asynccontextmanager
    async def lease(self, model: str, session: str, avoid: Collection[Host]) -> AsyncIterator[Host]:
        """A slot on the least loaded host that has the model, held inside the block; on one that is in doubt
        only when no other is free.

        Waits while all slots are taken (a host just went down). Raises BackendUnavailable when no host
        outside `avoid` has the model.
        """
        while True:
            able = [host for host in self._able(model) if host not in avoid]
            if not able:
                raise self._nobody(model)
            free = [host for host in able if host.in_flight < host.cap]
            if free:
                break
            await self._moved.wait()
        now = asyncio.get_running_loop().time()
        sound = [host for host in free if not host.unsure and now >= host.avoid_until_s]
        if sound:
            host = min(sound, key=lambda candidate: candidate.in_flight)
        else:
            host = min(free, key=lambda candidate: (candidate.unsure, candidate.avoid_until_s))
        if session:
            # The same host keeps the prefix of the conversation in its KV cache.
            home = able[zlib.crc32(session.encode("utf-8", "replace")) % len(able)]
            host = home if home in sound else host
        host.in_flight += 1
        try:
            if host.proof is not None and host.in_flight >= host.cap:
                host.proof.cancel()  # the request is as good a proof, and the slot is its own
                await asyncio.wait([host.proof])
            yield host
        finally:
            host.in_flight -= 1
            self._move()

    def others(self, model: str, tried: Collection[Host]) -> bool:
        """Whether a host not yet tried has the model."""
        return any(host not in tried for host in self._able(model))

    def answered(self, host: Host, model: str, load_ms: float) -> None:
        """The host has answered whole; notice when it had to load a model it should have had."""
        now = asyncio.get_running_loop().time()
        before_s = host.used_s.get(model)
        host.used_s[model] = host.heard_s = now
        keep_s = self._config.keep_alive_s
        if load_ms <= RELOAD_MS or before_s is None or 0 <= keep_s < now - before_s:
            return
        host.reloads += 1
        if now - host.reload_warned_s >= RELOAD_WARN_S:
            host.reload_warned_s = now
            _log.warning(
                "%s loaded %s again (%.0f ms; %d times so far): another client of it sends other load "
                "options, or its models push each other out (see max_loaded_models)",
                host.url,
                model,
                load_ms,
                host.reloads,
            )

    def failed(self, host: Host, error: BackendError) -> None:
        """A request failed there. Without an answer, or with half of one, the host has to be proved."""
        now = asyncio.get_running_loop().time()
        host.avoid_until_s = max(host.avoid_until_s, now + (error.retry_after_s or AVOID_S))
        if isinstance(error, BackendUnavailable | SlowConnect):
            self._doubt(host)
            if host.up:
                host.up = False
                host.trouble = error
                _log.warning("%s gets no requests until it is proved again: %s", host.url, error.message)
                self._announce()
        elif isinstance(error, Truncated | BackendTimeout):
            self._doubt(host)

    def unheard(self, host: Host, began_s: float) -> None:
        """A request that began then was cancelled. When the host has told nobody anything since, it may hang:
        it is to be proved, but it is not down, for loading a model is silent too."""
        silent_s = asyncio.get_running_loop().time() - max(began_s, host.heard_s)
        if silent_s >= HANG_S:
            self._doubt(host)

    def _doubt(self, host: Host) -> None:
        host.doubted = True
        host.wake.set()

    def _able(self, model: str) -> list[Host]:
        return [host for host in self._hosts if self.catalogue.has(host, model, self._hosts)]

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()

    # --- watching one host ---

    async def _watch(self, host: Host) -> None:
        while True:
            try:
                await self._check(host)
            except WalledError as exc:
                self._down(host, exc)
            except Exception as exc:  # a defect of ours must not end the watch for good
                _log.error("watching %s: %s", host.url, safe_traceback(exc))
                self._down(host, BackendError(f"watching {host.url} failed: {type(exc).__name__}"))
            self._move()
            self._announce()
            host.checked.set()
            pause_s = self._config.health_interval_s
            try:
                async with asyncio.timeout(pause_s if host.up else min(pause_s, DOWN_CHECK_S)):
                    await host.wake.wait()
            except TimeoutError:
                pass

    def _down(self, host: Host, error: WalledError) -> None:
        if host.up or host.trouble is None or host.trouble.message != error.message:
            _log.warning("%s is down: %s", host.url, error.message)
        host.up = False
        host.doubted = True
        host.trouble = error

    async def _check(self, host: Host) -> None:
        """List and, when due, prove. Raises what is wrong; the host is up on return."""
        was_doubted, host.doubted = host.doubted, False
        host.wake.clear()
        if host.up and not was_doubted and host.in_flight >= self._config.connections:
            return  # every connection streams: that is proof enough, and there is none left to ask with
        await self._list(host)
        if self._config.pull:
            await self._pull_missing(host)
        names = await self._learn(host)
        if not names:
            raise self._empty(host)
        if was_doubted or not host.up:
            await self._prove(host, await self._for_proof(host, names))
        elif not host.in_flight:
            await self._prove_idle(host, names)
        if not host.up:
            _log.info("%s is up with %d models", host.url, len(names))
        host.up = True
        host.trouble = None

    async def _list(self, host: Host) -> None:
        began_s = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                host.listed = await host.client.tags()
        except TimeoutError:
            if not (host.up and host.heard_s > began_s):  # else slow to list, but its streams are alive
                raise _too_slow(f"{host.url} did not list its models", LIST_TIMEOUT_S) from None

    async def _learn(self, host: Host) -> list[str]:
        """Ask what each served model can do, anew when the host comes (back); the models that can be used."""
        known = []
        for name in self.catalogue.names(host):
            digest = host.listed[name].digest
            if digest not in self.catalogue.facts or not host.up:
                try:
                    async with asyncio.timeout(LIST_TIMEOUT_S):
                        self.catalogue.facts[digest] = await host.client.facts(name)
                except TimeoutError:
                    raise _too_slow(f"{host.url} did not describe {name}", LIST_TIMEOUT_S) from None
                except BackendUnavailable:
                    raise
                except WalledError as exc:
                    if digest not in host.warned:
                        host.warned.add(digest)
                        _log.warning("%s is left out: %s", name, exc.message)
                    continue
            known.append(name)
        return known

    async def _for_proof(self, host: Host, names: list[str]) -> str:
        """The model of a first proof: one that talks, and rather one that is loaded already."""
        loaded = await host.client.loaded()
        return min(names, key=lambda name: (not self.catalogue.talks(host, name), name not in loaded))

    async def _prove_idle(self, host: Host, names: list[str]) -> None:
        now = asyncio.get_running_loop().time()
        if now - host.heard_s < self._config.probe_interval_s:
            return
        loaded = await host.client.loaded()
        keep_s = self._config.keep_alive_s
        for name in names:
            used_s = host.used_s.get(name)
            if name not in loaded or used_s is None:
                continue
            left_s = keep_s - (now - used_s) if keep_s >= 0 else keep_s
            if keep_s < 0 or left_s >= 1.0:
                await self._prove(host, name, left_s)
                return

    async def _prove(self, host: Host, model: str, keep_alive_s: float | None = None) -> None:
        """Generate one token, unless a request takes the slot first: then the request is the proof."""
        keep_s = self._config.keep_alive_s if keep_alive_s is None else keep_alive_s
        proof = host.proof = asyncio.create_task(self._generate_one(host, model, keep_s))
        try:
            await asyncio.wait([proof])
        finally:
            host.proof = None
            proof.cancel()
        if proof.cancelled():
            return
        error = proof.exception()
        if isinstance(error, BackendOverloaded) and host.up:
            return  # busy is not dead
        if error is not None:
            raise error
        host.heard_s = asyncio.get_running_loop().time()
        host.used_s.setdefault(model, host.heard_s)

    async def _generate_one(self, host: Host, model: str, keep_alive_s: float) -> None:
        talks = self.catalogue.talks(host, model)
        probe = wire.PROBE if talks else wire.EMBED_PROBE
        path, body = wire.body(probe, model, self.load_options, keep_alive_s)
        limit_s = self._config.first_token_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                if not talks:
                    wire.embed_answer(await host.client.call(path, body, model), model, 1)
                    return
                reply = wire.Reply()
                async with aclosing(host.client.records(path, body, model)) as stream:
                    async for record in stream:
                        reply.add(record)
                reply.answer(model)
        except TimeoutError:
            raise _too_slow(f"{host.url} generated no token with {model}", limit_s) from None

    # --- pulling ---

    async def _pull_missing(self, host: Host) -> None:
        """Start the pulls that are due; wait for them only when the host has nothing else to serve."""
        now = asyncio.get_running_loop().time()
        for wanted in self._config.models.values():
            name = wire.full_name(wanted)
            running = host.pulls.get(name)
            if name in host.listed or (running is not None and not running.done()):
                continue
            if now >= host.pull_again_s.get(name, now):
                host.pull_again_s[name] = now + PULL_RETRY_S
                host.pulls[name] = asyncio.create_task(self._pull(host, name))
        under_way = [task for task in host.pulls.values() if not task.done()]
        if under_way and not self.catalogue.names(host):
            await asyncio.wait(under_way)
            await self._list(host)

    async def _pull(self, host: Host, model: str) -> None:
        loop = asyncio.get_running_loop()
        said_s = loop.time() - PULL_LOG_S
        _log.info("%s has no %s; pulling it", host.url, model)
        try:
            async with aclosing(host.client.pulling(model)) as steps:
                while True:
                    async with asyncio.timeout(PULL_SILENCE_S):
                        step = await anext(steps)
                    if loop.time() - said_s >= PULL_LOG_S:
                        said_s = loop.time()
                        _log.info("pulling %s on %s: %s", model, host.url, _share(step))
        except StopAsyncIteration:
            _log.info("%s now has %s", host.url, model)
            host.pull_trouble = ""
        except TimeoutError:
            host.pull_trouble = f"pulling {model}: nothing heard for {PULL_SILENCE_S:g} s"
        except WalledError as exc:
            host.pull_trouble = f"pulling {model} failed: {exc.message}"
        if host.pull_trouble:
            _log.warning("%s: %s; next try in %g s", host.url, host.pull_trouble, PULL_RETRY_S)
        host.wake.set()

    # --- telling ---

    def _info(self) -> BackendInfo:
        return self.catalogue.info(self._hosts, self._config.max_loaded_models)

    def _announce(self) -> None:
        if self._told is None:  # `open` has not returned
            return
        info = self._info()
        if info != self._told:
            self._told = info
            self._changed(info)

    def _empty(self, host: Host) -> WalledError:
        if not self._config.models:
            return ModelNotFound(f"{host.url} has no models; run `ollama pull NAME` there")
        names = ", ".join(self._config.models.values())
        text = f"{host.url} has none of the configured models ({names})"
        if self._config.pull:
            return BackendUnavailable(f"{text}; {host.pull_trouble or 'they are being pulled'}")
        return ModelNotFound(f"{text}; run `ollama pull` there, or set pull = true")

    def _hopeless(self) -> WalledError:
        troubles = [host.trouble for host in self._hosts if host.trouble is not None]
        text = "; ".join(trouble.message for trouble in troubles)
        if all(isinstance(trouble, ModelNotFound) for trouble in troubles):
            return BootError(text)
        return BackendUnavailable(text, retry_after_s=DOWN_CHECK_S)

    def _nobody(self, model: str) -> WalledError:
        down = [host.url for host in self._hosts if not host.up]
        if down:
            return BackendUnavailable(
                f"no Ollama host with {model} answers; down: {', '.join(down)}", retry_after_s=DOWN_CHECK_S
            )
        return ModelNotFound(f"no Ollama host serves {model}")


def _too_slow(what: str, limit_s: float) -> BackendUnavailable:
    return BackendUnavailable(f"{what} within {limit_s:g} s", retry_after_s=DOWN_CHECK_S)


def _share(step: Progress) -> str:
    if not step.total_bytes:
        return step.status
    return f"{step.status}: {100 * step.done_bytes // step.total_bytes} % of {step.total_bytes / 1e6:.0f} MB"
