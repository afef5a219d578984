"""The Prometheus endpoint: a small HTTP server on the loopback address.

May live here: the server, its token. May not: the text (core/exposition.py), the registry.

The monitor's loop hands over finished text; the server's threads only send it, so that a scraper that reads
slowly keeps nobody but itself waiting. At most MAX_SCRAPERS are served at once; each has TIMEOUT_S.
"""

from __future__ import annotations

import hmac
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from walled.core.exposition import CONTENT_TYPE
from walled.errors import BootError

LOOPBACK = "127.0.0.1"
TIMEOUT_S = 5.0
MAX_SCRAPERS = 8


class ScrapeServer:
    """Serves the last text it was given at /metrics."""

    def __init__(self, port: int, token: str = "") -> None:
        """`port` 0: any free one. Raises BootError when the port is taken."""
        self._text = b""
        try:
            self._server = _Server((LOOPBACK, port), self, token)
        except OSError as exc:
            raise BootError(f"monitor.prometheus_port {port}: cannot be bound: {exc}") from None
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, daemon=True, name="scrape").start()

    def offer(self, text: str) -> None:
        self._text = text.encode()

    @property
    def body(self) -> bytes:
        return self._text

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], owner: ScrapeServer, token: str) -> None:
        self.owner, self.token = owner, token
        self.room = threading.BoundedSemaphore(MAX_SCRAPERS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A scraper that goes away is no news."""


class _Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S
    server: _Server

    def do_GET(self) -> None:
        wanted = f"Bearer {self.server.token}".encode()
        if self.server.token and not hmac.compare_digest(
            self.headers.get("Authorization", "").encode(), wanted
        ):
            self._reply(401, b"a bearer token is wanted\n", "text/plain")
        elif self.path.partition("?")[0] != "/metrics":
            self._reply(404, b"metrics are at /metrics\n", "text/plain")
        else:
            self._reply(200, self.server.owner.body, CONTENT_TYPE)

    def _reply(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""
