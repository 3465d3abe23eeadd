"""Rules for this file: what a gateway itself writes into a stream of events; no I/O.

A comment (HTML Living Standard, section 9.2.6) is read over by every client, and keeps a connection
from looking dead. Once a stream has begun, an error can only be an event: the SDKs of OpenAI and
Anthropic raise it from there.
"""

from __future__ import annotations

import json
from typing import Any, Final

from companion_core.gateway.http.response_head import ResponseHead

__all__ = ["BEAT", "LAST_CHUNK", "STREAM_HEAD", "chunk", "error_event", "is_event_stream"]

STREAM_HEAD: Final = ResponseHead(200, "text/event-stream", None, chunked=True, reusable=True)
LAST_CHUNK: Final = b"0\r\n\r\n"
_TYPE: Final = "text/event-stream"
_OK: Final = 200
# What Anthropic's clients make their exceptions of.
_ANTHROPIC_TYPES: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def chunk(data: bytes) -> bytes:
    """Return bytes in the chunked coding (RFC 9112 section 7.1); no bytes are no chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


BEAT: Final = chunk(b": working\n\n")


def is_event_stream(head: ResponseHead) -> bool:
    """Tell whether an answer is a stream of events."""
    return head.status == _OK and (head.content_type or "").partition(";")[0].strip() == _TYPE


def error_event(status: int, body: bytes, *, anthropic: bool) -> bytes:
    """Return the event that tells of an error.

    Args:
        status: that the answer would have had.
        body: that it would have had, as OpenAI's clients read errors, or a backend's own.
        anthropic: as Anthropic's clients read it, else as OpenAI's.
    """
    error = _error_in(body)
    if not anthropic:
        return b"data: " + json.dumps({"error": error}).encode() + b"\n\n"
    told = {
        "type": "error",
        "error": {
            "type": _ANTHROPIC_TYPES.get(status, "api_error"),
            "message": str(error.get("message") or ""),
        },
    }
    return b"event: error\ndata: " + json.dumps(told).encode() + b"\n\n"


def _error_in(body: bytes) -> dict[str, Any]:
    """Return the error of an answer; one that has no JSON of that shape is told as it is."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict):
        return error
    text = error if isinstance(error, str) else body.decode("utf-8", "replace")
    return {"message": text, "type": "server_error", "code": None, "param": None}
