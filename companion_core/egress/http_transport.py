"""httpx2 behind the doorway: small exchanges with a host, such as the manifest's.

httpx2 speaks HTTP; the doorway makes each connection, through the system's proxy if any, so that
a library never holds a proxy's credentials (it would write those of SOCKS5 to its debug log).
Give this transport to `httpx2.Client(transport=…, trust_env=False)`, or ask it directly: it
follows no redirect, keeps no cookie, and one request has one connection. A model's bytes do not
come this way (`https_get.py`).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import httpcore2
import httpx2

from companion_core.decisions.source import HttpsUrl
from companion_core.egress.interface import Egress
from companion_core.egress.transport_failure import translated
from companion_core.system.secret import Secret

__all__ = ["DoorwayTransport"]


_HEADERS: Final = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "companion-core",
}


class _Stream(httpcore2.NetworkStream):
    """A connected socket as httpcore2 uses one; its errors are those of the system."""

    def __init__(self, channel: socket.socket, open_channels: set[socket.socket]) -> None:
        self._channel = channel
        self._open = open_channels
        self._open.add(channel)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._channel.settimeout(timeout)
        return self._channel.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._channel.settimeout(timeout)
        self._channel.sendall(buffer)

    def close(self) -> None:
        self._open.discard(self._channel)
        self._channel.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        self._channel.settimeout(timeout)
        try:
            channel = ssl_context.wrap_socket(self._channel, server_hostname=server_hostname)
        except BaseException:
            self.close()
            raise
        self._open.discard(self._channel)
        return _Stream(channel, self._open)

    def get_extra_info(self, info: str) -> Any:
        return self._channel if info == "socket" else None


class _Backend(httpcore2.NetworkBackend):
    """Makes httpcore2's connections through the doorway."""

    def __init__(self, egress: Egress, context: ssl.SSLContext) -> None:
        self.channels: set[socket.socket] = set()
        self._egress = egress
        self._context = context

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,  # noqa: ARG002 - the signature of httpcore2
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 - the signature of httpcore2
    ) -> httpcore2.NetworkStream:
        # A timeout is in every request of this transport.
        seconds = 0.0 if timeout is None else timeout
        channel = self._egress.connect_tcp(host, port, context=self._context, timeout=seconds)
        return _Stream(channel, self.channels)


class _Body(httpx2.SyncByteStream):
    def __init__(self, response: httpcore2.Response) -> None:
        self._response = response

    def __iter__(self) -> Iterator[bytes]:
        with translated(httpcore2.ProtocolError):
            yield from self._response.iter_stream()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._response.close()


class DoorwayTransport(httpx2.BaseTransport):
    """A transport of httpx2 whose connections are the doorway's; for `https` alone.

    Every fault of an exchange leaves it as `TransportFailed`, also while a body is read.

    Args:
        egress: the doorway.
        context: from `build_tls_context`.
        seconds: longest time for a connection, and longest silence between two reads.
        total_seconds: after which everything is hung up, whatever was going on.
    """

    def __init__(
        self, egress: Egress, context: ssl.SSLContext, *, seconds: float, total_seconds: float
    ) -> None:
        self._backend = _Backend(egress, context)
        self._pool = httpcore2.ConnectionPool(
            ssl_context=context, network_backend=self._backend, max_keepalive_connections=0
        )
        self._timeouts = dict.fromkeys(("connect", "read", "write", "pool"), seconds)
        # A host that sends single bytes is never silent.
        self._timer = threading.Timer(total_seconds, self.hang_up)
        self._timer.daemon = True
        self._timer.start()

    def get(self, url: HttpsUrl, *, bearer: Secret | None = None) -> httpx2.Response:
        """Return the answer to one plain GET; no redirect is followed.

        Args:
            url: what to ask for.
            bearer: a credential to send to this address alone; none by default.
        """
        shown = {} if bearer is None else {"Authorization": f"Bearer {bearer.reveal()}"}
        return self.ask("GET", url.text, shown)

    def ask(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes = b""
    ) -> httpx2.Response:
        """Return the answer to one request with these headers; no redirect is followed."""
        with translated(httpx2.InvalidURL):
            request = httpx2.Request(method, url, headers={**_HEADERS, **headers}, content=content)
        return self.handle_request(request)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer once its head is read; the caller closes it."""
        url = request.url
        with translated(httpcore2.ProtocolError):
            if url.scheme != "https":
                raise ValueError("https alone")
            answer = self._pool.handle_request(
                httpcore2.Request(
                    method=request.method,
                    url=httpcore2.URL(
                        scheme=url.raw_scheme,
                        host=url.raw_host,
                        port=url.port,
                        target=url.raw_path,
                    ),
                    headers=request.headers.raw,
                    content=request.stream,
                    extensions={"timeout": self._timeouts},
                )
            )
        return httpx2.Response(answer.status, headers=answer.headers, stream=_Body(answer))

    def hang_up(self) -> None:
        """End every connection; a read that waits in another thread ends with it."""
        for channel in list(self._backend.channels):
            # The plain socket's shutdown: that of TLS would take the session from a reader.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(channel, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close everything; a second call does nothing."""
        self._timer.cancel()
        self._pool.close()
