"""`auto` and missing engines."""

from __future__ import annotations

import importlib.util
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from walled import config as configuration
from walled.adapters import detect
from walled.errors import BootError

GOOD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"version":"0.9.1"}'
Serve = Callable[[bytes, bool], tuple[str, int]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers one connection with given bytes, and then closes it or keeps it open."""
    release = threading.Event()
    threads: list[threading.Thread] = []

    def start(answer: bytes, close: bool) -> tuple[str, int]:
        listener = socket.create_server(("127.0.0.1", 0))

        def run() -> None:
            with listener, listener.accept()[0] as connection:
                connection.recv(4096)
                connection.sendall(answer)
                if not close:
                    release.wait(20)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        host, port = listener.getsockname()
        return str(host), int(port)

    yield start
    release.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("answer", "close", "expected"),
    [
        (GOOD, True, True),
        (GOOD, False, True),
        (b"HTTP/1.1 404 Not Found\r\n\r\n{}", True, False),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", True, False),
        (b"HTTP/1.1 200 OK\r\n\r\n[]", True, False),
        (b"HTTP/1.1 200 OK\r\n\r\n7", True, False),
        (b"SSH-2.0-OpenSSH_9.2\r\n", False, False),
        (b"", False, False),
    ],
)
def test_only_an_ollama_is_an_ollama(serve: Serve, answer: bytes, close: bool, expected: bool) -> None:
    assert detect.ollama_answers(serve(answer, close), wait_s=0.3) is expected


def test_auto_is_ollama_when_it_answers_else_the_built_in_model(serve: Serve) -> None:
    config = configuration.from_plain({})
    assert detect.resolve(config, serve(GOOD, True)).backend == "ollama"
    with socket.create_server(("127.0.0.1", 0)) as free:
        nobody = free.getsockname()
    assert detect.resolve(config, nobody).backend == "embedded"
    chosen = configuration.from_plain({"backend": "ollama"})
    assert detect.resolve(chosen, nobody) is chosen


@pytest.mark.parametrize(
    ("kind", "package"), [("embedded", "xllamacpp"), ("ollama", "ollama"), ("openai", "httpx")]
)
def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch, kind: str, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, parent=None: None if name == package else find(name, parent)
    )
    section = {"kind": kind, **({"base_url": "http://localhost/v1"} if kind == "openai" else {})}
    config = configuration.from_plain({"backend": "b", "backends": {"b": section}})
    with pytest.raises(BootError, match=rf"pip install 'walled\[{kind}\]'"):
        detect.require_engines(config)


def test_the_scripted_backend_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    detect.require_engines(
        configuration.from_plain(
            {"backend": "s", "daemon": {"allow_scripted": True}, "backends": {"s": {"kind": "scripted"}}}
        )
    )
