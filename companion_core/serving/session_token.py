"""The token of one session: made anew, kept in a proved keychain, and cleared at the end (I-13)."""

from __future__ import annotations

import asyncio

from companion_core.authority.keychain import GuardedKeychain
from companion_core.authority.loopback_token import LoopbackToken, generate_loopback_token
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.plugin_host import Chosen
from companion_core.providers import Keychain
from companion_core.serving.events import Event, EventKind, Tell
from companion_core.system.secret import Secret
from companion_core.system.tasks import run_in_worker

__all__ = ["SessionToken"]


class SessionToken:
    """A token that is there from `store` to `clear`.

    Args:
        chosen: the keychain, and the name of its plugin.
        scope: names the companion's accounts (`InstancePaths.keychain_scope`).
        tell: hears of a keychain that keeps what should be cleared.
    """

    def __init__(self, chosen: Chosen[Keychain], scope: str, tell: Tell) -> None:
        self._keychain = GuardedKeychain(chosen.provider, instance=scope, plugin=chosen.plugin)
        self._stored = LoopbackToken(self._keychain)
        self._tell = tell
        self._token: Secret | None = None

    @property
    def is_stored(self) -> bool:
        """Whether the keychain has it."""
        return self._token is not None

    @property
    def secret(self) -> Secret:
        """The token.

        Raises:
            EnvironmentUnavailable: `not_ready`, it is not stored.
        """
        if self._token is None:
            raise EnvironmentUnavailable(Reason.NOT_READY)
        return self._token

    async def prove(self) -> None:
        """Prove the keychain: write, read and delete a random value.

        Raises:
            CompanionError: see `GuardedKeychain.prove`.
        """
        await run_in_worker(lambda _cancelled: self._keychain.prove())

    async def store(self) -> None:
        """Make a token and put it into the keychain.

        Raises:
            CompanionError: the keychain did not take it; the caller clears.
        """
        token = generate_loopback_token()
        await run_in_worker(lambda _cancelled: self._stored.store(token))
        self._token = token

    async def clear(self) -> None:
        """Take it out of the keychain; tell of one that does not let it go."""
        self._token = None
        try:
            await asyncio.to_thread(self._stored.clear)
        except CompanionError as error:
            # A keychain that was locked meanwhile still has it, and no gateway accepts it now.
            text = "this start's token, which opens nothing any more, is left in it"
            kind = EventKind.KEYCHAIN_UNAVAILABLE
            self._tell(Event(kind=kind, text=text, reason=error.reason))

    async def keychain_reason(self) -> Reason:
        """Ask whether the keychain can be used now: `ok`, or why not."""
        status = await run_in_worker(lambda _cancelled: self._keychain.status())
        return status.reason
