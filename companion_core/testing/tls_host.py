"""Small TLS hosts on loopback that play a publisher's web server in the demo and in tests.

They serve a few named files to a client on this machine for the length of one run.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self

__all__ = ["HostRequest", "TlsHost"]

_TIMEOUT_SECONDS: Final = 30.0


class HostRequest(BaseHTTPRequestHandler):
    """One GET, HEAD or POST, which its host answers; each connection carries one request."""

    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_SECONDS
    server: _Server

    def do_GET(self) -> None:
        """Let the host answer."""
        self.close_connection = True
        self.server.host.answer(self)

    def do_POST(self) -> None:
        """Let the host answer."""
        self.close_connection = True
        self.server.host.answer_form(self)

    def do_HEAD(self) -> None:
        """Let the host answer, which writes no body then."""
        self.do_GET()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # joined by server_close: no thread outlives the host

    def __init__(self, host: TlsHost, address: str, context: ssl.SSLContext) -> None:
        if ":" in address:
            self.address_family = socket.AF_INET6
        self.host = host
        self._context = context
        self._channels: set[ssl.SSLSocket] = set()
        self._lock = threading.Lock()
        super().__init__((address, 0), HostRequest)

    def get_request(self) -> tuple[ssl.SSLSocket, Any]:
        plain, address = self.socket.accept()
        plain.settimeout(_TIMEOUT_SECONDS)
        # The connection's own thread does the handshake, so a silent client blocks no other.
        channel = self._context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
        with self._lock:
            self._channels.add(channel)
        return channel, address

    def process_request(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # the system has no thread left
            vars(self)["_threads"].reap()  # else the base would join one that never started
            raise  # the base ends the connection

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._channels.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: a client may hang up or distrust the certificate."""

    def hang_up(self) -> None:
        with self._lock:
            channels = list(self._channels)
        for channel in channels:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(channel, socket.SHUT_RDWR)


class TlsHost:
    """Serves `content` over TLS on a port of its own, inside a `with` block.

    Args:
        context: from `CertificateAuthority.server_context`.
        content: request paths and their bytes; may be changed while the host runs.
        name: the host name in `url`.
        address: the loopback address to listen on.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        content: Mapping[str, bytes],
        *,
        name: str = "127.0.0.1",
        address: str = "127.0.0.1",
    ) -> None:
        self.content = content
        self.name = name
        self.stopping = threading.Event()
        self._server = _Server(self, address, context)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="companion-host", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        """The port that the system chose."""
        return int(self._server.server_address[1])

    def url(self, path: str = "/") -> str:
        """Return the address of `path` on this host."""
        return f"https://{self.name}:{self.port}{path}"

    def stop(self) -> None:
        """Stop listening and end every connection."""
        self.stopping.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    def answer_form(self, request: HostRequest) -> None:
        """Take no form: a host of files has none."""
        request.send_error(HTTPStatus.NOT_IMPLEMENTED)

    def answer(self, request: HostRequest) -> None:
        """Send the file that was asked for."""
        body = self.content.get(request.path.partition("?")[0])
        if body is None:
            request.send_response(HTTPStatus.NOT_FOUND)
            body = b""
        else:
            request.send_response(HTTPStatus.OK)
        request.send_header("Content-Type", "application/octet-stream")
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(body)
