"""Figure 1: a cache hit inside the client, beside the bare floor of the same work.

May live here: this measurement and its floor. May not: starting the daemon (daemon.py), printing.

The bare floor is what nobody can leave out, written by hand: pack the dict, hash it, get the value from LMDB,
unpack record and answer. It checks nothing and returns no Reply. The parts are the same steps with what
walled puts into each of them (arguments checked, canonical packing, lock, checksum) and nothing around them;
what is between parts and client is settings, policy, freshness and the Reply.

All three run over the same questions in one thread, in slices of SLICE questions that alternate, so that a
moment of other load meets all of them. The garbage collector is on, as in any application, and emptied before
each block. The first pass over all questions is warm-up. Rates are taken without a clock around each hit.
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
from walled.core.record import Record, unpack_record
from walled.payload import (
    KEY_VERSION,
    Answer,
    Message,
    Options,
    Request,
    cache_key,
    pack_request,
    unpack_answer,
)
from walled_bench import questions
from walled_bench.daemon import Daemon, scripted
from walled_bench.figures import Figure, figure
from walled_bench.statistic import median, of_blocks, ratios

QUESTIONS = 400
BLOCKS = 15
GOES = 7
GO_S = 0.7
ANSWER_TOKENS = 200
SLICE = 40


Messages = list[dict[str, Any]]
Hit = Callable[[Messages], Any]


class BareHit:
    """The floors: from the messages of a chat at temperature 0 to its answer."""

    def __init__(self, directory: Path, model: str) -> None:
        self._reader = CacheReader(directory)
        meta = self._reader.meta(model)
        assert meta is not None, "the daemon has not described its model"
        self._environment = cache_env.acquire(directory)
        assert self._environment.reading is not None
        self._begin, self._answers = self._environment.reading
        self._lock = self._environment.lock
        self._fingerprint = meta.fingerprint
        self._prefix = b"walled-key\0%d\0%d\0default" % (KEY_VERSION, len("default")) + meta.fingerprint
        self._encode = msgspec.msgpack.Encoder().encode
        self._record = msgspec.msgpack.Decoder(Record).decode
        self._answer = msgspec.msgpack.Decoder(Answer).decode

    def bare(self, messages: Messages) -> Answer:
        """By hand, without a check."""
        payload = self._encode({"kind": "chat", "messages": messages, "options": {"temperature": 0.0}})
        key = hashlib.sha256(self._prefix + payload).digest()
        txn = self._begin(self._answers, None, False, True)
        value = txn.get(key)
        record = self._record(value)
        txn.abort()
        return self._answer(record.answer)

    def parts(self, messages: Messages) -> Answer:
        """The same steps as walled makes them."""
        turns = msgspec.convert(messages, tuple[Message, ...])
        options = msgspec.convert({"temperature": 0}, Options)
        payload = pack_request(Request("chat", messages=turns, options=options))
        key = cache_key("default", self._fingerprint, payload)
        with self._lock:
            txn = self._begin(self._answers, None, False, True)
            try:
                record = unpack_record(key, txn.get(key))
            finally:
                txn.abort()
        return unpack_answer(record.answer)

    def close(self) -> None:
        cache_env.release(self._environment)
        self._reader.close()


def measure(quick: bool = False) -> list[Figure]:
    """Start a daemon, fill its cache, read it from this process."""
    count = 40 if quick else QUESTIONS
    blocks, goes, go_s = (3, 2, 0.1) if quick else (BLOCKS, GOES, GO_S)
    long = [questions.long_chat(number) for number in range(count)]
    short = [questions.chat(number) for number in range(count)]
    with Daemon(scripted(tokens=ANSWER_TOKENS, slots=16)) as daemon, Client(daemon.run_dir) as client:

        def hit(turns: Messages) -> Any:
            return client.chat(turns, temperature=0)

        for turns in (*long, *short):
            hit(turns)
        floor = BareHit(daemon.cache_dir, "default")
        ways: dict[str, Hit] = {"client": hit, "bare": floor.bare, "parts": floor.parts}
        try:
            for turns in (*long, *short):
                wanted = questions.echo(turns[-1]["content"], ANSWER_TOKENS)
                if hit(turns).source != "cache" or any(way(turns).text != wanted for way in ways.values()):
                    raise RuntimeError("warm-up: a stored answer was not hit, or is another one")
            p50s = _p50s_us(long, ways, blocks)
            rates = {name: [_rate(long, way, go_s) for _ in range(goes)] for name, way in ways.items()}
            short_rates = [_rate(short, hit, go_s) for _ in range(goes)]
        finally:
            floor.close()
        if client.counters()["local_hits"] < blocks * count:
            raise RuntimeError("hits went to the daemon instead of the shared file")
    n = blocks * count
    above_bare, above_parts = (ratios(p50s["client"], p50s[name]) for name in ("bare", "parts"))
    return [
        figure("cache hit in the client, p50", of_blocks(p50s["client"], n), "us"),
        figure("cache hit, bare floor, p50", of_blocks(p50s["bare"], n), "us"),
        figure("cache hit, walled's own parts, p50", of_blocks(p50s["parts"], n), "us"),
        figure("cache hit, client / bare floor", of_blocks(above_bare, n), "ratio", at_most=1.5),
        figure("cache hit, client / own parts", of_blocks(above_parts, n), "ratio"),
        figure("cache hits per process", of_blocks(rates["client"]), "1/s", at_least=100_000),
        figure("cache hits per process, bare floor", of_blocks(rates["bare"]), "1/s"),
        figure("cache hits per process, short question", of_blocks(short_rates), "1/s"),
    ]


def _p50s_us(asked: list[Messages], ways: dict[str, Hit], blocks: int) -> dict[str, list[float]]:
    """p50 in microseconds of each way in each block."""
    p50s: dict[str, list[float]] = {name: [] for name in ways}
    for block in range(blocks):
        gc.collect()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for first in range(0, len(asked), SLICE):
            order = list(ways) if (first // SLICE + block) % 2 else list(reversed(ways))
            for name in order:
                times[name] += _times_us(asked[first : first + SLICE], ways[name])
        for name, values in times.items():
            p50s[name].append(median(values))
    return p50s


def _times_us(asked: list[Messages], hit: Hit) -> list[float]:
    times = []
    clock = time.perf_counter_ns
    for turns in asked:
        began = clock()
        hit(turns)
        times.append((clock() - began) / 1000)
    return times


def _rate(asked: list[Messages], hit: Hit, go_s: float) -> float:
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
