"""Which adapter serves which kind of backend; adapters are imported only when chosen.

May live here: the table and the friendly error for a package that is not installed. May not: anything of an
adapter.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from walled.adapters.backend import Backend
from walled.config import BackendConfig
from walled.errors import BootError


class _Adapter(NamedTuple):
    module: str
    cls: str
    extra: str
    """The optional dependency of the distribution with the adapter's library; "" when it needs none."""
    needs_run_dir: bool = False


ADAPTERS: dict[str, _Adapter] = {
    "embedded": _Adapter("walled.adapters.llamacpp", "LlamaCppBackend", "embedded", needs_run_dir=True),
    "ollama": _Adapter("walled.adapters.ollama", "OllamaBackend", "ollama"),
    "openai": _Adapter("walled.adapters.openai", "OpenAIBackend", "openai"),
    "scripted": _Adapter("walled.adapters.scripted", "ScriptedBackend", ""),
}


def kind_of(config: BackendConfig) -> str:
    """The `kind` of a backend's section."""
    return str(config.__struct_config__.tag)


def create(name: str, config: BackendConfig, slots: int, run_dir: Path) -> Backend:
    """The adapter of the backend called `name`, not started. Raises BootError when its package is missing."""
    adapter = ADAPTERS[kind_of(config)]
    try:
        cls: Any = getattr(import_module(adapter.module), adapter.cls)
    except ImportError as exc:
        if not adapter.extra or (exc.name or "").startswith("walled"):
            raise
        raise BootError(
            f'backend "{name}" needs the package {exc.name}, which is not installed (or cannot be loaded: '
            f"{exc}); install it with: pip install 'walled[{adapter.extra}]'"
        ) from None
    keywords: dict[str, Any] = {"run_dir": run_dir} if adapter.needs_run_dir else {}
    backend: Backend = cls(config, slots, **keywords)
    return backend
