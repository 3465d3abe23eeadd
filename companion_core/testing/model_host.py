"""A model host, on real TLS, with a switch for each way in which a server can misbehave.

authority = CertificateAuthority(folder)
with ModelHost(authority.server_context(), {"/m.gguf": data}) as host:
    host.misbehave = Misbehaviour(flip_bit=7)
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from companion_core.testing.tls_host import HostRequest, TlsHost

__all__ = ["Misbehaviour", "ModelHost"]

_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Misbehaviour:
    """How an answer differs from the right one; by default it does not.

    Attributes:
        status: instead of 200.
        location: the Location header of a redirect.
        announce: the Content-Length, true or not; None announces the true one.
        unannounced: no length: the end of the connection ends the body.
        chunked: the body comes in chunks.
        close_after: bytes after which the connection is closed.
        stall_after: bytes after which nothing more comes until the host stops.
        drip_seconds: one byte at a time, with this pause.
        extra: bytes sent after the right ones.
        endless: the body never ends.
        flip_bit: index of the one bit of an answer that is wrong.
        flip_byte: index of the one byte of the file that is wrong in each answer that has it.
        content_encoding: the header, over bytes that are not encoded.
        etag: the strong validator, whatever the bytes are.
        weak_etag: the validator is weak.
        changing_etag: each answer has another strong validator.
        ranges: "honour", "ignore" (200 and everything), "shift" (206, another range) or "zero"
            (206, the range that was asked for, over the bytes from 0 on).
        times: misbehave for so many requests only; None for all.
    """

    status: int = HTTPStatus.OK
    location: str | None = None
    announce: int | None = None
    unannounced: bool = False
    chunked: bool = False
    close_after: int | None = None
    stall_after: int | None = None
    drip_seconds: float | None = None
    extra: int = 0
    endless: bool = False
    flip_bit: int | None = None
    flip_byte: int | None = None
    content_encoding: str | None = None
    etag: str | None = None
    weak_etag: bool = False
    changing_etag: bool = False
    ranges: str = "honour"
    times: int | None = None


class ModelHost(TlsHost):
    """A `TlsHost` that records its requests and misbehaves as told.

    Attributes:
        misbehave: read again for each request.
        requests: path and headers (names in lower case) of each request so far.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        content: Mapping[str, bytes],
        *,
        name: str = "127.0.0.1",
        address: str = "127.0.0.1",
    ) -> None:
        super().__init__(context, content, name=name, address=address)
        self.misbehave = Misbehaviour()
        self.requests: list[tuple[str, dict[str, str]]] = []

    def answer(self, request: HostRequest) -> None:
        """Answer as `misbehave` says."""
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.path, headers))
        knobs = self.choose_knobs()
        if knobs.times is not None and len(self.requests) > knobs.times:
            knobs = Misbehaviour(weak_etag=knobs.weak_etag, ranges=knobs.ranges)
        # A client may hang up once it has seen enough.
        with contextlib.suppress(OSError):
            self._answer(request, headers, knobs)

    def choose_knobs(self) -> Misbehaviour:
        """Return how the next answer is; for a host whose answers differ."""
        return self.misbehave

    def _answer(self, request: HostRequest, headers: dict[str, str], knobs: Misbehaviour) -> None:
        body = self.content.get(request.path.partition("?")[0])
        if body is None:
            request.send_error(HTTPStatus.NOT_FOUND)
            return
        right = body
        if knobs.flip_byte is not None:
            at = knobs.flip_byte
            body = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        etag = knobs.etag or f'"{hashlib.sha256(right).hexdigest()[:16]}"'
        if knobs.changing_etag:
            etag = f'"{len(self.requests)}"'
        status, offset, end = knobs.status, 0, len(body)
        wanted = headers.get("range", "")
        same = headers.get("if-range", etag) == etag  # RFC 9110 section 13.1.5
        honours = same and knobs.ranges != "ignore" and status == HTTPStatus.OK
        if wanted.startswith("bytes=") and honours:
            status = HTTPStatus.PARTIAL_CONTENT
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            offset, end = int(first), min(int(last) + 1, end) if last else end
        request.send_response(status)
        request.send_header("ETag", f"W/{etag}" if knobs.weak_etag else etag)
        if status == HTTPStatus.PARTIAL_CONTENT:
            shown = offset + (1 if knobs.ranges == "shift" else 0)
            request.send_header("Content-Range", f"bytes {shown}-{end - 1}/{len(body)}")
        if knobs.location is not None:
            request.send_header("Location", knobs.location)
        if knobs.content_encoding is not None:
            request.send_header("Content-Encoding", knobs.content_encoding)
        length = end - offset + knobs.extra if knobs.announce is None else knobs.announce
        if knobs.chunked:
            request.send_header("Transfer-Encoding", "chunked")
        elif not knobs.unannounced:
            request.send_header("Content-Length", str(length))
        request.send_header("Connection", "close")
        request.end_headers()
        at = 0 if knobs.ranges == "zero" else offset
        self._send(request, body[at : at + end - offset], knobs)

    def _send(self, request: HostRequest, body: bytes, knobs: Misbehaviour) -> None:
        sent = 0
        for piece in _pieces(body, knobs):
            for limit in (knobs.close_after, knobs.stall_after):
                if limit is not None and sent + len(piece) > limit:
                    _write(request, piece[: limit - sent], chunked=knobs.chunked)
                    if knobs.stall_after is not None:
                        self.stopping.wait()
                    return
            _write(request, piece, chunked=knobs.chunked)
            sent += len(piece)
            if knobs.drip_seconds is not None and self.stopping.wait(knobs.drip_seconds):
                return
        if knobs.chunked:
            request.wfile.write(b"0\r\n\r\n")


def _pieces(body: bytes, knobs: Misbehaviour) -> Iterator[bytes]:
    if knobs.flip_bit is not None:
        changed = bytearray(body)
        changed[knobs.flip_bit // 8] ^= 1 << (knobs.flip_bit % 8)
        body = bytes(changed)
    body += b"\0" * knobs.extra
    size = _CHUNK if knobs.drip_seconds is None else 1
    yield from (body[start : start + size] for start in range(0, len(body), size))
    if knobs.endless:
        yield from itertools.repeat(b"\0" * _CHUNK)


def _write(request: HostRequest, piece: bytes, *, chunked: bool) -> None:
    if not piece:
        return
    request.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
    request.wfile.flush()
