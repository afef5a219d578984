"""A real daemon before a model server that is down, fails, and comes back: the faulty upstream on loopback.

May live here: what needs the daemon's own processes. May not: the faults one by one (adapters/).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from walled_client import Client

from tests.daemon_process import Daemon, running, write_config
from tests.fakes.faulty_upstream import FaultyUpstream

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture
def upstream() -> Iterator[FaultyUpstream]:
    with FaultyUpstream() as made:
        yield made


def behind(directory: Path, upstream: FaultyUpstream, *, alone: bool = False) -> Path:
    """A configuration of both dialects before the upstream, beside a scripted backend or `alone`."""
    config = write_config(
        directory,
        supervisor="restart_intensity = 1\nbackoff_initial_s = 0.01\nbackoff_max_s = 0.01",
        backend=f"""workers = 1
[backends.o]
kind = "ollama"
hosts = ["{upstream.url}"]
models = {{ theirs = "demo" }}
health_interval_s = 0.1
[backends.a]
kind = "openai"
base_url = "{upstream.openai_url}"
models = {{ other = "demo" }}
""",
    )
    backends = '["o", "a"]' if alone else '["s", "o", "a"]'
    config.write_text(config.read_text().replace('backend = "s"', f"backend = {backends}"))
    return config


def restarts(daemon: Daemon) -> int:
    return sum(int(child["restarts"]) for child in daemon.control("status")["tree"]["children"])


def test_the_daemon_serves_what_it_can_and_the_rest_when_it_comes(
    tmp_path: Path, upstream: FaultyUpstream
) -> None:
    upstream.down()
    with running(behind(tmp_path, upstream)) as daemon:
        daemon.complete(3)  # broker, monitor, the scripted worker
        for _ in range(2):
            daemon.until(r"backend [oa]: http://127\.0\.0\.1:\d+\S* cannot be reached.*trying on")
        with Client(run_dir=str(daemon.run_dir)) as client:
            assert client.chat(MESSAGES, model="scripted").text
            tree = daemon.control("status")["tree"]["children"]
            waiting = [child for child in tree if "cannot be reached" in child["detail"]]
            assert len(waiting) == 2, "walled-ctl status says why"
            upstream.up()
            for _ in range(2):
                daemon.until(r"worker \d ready \(pid")
            for model in ("theirs", "other"):
                assert client.chat(MESSAGES, model=model, deadline_s=10).text == "Hello, you."
        assert restarts(daemon) == 0, "a server that is down costs no process"


def test_a_daemon_none_of_whose_servers_is_up_waits_for_them(
    tmp_path: Path, upstream: FaultyUpstream
) -> None:
    upstream.down()
    with running(behind(tmp_path, upstream, alone=True)) as daemon:
        for _ in range(2):
            daemon.until("trying on")
        upstream.up()
        daemon.ready()
        with Client(run_dir=str(daemon.run_dir)) as client:
            assert client.chat(MESSAGES, model="theirs", deadline_s=10).text == "Hello, you."


def test_a_daemon_waiting_for_its_servers_stops_when_told(tmp_path: Path, upstream: FaultyUpstream) -> None:
    upstream.down()
    with running(behind(tmp_path, upstream, alone=True)) as daemon:
        for _ in range(2):
            daemon.until("trying on")
        assert daemon.stop() == 0
