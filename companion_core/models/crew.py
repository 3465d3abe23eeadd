"""Further connections beside the first, as long as each one makes the whole faster.

A host that limits each connection is left behind by four of them; a host, a line or a processor
that is busy already is not helped by any. So one more is tried, measured, and given up again where
it does not pay. What a further connection meets is nobody's failure: the first one sees to it.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final, Self

from companion_core.errors import CompanionError, Reason
from companion_core.models.byte_pump import Spread
from companion_core.models.claims import Claim, Claims

__all__ = ["Crew"]

# So much faster everything has to be with one more.
_GAIN: Final = 1.15
# Bytes a second that show that no limit of one connection is in the way.
_ENOUGH: Final = 150e6
_WAIT_SECONDS: Final = 0.02


class _Helper:
    """One further connection, in a thread of its own."""

    def __init__(self, claims: Claims, claim: Claim, fetch: Fetch) -> None:
        self._claims = claims
        self._fetch = fetch
        self._stop = threading.Event()
        self.failed = False
        self._thread = threading.Thread(
            target=self._run, args=(claim,), name="companion-further-download", daemon=True
        )
        self._thread.start()

    @property
    def is_at_work(self) -> bool:
        return self._thread.is_alive()

    def dismiss(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, claim: Claim | None) -> None:
        while claim is not None:
            try:
                self._fetch(claim, self._stop)
            except BaseException:  # noqa: BLE001 - the first connection meets it too, and says so
                self.failed = True
            finally:
                self._claims.give_back(claim)
            if self.failed or self._stop.is_set():
                return
            claim = self._claims.take()


Fetch = Callable[[Claim, threading.Event], object]


class Crew:
    """The connections to one address, as a context; leaving it ends all but the caller's.

    Args:
        claims: what is missing.
        fetch: brings a claim until the event is set.
        spread: when further connections are tried.
        cancelled: ends the caller's wait.
    """

    def __init__(
        self, claims: Claims, fetch: Fetch, spread: Spread, cancelled: threading.Event
    ) -> None:
        self._claims = claims
        self._fetch = fetch
        self._spread = spread
        self._cancelled = cancelled
        self._helpers: list[_Helper] = []
        self._is_settled = spread.connections <= 1
        self._rate = 0.0  # with one connection fewer
        self._since: float | None = None
        self._then = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.dismiss()

    def dismiss(self) -> None:
        """End the further connections."""
        while self._helpers:
            self._helpers.pop().dismiss()

    def settle(self) -> None:
        """Try no more connections."""
        self._is_settled = True

    def next_claim(self) -> Claim | None:
        """Return what the caller's connection is to bring next; None once all is there.

        Raises:
            CompanionError: `interrupted`.
        """
        deadline = time.monotonic() + 2 * self._spread.look_seconds
        while not self._claims.partial.complete:
            claim = self._claims.take()
            if claim is not None:
                return claim
            if not any(helper.is_at_work for helper in self._helpers):
                self._helpers.clear()
            elif time.monotonic() > deadline:
                self.settle()
                self.dismiss()  # the rest is short, and somebody is too slow with it
            elif self._cancelled.wait(_WAIT_SECONDS):
                raise CompanionError(Reason.INTERRUPTED)
        return None

    def look(self) -> None:
        """Measure, and try one more connection or give one up; to be called at each block."""
        if self._is_settled:
            return
        now, received = time.monotonic(), self._claims.partial.received
        if self._since is None:
            self._since, self._then = now, received
            return
        seconds = now - self._since
        if seconds < self._spread.look_seconds:
            return
        rate = (received - self._then) / seconds
        self._since = None
        if self._helpers and (self._helpers[-1].failed or rate < self._rate * _GAIN):
            self.settle()
            self._helpers.pop().dismiss()
            return
        self._rate = rate
        self._try_one_more()

    def _try_one_more(self) -> None:
        more = len(self._helpers) + 1 < self._spread.connections and self._rate < _ENOUGH
        claim = self._claims.divide() if more else None
        if claim is None:
            self._is_settled = True
            return
        with contextlib.suppress(RuntimeError):  # no further thread
            self._helpers.append(_Helper(self._claims, claim, self._fetch))
            return
        self._claims.give_back(claim)
        self._is_settled = True
