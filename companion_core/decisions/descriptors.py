"""Rules for this file: how a process's open files are shared out; clients never get the last.

The runtime's restart, its health check and the control socket need descriptors in just the moments
in which a stranger has opened all the connections there may be (I-20). No I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["MOST_CONNECTIONS", "ConnectionRoom", "share_descriptors"]

MOST_CONNECTIONS: Final = 512
LEAST_CONNECTIONS: Final = 4
# A companion that serves has 27 open, and a start of its runtime needs a dozen more for a moment.
RESERVED: Final = 44
_MOST_ACCEPTED_AT_ONCE: Final = 64
_LISTENERS: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRoom:
    """What is left for the gateway's clients.

    Attributes:
        connections: that may be open.
        accepted_at_once: by each listener, before the gateway can close any of them.
    """

    connections: int
    accepted_at_once: int


def share_descriptors(limit: int, max_in_flight: int) -> ConnectionRoom:
    """Return how many connections there is room for.

    Args:
        limit: of open files.
        max_in_flight: requests that have a connection to the backend too.
    """
    spare = max(0, limit - RESERVED)
    at_once = max(1, min(_MOST_ACCEPTED_AT_ONCE, spare // 16))
    room = spare - _LISTENERS * at_once
    # A client's connection needs a second descriptor only while its request runs.
    connections = max(room - max_in_flight, room // 2, LEAST_CONNECTIONS)
    return ConnectionRoom(connections=min(connections, MOST_CONNECTIONS), accepted_at_once=at_once)
