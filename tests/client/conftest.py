"""Fixtures of the client's tests: a short directory for sockets, a fake broker in it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client.fake_broker import FakeBroker


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, because a socket's path has at most 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="wc-"))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def broker(run_dir: Path) -> Iterator[FakeBroker]:
    """Running, answering every request with its own text."""
    fake = FakeBroker(run_dir)
    fake.start()
    yield fake
    fake.stop()


@pytest.fixture(autouse=True)
def _own_cache(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads the cache of a daemon that happens to run here."""
    monkeypatch.setenv("WALLED_CACHE_DIR", str(run_dir / "cache"))
    monkeypatch.setenv("WALLED_RUN_DIR", str(run_dir))
