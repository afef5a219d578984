"""What the hosts of an Ollama backend serve together: names, digests, capabilities, slots.

May live here: deriving that from what each host lists. May not: asking a host anything, waiting, tasks.

A model is served by the hosts whose digest of it agrees with that of the first host that is up: one name, one
set of weights, or an answer in the cache would depend on which host it came from.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from walled.adapters import ollama_wire as wire
from walled.adapters.backend import BackendInfo
from walled.config import OllamaConfig
from walled.errors import ModelNotFound
from walled.payload import canonical_json
from walled.protocol import ModelInfo

_log = logging.getLogger("walled.ollama")


class Listed(NamedTuple):
    """A model as a host lists it."""

    digest: str
    remote: bool
    """Ollama would send the request on to another machine."""


class Facts(NamedTuple):
    """What a model can do; the same wherever its digest is."""

    capabilities: tuple[str, ...]
    trained_tokens: int
    """The context length it was trained for, which no setting exceeds; 0 when unknown."""
    own_tokens: int
    """The num_ctx it was created with; 0 when that is left to the server."""


class Lister(Protocol):
    """What the catalogue needs to know of a host."""

    url: str
    up: bool
    cap: int
    listed: dict[str, Listed]


class Catalogue:
    """The models of one backend by the name requests use."""

    def __init__(self, config: OllamaConfig, slots: int, load_options: dict[str, Any]) -> None:
        self._config = config
        self._slots = slots
        text = canonical_json(load_options, "load_options") if load_options else ""
        # Another context window or quantised cache can change an answer, so it changes the digest.
        self._settings = f"+{hashlib.sha256(text.encode()).hexdigest()[:16]}" if text else ""
        self.facts: dict[str, Facts] = {}
        """By digest."""
        self.served: dict[str, tuple[str, str]] = {}
        """Our name -> (Ollama's full name, digest)."""
        self._mismatches: set[tuple[str, str, str]] = set()

    def names(self, host: Lister) -> list[str]:
        """Full names of the models this backend would serve from the host, in configured or listed order."""
        if self._config.models:
            wanted = dict.fromkeys(wire.full_name(name) for name in self._config.models.values())
            return [name for name in wanted if name in host.listed]
        # A remote model sends its prompts to another machine: only where the configuration names it.
        return [name for name, listed in host.listed.items() if not listed.remote]

    def has(self, host: Lister, model: str, hosts: Sequence[Lister]) -> bool:
        """Whether requests for the model may go to the host."""
        listed = host.listed.get(model) if host.up else None
        return listed is not None and listed.digest == _digest(model, hosts)

    def talks(self, host: Lister, model: str) -> bool:
        """Whether the model generates text (else it embeds)."""
        facts = self.facts.get(host.listed[model].digest)
        return facts is not None and "chat" in facts.capabilities

    def info(self, hosts: Sequence[Lister], max_loaded_models: int) -> BackendInfo:
        """What is served now. With every host down the models stay known: unavailable, not unknown."""
        up = [host for host in hosts if host.up]
        if up:
            self.served = self._find(up)
            for host in up:
                self._compare(host)
        slots = min(self._slots, sum(host.cap for host in up))
        return BackendInfo(tuple(self.model(name) for name in self.served), slots, max_loaded_models)

    def find(self, name: str) -> tuple[str, ModelInfo]:
        """Ollama's name and our description of a served model. Raises ModelNotFound."""
        if name not in self.served:
            raise ModelNotFound(f"no Ollama host of this backend serves {name}")
        return self.served[name][0], self.model(name)

    def model(self, name: str) -> ModelInfo:
        """The description of a served model; KeyError when it is not served."""
        _, digest = self.served[name]
        facts = self.facts[digest]
        window = self._config.context_tokens or facts.own_tokens
        if window and facts.trained_tokens:
            window = min(window, facts.trained_tokens)
        return ModelInfo(
            name=name,
            digest=f"{digest}{self._settings}",
            capabilities=facts.capabilities,
            context_tokens=window,
        )

    def _find(self, up: Sequence[Lister]) -> dict[str, tuple[str, str]]:
        served: dict[str, tuple[str, str]] = {}
        if self._config.models:
            for ours, theirs in self._config.models.items():
                name = wire.full_name(theirs)
                digest = _digest(name, up)
                if digest is not None and digest in self.facts:
                    served[ours] = (name, digest)
            return served
        for name in sorted({name for host in up for name in self.names(host)}):
            digest = _digest(name, up)
            if digest is not None and digest in self.facts:
                # Both spellings that Ollama itself takes.
                served[name.removesuffix(":latest")] = served[name] = (name, digest)
        # `default` is the first model, and it should be one that talks.
        return dict(
            sorted(served.items(), key=lambda item: "chat" not in self.facts[item[1][1]].capabilities)
        )

    def _compare(self, host: Lister) -> None:
        for name, digest in self.served.values():
            listed = host.listed.get(name)
            if listed is None or listed.digest == digest:
                continue
            mismatch = (host.url, name, listed.digest)
            if mismatch not in self._mismatches:
                self._mismatches.add(mismatch)
                _log.warning(
                    "%s has another %s (%.12s) than the first host (%.12s) and is not used for it; "
                    "pull or create the same model on every host",
                    *mismatch,
                    digest,
                )


def _digest(model: str, hosts: Sequence[Lister]) -> str | None:
    """The digest that counts: that of the first host that is up and has the model."""
    for host in hosts:
        if host.up and model in host.listed:
            return host.listed[model].digest
    return None
