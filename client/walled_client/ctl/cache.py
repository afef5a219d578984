"""walled-ctl cache stats, get, purge; work on the shared cache itself, also with the daemon dead.

May live here: finding the cache, showing a record, asking before deleting. May not: records, keys.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
import msgspec

from walled import config
from walled.adapters.cache import CacheReader, CacheWriter
from walled.core.policy import freshness
from walled.errors import BadRequest, InternalError, ModelNotFound, NotCached
from walled.payload import cache_key, unpack_answer
from walled_client import calls
from walled_client.ctl.program import VerbGroup
from walled_client.ctl.terminal import Terminal, on_terminal, pass_terminal, printable, seconds, size, table
from walled_client.discovery import find, place_of

_cache_dir = click.option(
    "--cache-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="The cache's directory [default: the one of the daemon].",
)
_HEADROOM_BYTES = 16 * 1024 * 1024


def _directory(terminal: Terminal, given: Path | None) -> Path:
    return given or find(place_of(terminal.run_dir, terminal.endpoint)).cache_dir


@click.group("cache", cls=VerbGroup, epilog="Example: walled-ctl cache stats")
def cache_verb() -> None:
    """Look into the cache, or empty it; no daemon is needed."""


@cache_verb.command("stats", epilog="Example: walled-ctl cache stats --json")
@_cache_dir
@pass_terminal
def cache_stats(terminal: Terminal, cache_dir: Path | None) -> int:
    """Show size and contents. Exit code 1 when there is no readable cache."""
    reader = CacheReader(_directory(terminal, cache_dir))
    try:
        stats = reader.stats()
    finally:
        reader.close()
    # Counts of hits and misses are this process's own, which has just begun: the daemon's are in `status`.
    shown = ("directory", "open", "problem", "entries", "live_bytes", "file_bytes", "map_bytes", "free_pages",
             "readers", "oldest_s")  # fmt: skip
    plain = msgspec.to_builtins(stats)
    data = {"schema": "walled.cache_stats/1", "ok": stats.open, **{name: plain[name] for name in shown}}

    def show() -> None:
        rows: list[tuple[str, object]] = [("directory", stats.directory), ("answers", stats.entries)]
        rows += [(name, size(plain[f"{name}_bytes"])) for name in ("live", "file", "map")]
        if stats.oldest_s is not None:
            rows.append(("oldest", f"{seconds(max(0.0, time.time() - stats.oldest_s))} ago"))
        rows += [("free pages", stats.free_pages), ("reader slots", stats.readers)]
        if stats.problem:
            rows.append(("problem", stats.problem))
        table(("cache", ""), rows)

    terminal.emit(data, show)
    return 0 if stats.open else 1


@cache_verb.command("get", epilog="Example: walled-ctl cache get 'How much is the lamp?' --temperature 0")
@click.argument("key_or_prompt")
@click.option("--model", default="default", show_default=True)
@click.option("--namespace", default="default", show_default=True)
@click.option("--system")
@click.option("--temperature", type=float)
@click.option("--max-tokens", type=int)
@click.option("--seed", type=int)
@_cache_dir
@pass_terminal
def cache_get(
    terminal: Terminal,
    /,
    key_or_prompt: str,
    cache_dir: Path | None,
    model: str,
    namespace: str,
    **options: Any,
) -> None:
    """Show the stored answer of a key (64 hexadecimal digits) or of a question with these options.

    Exit code 1 when there is none.
    """
    reader = CacheReader(_directory(terminal, cache_dir))
    try:
        key = _key(key_or_prompt)
        if key is None:
            asked = calls.chat(calls.Settings(), key_or_prompt, options)
            meta = reader.meta(model)
            if meta is None:
                problem = reader.stats().problem
                raise ModelNotFound(f"the cache knows no model {model}" + (f": {problem}" if problem else ""))
            key = cache_key(namespace, meta.fingerprint, asked.payload)
        now_s = time.time()
        record = reader.get(key, now_s)
    finally:
        reader.close()
    if record is None:
        raise NotCached(f"nothing is stored under {key.hex()}")
    answer = unpack_answer(record.answer)
    state = freshness(record, now_s)
    data = {
        "schema": "walled.cache_record/1",
        "ok": True,
        "key": key.hex(),
        "namespace": record.namespace,
        "model": record.model,
        "backend": record.backend,
        "state": state,
        "age_s": now_s - record.created_s,
        "created_s": record.created_s,
        "fresh_until_s": record.fresh_until_s,
        "stale_until_s": record.stale_until_s,
        "text": answer.text,
        "usage": {
            "prompt_tokens": answer.usage.prompt_tokens,
            "completion_tokens": answer.usage.completion_tokens,
        },
    }

    def show() -> None:
        click.echo(printable(answer.text) if on_terminal() else answer.text)
        terminal.note(
            f"[{state} | model {record.model} | namespace {record.namespace} | "
            f"age {seconds(max(0.0, now_s - record.created_s))} | key {key.hex()}]"
        )

    terminal.emit(data, show)


def _key(text: str) -> bytes | None:
    if len(text) != 64:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        return None


@cache_verb.command("purge", epilog="Example: walled-ctl cache purge --namespace shop --yes")
@click.option("--namespace", help="Only this namespace.")
@click.option("--model", help="Only answers of this model.")
@click.option("--key", help="Only this key (64 hexadecimal digits).")
@click.option("--all", "everything", is_flag=True, help="Everything.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_cache_dir
@pass_terminal
def cache_purge(
    terminal: Terminal,
    namespace: str | None,
    model: str | None,
    key: str | None,
    everything: bool,
    yes: bool,
    cache_dir: Path | None,
) -> None:
    """Remove stored answers. What is to go must be said: --all, or any of --namespace, --model, --key."""
    if everything == bool(namespace or model or key):
        raise click.UsageError("say what to remove: either --all, or any of --namespace, --model, --key")
    wanted = _key(key) if key else None
    if key and wanted is None:
        raise BadRequest("--key: expected 64 hexadecimal digits")
    directory = _directory(terminal, cache_dir)
    limits = (("namespace", namespace), ("model", model), ("key", key))
    what = " and ".join(f"{name} {value}" for name, value in limits if value) or "everything"
    if not yes:
        if not sys.stdin.isatty() or terminal.json:
            raise click.UsageError("this deletes; without a terminal to ask, --yes is needed")
        click.confirm(f"Remove {what} from {directory}?", abort=True, err=True)
    reader = CacheReader(directory)
    stats = reader.stats()
    reader.close()
    if not stats.open:
        raise NotCached(stats.problem or f"there is no cache in {directory}")
    # The map must not become larger than the daemon's own; deleting needs no room to speak of.
    spare_bytes = max(stats.map_bytes // 3, _HEADROOM_BYTES)
    defaults = config.CacheConfig()
    writer = CacheWriter(
        directory,
        max_bytes=max(1024 * 1024, stats.map_bytes - spare_bytes),
        max_entries=defaults.max_entries,
    )
    try:
        removed = writer.purge(namespace=namespace, model=model, key=wanted)
        after = writer.stats()
    finally:
        writer.close()
    if after.errors:
        raise InternalError(f"the cache in {directory} could not be written: {after.problem}")
    data = {"schema": "walled.cache_purge/1", "ok": True, "directory": str(directory), "removed": removed}
    terminal.emit(data, lambda: click.echo(f"{removed} removed"))
