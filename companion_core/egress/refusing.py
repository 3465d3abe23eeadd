"""The shut doorway, which a sandboxed process gets: it refuses everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from companion_core.egress.interface import EgressRefused
from companion_core.egress.process_identity import ProcessIdentity

if TYPE_CHECKING:  # a command that only asks the running companion loads none of these
    import asyncio
    import http.client
    import socket
    import ssl
    import subprocess

    from companion_core.egress.backend_channel import BackendChannel
    from companion_core.egress.control_link import ControlLink

__all__ = ["RefusingEgress"]

P = TypeVar("P", bound="asyncio.BaseProtocol")


class RefusingEgress:
    """The shut doorway: every method raises `EgressRefused`."""

    def start_process(
        self,
        argv: Sequence[str],  # noqa: ARG002 - the signature of the doorway
        **_: object,
    ) -> subprocess.Popen[bytes]:
        """Refuse."""
        raise EgressRefused

    def replace_process(self, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:  # noqa: ARG002 - the signature of the doorway
        """Refuse."""
        raise EgressRefused

    def open_browser(self, url: str) -> bool:  # noqa: ARG002 - the signature of the doorway
        """Refuse."""
        raise EgressRefused

    def identify(self, pid: int) -> ProcessIdentity | None:  # noqa: ARG002 - the signature of the doorway
        """Refuse."""
        raise EgressRefused

    def send_signal(self, identity: ProcessIdentity, number: int) -> bool:  # noqa: ARG002 - the signature of the doorway
        """Refuse."""
        raise EgressRefused

    def connect_https(
        self,
        host: str,  # noqa: ARG002 - the signature of the doorway
        port: int,  # noqa: ARG002 - the signature of the doorway
        *,
        context: ssl.SSLContext,  # noqa: ARG002 - the signature of the doorway
        timeout: float,  # noqa: ARG002 - the signature of the doorway
    ) -> http.client.HTTPSConnection:
        """Refuse."""
        raise EgressRefused

    def connect_tcp(
        self,
        host: str,  # noqa: ARG002 - the signature of the doorway
        port: int,  # noqa: ARG002 - the signature of the doorway
        *,
        context: ssl.SSLContext,  # noqa: ARG002 - the signature of the doorway
        timeout: float,  # noqa: ARG002 - the signature of the doorway
    ) -> socket.socket:
        """Refuse."""
        raise EgressRefused

    def connect_loopback(self, port: int, *, timeout: float) -> http.client.HTTPConnection:  # noqa: ARG002 - the signature of the doorway
        """Refuse."""
        raise EgressRefused

    def connect_control(self, path: Path) -> ControlLink:  # noqa: ARG002 - the signature of the doorway
        """Refuse."""
        raise EgressRefused

    async def connect_backend(
        self,
        factory: Callable[[], P],  # noqa: ARG002 - the signature of the doorway
        channel: BackendChannel,  # noqa: ARG002 - the signature of the doorway
    ) -> P:
        """Refuse."""
        raise EgressRefused

    async def reach_backend(self, channel: BackendChannel) -> None:  # noqa: ARG002 - the signature of the doorway
        """Refuse."""
        raise EgressRefused
