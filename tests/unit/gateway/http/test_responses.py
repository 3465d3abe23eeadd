"""The gateway's own answers: statuses as RFC 9110 means them, bodies as OpenAI's clients read."""

from __future__ import annotations

import json

import pytest

from companion_core.errors import REASONS, Reason
from companion_core.gateway.http.response_head import ResponseHead
from companion_core.gateway.http.responses import WIRE_STATUS, error_response, relayed_head

pytestmark = pytest.mark.unit

# RFC 9110, sections 15.5 and 15.6; 431 is RFC 6585, section 5.
EXPECTED = {
    Reason.MALFORMED_REQUEST: 400,
    Reason.INVALID_TOKEN: 401,
    Reason.CROSS_SITE_FORBIDDEN: 403,
    Reason.PATH_NOT_ALLOWED: 404,
    Reason.METHOD_NOT_ALLOWED: 405,
    Reason.REQUEST_TIMEOUT: 408,
    Reason.LENGTH_REQUIRED: 411,
    Reason.BODY_TOO_LARGE: 413,
    Reason.UNSUPPORTED_MEDIA_TYPE: 415,
    Reason.EXPECTATION_FAILED: 417,
    Reason.HOST_NOT_ALLOWED: 421,
    Reason.RATE_LIMITED: 429,
    Reason.HEAD_TOO_LARGE: 431,
    Reason.INTERNAL_FAULT: 500,
    Reason.UPSTREAM_FAILED: 502,
    Reason.QUEUE_FULL: 503,
}


@pytest.mark.parametrize(("reason", "status"), EXPECTED.items())
def test_a_refusal_has_its_status_and_says_its_reason(reason: Reason, status: int) -> None:
    assert WIRE_STATUS[reason] == status
    head, _, body = error_response(reason, close=True).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    error = json.loads(body)["error"]
    assert error["code"] == reason.value
    assert error["message"] == REASONS[reason].advice


@pytest.mark.parametrize("reason", list(Reason))
def test_every_refusal_has_openais_shape_and_one_status(reason: Reason) -> None:
    raw = error_response(reason, close=True, retry_after=6.5)
    head, _, body = raw.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert error["code"] == reason.value
    assert error["message"] == REASONS[reason].advice
    assert set(error) == {"message", "type", "code", "param"}
    status = int(head.split(b" ")[1])
    assert status == WIRE_STATUS.get(reason, 503) >= 400
    assert (b"Retry-After: 7\r\nretry-after-ms: 6500\r\n" in head) == (status in {429, 503})
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"access-control" not in raw.lower()


def test_a_relayed_head_keeps_three_things() -> None:
    head = relayed_head(
        ResponseHead(299, "text/plain", 5, chunked=False, reusable=True), close=False
    )
    assert head.startswith(b"HTTP/1.1 299 \r\n")
    assert b"Content-Type: text/plain\r\nContent-Length: 5\r\n\r\n" in head
    streamed = ResponseHead(200, None, None, chunked=True, reusable=True)
    assert b"Transfer-Encoding: chunked\r\n" in relayed_head(streamed, close=False)
    bodiless = relayed_head(ResponseHead(204, None, 0, chunked=False, reusable=True), close=True)
    assert b"Content-Length" not in bodiless  # RFC 9110 section 8.6
    assert bodiless.endswith(b"Connection: close\r\n\r\n")
