"""Each refusal's status, as RFC 9110 means it, and its body, as OpenAI's clients read it."""

import json

import pytest

from companion_core.errors import REASONS, Reason
from companion_core.gateway.http.responses import (
    WIRE_STATUS,
    error_response,
)

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
