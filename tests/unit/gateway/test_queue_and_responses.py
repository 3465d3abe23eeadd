"""The queue's counters and the gateway's own answers."""

from __future__ import annotations

import json

import pytest

from companion_core.errors import REASONS, Reason
from companion_core.gateway.http.response_head import (
    ResponseHead,
    parse_response_head,
)
from companion_core.gateway.http.responses import (
    WIRE_STATUS,
    error_response,
    relayed_head,
)
from companion_core.gateway.queue import AdmissionQueue

pytestmark = pytest.mark.unit


class Waiting:
    def place_is_free(self) -> None: ...

    def refuse_waiting(self, reason: Reason) -> None: ...


def queue(max_in_flight: int = 1, queue_bound: int = 3) -> AdmissionQueue:
    return AdmissionQueue(
        max_in_flight=max_in_flight, queue_bound=queue_bound, deadline_seconds=10.0
    )


def test_a_place_goes_to_who_waited_longest() -> None:
    line, waiters = queue(), [Waiting() for _ in range(3)]
    assert line.arrival().ok
    line.take()
    for waiter in waiters:
        assert line.arrival().reason is Reason.AT_CAPACITY
        line.wait(waiter, 0.0)
    assert line.arrival().reason is Reason.QUEUE_FULL
    line.leave(waiters[1])
    assert line.arrival().reason is Reason.AT_CAPACITY
    assert line.release(1.0) is waiters[0]
    assert line.snapshot().in_flight == 1  # handed over, never free in between
    assert line.release(1.0) is waiters[2]
    assert line.release(1.0) is None
    assert line.snapshot().in_flight == 0


def test_who_waits_too_long_leaves_in_order() -> None:
    line, waiters = queue(), [Waiting() for _ in range(3)]
    line.take()
    for now, waiter in enumerate(waiters):
        line.wait(waiter, float(now))
    assert line.expired(9.9) == []
    assert line.expired(11.0) == waiters[:2]
    assert line.clear() == waiters[2:]
    assert len(line) == 0


def test_retry_after_grows_with_the_queue_and_stays_sensible() -> None:
    line = queue(queue_bound=100)
    line.take()
    for _ in range(200):
        line.release(3.0)
        line.take()
    alone = line.retry_after()
    for _ in range(5):
        line.wait(Waiting(), 0.0)
    assert 1 <= alone < line.retry_after() <= 60
    for _ in range(90):
        line.wait(Waiting(), 0.0)
    assert line.retry_after() == 60


def test_bounds_that_are_no_bounds_are_refused() -> None:
    for bounds in ((0, 1), (1, 0)):
        with pytest.raises(ValueError):
            queue(*bounds)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_refusal_has_openais_shape_and_one_status(reason: Reason) -> None:
    raw = error_response(reason, close=True, retry_after=7)
    head, _, body = raw.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert error["code"] == reason.value
    assert error["message"] == REASONS[reason].advice
    assert set(error) == {"message", "type", "code", "param"}
    status = int(head.split(b" ")[1])
    assert status == WIRE_STATUS.get(reason, 503) >= 400
    assert (b"Retry-After: 7" in head) == (status in {429, 503})
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


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5",
            ResponseHead(200, None, 5, chunked=False, reusable=True),
        ),
        (
            b"HTTP/1.1 200\r\nTransfer-Encoding: Chunked",
            ResponseHead(200, None, None, chunked=True, reusable=True),
        ),
        (
            b"HTTP/1.1 500 x\r\nContent-Length: 0\r\nConnection: Close",
            ResponseHead(500, None, 0, chunked=False, reusable=False),
        ),
        (
            b"HTTP/1.0 200 OK\r\nContent-Length: 5",
            ResponseHead(200, None, 5, chunked=False, reusable=False),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: timeout=5, max=100",
            ResponseHead(200, None, 5, chunked=False, reusable=True, keep_alive_seconds=5),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: timeout=-1, max=x",
            ResponseHead(200, None, 5, chunked=False, reusable=True),
        ),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: Timeout=3\r\nKeep-Alive: max=0",
            ResponseHead(200, None, 5, chunked=False, reusable=False, keep_alive_seconds=3),
        ),
        (b"HTTP/1.1 204 No", ResponseHead(204, None, 0, chunked=False, reusable=True)),
        (b"HTTP/1.1 200 OK", ResponseHead(200, None, None, chunked=False, reusable=False)),
        (b"HTTP/2 200 OK", None),
        (b"HTTP/1.1 20 OK", None),
        (b"HTTP/1.1 200 OK\r\nno colon", None),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip", None),
        (b"HTTP/1.1 200 OK\r\nContent-Type: a\xe9", None),
        (b"HTTP/1.1 200 OK\r\nContent-Type: a\r\nContent-Type: b", None),
        (b"HTTP/1.1 200 OK\r\nX: a\nb", None),
    ],
)
def test_backend_heads(raw: bytes, expected: ResponseHead | None) -> None:
    assert parse_response_head(raw) == expected
