"""A model host that answers each request in another bad way, or well, as a seed decides."""

from __future__ import annotations

import random
import ssl
import threading
from collections.abc import Callable, Mapping
from typing import Final

from companion_core.testing.model_host import Misbehaviour, ModelHost

__all__ = ["EvilHost"]

# Each makes one misbehaviour for a file of so many bytes.
_WAYS: Final[tuple[Callable[[random.Random, int], Misbehaviour], ...]] = (
    lambda _choice, _size: Misbehaviour(),
    lambda choice, size: Misbehaviour(close_after=choice.randrange(size)),
    lambda choice, size: Misbehaviour(stall_after=choice.randrange(size)),
    lambda choice, size: Misbehaviour(unannounced=True, close_after=choice.randrange(size)),
    lambda choice, size: Misbehaviour(chunked=True, close_after=choice.randrange(size)),
    lambda choice, size: Misbehaviour(flip_byte=choice.randrange(size)),
    lambda choice, _size: Misbehaviour(ranges=choice.choice(("ignore", "shift", "zero"))),
    lambda choice, size: Misbehaviour(ranges="zero", close_after=choice.randrange(size)),
    lambda choice, size: Misbehaviour(changing_etag=True, close_after=choice.randrange(size)),
    lambda choice, size: Misbehaviour(weak_etag=True, close_after=choice.randrange(size)),
    lambda choice, size: Misbehaviour(etag='"one"', flip_byte=choice.randrange(size)),
    lambda choice, size: Misbehaviour(etag='"one"', close_after=choice.randrange(size)),
    lambda choice, _size: Misbehaviour(extra=choice.randrange(1, 100_000)),
    lambda choice, _size: Misbehaviour(unannounced=True, extra=choice.randrange(1, 100_000)),
    lambda _choice, _size: Misbehaviour(unannounced=True, endless=True),
    lambda choice, size: Misbehaviour(announce=choice.randrange(2 * size)),
    lambda choice, _size: Misbehaviour(status=choice.choice((204, 206, 404, 416, 429, 503))),
    lambda _choice, _size: Misbehaviour(content_encoding="gzip"),
)


class EvilHost(ModelHost):
    """A `ModelHost` that is evil while it is told to be.

    Args:
        seed: decides how each request is answered, in the order of their coming.

    Attributes:
        is_evil: whether it is.
    """

    def __init__(
        self, context: ssl.SSLContext, content: Mapping[str, bytes], *, seed: int = 0
    ) -> None:
        super().__init__(context, content)
        self.is_evil = True
        self._choice = random.Random(seed)  # noqa: S311 - a test's, to be repeated
        self._choosing = threading.Lock()

    def reseed(self, seed: int) -> None:
        """Begin another order of answers."""
        with self._choosing:
            self._choice.seed(seed)

    def choose_knobs(self) -> Misbehaviour:
        """Return one of the ways, or the right one."""
        if not self.is_evil:
            return Misbehaviour()
        size = max(map(len, self.content.values()))
        with self._choosing:
            return self._choice.choice(_WAYS)(self._choice, size)
