"""Every byte that the gateway itself answers with, made once.

Errors have the shape that OpenAI's clients read, with the reason as `code`. Every answer,
proxied ones included, carries the same security headers and never a CORS header (I-17).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Final

from companion_core.errors import REASONS, Reason
from companion_core.gateway.http.response_head import BODILESS, ResponseHead

__all__ = [
    "CONTINUE",
    "WIRE_STATUS",
    "context_error",
    "error_parts",
    "error_response",
    "json_response",
    "relayed_head",
    "without_body",
]

SECURITY_HEADERS: Final = (
    b"X-Content-Type-Options: nosniff\r\n"
    b"Cache-Control: no-store\r\n"
    b"Cross-Origin-Resource-Policy: same-origin\r\n"
)
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

# What a refusal is on the wire; a reason that is not listed is 503.
WIRE_STATUS: Final[Mapping[Reason, int]] = MappingProxyType(
    {
        Reason.MALFORMED_REQUEST: 400,
        Reason.MALFORMED_BODY: 400,
        Reason.CONTEXT_LENGTH_EXCEEDED: 400,
        Reason.MISSING_TOKEN: 401,
        Reason.INVALID_TOKEN: 401,
        Reason.CROSS_SITE_FORBIDDEN: 403,
        Reason.PATH_NOT_ALLOWED: 404,
        Reason.MODEL_NOT_SERVED: 404,
        Reason.METHOD_NOT_ALLOWED: 405,
        Reason.REQUEST_TIMEOUT: 408,
        Reason.LENGTH_REQUIRED: 411,
        Reason.BODY_TOO_LARGE: 413,
        Reason.UNSUPPORTED_MEDIA_TYPE: 415,
        Reason.EXPECTATION_FAILED: 417,
        Reason.HOST_NOT_ALLOWED: 421,
        Reason.RATE_LIMITED: 429,
        Reason.RATE_STATE_UNAVAILABLE: 429,
        Reason.HEAD_TOO_LARGE: 431,
        Reason.INTERNAL_FAULT: 500,
        Reason.UPSTREAM_FAILED: 502,
        Reason.AT_CAPACITY: 503,
        Reason.CONNECTION_LIMIT: 503,
        Reason.MALFORMED_ADMISSION_STATE: 503,
        Reason.MALFORMED_OBSERVATION: 503,
        Reason.NOT_READY: 503,
        Reason.PROBE_FAILED: 503,
        Reason.QUEUE_DEADLINE: 503,
        Reason.QUEUE_FULL: 503,
    }
)
_UNLISTED_STATUS: Final = 503
_BACKOFF_STATUSES: Final = frozenset({429, 503})

# OpenAI's clients choose their exception by status; a person reads the `type`.
_ERROR_TYPES: Final = MappingProxyType(
    {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
)
_EXTRA_HEADERS: Final = MappingProxyType(
    {401: b"WWW-Authenticate: Bearer\r\n", 405: b"Allow: GET, POST\r\n"}
)


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode()


_STATUS_LINES: Final = {status.value: _status_line(status.value) for status in HTTPStatus}


def json_response(status: int, body: bytes, *, close: bool, extra: bytes = b"") -> bytes:
    """Return a whole JSON answer."""
    return b"".join(
        (
            _STATUS_LINES.get(status) or _status_line(status),
            SECURITY_HEADERS,
            b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body),
            extra,
            b"Connection: close\r\n" if close else b"",
            b"\r\n",
            body,
        )
    )


def error_parts(reason: Reason, message: str | None = None) -> tuple[int, bytes]:
    """Return status and body of the answer to a refused request."""
    status = WIRE_STATUS.get(reason, _UNLISTED_STATUS)
    server_side = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else None
    error = {
        "message": message or REASONS[reason].advice,
        "type": server_side or _ERROR_TYPES.get(status, "invalid_request_error"),
        "code": reason.value,
        "param": None,
    }
    return status, json.dumps({"error": error}).encode()


_ERRORS: Final = {reason: error_parts(reason) for reason in WIRE_STATUS}


def error_response(
    reason: Reason, *, close: bool, retry_after: float = 1.0, message: str | None = None
) -> bytes:
    """Return the answer to a refused request.

    Args:
        reason: of the refusal.
        close: this connection ends after the answer.
        retry_after: in seconds; sent with 429 and 503 (RFC 9110 section 10.2.3). The clients of
            OpenAI and Anthropic read `retry-after-ms`, which tells it more exactly.
        message: in place of the reason's advice, for a client that has shown the token.
    """
    if message is not None:
        status, body = error_parts(reason, message)
    else:
        status, body = _ERRORS.get(reason) or error_parts(reason)
    extra = _EXTRA_HEADERS.get(status, b"")
    if status in _BACKOFF_STATUSES:
        extra = b"Retry-After: %d\r\nretry-after-ms: %d\r\n" % (
            max(1, math.ceil(retry_after)),
            max(1, round(retry_after * 1000)),
        )
    return json_response(status, body, close=close, extra=extra)


def context_error(tokens: int, limit: int) -> tuple[int, bytes]:
    """Return status and body of the answer to a request that is longer than its context."""
    error = {
        "message": (
            f"The request has {tokens} tokens, and each request to this model may use {limit}. "
            f"{REASONS[Reason.CONTEXT_LENGTH_EXCEEDED].advice}"
        ),
        "type": "invalid_request_error",
        "code": Reason.CONTEXT_LENGTH_EXCEEDED.value,
        "param": None,
    }
    return WIRE_STATUS[Reason.CONTEXT_LENGTH_EXCEEDED], json.dumps({"error": error}).encode()


def without_body(response: bytes) -> bytes:
    """Return the head of an answer: all that a HEAD request may get (RFC 9110 section 9.3.2)."""
    return response[: response.index(b"\r\n\r\n") + 4]


@lru_cache(maxsize=64)
def relayed_head(head: ResponseHead, close: bool) -> bytes:
    """Return the head of a proxied answer, built anew; nothing else of the backend's passes.

    Keywords would double what it costs to find a head that was built before.
    """
    parts = [_STATUS_LINES.get(head.status) or _status_line(head.status), SECURITY_HEADERS]
    if head.content_type is not None:
        parts.append(b"Content-Type: %b\r\n" % head.content_type.encode("ascii"))
    if head.chunked:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    elif head.content_length is not None and head.status not in BODILESS:
        parts.append(b"Content-Length: %d\r\n" % head.content_length)
    if close:
        parts.append(b"Connection: close\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)
