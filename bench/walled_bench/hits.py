"""Figure 1: a cache hit inside the client, beside the bare floor of the same work.

May live here: this measurement and its floor. May not: starting the daemon (daemon.py), printing.

The floor is what nobody can leave out, written by hand: pack the dict, hash it, get the value from LMDB,
unpack record and answer. It skips checking the arguments, policy, freshness, the record's checksum, locks and
the Reply. Floor and client run in alternating blocks over the same questions, in one thread, the garbage
collector on as in any application and emptied before each block. The first pass over all is warm-up.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from walled_client import Client

from walled.adapters import cache_env
from walled.adapters.cache import CacheReader
from walled.core.record import Record
from walled.payload import KEY_VERSION, Answer
from walled_bench import questions
from walled_bench.daemon import Daemon, scripted
from walled_bench.figures import Figure, figure
from walled_bench.statistic import median, of_blocks, ratios

QUESTIONS = 400
BLOCKS = 15
GOES = 7
GO_S = 0.7
ANSWER_TOKENS = 40


class BareHit:
    """The floor: from the messages of a chat at temperature 0 to its answer."""

    def __init__(self, directory: Path, model: str) -> None:
        reader = CacheReader(directory)
        meta = reader.meta(model)
        assert meta is not None, "the daemon has not described its model"
        self._reader = reader
        self._environment = cache_env.acquire(directory)
        assert self._environment.reading is not None
        self._begin, self._answers = self._environment.reading
        self._prefix = b"walled-key\0%d\0%d\0default" % (KEY_VERSION, len("default")) + meta.fingerprint
        self._encode = msgspec.msgpack.Encoder().encode
        self._record = msgspec.msgpack.Decoder(Record).decode
        self._answer = msgspec.msgpack.Decoder(Answer).decode

    def __call__(self, messages: list[dict[str, Any]]) -> Answer:
        payload = self._encode({"kind": "chat", "messages": messages, "options": {"temperature": 0.0}})
        key = hashlib.sha256(self._prefix + payload).digest()
        txn = self._begin(self._answers, None, False, True)
        value = txn.get(key)
        record = self._record(value)
        txn.abort()
        return self._answer(record.answer)

    def close(self) -> None:
        cache_env.release(self._environment)
        self._reader.close()


def measure(quick: bool = False) -> list[Figure]:
    """Start a daemon, fill its cache, read it from this process."""
    asked = [questions.chat(number) for number in range(60 if quick else QUESTIONS)]
    blocks, goes, go_s = (3, 2, 0.1) if quick else (BLOCKS, GOES, GO_S)
    with Daemon(scripted(tokens=ANSWER_TOKENS, slots=16)) as daemon, Client(daemon.run_dir) as client:
        wanted = [questions.echo(turns[-1]["content"], ANSWER_TOKENS) for turns in asked]
        for turns in asked:
            client.chat(turns, temperature=0)
        floor = BareHit(daemon.cache_dir, "default")
        try:
            for turns, text in zip(asked, wanted, strict=True):
                reply = client.chat(turns, temperature=0)
                if reply.source != "cache" or reply.text != text or floor(turns).text != text:
                    raise RuntimeError("warm-up: a stored answer was not hit, or is another one")
            floor_us, client_us = _blocks(asked, floor, client, blocks)
            rates = [_rate(asked, lambda turns: client.chat(turns, temperature=0), go_s) for _ in range(goes)]
            floor_rates = [_rate(asked, floor, go_s) for _ in range(goes)]
        finally:
            floor.close()
        if client.counters()["local_hits"] < blocks * len(asked):
            raise RuntimeError("hits went to the daemon instead of the shared file")
    n = blocks * len(asked)
    return [
        figure("cache hit in the client, p50", of_blocks(client_us, n), "us"),
        figure("cache hit, bare floor, p50", of_blocks(floor_us, n), "us"),
        figure("cache hit, client / floor", of_blocks(ratios(client_us, floor_us), n), "ratio", at_most=1.5),
        figure("cache hits per process", of_blocks(rates), "1/s", at_least=100_000),
        figure("cache hits per process, bare floor", of_blocks(floor_rates), "1/s"),
    ]


def _blocks(
    asked: list[list[dict[str, Any]]], floor: BareHit, client: Client, blocks: int
) -> tuple[list[float], list[float]]:
    """p50 in microseconds of each block, floor and client in turn; who is first alternates."""
    floor_us: list[float] = []
    client_us: list[float] = []

    def one(turns: list[dict[str, Any]]) -> object:
        return client.chat(turns, temperature=0)

    for block in range(blocks):
        for which in (0, 1) if block % 2 else (1, 0):
            (client_us if which else floor_us).append(_p50_us(asked, one if which else floor))
    return floor_us, client_us


def _p50_us(asked: list[list[dict[str, Any]]], hit: Callable[[list[dict[str, Any]]], object]) -> float:
    gc.collect()
    times = []
    clock = time.perf_counter_ns
    for turns in asked:
        began = clock()
        hit(turns)
        times.append(clock() - began)
    return median(times) / 1000


def _rate(
    asked: list[list[dict[str, Any]]], hit: Callable[[list[dict[str, Any]]], object], go_s: float
) -> float:
    """Hits per second without a clock around each."""
    gc.collect()
    count = 0
    began_s = time.perf_counter()
    end_s = began_s + go_s
    while True:
        for turns in asked:
            hit(turns)
        count += len(asked)
        now_s = time.perf_counter()
        if now_s >= end_s:
            return count / (now_s - began_s)
