"""The exported file in the engine it is meant for: load a GGUF in llama.cpp and ask it. No judging here.

A process that loads a model keeps it until it exits: use one Engine per process. As a program it takes the
path of a GGUF, reads a JSON list of [system, question] pairs from stdin and prints a JSON list of replies:

    echo '[["", "Hello"]]' | python -m tools.builtin_model.engine walled/models/walled-demo.gguf
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xllamacpp

from .grammar import Turn


class Engine:
    """One loaded model, greedy answers, on a private unix socket nobody else uses."""

    def __init__(self, model: Path, folder: Path, context: int, parallel: int = 1) -> None:
        params: Any = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.n_ctx = context * parallel
        params.n_parallel = parallel
        params.cpuparams.n_threads = 1
        params.cpuparams_batch.n_threads = 1
        params.cache_ram_mib = 0
        params.fit_params = False
        params.ui = False
        params.verbosity = -1
        params.hostnames = [str(folder / "engine.sock")]
        self._server = xllamacpp.Server(params)

    def reply(self, turns: Sequence[Turn], limit: int = 200, temperature: float = 0.0) -> tuple[str, str]:
        """The reply to the last turn, and why it ended ("stop" or "length")."""
        body = {
            "messages": [{"role": turn.role, "content": turn.text} for turn in turns],
            "max_tokens": limit,
            "temperature": temperature,
            "seed": 1,
        }
        answer: Any = self._server.handle_chat_completions(body)
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
        choice = answer["choices"][0]
        return choice["message"]["content"] or "", choice["finish_reason"]

    def complete(self, prompt: str, limit: int = 60) -> str:
        """Continue a bare prompt, without the chat template."""
        answer: Any = self._server.handle_completions(
            {"prompt": prompt, "max_tokens": limit, "temperature": 0.0}
        )
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
        return str(answer["choices"][0]["text"])

    def prompt_tokens(self, turns: Sequence[Turn]) -> int:
        """How many tokens llama.cpp makes of these messages, the opening of the reply included."""
        body = {
            "messages": [{"role": turn.role, "content": turn.text} for turn in turns],
            "max_tokens": 1,
            "temperature": 0.0,
        }
        answer: Any = self._server.handle_chat_completions(body)
        return int(answer["usage"]["prompt_tokens"])


def main() -> None:
    """Answer what stdin asks. An empty system prompt is left out."""
    with tempfile.TemporaryDirectory() as private:
        engine = Engine(Path(sys.argv[1]), Path(private), 1024)
        replies = []
        for system, ask in json.load(sys.stdin):
            turns = [Turn("system", system)] if system else []
            replies.append(engine.reply([*turns, Turn("user", ask)])[0])
    print(json.dumps(replies, ensure_ascii=False), flush=True)
    os._exit(0)  # the engine's threads are of no more use


if __name__ == "__main__":
    main()
