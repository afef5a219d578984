"""The Prometheus endpoint: what it serves parses strictly, and a stopped scraper holds up nobody."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from walled.adapters.scrape import ScrapeServer
from walled.core.exposition import text
from walled.core.registry import Registry


@pytest.fixture
def server() -> Iterator[ScrapeServer]:
    server = ScrapeServer(0, "secret")
    yield server
    server.close()


def get(server: ScrapeServer, path: str = "/metrics", token: str = "secret") -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}")
    request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=10) as reply:
        return str(reply.read().decode())


def test_it_is_what_the_registry_has(server: ScrapeServer) -> None:
    registry = Registry()
    odd = 'a"b\\c\nd'
    for value in (0.001, 4.0, 4.5, 1000.0):
        registry.observe("walled_request_queue_seconds", value, odd)
    registry.set("walled_queue_bytes", 7.0)
    registry.increase("walled_requests_total", 2, "m", "ok", "backend")
    server.offer(text(registry))
    families = {family.name: family for family in parsed(get(server))}
    assert families["walled_queue_bytes"].samples[0].value == 7
    assert families["walled_requests"].type == "counter"
    samples = families["walled_request_queue_seconds"].samples
    by_bound = {s.labels["le"]: s.value for s in samples if s.name.endswith("_bucket")}
    assert (by_bound["3.0"], by_bound["5.0"], by_bound["640.0"], by_bound["+Inf"]) == (1, 3, 3, 4)
    assert {s.labels["model"] for s in samples} == {odd}
    assert [s.value for s in samples if s.name.endswith("_sum")] == [1008.501]


def test_a_wrong_token_and_another_path_are_refused(server: ScrapeServer) -> None:
    for path, token, status in (("/metrics", "wrong", 401), ("/", "secret", 404)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(server, path, token)
        assert caught.value.code == status
        caught.value.close()


def test_a_scraper_that_never_reads_holds_up_nobody(server: ScrapeServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as idle:
        idle.sendall(b"GET /metr")
        server.offer("# nothing\n")
        assert get(server) == "# nothing\n"
