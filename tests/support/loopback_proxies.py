"""Small proxies on loopback: HTTP CONNECT, the same over TLS, and SOCKS5; each may want a login.

Whatever host a client asks for, the proxy connects to `target`, so that a test can ask for a
name of the network. It notes what it was asked.
"""

from __future__ import annotations

import base64
import contextlib
import selectors
import socket
import ssl
import threading
from typing import Any, Self

USER, PASSWORD = "us:er@x", "p/w ü#1"


class LoopbackProxy:
    """One proxy in a `with` block.

    Args:
        target: the port on 127.0.0.1 that everything is connected to.
        scheme: http, https or socks5.
        login: user and password that it wants.
        context: the TLS context of an https proxy.
        answer: what an HTTP proxy answers to CONNECT in place of connecting.
        reply: the SOCKS5 reply code, 0 to connect.
        piecewise: sends its own answers byte by byte.
    """

    def __init__(
        self,
        target: int,
        *,
        scheme: str = "http",
        login: tuple[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        answer: bytes | None = None,
        reply: int = 0,
        piecewise: bool = False,
    ) -> None:
        self.asked: list[str] = []
        self.heads: list[bytes] = []
        self._target, self._scheme, self._login = target, scheme, login
        self._context, self._answer, self._reply = context, answer, reply
        self._piecewise = piecewise
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._channels: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def url(self, userinfo: str = "") -> str:
        host = "localhost" if self._scheme == "https" else "127.0.0.1"
        return f"{self._scheme}://{userinfo}{host}:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)
        for channel in self._channels:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(channel, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, client: socket.socket) -> None:
        client.settimeout(20)
        with contextlib.suppress(OSError, ValueError, IndexError):
            if self._context is not None:
                client = self._context.wrap_socket(client, server_side=True)
            self._channels.append(client)
            ready = self._socks(client) if self._scheme == "socks5" else self._http(client)
            if ready:
                with socket.create_connection(("127.0.0.1", self._target)) as host:
                    self._channels.append(host)
                    self._pass_on(client, host)
        client.close()

    def _say(self, client: socket.socket, data: bytes) -> None:
        for piece in [bytes([byte]) for byte in data] if self._piecewise else [data]:
            client.sendall(piece)

    def _http(self, client: socket.socket) -> bool:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += _exactly(client, 1)
        self.heads.append(head)
        self.asked.append(head.split(b" ")[1].decode())
        if self._login is not None:
            wanted = base64.b64encode(":".join(self._login).encode())
            if b"Proxy-Authorization: Basic " + wanted + b"\r\n" not in head:
                self._say(client, b"HTTP/1.1 407 Login\r\nProxy-Authenticate: Basic\r\n\r\n")
                return False
        if self._answer is not None:
            self._say(client, self._answer)
            return False
        self._say(client, b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n")
        return True

    def _socks(self, client: socket.socket) -> bool:
        methods = _exactly(client, _exactly(client, 2)[1])
        method = 0 if self._login is None else 2
        self._say(client, bytes([5, method if method in methods else 255]))
        if method not in methods:
            return False
        if self._login is not None:
            _exactly(client, 1)
            given = tuple(_exactly(client, _exactly(client, 1)[0]).decode() for _ in range(2))
            self._say(client, bytes([1, given != self._login]))
            if given != self._login:
                return False
        kind = _exactly(client, 4)[3]
        host: Any = _exactly(client, {1: 4, 4: 16}.get(kind) or _exactly(client, 1)[0])
        text = host.decode() if kind == 3 else socket.inet_ntop(
            socket.AF_INET if kind == 1 else socket.AF_INET6, host
        )  # fmt: skip
        self.asked.append(f"{text}:{int.from_bytes(_exactly(client, 2), 'big')}")
        self._say(client, bytes([5, self._reply, 0, 3, 2]) + b"ab" + bytes([0, 1]))
        return self._reply == 0

    def _pass_on(self, client: socket.socket, host: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, host)
            selector.register(host, selectors.EVENT_READ, client)
            while True:
                pending = isinstance(client, ssl.SSLSocket) and client.pending()
                ready = [key for key, _ in selector.select(0 if pending else None)]
                pairs = [(key.fileobj, key.data) for key in ready]
                for source, sink in [*pairs, *([(client, host)] if pending else [])]:
                    data = source.recv(65536)
                    if not data:
                        return
                    sink.sendall(data)


def _exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = client.recv(count - len(data))
        if not piece:
            raise ConnectionResetError
        data += piece
    return data
