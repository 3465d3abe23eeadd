"""What the two sides of a request ask of each other; `Sink` and `Downstream` are mirrors.

An answer travels from a backend's connection (`Upstream`) into an exchange (its `Sink`), and
from there to the client's connection (`Downstream`). Everything is called from the event loop,
and nothing here awaits.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from companion_core.errors import Reason
from companion_core.gateway.http.response_head import ResponseHead

__all__ = ["Downstream", "Outgoing", "Sink", "Upstream"]


class Upstream(Protocol):
    """A connection to the backend, as the receiver of its answer uses it."""

    def abort(self) -> None:
        """Close at once; the receiver hears no more of it."""
        ...

    def pause_reading(self) -> None:
        """Read no more of the answer for now."""
        ...

    def resume_reading(self) -> None:
        """Read on."""
        ...


class Sink(Protocol):
    """Receives an answer; called in the order of these methods."""

    def upstream_bound(self, upstream: Upstream) -> bool:
        """Take a connection that was made; False when the client has gone meanwhile."""
        ...

    def response_started(self, head: ResponseHead, body: bytes) -> None:
        """Receive the head and the first bytes of the body."""
        ...

    def response_data(self, data: bytes) -> None:
        """Receive more of the body, verbatim."""
        ...

    def response_ended(self, now: float) -> None:
        """The answer is complete."""
        ...

    def response_failed(self) -> None:
        """The backend broke off, or never answered properly."""
        ...


class Outgoing(NamedTuple):
    """A whole request, and the sink that receives its answer.

    Attributes:
        check: it is a health check: it may be asked twice, and its connection ends with it.
        second: it was sent before, and is not sent a third time.
    """

    sink: Sink
    request: bytes
    check: bool = False
    second: bool = False


class Downstream(Protocol):
    """A client's connection, as its exchange uses it; one request after the other."""

    def wait_for_backend(self, deadline: float) -> None:
        """Leave the request to the exchange until `deadline`, on the gateway's clock."""
        ...

    def count_from(self, now: float) -> None:
        """Let the request have begun now, for the metrics."""
        ...

    def answer_started(self, head: ResponseHead, body: bytes) -> None:
        """Pass on the head, built anew, and the first bytes of the body."""
        ...

    def answer_data(self, data: bytes) -> None:
        """Pass on more of the body, verbatim."""
        ...

    def answer_ended(self, now: float) -> None:
        """The answer is complete; the client's next request may be served at once."""
        ...

    def break_off(self, reason: Reason) -> None:
        """End the connection in the middle of an answer: the client sees that it is incomplete."""
        ...

    def body_sent(self) -> None:
        """Count the request's body no more."""
        ...

    def refuse(self, reason: Reason) -> None:
        """Answer with an error."""
        ...

    def serve_next(self) -> None:
        """Serve what the client has sent since its request was handed over."""
        ...
