"""The doorway of an armed sandbox (`COMPANION_SANDBOX=1`): shut, but for what is named here.

Four things are allowed, so that a companion can be tried where nothing else may be reached:

* a program that `COMPANION_SANDBOX_PROGRAMS` names by its absolute path (several with the system's
  separator), and what this Python itself runs;
* looking at processes, which changes nothing;
* connections within this machine: loopback by its literal addresses, and Unix sockets;
* a signal to a process that was proved to be ours: its proof is the guard, not the sandbox.

The sandbox is of this process. What it is allowed to start is confined by the runtime's own tier.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from companion_core.egress.interface import Egress, EgressRefused
from companion_core.egress.live import LiveEgress
from companion_core.egress.process_identity import ProcessIdentity

if TYPE_CHECKING:  # a command that only asks the running companion loads none of these
    import asyncio
    import http.client
    import socket
    import ssl
    import subprocess

    from companion_core.egress.backend_channel import BackendChannel
    from companion_core.egress.control_link import ControlLink

__all__ = ["ARMED", "PROGRAMS", "SandboxedEgress", "open_doorway"]

P = TypeVar("P", bound="asyncio.BaseProtocol")

ARMED: Final = "COMPANION_SANDBOX"
PROGRAMS: Final = "COMPANION_SANDBOX_PROGRAMS"
_NOT_ARMED: Final = frozenset({"", "0"})


def open_doorway(environ: Mapping[str, str] = os.environ) -> Egress:
    """Return the handle that the environment asks for: the live one, or that of a sandbox."""
    if environ.get(ARMED, "") in _NOT_ARMED:
        return LiveEgress()
    named = environ.get(PROGRAMS, "").split(os.pathsep)
    return SandboxedEgress(path for path in named if os.path.isabs(path))  # noqa: PTH117 - a text


class SandboxedEgress:
    """Satisfies `Egress`; what is not allowed raises `EgressRefused`.

    Args:
        programs: absolute paths of what may be started besides this Python.
    """

    def __init__(self, programs: Any = ()) -> None:
        self._live = LiveEgress()
        self._programs = {sys.executable, os.path.realpath(sys.executable), *programs}

    def _require_program(self, argv: Sequence[str]) -> None:
        if not argv or argv[0] not in self._programs:
            raise EgressRefused

    def start_process(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """See `Egress`; a program that is named, or this Python."""
        self._require_program(argv)
        return self._live.start_process(argv, **options)

    def replace_process(self, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
        """See `Egress`; a program that is named, or this Python."""
        self._require_program(argv)
        self._live.replace_process(argv, env)

    def open_browser(self, url: str) -> bool:  # noqa: ARG002 - the signature of the doorway
        """Refuse."""
        raise EgressRefused

    def identify(self, pid: int) -> ProcessIdentity | None:
        """See `Egress`."""
        return self._live.identify(pid)

    def send_signal(self, identity: ProcessIdentity, number: int) -> bool:
        """See `Egress`."""
        return self._live.send_signal(identity, number)

    def connect_https(
        self, host: str, port: int, *, context: ssl.SSLContext, timeout: float
    ) -> http.client.HTTPSConnection:
        """See `Egress`; loopback alone."""
        _require_loopback(host)
        return self._live.connect_https(host, port, context=context, timeout=timeout)

    def connect_tcp(
        self, host: str, port: int, *, context: ssl.SSLContext, timeout: float
    ) -> socket.socket:
        """See `Egress`; loopback alone."""
        _require_loopback(host)
        return self._live.connect_tcp(host, port, context=context, timeout=timeout)

    def connect_loopback(self, port: int, *, timeout: float) -> http.client.HTTPConnection:
        """See `Egress`."""
        return self._live.connect_loopback(port, timeout=timeout)

    def connect_control(self, path: Path) -> ControlLink:
        """See `Egress`."""
        return self._live.connect_control(path)

    async def connect_backend(self, factory: Callable[[], P], channel: BackendChannel) -> P:
        """See `Egress`."""
        return await self._live.connect_backend(factory, channel)

    async def reach_backend(self, channel: BackendChannel) -> None:
        """See `Egress`."""
        await self._live.reach_backend(channel)


def _require_loopback(host: str) -> None:
    """Refuse what is not loopback as it is written: a name could lead anywhere."""
    if host == "localhost":
        return
    import ipaddress  # noqa: PLC0415 - loaded on first use

    try:
        inside = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        inside = False
    if not inside:
        raise EgressRefused
