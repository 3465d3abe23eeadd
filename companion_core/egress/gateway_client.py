"""HTTP clients for a product that talks to its own gateway: they trust no environment (I-17).

A proxy, a certificate file or a `.netrc` that the environment names is not read, no redirect is
followed, and a request for any other address than the gateway's is refused before it is sent: the
token goes nowhere else. httpx2 is imported on use.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from companion_core.errors import Reason, UsageError
from companion_core.system.secret import Secret

if TYPE_CHECKING:
    import httpx2

__all__ = ["AsyncClient", "Client", "GatewayClients", "StreamedAnswer"]

CONNECT_SECONDS: Final = 5.0

AsyncClient: TypeAlias = "httpx2.AsyncClient"
Client: TypeAlias = "httpx2.Client"


class StreamedAnswer:
    """An answer whose body is still coming.

    Attributes:
        status: of the answer.
    """

    def __init__(self, answer: httpx2.Response) -> None:
        self._answer = answer
        self.status = answer.status_code

    def lines(self) -> Iterator[str]:
        """Yield each line as it comes."""
        return self._answer.iter_lines()

    def read(self, limit: int) -> bytes:
        """Return the beginning of the body, at most so many bytes."""
        body = b""
        for part in self._answer.iter_bytes():
            body = (body + part)[:limit]
        return body


class GatewayClients:
    """Makes the clients of one gateway, and closes those that are still open at its end.

    Args:
        base_url: of the gateway, ending in `/v1`.
        token: the session token, which every request carries.
    """

    def __init__(self, base_url: str, token: Secret) -> None:
        self._base_url = base_url
        self._token = token
        self._open: weakref.WeakSet[AsyncClient] = weakref.WeakSet()
        self._open_sync: weakref.WeakSet[Client] = weakref.WeakSet()

    def make(self) -> AsyncClient:
        """Return another client, for the companion's event loop."""
        import httpx2  # noqa: PLC0415 - slow to import; only a product that asks pays for it

        async def check(request: httpx2.Request) -> None:
            _require_address(request.url, gateway)

        gateway = httpx2.URL(self._base_url)
        client = httpx2.AsyncClient(**self._options(), event_hooks={"request": [check]})
        self._open.add(client)
        return client

    def make_sync(self) -> Client:
        """Return another client, for threads beside the event loop."""
        import httpx2  # noqa: PLC0415 - slow to import; only a product that asks pays for it

        def check(request: httpx2.Request) -> None:
            _require_address(request.url, gateway)

        gateway = httpx2.URL(self._base_url)
        client = httpx2.Client(**self._options(), event_hooks={"request": [check]})
        self._open_sync.add(client)
        return client

    @contextlib.contextmanager
    def stream(self, path: str, document: Mapping[str, Any]) -> Iterator[StreamedAnswer]:
        """Post a document and yield its answer while it comes; leaving the context ends it.

        Args:
            path: below the base address.
            document: sent as JSON.

        Raises:
            ConnectionError: the gateway was not reached, or broke off.
        """
        import httpx2  # noqa: PLC0415 - slow to import; only who asks pays for it

        try:
            with self.make_sync() as client, client.stream("POST", path, json=document) as answer:
                yield StreamedAnswer(answer)
        except httpx2.TransportError as error:
            raise ConnectionError("the gateway broke off") from error

    async def close(self) -> None:
        """Close every client that is still open; it sends nothing from then on."""
        for client in tuple(self._open):
            await client.aclose()
        for sync_client in tuple(self._open_sync):
            await asyncio.to_thread(sync_client.close)

    def _options(self) -> dict[str, Any]:
        import httpx2  # noqa: PLC0415 - see above

        return {
            "base_url": self._base_url,
            "headers": {"Authorization": f"Bearer {self._token.reveal()}"},
            "trust_env": False,
            "follow_redirects": False,
            # On loopback there is no TLS: a context that trusts nobody reads no certificate file.
            "verify": ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
            # The gateway ends what takes too long; before an answer, a model may need minutes.
            "timeout": httpx2.Timeout(None, connect=CONNECT_SECONDS),
        }


def _require_address(url: httpx2.URL, gateway: httpx2.URL) -> None:
    """Refuse a request that would take the token or a prompt elsewhere."""
    if (url.scheme, url.host, url.port, url.userinfo) != (
        gateway.scheme,
        gateway.host,
        gateway.port,
        gateway.userinfo,
    ):
        raise UsageError(Reason.USAGE, "this client reaches its companion's gateway alone")
