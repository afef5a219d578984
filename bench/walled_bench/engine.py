"""The engine of figure 5 called directly: one process, one thread a conversation, no daemon.

May live here: that process (`python -m walled_bench.engine`) and how it is asked for a round. May not: what
is measured with it.

The engine is loaded by the daemon's own adapter, so that every setting of llama.cpp is the same, and then
called beside it: for whole answers without a callback, for streams with one that keeps the chunks, the
plainest and fastest way a program of its own would call it. A line on standard input asks for a round, a line
on standard output is its result; the end of input ends it.
"""

from __future__ import annotations

import json
import select
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from walled_bench import bargains

ROUND_LIMIT_S = 120.0


class BareEngine:
    """The process from outside. A context manager."""

    def __init__(self, directory: Path, slots: int, threads: int, context_tokens: int) -> None:
        self._arguments = [str(directory), str(slots), str(threads), str(context_tokens)]
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", __name__, *self._arguments]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            self._line()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        child = self._child
        assert child is not None
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        child.stdout.close()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()

    def round(self, conversations: int, turns: int, stream: bool) -> tuple[int, float, float]:
        """Completion tokens, seconds, and seconds of processor time."""
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps([conversations, turns, stream]).encode() + b"\n")
        self._child.stdin.flush()
        tokens, took_s, cpu_s = self._line()
        return int(tokens), float(took_s), float(cpu_s)

    def _line(self) -> Any:
        assert self._child is not None
        assert self._child.stdout is not None
        if not select.select([self._child.stdout], [], [], ROUND_LIMIT_S)[0]:
            raise RuntimeError("the bare engine does not answer")
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError("the bare engine ended")
        return json.loads(line)


def _talk(server: Any, number: int, turns: int, stream: bool, counts: list[int]) -> None:
    messages = [{"role": "system", "content": bargains.system(number)}]
    for turn in bargains.TURNS[:turns]:
        messages.append({"role": "user", "content": turn})
        body: dict[str, Any] = {"messages": messages, "max_tokens": bargains.MAX_TOKENS, "temperature": 0.0}
        if stream:
            text, tokens = _streamed(server, body)
        else:
            reply = server.handle_chat_completions(body)
            text, tokens = reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]
        counts[number] += tokens
        messages.append({"role": "assistant", "content": text})


def _streamed(server: Any, body: dict[str, Any]) -> tuple[str, int]:
    chunks: list[bytes] = []

    def keep(chunk: bytes) -> bool:
        chunks.append(chunk)
        return False

    body = {**body, "stream": True, "stream_options": {"include_usage": True}}
    server.handle_chat_completions(json.dumps(body).encode(), keep)
    text, tokens = "", 0
    for fields in map(json.loads, chunks):
        text += "".join(choice["delta"].get("content") or "" for choice in fields["choices"])
        tokens += (fields.get("usage") or {}).get("completion_tokens", 0)
    return text, tokens


def _main(directory: Path, slots: int, threads: int, context_tokens: int) -> None:
    from walled.adapters.llamacpp import LlamaCppBackend
    from walled.config import EmbeddedConfig

    config = EmbeddedConfig(slots=slots, threads=threads, context_tokens=context_tokens)
    backend = LlamaCppBackend(config, slots, run_dir=directory)
    backend.start(lambda event: None)
    # The raw engine behind the adapter: what the adapter adds is part of what is measured against this.
    server = backend._server
    try:
        print("true", flush=True)
        for line in sys.stdin:
            conversations, turns, stream = json.loads(line)
            counts = [0] * conversations
            began_s, cpu_s = time.perf_counter(), time.process_time()
            with ThreadPoolExecutor(conversations) as pool:
                talks = [
                    pool.submit(_talk, server, number, turns, stream, counts)
                    for number in range(conversations)
                ]
            for talk in talks:
                talk.result()
            took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - cpu_s
            print(json.dumps([sum(counts), took_s, cpu_s]), flush=True)
    finally:
        del server
        backend.close()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), *(int(argument) for argument in sys.argv[2:5]))
