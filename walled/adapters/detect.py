"""What this machine offers at start: an Ollama that answers, the engines that are installed.

May live here: one short look at a loopback port, one at what can be imported. May not: loading an engine.
"""

from __future__ import annotations

import importlib.util
import json
import socket
import time

from walled import config as configuration
from walled.config import Config
from walled.errors import BootError

OLLAMA_ADDRESS = ("127.0.0.1", 11434)
OLLAMA_WAIT_S = 0.5

_NEEDS = {"embedded": "xllamacpp", "ollama": "ollama", "openai": "httpx"}
"""Kind of backend -> the package it needs; the pip extra has the kind's name."""


def ollama_answers(address: tuple[str, int] = OLLAMA_ADDRESS, wait_s: float = OLLAMA_WAIT_S) -> bool:
    """Whether an Ollama answers GET /api/version there within the time. A raw socket: http.client is 8 MB."""
    until_s = time.monotonic() + wait_s
    data = b""
    try:
        with socket.create_connection(address, timeout=wait_s) as connection:
            connection.sendall(b"GET /api/version HTTP/1.0\r\nHost: localhost\r\n\r\n")
            while len(data) < 65536:
                connection.settimeout(max(until_s - time.monotonic(), 0.001))
                piece = connection.recv(4096)
                if not piece:
                    break
                data += piece
    except OSError:
        pass  # a server that keeps the connection open has said its piece by now
    head, _, body = data.partition(b"\r\n\r\n")
    if b" 200" not in head.split(b"\r\n", 1)[0]:
        return False
    try:
        return "version" in json.loads(body)
    except (ValueError, TypeError):
        return False


def resolve(config: Config, address: tuple[str, int] = OLLAMA_ADDRESS) -> Config:
    """The configuration with `auto` replaced by a backend's name."""
    if config.backend != "auto":
        return config
    return configuration.with_backend(config, "ollama" if ollama_answers(address) else "embedded")


def require_engines(config: Config) -> None:
    """Raise BootError when an enabled backend's package is missing, saying what to install."""
    for name, backend in config.enabled_backends().items():
        kind = str(backend.__struct_config__.tag)
        package = _NEEDS.get(kind)
        if package and importlib.util.find_spec(package) is None:
            raise BootError(
                f'backend "{name}" needs the Python package {package}, which is not installed; '
                f"install it with: pip install 'walled[{kind}]'"
            )


def rules_are_right(config: Config) -> None:
    """Raise ConfigError when the configuration judges answers and its rules, or a package, are not there."""
    if config.validation.enabled:
        from walled.adapters import rule_files  # many tables: only who judges pays for them

        rule_files.validator(config)
