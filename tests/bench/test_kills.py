"""A short kill campaign with real processes, and proof that its books notice what they should."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from walled_bench import kills, questions
from walled_bench.daemon import Daemon, members, scripted
from walled_bench.figures import failing
from walled_bench.ledger import GRACE_S, Ledger, Witness
from walled_client.subscriber import Subscriber

from walled import protocol
from walled.adapters.sockets import Hub, Poller, Port
from walled.errors import Overloaded
from walled.payload import Answer, pack_answer

TOKENS = 5
KILLS = 10


@pytest.mark.process
def test_ten_random_kills_under_load_cost_time_and_nothing_else() -> None:
    outcome = kills.campaign(KILLS, seed=3)
    assert outcome.ledger.problems == []
    assert len(outcome.kills) == KILLS
    assert {kill.role for kill in outcome.kills} == set(kills.ROLES), "choose a seed that draws every role"
    # How fast it recovers is a figure of a quiet machine; that it does is tested here.
    missed = {each.name for each in failing(kills.figures(outcome))} - {"kills: recoveries over 1 s"}
    assert missed == set()
    assert outcome.exit_status == 0
    # The checks above were made on something.
    assert outcome.ledger.begun > 50
    assert outcome.ledger.endings["model"] > 20
    assert outcome.witness.finals > 10
    assert outcome.records > 0


@pytest.mark.process
def test_a_daemon_stopped_by_a_bench_leaves_no_process() -> None:
    with Daemon(scripted()) as daemon:
        session = daemon.pid
        # READY waits for an answer, not for the monitor: that has its title once it publishes.
        with Subscriber(daemon.run_dir) as stream:
            assert stream.next(20) is not None
        assert len(members(session)) == 4
        assert daemon.sample().keys() == {"supervisor", "broker", "monitor", "worker 0"}
    assert members(session) == []
    assert daemon.exit_status == 0
    assert not daemon.run_dir.exists()


def test_a_process_left_in_the_session_is_found_and_ended() -> None:
    inner = "import subprocess, sys; subprocess.Popen(['sleep', '60'])"
    leader = subprocess.Popen([sys.executable, "-c", inner], start_new_session=True)
    leader.wait()
    left = members(leader.pid)
    assert len(left) == 1
    sentinel = os.pidfd_open(left[0])
    os.kill(left[0], 9)
    poller = Poller((), [sentinel])
    assert poller.wait(5.0)
    os.close(sentinel)
    assert members(leader.pid) == []


# --- the witness, against a broker that misbehaves -------------------------------------------------


class _Broker:
    """A ROUTER that answers as it is told."""

    def __init__(self, directory: Path) -> None:
        self.hub = Hub()
        self.endpoint = f"ipc://{directory / 'client.sock'}"
        self.port: Port = self.hub.router(self.endpoint, hwm=100, max_bytes=1 << 20)

    async def request(self) -> tuple[bytes, bytes]:
        """Identity and request id of the next request."""
        found: list[list[bytes]] = []

        def received() -> bool:
            found.extend(self.port.receive(1))
            return bool(found)

        await _until(received)
        identity, *parts = found[0]
        return identity, protocol.parse(parts).request_id

    def final(self, identity: bytes, request_id: bytes, text: str) -> None:
        payload = pack_answer(Answer(text=text))
        self.port.send_to(
            identity, protocol.frames(protocol.FINAL, request_id, protocol.FinalHeader(), payload)
        )


async def _asked(witness: Witness, number: int) -> None:
    await _until(lambda: witness.ask(number))


async def _until(condition: Callable[[], bool]) -> None:
    """Poll on every turn of the loop; ZeroMQ's descriptor tells of a message, not of a condition."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


def _witnessed(tmp_path: Path, act: Callable[[_Broker, bytes, bytes, str], None], end: str) -> Witness:
    """What the witness says of one request that `act` answers; `end`: the count to wait for."""

    async def run() -> Witness:
        broker = _Broker(tmp_path)
        witness = Witness(broker.endpoint, TOKENS, 5.0)
        await _asked(witness, 7)
        identity, request_id = await broker.request()
        act(broker, identity, request_id, questions.echo(questions.last_turn(7), TOKENS))
        await _until(lambda: getattr(witness, end) > 0)
        witness.close()
        broker.hub.close()
        return witness

    return asyncio.run(run())


def test_the_witness_counts_an_ending(tmp_path: Path) -> None:
    witness = _witnessed(tmp_path, lambda broker, *answer: broker.final(*answer), "once")
    assert (witness.once, witness.finals, witness.wrong, witness.twice, witness.never) == (1, 1, 0, 0, 0)


def test_the_witness_notices_a_second_ending(tmp_path: Path) -> None:
    def twice(broker: _Broker, *answer: bytes | str) -> None:
        broker.final(*answer)  # type: ignore[arg-type]
        broker.final(*answer)  # type: ignore[arg-type]

    assert _witnessed(tmp_path, twice, "twice").twice == 1


def test_the_witness_notices_a_truncated_answer(tmp_path: Path) -> None:
    def cut(broker: _Broker, identity: bytes, request_id: bytes, text: str) -> None:
        broker.final(identity, request_id, text[:-1])

    assert _witnessed(tmp_path, cut, "once").wrong == 1


def test_the_witness_notices_an_ending_nobody_asked_for(tmp_path: Path) -> None:
    def stranger(broker: _Broker, identity: bytes, _: bytes, text: str) -> None:
        broker.final(identity, b"somebody else's", text)

    witness = _witnessed(tmp_path, stranger, "malformed")
    assert (witness.malformed, witness.never) == (1, 1)


def test_the_witness_excuses_what_its_broker_took_to_the_grave(tmp_path: Path) -> None:
    witness = _witnessed(tmp_path, lambda broker, *_: broker.port.close(), "lost")
    assert (witness.lost, witness.never, witness.once) == (1, 0, 0)


# --- the client's book -----------------------------------------------------------------------------


def test_the_ledger_notices_what_is_wrong() -> None:
    ledger = Ledger()
    began_s = ledger.begin()
    ledger.answered("model", "a b", "a b", began_s, 1.0)
    assert ledger.problems == []
    ledger.answered("model", "a", "a b", ledger.begin(), 1.0)
    ledger.failed(Overloaded("full"), ledger.begin(), 1.0)
    ledger.failed(ValueError("no type of ours"), ledger.begin(), 1.0)
    ledger.failed(Overloaded("full"), ledger.begin() - 1.0 - GRACE_S, 1.0)
    assert (ledger.wrong, ledger.untyped, ledger.hung, ledger.open) == (1, 1, 1, 0)
    assert len(ledger.problems) == 3
    ledger.begin()
    assert ledger.open == 1
