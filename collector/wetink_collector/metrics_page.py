"""The page for Prometheus, over HTTP in the clear: bounded, as anybody who reaches the port may connect.

prometheus_client's own server starts a thread for each connection and waits for ever for what it asks.
"""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import make_wsgi_app

CONNECTIONS_MAX: Final = 32
"""Bound on connections; what comes over it is closed at once. A Prometheus has one."""

SECONDS_MAX: Final = 5.0
"""How long a connection may take for question and answer together, however it drips."""


class _Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the name is the base's)
        """Say nothing: a page that is asked for each few seconds is no event."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 2 * CONNECTIONS_MAX  # socketserver's five would make others wait for a second SYN
    block_on_close = False

    def __init__(self, address: tuple[str, int], family: socket.AddressFamily) -> None:
        self.address_family = family
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 (as the base has them)
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread to be had
            self._places.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 (as the base has them)
        late = threading.Timer(SECONDS_MAX, _cut, (request,))
        late.daemon = True
        late.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            late.cancel()
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 (as the base has them)
        """Say nothing: peers that go away or are cut off are no failure of ours."""


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # it is gone
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def served(host: str, port: int) -> Iterator[int]:
    """Serve the page while the body runs; gives the port, which the kernel chooses where 0 is asked for.

    Raises:
        OSError: The address cannot be listened on.
    """
    family, _, _, _, found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    server = _Server((str(found[0]), port), family)
    server.set_app(make_wsgi_app())
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
