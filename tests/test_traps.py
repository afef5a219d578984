"""Traps that only a whole running daemon can spring, and the list of where all the others are tested.

DESIGN's table of traps already sprung: each has a test that names it. The list below is checked, so that a
renamed or removed test is noticed.
"""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest
from walled_client import Client

from tests.daemon_process import running, write_config
from walled import errors

TESTS = Path(__file__).resolve().parent
CANARY = "zanzibar-7f3a-canary"

WHERE = {
    "ROUTER drops silently at its high-water mark": (
        "adapters/test_sockets.py",
        "test_router_says_full_for_a_peer_that_does_not_read_and_loses_nothing",
    ),
    "ROUTER drops silently to an unknown peer": (
        "adapters/test_sockets.py",
        "test_router_says_gone_for_a_peer_it_does_not_know",
    ),
    "a second bind on an ipc path steals it": (
        "adapters/test_runlock.py",
        "test_a_second_one_is_told_who_holds_it",
    ),
    "a socket path over 107 bytes": ("test_config.py", "test_a_socket_path_is_measured_in_bytes_and_exactly"),
    "DEALER queues to nobody": ("adapters/test_sockets.py", "test_dealer_sends_nothing_to_nobody"),
    "ZMTP heartbeats are answered by the I/O thread": (
        "test_traps.py",
        "test_trap_a_python_loop_stuck_for_ever_answers_zmtp_heartbeats_but_not_ours",
    ),
    "slow joiner": ("test_monitor.py", "test_a_late_subscriber_gets_the_last_value_at_once"),
    "identity collision or spoof": (
        "adapters/test_sockets.py",
        "test_a_second_peer_of_the_same_identity_cannot_take_over_the_first",
    ),
    "CURVE without ZAP accepts any key: no TCP": (
        "adapters/test_sockets.py",
        "test_bind_refuses_whatever_is_not_a_unix_socket",
    ),
    "nine bytes reserve 1 GB": (
        "adapters/test_sockets.py",
        "test_nine_bytes_that_announce_a_gigabyte_reserve_nothing",
    ),
    "HANDSHAKE_IVL": ("adapters/test_sockets.py", "test_a_peer_that_never_shakes_hands_is_thrown_out"),
    "1 MB of empty maps cost 77 MB": (
        "test_payload_keys.py",
        "test_a_megabyte_of_empty_maps_costs_almost_nothing",
    ),
    "read-only LMDB open needs write on the lock file": (
        "adapters/test_cache_processes.py",
        "test_who_may_read",
    ),
    "writemap dies by SIGBUS on a full disk": (
        "adapters/test_cache.py",
        "test_writemap_and_metasync_are_off_and_commits_are_synced",
    ),
    "dead readers pin pages": (
        "adapters/test_cache_processes.py",
        "test_a_dead_reader_pins_pages_until_the_reader_check",
    ),
    "PrivateUsers hides peer uids, ~@resources aborts libzmq": (
        "test_systemd_unit.py",
        "test_what_broke_walled_is_not_in_it",
    ),
    "Ollama ignores its queue limit for a loaded model": (
        "adapters/test_ollama_hosts.py",
        "test_never_more_in_flight_than_slots",
    ),
    "differing options reload the model in Ollama": (
        "adapters/test_ollama_hosts.py",
        "test_requests_never_change_what_reloads_a_model",
    ),
    "glibc keeps freed memory: judge USS": ("adapters/test_probe.py", "test_trap_freed_memory_glibc_keeps"),
    "prompts in logs": ("test_traps.py", "test_trap_prompts_and_answers_never_appear_in_logs"),
}


def functions(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.parametrize("trap", sorted(WHERE))
def test_every_trap_has_its_test(trap: str) -> None:
    file, name = WHERE[trap]
    assert name in functions(TESTS / file), f"{file} has no {name}: where is the test of this trap now?"


@pytest.mark.process
def test_trap_a_python_loop_stuck_for_ever_answers_zmtp_heartbeats_but_not_ours(tmp_path: Path) -> None:
    """The I/O thread of a stuck worker keeps its connection alive; only the working loop's own beats tell.

    It is found and replaced within 5 s, and the request it took with it is answered by another worker or
    ends with a typed error; either way before its deadline.
    """
    config = write_config(tmp_path, backend="workers = 2\nslots = 4")
    with running(config) as daemon, Client(run_dir=daemon.run_dir, cache=False) as client:
        before = daemon.complete(4)
        stuck_s = time.monotonic()
        with pytest.raises(errors.WalledError) as caught:
            client.chat("take this\n!hang", deadline_s=20)
        assert caught.value.code in ("worker_lost", "deadline_exceeded", "unavailable")
        daemon.until(r"worker \d+ .*(hung|silent)", 10)
        assert time.monotonic() - stuck_s < 12, "two workers hang in turn: each has 5 s"
        assert client.chat("and now?", deadline_s=20).text
        assert {pid for name, pid in daemon.complete(4).items() if name.startswith("worker")} != {
            pid for name, pid in before.items() if name.startswith("worker")
        }


@pytest.mark.process
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_trap_prompts_and_answers_never_appear_in_logs(tmp_path: Path, log_format: str) -> None:
    """At the most talkative level, through success, refusal, failure, a crash and a worker's traceback."""
    config = write_config(
        tmp_path,
        daemon=f'log_level = "debug"\nlog_format = "{log_format}"',
        backend="workers = 2\nslots = 4",
    )
    with running(config) as daemon, Client(run_dir=daemon.run_dir) as client:
        daemon.until(r"walled \S+ ready: ")
        assert CANARY in client.chat(f"{CANARY} please", temperature=0).text
        assert CANARY in client.chat(f"{CANARY} please", temperature=0).text
        for fault in ("!fail backend_error", "!fail_after 2 truncated", "!crash"):
            with pytest.raises(errors.WalledError) as caught:
                client.chat(f"{CANARY}\n{fault}", deadline_s=10)
            assert CANARY not in str(caught.value)
        with pytest.raises(errors.WalledError) as caught:
            client.chat(CANARY, model=f"no-such-{'m' * 10}", deadline_s=5)
        with pytest.raises(errors.WalledError):
            list(client.stream(f"{CANARY}\n!fail_after 3 backend_error", deadline_s=10))
        for verb in ("status", "queue.list", "workers.list", "models.list"):
            assert CANARY not in repr(daemon.control(verb))
        daemon.stop()
        assert len(daemon.lines) > 5
        assert not [line for line in daemon.lines if CANARY in line]
        left = [path for path in tmp_path.rglob("*") if path.is_file() and "cache" not in path.parts]
        assert not [path for path in left if CANARY.encode() in path.read_bytes()]
