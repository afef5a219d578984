"""Fixtures of the Ollama adapter's tests: fake servers and started adapters, all stopped at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.adapters.ollama_rig import ALL, Make, Rig
from tests.fakes.ollama_records import Model
from tests.fakes.ollama_server import FakeOllama
from walled.config import OllamaConfig


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def fake_ollama(cleanup: ExitStack) -> FakeOllama:
    return cleanup.enter_context(FakeOllama({"demo:latest": ALL, "embed:latest": Model(("embedding",), "e")}))


@pytest.fixture
def make_rig(fake_ollama: FakeOllama, cleanup: ExitStack) -> Make:
    def build(slots: int = 2, started: bool = True, **config: Any) -> Rig:
        settings: dict[str, Any] = {"hosts": (fake_ollama.url,), "health_interval_s": 0.05, **config}
        rig = Rig(OllamaConfig(**settings), slots)
        cleanup.callback(rig.backend.close)
        if started:
            rig.start()
        return rig

    return build
