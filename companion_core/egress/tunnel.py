"""A TCP connection to a host of the network, straight or through a proxy.

Three kinds of proxy are spoken to: HTTP CONNECT (RFC 9110 section 9.3.6), the same over TLS, and
SOCKS5 (RFC 1928, RFC 1929). The host's name goes to the proxy, which resolves it. The whole
negotiation has one deadline, and its credentials go to no one but the proxy.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import re
import selectors
import socket
import ssl
import threading
import time
from typing import Final

from companion_core.decisions.proxy import Proxy
from companion_core.egress.transport_failure import ProxyFailed
from companion_core.transfer_fault import TransferFault

__all__ = ["open_tunnel"]

MAX_HEAD_BYTES: Final = 64 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |\r\n)")
_LOGIN_WANTED: Final = 407
_SUCCESS: Final = range(200, 300)
_RELAY_BYTES: Final = 256 * 1024
# RFC 1928 and RFC 1929.
_NO_LOGIN, _LOGIN, _NO_METHOD = 0, 2, 255
_IPV4, _NAME, _IPV6 = 1, 3, 4


def open_tunnel(
    proxy: Proxy | None, host: str, port: int, *, context: ssl.SSLContext, timeout: float
) -> socket.socket:
    """Return a connection on which the host itself answers; TLS to it is the caller's.

    Args:
        proxy: from `choose_proxy`.
        host: an address or a name, without brackets.
        port: of the host.
        context: how the certificate of an `https` proxy is checked.
        timeout: seconds for the connection, and as many for the proxy's negotiation.

    Raises:
        ProxyFailed: the proxy cannot be reached or does not connect.
        OSError: the host cannot be reached.
    """
    if proxy is None:
        return _connect(host, port, timeout)
    try:
        channel = _connect(proxy.host, proxy.port, timeout)
    except OSError as error:
        raise ProxyFailed(TransferFault.PROXY_UNREACHABLE) from error
    try:
        negotiation = _Negotiation(channel, timeout)
        if proxy.scheme == "https":
            negotiation.start_tls(context, proxy.host)
        if proxy.scheme in {"http", "https"}:
            _ask_http(negotiation, proxy, host, port)
        else:
            _ask_socks(negotiation, proxy, host, port)
        channel = negotiation.channel
        channel.settimeout(timeout)
    except ProxyFailed:
        negotiation.channel.close()
        raise
    except ssl.SSLCertVerificationError as error:
        negotiation.channel.close()
        raise ProxyFailed(TransferFault.PROXY_CERTIFICATE) from error
    except (OSError, ValueError) as error:
        negotiation.channel.close()
        late = isinstance(error, TimeoutError)
        fault = TransferFault.PROXY_UNREACHABLE if late else TransferFault.PROXY_BROKEN
        raise ProxyFailed(fault) from error
    return _relayed(channel) if isinstance(channel, ssl.SSLSocket) else channel


def _connect(host: str, port: int, timeout: float) -> socket.socket:
    channel = socket.create_connection((host, port), timeout)
    with contextlib.suppress(OSError):
        channel.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return channel


class _Negotiation:
    """Words with a proxy; all of them until one deadline."""

    def __init__(self, channel: socket.socket, seconds: float) -> None:
        self.channel = channel
        self._deadline = time.monotonic() + seconds

    def start_tls(self, context: ssl.SSLContext, host: str) -> None:
        self._hurry()
        self.channel = context.wrap_socket(self.channel, server_hostname=host)

    def send(self, data: bytes) -> None:
        self._hurry()
        self.channel.sendall(data)

    def receive(self, count: int) -> bytes:
        """Return exactly so many bytes: a further one would be of the host."""
        data = b""
        while len(data) < count:
            self._hurry()
            piece = self.channel.recv(count - len(data))
            if not piece:
                raise ProxyFailed(TransferFault.PROXY_BROKEN)
            data += piece
        return data

    def _hurry(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.channel.settimeout(left)


def _ask_http(negotiation: _Negotiation, proxy: Proxy, host: str, port: int) -> None:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", "User-Agent: companion-core"]
    if proxy.credentials is not None:
        user, password = (each.reveal() for each in proxy.credentials)
        login = base64.b64encode(f"{user}:{password}".encode()).decode("ascii")
        lines.append(f"Proxy-Authorization: Basic {login}")
    negotiation.send("\r\n".join([*lines, "", ""]).encode("ascii"))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        if len(head) >= MAX_HEAD_BYTES:
            raise ProxyFailed(TransferFault.PROXY_BROKEN)
        head += negotiation.receive(1)
    match = _STATUS.match(head)
    if match is None:
        raise ProxyFailed(TransferFault.PROXY_BROKEN)
    if int(match[1]) == _LOGIN_WANTED:
        raise ProxyFailed(TransferFault.PROXY_LOGIN)
    if int(match[1]) not in _SUCCESS:
        raise ProxyFailed(TransferFault.PROXY_REFUSED)


def _ask_socks(negotiation: _Negotiation, proxy: Proxy, host: str, port: int) -> None:
    methods = bytes([_NO_LOGIN] if proxy.credentials is None else [_NO_LOGIN, _LOGIN])
    negotiation.send(bytes([5, len(methods)]) + methods)
    version, method = negotiation.receive(2)
    if version != 5 or method not in {*methods, _NO_METHOD}:  # noqa: PLR2004 - SOCKS5
        raise ProxyFailed(TransferFault.PROXY_BROKEN)
    if method == _NO_METHOD:
        raise ProxyFailed(TransferFault.PROXY_LOGIN)
    if method == _LOGIN and proxy.credentials is not None:
        fields = [each.reveal().encode("utf-8") for each in proxy.credentials]
        negotiation.send(b"\x01" + b"".join(bytes([len(each)]) + each for each in fields))
        if negotiation.receive(2)[1] != 0:
            raise ProxyFailed(TransferFault.PROXY_LOGIN)
    negotiation.send(b"\x05\x01\x00" + _socks_address(host) + port.to_bytes(2, "big"))
    version, reply, _, kind = negotiation.receive(4)
    if version != 5:  # noqa: PLR2004 - SOCKS5
        raise ProxyFailed(TransferFault.PROXY_BROKEN)
    if reply != 0:
        raise ProxyFailed(TransferFault.PROXY_REFUSED)
    length = {_IPV4: 4, _IPV6: 16}.get(kind)
    negotiation.receive((negotiation.receive(1)[0] if length is None else length) + 2)


def _socks_address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.encode("ascii")
        return bytes([_NAME, len(name)]) + name
    return bytes([_IPV4 if address.version == 4 else _IPV6]) + address.packed  # noqa: PLR2004 - IPv4


def _relayed(outer: ssl.SSLSocket) -> socket.socket:
    """Return a plain socket whose bytes go through `outer`, because TLS in TLS needs one."""
    ours, theirs = socket.socketpair()
    outer.setblocking(False)  # noqa: FBT003 - takes no keyword
    ours.setblocking(False)  # noqa: FBT003 - takes no keyword
    threading.Thread(target=_relay, args=(ours, outer), name="companion-proxy", daemon=True).start()
    return theirs


def _relay(ours: socket.socket, outer: ssl.SSLSocket) -> None:
    with contextlib.suppress(OSError), ours, outer, selectors.DefaultSelector() as selector:
        up, down = b"", b""
        while True:
            up = up or _receive(ours)
            down = down or _receive(outer)
            waiting = len(up), len(down)
            up, down = up[_send(outer, up) :], down[_send(ours, down) :]
            if (len(up), len(down)) == waiting:
                # Each side is read as long as the other one takes what it sent.
                _watch(selector, ours, reads=not up, writes=bool(down))
                _watch(selector, outer, reads=not down, writes=bool(up))
                selector.select()


def _watch(
    selector: selectors.BaseSelector, channel: socket.socket, *, reads: bool, writes: bool
) -> None:
    wanted = (selectors.EVENT_READ if reads else 0) | (selectors.EVENT_WRITE if writes else 0)
    if channel in selector.get_map():
        selector.unregister(channel)
    if wanted:
        selector.register(channel, wanted)


def _receive(channel: socket.socket) -> bytes:
    """Return what is there, b"" for nothing yet; an end raises `OSError`."""
    try:
        data = channel.recv(_RELAY_BYTES)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return b""
    if not data:
        raise ConnectionResetError
    return data


def _send(channel: socket.socket, data: bytes) -> int:
    if not data:
        return 0
    try:
        return channel.send(data)
    except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        return 0
