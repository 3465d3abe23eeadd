"""Which program answers where a runtime listens: proved for each connection before its use (I-07).

A runtime that was taken over can put another program's socket in the place of its own, or leave
its port to another program. Neither a prompt nor the backend's key may go there.

For a Unix socket the system names the process that listens. For a port it does not: there the very
socket that the tree listened on before the connection was made must still listen after it, in the
companion's own network.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final, TypeVar

from companion_core.decisions.runtime_readback import Listener, check_peer
from companion_core.egress.backend_channel import Connect, ProvedTcpChannel, ProvedUnixChannel
from companion_core.egress.interface import Egress, ProcessUnreadable
from companion_core.egress.process_identity import ProcessIdentity
from companion_core.egress.unix_socket import ForeignPeer, listener_has_ended, peer_of
from companion_core.providers import TcpChannel, UnixChannel
from companion_core.runtime.inspect.readback import ListeningSocket, find_listener, still_listens
from companion_core.runtime.process.handle import RuntimeProcess

__all__ = ["BackendPeer"]

T = TypeVar("T")

_LOOKS: Final = 2  # a runtime may have closed its port and opened it anew
_LONG_SECONDS: Final = 0.005


@contextlib.contextmanager
def _closed_unless_looked(client: socket.socket) -> Iterator[None]:
    """Close a connection whose peer could not be looked at.

    Raises:
        ConnectionRefusedError: the system did not tell; nobody is to blame, and it is tried again.
    """
    try:
        yield
    except ProcessUnreadable as error:
        client.close()
        raise ConnectionRefusedError from error
    except BaseException:
        client.close()
        raise


class BackendPeer:
    """Proves the connections to one runtime.

    Args:
        process: the runtime.
        egress: identifies processes.
        on_foreign: called when the runtime lives and its tree does not listen there: with True
            where it may just have closed its listener, with False where another program answers.
        long_look: seconds; after a look that took longer, the next one is made in a thread.
    """

    def __init__(
        self,
        process: RuntimeProcess,
        egress: Egress,
        on_foreign: Callable[[bool], None],
        *,
        long_look: float = _LONG_SECONDS,
    ) -> None:
        self._process = process
        self._egress = egress
        self._on_foreign = on_foreign
        self._long_look = long_look
        self._known: ProcessIdentity | None = None  # the last one in the tree that answered
        self._listener: ListeningSocket | None = None
        self._takes_long = sys.platform != "linux"  # then looks are made in a thread

    def proved(self, channel: UnixChannel | TcpChannel) -> ProvedUnixChannel | ProvedTcpChannel:
        """Return the channel with this proof in it."""
        if isinstance(channel, UnixChannel):
            return ProvedUnixChannel(path=channel.path, prove=self._prove_unix)
        own = Listener("tcp", channel.host, channel.port)
        prove = partial(self._prove_tcp, own)
        return ProvedTcpChannel(host=channel.host, port=channel.port, prove=prove)

    async def _prove_unix(self, connect: Connect) -> socket.socket:
        try:
            client = await connect()
        except ForeignPeer:
            self._report(perhaps=False)
            raise
        with _closed_unless_looked(client):
            pid, _ = peer_of(client)
            identity = self._egress.identify(pid) if pid > 0 else None
            if identity is not None and self._is_known(identity):
                tree = frozenset({pid})
            else:
                tree = frozenset(await self._look(self._process.tree))
            # Asked last: a process that has not ended by now has had this number all the time.
            ended = identity is None or listener_has_ended(client)
            if check_peer(pid, tree, ended=ended).ok:
                self._known = identity
                return client
        client.close()
        self._report(perhaps=ended and pid > 0)
        raise ForeignPeer

    def _is_known(self, identity: ProcessIdentity) -> bool:
        """Tell whether it is the runtime itself, or was found in its tree before."""
        known = (each for each in (self._process.identity, self._known) if each is not None)
        return (identity.pid, identity.start_time) in {(one.pid, one.start_time) for one in known}

    async def _prove_tcp(self, own: Listener, connect: Connect) -> socket.socket:
        for _ in range(_LOOKS):
            if self._listener is None:
                self._listener = await self._look(partial(self._find, own))
            listener = self._listener
            if listener is None:
                break
            client = await connect()
            with _closed_unless_looked(client):
                if await self._look(partial(still_listens, listener, own)):
                    return client
            client.close()
            self._listener = None
        self._report(perhaps=True)
        raise ForeignPeer

    def _find(self, own: Listener) -> ListeningSocket | None:
        runtime = self._process.identity  # nearly always the process that listens
        try:
            found = find_listener((runtime.pid,), own) if runtime is not None else None
            return found or find_listener(self._process.tree(), own)
        except ProcessUnreadable as error:
            raise ConnectionRefusedError from error

    async def _look(self, look: Callable[[], T]) -> T:
        """Look, in this thread where that was quick before."""
        if self._takes_long:
            return await asyncio.to_thread(look)
        began = time.monotonic()
        try:
            return look()
        finally:
            self._takes_long = time.monotonic() - began > self._long_look

    def _report(self, *, perhaps: bool) -> None:
        """Call `on_foreign`, unless the runtime has ended: its process tells that."""
        identity = self._process.identity
        if identity is None or self._process.exited.is_set():
            return
        try:
            seen = self._egress.identify(identity.pid)
        except ProcessUnreadable:
            return
        if seen is not None and seen.start_time == identity.start_time:
            self._on_foreign(perhaps)
