"""A small HTTP server in threads: fixed paths, a bounded number of connections, and an end that waits for no client."""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

from flowless.errors import FlowlessError

#: Connections served at once; further ones are refused with 503.
MAX_CONNECTIONS = 64
#: Seconds after which a client that neither sends its request nor takes what it is sent is disconnected.
CLIENT_SECONDS = 10.0
#: Host where an address names none: reachable from this machine alone.
LOOPBACK = "127.0.0.1"


def host_and_port(address: str, option: str) -> tuple[str, int]:
    """Return the parts of `[HOST:]PORT`; an IPv6 host stands in brackets.

    Raises:
        FlowlessError: It is no such address; `option` names it in the message.
    """
    host, _, port = address.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535 or (":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise FlowlessError(
            f"{option} is {address!r}; it must be a port from 0 to 65535 (0: any free one), with or without a host: 8080, 0.0.0.0:8080, "
            f"[::1]:8080."
        )
    return host.strip("[]") or LOOPBACK, int(port)


class Request(BaseHTTPRequestHandler):
    """One request: GET of a fixed path."""

    timeout = CLIENT_SECONDS
    server: LiveServer  # type: ignore[assignment]

    def do_GET(self) -> None:
        """Serve a path."""
        respond = self.server.routes.get(self.path.partition("?")[0])
        if respond is None:
            self.send_error(HTTPStatus.NOT_FOUND)
        else:
            respond(self)

    def reply(self, body: bytes, content_type: str, code: HTTPStatus = HTTPStatus.OK) -> None:
        """Send a whole response."""
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, the library's name
        """Log no request."""


class LiveServer(ThreadingHTTPServer):
    """Serves paths within a `with` block; at its end every client is disconnected and every thread has ended.

    Args:
        address: Host and port; port 0 takes any free one.
        option: The command's option, for messages.
        routes: Path -> the function that sends the response, in a thread of the connection.

    Attributes:
        url: Where it is.

    Raises:
        FlowlessError: The port is in use or may not be used, or the host is none of this machine's.
    """

    daemon_threads = False
    block_on_close = True
    request_queue_size = MAX_CONNECTIONS
    # On Windows the option would let two programs share a port.
    allow_reuse_address = sys.platform != "win32"

    def __init__(self, address: tuple[str, int], option: str, routes: Mapping[str, Callable[[Request], None]]) -> None:
        host, port = address
        self.routes = dict(routes)
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        try:
            self.address_family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            super().__init__(address, Request)
        except OSError as error:
            raise FlowlessError(
                f"{option} {host}:{port}: cannot listen there ({error.strerror}). Name another port, or 0 for any free one."
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}/"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, name=f"flowless {option}")

    def server_bind(self) -> None:
        """Bind, without the library's look-up of the host's name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def __enter__(self) -> LiveServer:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):  # the client has gone already
                    connection.shutdown(socket.SHUT_RDWR)  # a thread that reads or writes there returns at once
        self.server_close()

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]
        """Serve a connection in its own thread, or refuse it where there are too many."""
        with self._lock:
            full = len(self._connections) >= MAX_CONNECTIONS
            if not full:
                self._connections.add(request)
        if not full:
            super().process_request(request, client_address)  # type: ignore[arg-type]
            return
        request.setblocking(False)
        with suppress(OSError):  # the client has gone already
            request.send(b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 5\r\nContent-Length: 0\r\n\r\n")
        self.shutdown_request(request)

    def close_request(self, request: socket.socket) -> None:  # type: ignore[override]
        """Close a connection."""
        with self._lock:
            self._connections.discard(request)
        super().close_request(request)

    def handle_error(self, request: object, client_address: object) -> None:
        """Leave out clients that went away or were too slow; report everything else."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]
