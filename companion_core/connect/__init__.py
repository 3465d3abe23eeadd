"""Programs that people use, led to the gateway by their own settings."""

from companion_core.connect.connections import (
    Connected,
    Connections,
    Look,
    Removed,
    State,
    Wanted,
)
from companion_core.connect.programs import PROGRAMS, Places, Program

__all__ = [
    "PROGRAMS",
    "Connected",
    "Connections",
    "Look",
    "Places",
    "Program",
    "Removed",
    "State",
    "Wanted",
]
