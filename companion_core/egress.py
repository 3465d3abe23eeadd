"""The one doorway from the package to the live machine.

Starting and signalling processes, looking them up, and every outbound connection go
through a handle of this module. Modules take the handle; only the command line's `main`
and `Companion.open` make the live one. A test sandbox hands out `RefusingEgress`, whose
every method raises `EgressRefused`: callers map it to "skipped".

A signal is guarded by proof: it is sent only while the pid still belongs to the process
that was identified (start time), so a reused pid is never hit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn, Protocol, TypeVar

from companion_core.errors import EnvironmentUnavailable, Reason

if TYPE_CHECKING:  # a command that only asks the running companion loads none of these
    import asyncio
    import http.client
    import socket
    import ssl
    import subprocess

    from companion_core.backend_channel import BackendChannel
    from companion_core.control_link import ControlLink
    from companion_core.providers import TcpChannel, UnixChannel


__all__ = [
    "KILL",
    "Egress",
    "EgressRefused",
    "LiveEgress",
    "ProcessIdentity",
    "ProcessUnreadable",
    "RefusingEgress",
]

P = TypeVar("P", bound="asyncio.BaseProtocol")
Stream = int | IO[bytes] | None

CONTROL_TIMEOUT_SECONDS = 10.0
# What no process can put off; on Windows every signal but two ends it so.
KILL: int = getattr(signal, "SIGKILL", signal.SIGTERM)
_CREATE_SUSPENDED = 0x4  # of CreateProcess; `subprocess` has no name for it


class EgressRefused(EnvironmentUnavailable):
    """This process may not reach the machine."""

    def __init__(self) -> None:
        super().__init__(Reason.EGRESS_REFUSED)


class ProcessUnreadable(EnvironmentUnavailable):
    """The system does not say what became of a process: no descriptor left, no right to look.

    Only "no such process" is an end; whoever takes this for one leaves something running.
    """

    def __init__(self) -> None:
        super().__init__(Reason.PROCESS_UNREADABLE)


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """What proves that a pid still names the same process.

    Attributes:
        start_time: of the process in the system's own unit; compared, never interpreted.
        executable: the absolute path of its program, "" where the system does not tell.
    """

    pid: int
    start_time: float
    executable: str


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

        A stream that is not given is the null device. `suspended` holds it before its first
        instruction, which only Windows can.
        """
        ...

    def replace_process(self, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
        """Become another program found on PATH (`companion exec`); raise `OSError` on failure."""
        ...

    def identify(self, pid: int) -> ProcessIdentity | None:
        """Return what proves the process, or None when there is no such process.

        Raises:
            ProcessUnreadable: there may be one.
        """
        ...

    def send_signal(self, identity: ProcessIdentity, number: int) -> bool:
        """Signal exactly that process; False when it is gone or the pid is another's.

        Raises:
            ProcessUnreadable: it may be there, and was not signalled.
        """
        ...

    def connect_https(
        self, host: str, port: int, *, context: ssl.SSLContext, timeout: float
    ) -> http.client.HTTPSConnection:
        """Return a connection (opened on first use), through the system's proxy if any."""
        ...

    def connect_loopback(self, port: int, *, timeout: float) -> http.client.HTTPConnection:
        """Return a connection to 127.0.0.1, never through a proxy (I-17)."""
        ...

    def connect_control(self, path: Path) -> ControlLink:
        """Return a connection to a control socket; raise `OSError` when nobody listens."""
        ...

    async def connect_backend(self, factory: Callable[[], P], channel: BackendChannel) -> P:
        """Connect a protocol to the runtime's own listener; raise `OSError` on failure."""
        ...

    async def reach_backend(self, channel: BackendChannel) -> None:
        """Connect to the runtime's own listener and leave; raise `OSError` when nobody accepts."""
        ...


class LiveEgress:
    """The doorway, open."""

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
            # With streams given, Popen lets the program inherit those three handles alone.
            flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
            flags |= _CREATE_SUSPENDED if suspended else 0
        return subprocess.Popen(
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

    def replace_process(self, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:
        """See `Egress`."""
        if os.name == "posix":
            # Python ignores these; a program expects them as the system has them.
            for name in ("SIGPIPE", "SIGXFSZ"):
                signal.signal(getattr(signal, name), signal.SIG_DFL)
            os.execvpe(argv[0], list(argv), dict(env))  # noqa: S606 - the person's own command
        import subprocess  # noqa: PLC0415 - as above

        with subprocess.Popen(list(argv), env=dict(env)) as child:
            sys.exit(child.wait())

    def identify(self, pid: int) -> ProcessIdentity | None:
        """See `Egress`."""
        if sys.platform == "linux":
            return _identify_linux(pid)
        return _identify_elsewhere(pid)

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
        # The descriptor pins the process before it is identified: no pid can be reused between.
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
        import urllib.parse  # noqa: PLC0415 - as above
        import urllib.request  # noqa: PLC0415 - as above

        loopback = host in {"localhost", "127.0.0.1", "::1"}
        proxy = None if loopback else urllib.request.getproxies().get("https")
        if proxy is None or urllib.request.proxy_bypass(host):
            return http.client.HTTPSConnection(host, port, context=context, timeout=timeout)
        address = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        connection = http.client.HTTPSConnection(
            address.hostname or "", address.port or 3128, context=context, timeout=timeout
        )
        connection.set_tunnel(host, port)
        return connection

    def connect_loopback(self, port: int, *, timeout: float) -> http.client.HTTPConnection:
        """See `Egress`."""
        import http.client  # noqa: PLC0415 - loaded on first use

        return http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def connect_control(self, path: Path) -> ControlLink:
        """See `Egress`."""
        if sys.platform == "win32":
            from companion_core.owner_pipe import OwnerPipes  # noqa: PLC0415 - as above

            return OwnerPipes.of_this_system().connect(str(path), CONTROL_TIMEOUT_SECONDS)
        import socket  # noqa: PLC0415 - as above

        from companion_core.control_link import SocketLink  # noqa: PLC0415 - as above

        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(CONTROL_TIMEOUT_SECONDS)
        try:
            client.connect(str(path))
        except OSError:
            client.close()
            raise
        return SocketLink(client)

    async def connect_backend(self, factory: Callable[[], P], channel: BackendChannel) -> P:
        """See `Egress`."""
        import asyncio  # noqa: PLC0415 - loaded on first use

        from companion_core.backend_channel import BrokeredChannel  # noqa: PLC0415 - as above
        from companion_core.providers import UnixChannel  # noqa: PLC0415 - as above

        loop = asyncio.get_running_loop()
        if isinstance(channel, BrokeredChannel):
            return (await loop.create_connection(factory, sock=await channel.connect()))[1]
        connected = await _connect(channel)
        if isinstance(channel, UnixChannel):
            return (await loop.create_unix_connection(factory, sock=connected))[1]
        return (await loop.create_connection(factory, sock=connected))[1]

    async def reach_backend(self, channel: BackendChannel) -> None:
        """See `Egress`."""
        from companion_core.backend_channel import BrokeredChannel  # noqa: PLC0415 - as above

        if isinstance(channel, BrokeredChannel):
            (await channel.connect()).close()
        else:
            (await _connect(channel)).close()


class RefusingEgress:
    """The doorway, shut: what a sandboxed process gets."""

    def start_process(
        self,
        argv: Sequence[str],  # noqa: ARG002 - the signature of the doorway
        **_: object,
    ) -> subprocess.Popen[bytes]:
        """Refuse."""
        raise EgressRefused

    def replace_process(self, argv: Sequence[str], env: Mapping[str, str]) -> NoReturn:  # noqa: ARG002 - as above
        """Refuse."""
        raise EgressRefused

    def identify(self, pid: int) -> ProcessIdentity | None:  # noqa: ARG002 - as above
        """Refuse."""
        raise EgressRefused

    def send_signal(self, identity: ProcessIdentity, number: int) -> bool:  # noqa: ARG002 - as above
        """Refuse."""
        raise EgressRefused

    def connect_https(
        self,
        host: str,  # noqa: ARG002 - as above
        port: int,  # noqa: ARG002 - as above
        *,
        context: ssl.SSLContext,  # noqa: ARG002 - as above
        timeout: float,  # noqa: ARG002 - as above
    ) -> http.client.HTTPSConnection:
        """Refuse."""
        raise EgressRefused

    def connect_loopback(self, port: int, *, timeout: float) -> http.client.HTTPConnection:  # noqa: ARG002 - as above
        """Refuse."""
        raise EgressRefused

    def connect_control(self, path: Path) -> ControlLink:  # noqa: ARG002 - as above
        """Refuse."""
        raise EgressRefused

    async def connect_backend(
        self,
        factory: Callable[[], P],  # noqa: ARG002 - as above
        channel: BackendChannel,  # noqa: ARG002 - as above
    ) -> P:
        """Refuse."""
        raise EgressRefused

    async def reach_backend(self, channel: BackendChannel) -> None:  # noqa: ARG002 - as above
        """Refuse."""
        raise EgressRefused


async def _connect(channel: UnixChannel | TcpChannel) -> socket.socket:
    """Connect within this machine: nearly always done at once, so nothing is waited for first."""
    import asyncio  # noqa: PLC0415 - loaded on first use
    import socket  # noqa: PLC0415 - as above

    from companion_core.providers import TcpChannel  # noqa: PLC0415 - as above

    address: str | tuple[str, int]
    if isinstance(channel, TcpChannel):
        client, address = socket.socket(), (channel.host, channel.port)
    elif sys.platform == "win32":
        raise ConnectionRefusedError
    else:
        client, address = socket.socket(socket.AF_UNIX), channel.path
    try:
        client.settimeout(0)
        # The first call begins it; on Linux alone the second one says 0 when it is done.
        if sys.platform != "linux" or (client.connect_ex(address) and client.connect_ex(address)):
            await asyncio.get_running_loop().sock_connect(client, address)
    except BaseException:
        client.close()
        raise
    return client


def _identify_linux(pid: int) -> ProcessIdentity | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    except (OSError, IndexError) as error:
        if isinstance(error, PermissionError) and not _is_ours(pid):
            return None  # where others' processes are hidden (proc(5), hidepid), as if it were gone
        raise ProcessUnreadable from error
    state, threads, start_ticks = fields[0], int(fields[17]), int(fields[19])
    # A first thread that ended looks like a zombie while others of the process go on.
    if state in {b"Z", b"X"} and threads <= 1:
        return None
    try:
        executable = str(Path(f"/proc/{pid}/exe").readlink())
    except OSError:
        executable = ""
    return ProcessIdentity(pid, start_ticks, executable)


def _is_ours(pid: int) -> bool:
    """Tell whether there is a process that this one may signal."""
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _identify_elsewhere(pid: int) -> ProcessIdentity | None:
    import psutil  # noqa: PLC0415 - needed only where /proc is not

    executable = ""
    try:
        process = psutil.Process(pid)
        with contextlib.suppress(psutil.AccessDenied):
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
            executable = process.exe()
        return ProcessIdentity(pid, process.create_time(), executable)
    except psutil.NoSuchProcess:
        return None
    except (psutil.Error, OSError) as error:
        raise ProcessUnreadable from error
