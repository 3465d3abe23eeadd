"""Unlock a new keyring on the session bus of this process; as a program: PASSWORD."""

from __future__ import annotations

import subprocess
import sys
import time

from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection

NAME = "org.freedesktop.secrets"
DEADLINE_SECONDS = 30


def unlock(password: str) -> None:
    """Return when the daemon answers on the bus.

    The daemon detaches itself before it answers. A program that asks for the service earlier makes
    the bus start a second daemon, whose keyring stays locked until the two have found each other.
    A wrong password is no error here: a test finds the store locked.
    """
    subprocess.run(
        ["gnome-keyring-daemon", "--unlock", "--components=secrets"],
        input=password.encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=DEADLINE_SECONDS,
    )
    deadline = time.monotonic() + DEADLINE_SECONDS
    with open_dbus_connection() as bus:
        while bus.send_and_get_reply(message_bus.NameHasOwner(NAME)).body != (True,):
            assert time.monotonic() < deadline, f"no program owns {NAME}"
            time.sleep(0.01)


if __name__ == "__main__":
    unlock(sys.argv[1])
