"""One attempt to sign in: with a browser of this machine, or on another device.

Verifier, state, nonce and code live in the frame of one attempt and are gone with it. Nothing is
stored before every rule has passed; nothing listens after it, however it ended.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import Callable
from typing import Final

from companion_core.authority.sign_in.listener import RedirectListener, listen
from companion_core.authority.sign_in.service import Client, refused
from companion_core.decisions.oauth import (
    DeviceCode,
    Pending,
    TokenResponse,
    build_authorization_url,
    code_challenge,
    verifier_from,
)
from companion_core.decisions.verdict import Verdict
from companion_core.egress.interface import Egress
from companion_core.errors import EnvironmentUnavailable, Reason, error_for
from companion_core.system.secret import Secret
from companion_core.system.tasks import run_in_worker

__all__ = ["sign_in_elsewhere", "sign_in_with_browser"]

WAIT_SECONDS: Final = 300.0
_ENTROPY_BYTES: Final = 32
_SLOW_DOWN_SECONDS: Final = 5  # RFC 8628 section 3.5


async def sign_in_with_browser(
    client: Client,
    *,
    show: Callable[[str], None] | None,
    egress: Egress,
    seconds: float = WAIT_SECONDS,
) -> TokenResponse:
    """Return the tokens that the person allowed in their browser.

    Args:
        client: of the service.
        show: tells the person the address, in place of opening it.
        egress: opens the browser.
        seconds: how long the person may take.

    Raises:
        EnvironmentUnavailable: `listener_not_bound`, `browser_unavailable`, `sign_in_timeout`,
            `sign_in_unavailable`.
        Refused: the reason of the rule that an answer breaks.
    """
    verifier = verifier_from(secrets.token_bytes(_ENTROPY_BYTES))
    if isinstance(verifier, Verdict):
        raise refused(verifier)
    # The browser and its history show these two: they are no secrets.
    state, nonce = secrets.token_hex(_ENTROPY_BYTES), secrets.token_hex(_ENTROPY_BYTES)
    async with listen(client.settings.redirect_path) as listener:
        address = _address(client, listener, state=state, nonce=nonce, verifier=verifier)
        listener.expect(state=state, issuer=client.settings.issuer)
        answer = asyncio.ensure_future(listener.wait(seconds))
        try:
            await _show(address, show, egress)
            outcome = await answer
        finally:
            answer.cancel()
            await asyncio.wait({answer})
    if isinstance(outcome, Verdict):
        raise refused(outcome)
    return await run_in_worker(
        lambda _cancelled: client.exchange_code(
            outcome.code, verifier=verifier, redirect_uri=listener.redirect_uri, nonce=nonce
        )
    )


def _address(
    client: Client, listener: RedirectListener, *, state: str, nonce: str, verifier: Secret
) -> str:
    address = build_authorization_url(
        authorization_endpoint=client.metadata.authorization_endpoint,
        client_id=client.settings.client_id,
        redirect_uri=listener.redirect_uri,
        scopes=client.settings.scopes,
        state=state,
        code_challenge=code_challenge(verifier),
        nonce=nonce,
        # Without it some services give no refresh token for `offline_access` (OpenID Connect 11).
        extra_params={"prompt": "consent"} if "offline_access" in client.settings.scopes else None,
    )
    if isinstance(address, Verdict):
        raise refused(address)
    return address


async def _show(address: str, show: Callable[[str], None] | None, egress: Egress) -> None:
    if show is not None:
        show(address)
    elif not await run_in_worker(lambda _cancelled: egress.open_browser(address)):
        raise EnvironmentUnavailable(Reason.BROWSER_UNAVAILABLE)


def sign_in_elsewhere(
    client: Client,
    *,
    show: Callable[[DeviceCode], None],
    cancelled: threading.Event,
    wait: Callable[[float], bool] | None = None,
) -> TokenResponse:
    """Return the tokens that the person allowed on another device (RFC 8628). Blocking.

    Args:
        client: of the service.
        show: tells the person the address and the code.
        cancelled: ends the wait.
        wait: waits so many seconds, and says whether it was cancelled meanwhile.

    Raises:
        EnvironmentUnavailable: `sign_in_unsupported`, `sign_in_timeout`, `sign_in_unavailable`.
        Refused: the reason of the rule that an answer breaks.
        CompanionError: `interrupted`.
    """
    pause = cancelled.wait if wait is None else wait
    code = client.ask_device_code()
    show(code)
    left, interval = float(code.expires_in), code.interval
    while left > 0:
        if pause(interval):
            raise error_for(Reason.INTERRUPTED)
        left -= interval
        answer = client.poll_device(code)
        if isinstance(answer, TokenResponse):
            return answer
        if answer is Pending.SLOW_DOWN:
            interval += _SLOW_DOWN_SECONDS
    raise EnvironmentUnavailable(Reason.SIGN_IN_TIMEOUT)
