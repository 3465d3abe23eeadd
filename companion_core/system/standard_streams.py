"""Keep descriptors 0 to 2 for what they mean, also in a process that was started without them."""

from __future__ import annotations

import os

__all__ = ["fill_standard_streams"]


def fill_standard_streams() -> None:
    """Open the null device under each standard descriptor that is closed.

    Else the next file or pipe that is opened gets its number, and a program that is started with
    that pipe and a stdout of its own has one of the two in the other's place.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free: this one
            if opened != number:
                os.close(opened)
                return
            os.set_inheritable(number, True)  # noqa: FBT003 - it takes no name
