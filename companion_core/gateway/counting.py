"""What receives a backend's count of a request, before the request itself is sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from companion_core.gateway.http.response_head import ResponseHead
from companion_core.gateway.interface import Upstream
from companion_core.gateway.token_count import CountedAnswer

__all__ = ["Counted", "CountingSink"]


class Counted(Protocol):
    """What has the backend count it first."""

    def upstream_bound(self, upstream: Upstream) -> bool:
        """See `Sink`."""
        ...

    def count_ended(self, count: CountedAnswer, now: float) -> None:
        """The backend has counted one text, or answered with an error."""
        ...

    def response_failed(self) -> None:
        """See `Sink`."""
        ...


class CountingSink:
    """The `Sink` of the requests that only count, one after the other.

    Args:
        counted: what they count.
        requests: for the backend.
    """

    __slots__ = ("_answer", "_counted", "_requests")

    def __init__(self, counted: Counted, requests: Iterable[bytes]) -> None:
        self._counted = counted
        self._requests = list(requests)
        self._answer = CountedAnswer()

    def next_request(self) -> bytes | None:
        """Return the request to send now; None after the last one."""
        self._answer = CountedAnswer()
        return self._requests.pop() if self._requests else None

    def upstream_bound(self, upstream: Upstream) -> bool:
        """See `Sink`."""
        return self._counted.upstream_bound(upstream)

    def response_started(self, head: ResponseHead, body: bytes) -> None:
        """See `Sink`."""
        self._answer.begin(head, body)

    def response_data(self, data: bytes) -> None:
        """See `Sink`."""
        self._answer.feed(data)

    def response_ended(self, now: float) -> None:
        """See `Sink`."""
        self._counted.count_ended(self._answer, now)

    def response_failed(self) -> None:
        """See `Sink`."""
        self._counted.response_failed()
