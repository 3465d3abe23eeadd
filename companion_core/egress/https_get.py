"""One GET over verified TLS: no redirect followed, no encoding, no credential, in bounded time.

It brings a model's bytes, at the speed of the socket. Every error of http.client, ssl and the
system leaves here as `TransportFailed`, also while the body is read.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from companion_core.decisions.source import HttpsUrl
from companion_core.egress.interface import Egress
from companion_core.egress.transport_failure import TransportFailed, translated
from companion_core.transfer_fault import TransferFault, TransferProblem

__all__ = ["HttpsAnswer", "TransportFailed", "open_get"]

CONNECT_SECONDS: Final = 10.0
IDLE_SECONDS: Final = 30.0
HEAD_SECONDS: Final = 30.0

_HEADERS: Final = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "companion-core"}
_BROKEN: Final = TransferProblem(TransferFault.BROKEN_ANSWER)
_CUT_OFF: Final = TransferProblem(TransferFault.CUT_OFF)
_DECIMAL = re.compile(r"[0-9]{1,16}", re.ASCII)


class HttpsAnswer:
    """The answer to one GET; its body is read with `readinto` until that returns 0.

    Attributes:
        length: the bytes the server announced; None when it announced none.
    """

    def __init__(self, response: http.client.HTTPResponse, hang_up: Callable[[], None]) -> None:
        self._response = response
        self._hang_up = hang_up
        self._received = 0
        self.status = response.status
        self.length = self._announced()

    def header(self, name: str) -> str | None:
        """Return a header's value; a header that comes twice makes the answer broken."""
        values = self._response.headers.get_all(name)
        if values is None:
            return None
        if len(values) != 1:
            raise TransportFailed(_BROKEN, retryable=False)
        return str(values[0])

    def _announced(self) -> int | None:
        text = self.header("Content-Length")
        if text is None or self._response.chunked:
            return None
        if _DECIMAL.fullmatch(text) is None:
            raise TransportFailed(_BROKEN, retryable=False)
        return int(text)

    def readinto(self, buffer: memoryview) -> int:
        """Fill the beginning of the buffer; 0 at the announced end, an early end is a failure."""
        with translated():
            count = self._response.readinto(buffer)
        self._received += count
        if count == 0 and self.length is not None and self._received < self.length:
            raise TransportFailed(_CUT_OFF, retryable=True)
        return count

    def close(self) -> None:
        """Hang up; from another thread this ends a read that waits."""
        self._hang_up()
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            self._response.close()


def open_get(
    url: HttpsUrl,
    *,
    egress: Egress,
    context: ssl.SSLContext,
    headers: Mapping[str, str] = MappingProxyType({}),
    idle_seconds: float = IDLE_SECONDS,
    body_seconds: float | None = None,
) -> HttpsAnswer:
    """Send the request and return the answer once its head is read.

    Args:
        url: the address.
        egress: the doorway.
        context: from `build_tls_context`.
        headers: further request headers.
        idle_seconds: longest silence between two reads.
        body_seconds: longest time from the end of the head to the end of the body; None leaves
            that to the caller.

    Raises:
        TransportFailed: for any fault of the exchange.
    """
    with translated():
        connection = egress.connect_https(
            url.host, url.port, context=context, timeout=min(CONNECT_SECONDS, idle_seconds)
        )
    timer: threading.Timer | None = None
    try:
        with translated():
            connection.connect()
            channel = connection.sock
            channel.settimeout(idle_seconds)
            timer = _hang_up_after(HEAD_SECONDS, channel)
            connection.request("GET", url.target, headers={**_HEADERS, **headers})
            response = connection.getresponse()
        timer.cancel()
        timer = None if body_seconds is None else _hang_up_after(body_seconds, channel)

        def hang_up(timer: threading.Timer | None = timer) -> None:
            if timer is not None:
                timer.cancel()
            _shut(channel)
            channel.close()
            connection.close()

        return HttpsAnswer(response, hang_up)
    except BaseException:
        if timer is not None:
            timer.cancel()
        connection.close()
        raise


def _hang_up_after(seconds: float, channel: socket.socket) -> threading.Timer:
    """Bound the whole exchange, because a server that sends single bytes is never idle."""
    timer = threading.Timer(seconds, _shut, [channel])
    timer.daemon = True
    timer.start()
    return timer


def _shut(channel: socket.socket) -> None:
    # The plain socket's shutdown: that of TLS would take the session away from a reader.
    with contextlib.suppress(OSError):
        socket.socket.shutdown(channel, socket.SHUT_RDWR)
