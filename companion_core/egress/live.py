"""The live doorway: it acts on the machine."""

from __future__ import annotations

import errno
import functools
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from companion_core.egress import process_identity
from companion_core.egress.interface import Stream
from companion_core.egress.process_identity import ProcessIdentity, ProcessUnreadable
from companion_core.system.open_files import restore_open_file_limit

if TYPE_CHECKING:  # a command that only asks the running companion loads none of these
    import asyncio
    import http.client
    import socket
    import ssl
    import subprocess

    from companion_core.egress.backend_channel import BackendChannel
    from companion_core.egress.control_link import ControlLink
    from companion_core.providers import TcpChannel, UnixChannel

__all__ = ["LiveEgress"]

P = TypeVar("P", bound="asyncio.BaseProtocol")


CONTROL_TIMEOUT_SECONDS = 10.0
BACKLOG_SECONDS = 0.002  # pause before another attempt at a listener whose backlog is full

_CREATE_SUSPENDED = 0x4  # of CreateProcess; `subprocess` has no name for it


class LiveEgress:
    """The live doorway."""

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
        """See `Egress`."""
        import subprocess  # noqa: PLC0415 - loaded on first use

        null = subprocess.DEVNULL
        flags = 0
        if sys.platform == "win32":
            # Since all streams are given, Popen lets the program inherit those three handles alone.
            flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
            flags |= _CREATE_SUSPENDED if suspended else 0
        child = subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=null if stdin is None else stdin,
            stdout=null if stdout is None else stdout,
            stderr=null if stderr is None else stderr,
            pass_fds=tuple(pass_fds),
            start_new_session=os.name == "posix",
            creationflags=flags,
        )
        restore_open_file_limit(child.pid)
        return child

    def replace_process(self, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
        """See `Egress`."""
        if os.name == "posix":
            # Python ignores these two; a program expects the system's defaults.
            for name in ("SIGPIPE", "SIGXFSZ"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606 - the person's own command
        import subprocess  # noqa: PLC0415 - loaded on first use

        with subprocess.Popen(list(argv), env=dict(env)) as child:
            sys.exit(child.wait())

    def open_browser(self, url: str) -> bool:
        """See `Egress`."""
        from companion_core.egress.browser import open_browser  # noqa: PLC0415 - loaded on first use

        return open_browser(url, self.start_process)

    def identify(self, pid: int) -> ProcessIdentity | None:
        """See `Egress`."""
        return process_identity.identify(pid)

    def send_signal(self, identity: ProcessIdentity, number: int) -> bool:
        """See `Egress`."""
        if sys.platform == "linux":
            return self._send_signal_linux(identity, number)
        seen = self.identify(identity.pid)
        if seen is None or seen.start_time != identity.start_time:
            return False
        try:
            os.kill(identity.pid, number)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise ProcessUnreadable from error
        return True

    def _send_signal_linux(self, identity: ProcessIdentity, number: int) -> bool:
        if sys.platform != "linux":
            return False
        # The descriptor pins the process before it is identified, so its pid cannot be reused.
        try:
            descriptor = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise ProcessUnreadable from error
        try:
            seen = self.identify(identity.pid)
            if seen is None or seen.start_time != identity.start_time:
                return False
            signal.pidfd_send_signal(descriptor, number)
        except ProcessLookupError:
            return False
        except OSError as error:
            raise ProcessUnreadable from error
        finally:
            os.close(descriptor)
        return True

    def connect_https(
        self, host: str, port: int, *, context: ssl.SSLContext, timeout: float
    ) -> http.client.HTTPSConnection:
        """See `Egress`."""
        import http.client  # noqa: PLC0415 - loaded on first use

        reach = functools.partial(self.connect_tcp, context=context, timeout=timeout)

        class Connection(http.client.HTTPSConnection):
            def connect(self) -> None:
                plain = reach(host, port)
                try:
                    self.sock = context.wrap_socket(plain, server_hostname=host)
                except BaseException:
                    plain.close()
                    raise

        return Connection(host, port, context=context, timeout=timeout)

    def connect_tcp(
        self, host: str, port: int, *, context: ssl.SSLContext, timeout: float
    ) -> socket.socket:
        """See `Egress`."""
        from companion_core.decisions.proxy import choose_proxy  # noqa: PLC0415 - loaded on first use
        from companion_core.egress.transport_failure import ProxyFailed  # noqa: PLC0415 - loaded on first use
        from companion_core.egress.tunnel import open_tunnel  # noqa: PLC0415 - loaded on first use
        from companion_core.transfer_fault import TransferFault  # noqa: PLC0415 - loaded on first use

        proxy = choose_proxy(host, port, _proxy_settings(host))
        if isinstance(proxy, TransferFault):
            raise ProxyFailed(proxy)
        return open_tunnel(proxy, host, port, context=context, timeout=timeout)

    def connect_loopback(self, port: int, *, timeout: float) -> http.client.HTTPConnection:
        """See `Egress`."""
        import http.client  # noqa: PLC0415 - loaded on first use

        return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def connect_control(self, path: Path) -> ControlLink:
        """See `Egress`."""
        if sys.platform == "win32":
            from companion_core.egress.owner_pipe import OwnerPipes  # noqa: PLC0415 - loaded on first use

            return OwnerPipes.of_this_system().connect(str(path), CONTROL_TIMEOUT_SECONDS)
        import socket  # noqa: PLC0415 - loaded on first use

        from companion_core.egress.control_link import SocketLink  # noqa: PLC0415 - loaded on first use
        from companion_core.egress.unix_socket import address_of  # noqa: PLC0415 - loaded on first use

        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(CONTROL_TIMEOUT_SECONDS)
        try:
            with address_of(str(path)) as address:
                client.connect(address)
        except OSError:
            client.close()
            raise
        return SocketLink(client)

    async def connect_backend(self, factory: Callable[[], P], channel: BackendChannel) -> P:
        """See `Egress`."""
        import asyncio  # noqa: PLC0415 - loaded on first use

        from companion_core.egress.backend_channel import BrokeredChannel  # noqa: PLC0415 - loaded on first use
        from companion_core.providers import UnixChannel  # noqa: PLC0415 - loaded on first use

        loop = asyncio.get_running_loop()
        if isinstance(channel, BrokeredChannel):
            return (await loop.create_connection(factory, sock=await channel.connect()))[1]
        connected = await _connect(channel)
        if isinstance(channel, UnixChannel):
            return (await loop.create_unix_connection(factory, sock=connected))[1]
        return (await loop.create_connection(factory, sock=connected))[1]

    async def reach_backend(self, channel: BackendChannel) -> None:
        """See `Egress`."""
        from companion_core.egress.backend_channel import BrokeredChannel  # noqa: PLC0415 - loaded on first use

        if isinstance(channel, BrokeredChannel):
            (await channel.connect()).close()
        else:
            (await _connect(channel, sends=False)).close()


def _proxy_settings(host: str) -> dict[str, str]:
    """Return what the environment says of proxies, else what macOS or Windows is set to."""
    import urllib.request  # noqa: PLC0415 - loaded on first use

    settings = urllib.request.getproxies()
    if urllib.request.getproxies_environment() or not urllib.request.proxy_bypass(host):
        return settings
    return {}  # the system's own list of exceptions


async def _connect(channel: UnixChannel | TcpChannel, *, sends: bool = True) -> socket.socket:
    """Connect within this machine, and prove the listener if the channel has a proof.

    A connection to a port is not proved if nothing is sent on it: the caller reads the runtime's
    sockets back next, which is the same proof.
    """
    import socket  # noqa: PLC0415 - loaded on first use

    from companion_core.egress.backend_channel import connection_of  # noqa: PLC0415 - loaded on first use
    from companion_core.egress.unix_socket import address_of  # noqa: PLC0415 - loaded on first use
    from companion_core.providers import TcpChannel  # noqa: PLC0415 - loaded on first use

    async def connect() -> socket.socket:
        if isinstance(channel, TcpChannel):
            return await _connected(socket.socket(), (channel.host, channel.port))
        if sys.platform == "win32":
            raise ConnectionRefusedError
        with address_of(channel.path) as address:
            return await _connected(socket.socket(socket.AF_UNIX), address)

    if isinstance(channel, TcpChannel) and not sends:
        return await connect()
    return await connection_of(channel, connect)


async def _connected(client: socket.socket, address: str | tuple[str, int]) -> socket.socket:
    """Connect a socket; nearly every connect succeeds at once, so try before waiting."""
    import asyncio  # noqa: PLC0415 - loaded on first use

    try:
        client.settimeout(0)
        # The first call begins it; only on Linux does the second one return 0 once it is done.
        begun = client.connect_ex(address) if sys.platform == "linux" else errno.EINPROGRESS
        while begun == errno.EAGAIN and isinstance(address, str):
            # A Unix socket's full backlog (connect(2)). The socket is writable then, so asyncio
            # would take it for connected.
            await asyncio.sleep(BACKLOG_SECONDS)
            begun = client.connect_ex(address)
        if begun and (sys.platform != "linux" or client.connect_ex(address)):
            await asyncio.get_running_loop().sock_connect(client, address)
    except BaseException:
        client.close()
        raise
    return client
