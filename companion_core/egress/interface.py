"""The one doorway from the package to the live machine.

Code that starts, signals or identifies a process, or connects to anything, does so through a
handle that satisfies `Egress`. Modules take the handle as an argument; only the command line's
`main` and `Companion.open` have one made (`sandboxed.py`): the live one (`live.py`), or in an armed
sandbox one that refuses all but what is named there. Callers report `EgressRefused` as "skipped".

A signal is sent only while the pid still belongs to the process that was identified (by its
start time), so a process that reuses the pid is never hit.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, Protocol, TypeVar

from companion_core.egress.process_identity import ProcessIdentity, ProcessUnreadable
from companion_core.errors import EnvironmentUnavailable, Reason

if TYPE_CHECKING:  # a command that only asks the running companion loads none of these
    import asyncio
    import http.client
    import socket
    import ssl
    import subprocess

    from companion_core.egress.backend_channel import BackendChannel
    from companion_core.egress.control_link import ControlLink

__all__ = ["KILL", "Egress", "EgressRefused", "ProcessIdentity", "ProcessUnreadable", "Stream"]

P = TypeVar("P", bound="asyncio.BaseProtocol")

Stream = int | IO[bytes] | None


# The signal that no process can delay; on Windows every signal but two kills at once.
KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)


class EgressRefused(EnvironmentUnavailable):
    """This process may not reach the machine."""

    def __init__(self) -> None:
        super().__init__(Reason.EGRESS_REFUSED)


class Egress(Protocol):
    """What the package may do to the machine around it."""

    def start_process(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | None = None,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        pass_fds: Sequence[int] = (),
        suspended: bool = False,
    ) -> subprocess.Popen[bytes]:
        """Start a program in its own session, without a shell; raise `OSError` on failure.

        A stream that is not given is the null device. `suspended` stops the program before its
        first instruction, which only Windows can.
        """
        ...

    def replace_process(self, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
        """Become another program found on PATH (`companion exec`); raise `OSError` on failure."""
        ...

    def open_browser(self, url: str) -> bool:
        """Show an https address in the person's own browser; False if none can be started.

        Blocks for a moment, in which a starter that finds no browser ends.
        """
        ...

    def identify(self, pid: int) -> ProcessIdentity | None:
        """Return what proves the process, or None when there is no such process.

        Raises:
            ProcessUnreadable: the system does not say whether there is one.
        """
        ...

    def send_signal(self, identity: ProcessIdentity, number: int) -> bool:
        """Signal exactly that process; False when it is gone or the pid is another's.

        Raises:
            ProcessUnreadable: the process may be there, and was not signalled.
        """
        ...

    def connect_https(
        self, host: str, port: int, *, context: ssl.SSLContext, timeout: float
    ) -> http.client.HTTPSConnection:
        """Return a connection (opened on first use), as `connect_tcp` makes one."""
        ...

    def connect_tcp(
        self, host: str, port: int, *, context: ssl.SSLContext, timeout: float
    ) -> socket.socket:
        """Return a connection to a host of the network, through the system's proxy if any.

        TLS to the host is the caller's; `context` is for a proxy that itself speaks TLS. A
        loopback host is always connected to directly (I-17).

        Raises:
            OSError: the host or the proxy cannot be reached; `ProxyFailed` says why.
        """
        ...

    def connect_loopback(self, port: int, *, timeout: float) -> http.client.HTTPConnection:
        """Return a connection to 127.0.0.1, never through a proxy (I-17)."""
        ...

    def connect_control(self, path: Path) -> ControlLink:
        """Return a connection to a control socket; raise `OSError` if no process listens."""
        ...

    async def connect_backend(self, factory: Callable[[], P], channel: BackendChannel) -> P:
        """Connect a protocol to the runtime's own listener; raise `OSError` on failure.

        A channel with a proof proves the connection before the protocol gets it.
        """
        ...

    async def reach_backend(self, channel: BackendChannel) -> None:
        """Connect to the runtime's listener and close; raise `OSError` if it does not accept."""
        ...
