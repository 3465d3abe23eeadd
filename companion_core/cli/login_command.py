"""`companion login`: sign in at the service that the configuration names."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import click

from companion_core.authority.sign_in import (
    SessionState,
    sign_in_elsewhere,
    sign_in_with_browser,
)
from companion_core.cli import Settings, echo_result
from companion_core.cli.account import require_account
from companion_core.cli.blocking import run_cancellable
from companion_core.cli.foreground import run_event_loop, run_interruptible
from companion_core.decisions.oauth import DeviceCode, TokenResponse, has_browser
from companion_core.errors import CompanionError, Reason, UsageError
from companion_core.serving.account import Account
from companion_core.system.tasks import run_in_worker


@click.command("login")
@click.option("--status", "only_status", is_flag=True, help="Say whether you are signed in.")
@click.option("--print-url", is_flag=True, help="Print the address instead of opening a browser.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(settings: Settings, *, only_status: bool, print_url: bool, as_json: bool) -> int:
    """Sign in with your browser, or with a code on another device.

    Opens the sign-in service of [account] in your browser and waits. Over ssh, and where there is
    no display, it shows an address and a code for another device instead. The session lies in your
    keychain; `companion up` uses it where the manifest's host asks for it.
    """
    if only_status and print_url:
        raise UsageError(Reason.USAGE, "--status signs nobody in; leave --print-url out")
    account = require_account(settings)
    if not only_status:
        account.require_keeping()
        run_event_loop(_Login(settings, account, print_url=print_url, as_json=as_json).run())
    state = run_cancellable(account.session.state)
    echo_result(_document(account, state), _text(account, state), as_json=as_json)
    return 0 if state.signed_in else CompanionError(Reason.SIGN_IN_REQUIRED).exit_code


class _Login:
    """One attempt, from the question to the keychain; a stop signal ends it at any step."""

    def __init__(
        self, settings: Settings, account: Account, *, print_url: bool, as_json: bool
    ) -> None:
        self._settings = settings
        self._account = account
        self._print_url = print_url
        self._as_json = as_json
        self._cancelled = threading.Event()

    async def run(self) -> None:
        attempt = asyncio.ensure_future(self._sign_in())

        def interrupt(_number: int, _count: int) -> None:
            self._cancelled.set()
            attempt.cancel()

        async def wait() -> None:
            await attempt

        try:
            await run_interruptible(wait(), on_interrupt=interrupt)
        except asyncio.CancelledError:
            raise CompanionError(Reason.INTERRUPTED) from None

    async def _sign_in(self) -> None:
        # Before the person is asked for anything: can what they do be kept?
        await self._work(self._account.session.prove)
        client = await self._work(lambda: self._account.client(self._cancelled))
        granted: TokenResponse | None = None
        if self._print_url or has_browser(sys.platform, os.environ):
            try:
                granted = await sign_in_with_browser(
                    client,
                    show=self._show_address if self._print_url else None,
                    egress=self._settings.egress,
                )
            except CompanionError as error:
                elsewhere = client.metadata.device_authorization_endpoint
                if error.reason is not Reason.BROWSER_UNAVAILABLE or elsewhere is None:
                    raise
        if granted is None:
            if client.metadata.device_authorization_endpoint is None:
                raise CompanionError(Reason.BROWSER_UNAVAILABLE)
            granted = await self._work(
                lambda: sign_in_elsewhere(client, show=self._show_code, cancelled=self._cancelled)
            )
        tokens = granted
        await self._work(lambda: self._account.session.store(tokens, self._cancelled))

    async def _work(self, work: Callable[[], Any]) -> Any:
        return await run_in_worker(lambda _cancelled: work())

    def _show_address(self, address: str) -> None:
        self._tell({"step": "browser", "url": address}, f"Open this address:\n\n  {address}\n")

    def _show_code(self, code: DeviceCode) -> None:
        self._tell(
            {"step": "device", "url": code.verification_uri, "code": code.user_code},
            f"On any device, open  {code.verification_uri}\nand type this code:   {code.user_code}",
        )

    def _tell(self, document: dict[str, Any], text: str) -> None:
        click.echo(json.dumps(document) if self._as_json else text, err=True)


def _document(account: Account, state: SessionState) -> dict[str, Any]:
    document: dict[str, Any] = {
        "ok": state.signed_in,
        "signed_in": state.signed_in,
        "issuer": account.settings.issuer,
        "scope": state.scope,
        "expires_at": None if state.expires_at is None else _moment(state.expires_at),
        "refreshable": state.refreshable,
    }
    if not state.signed_in:
        error = CompanionError(Reason.SIGN_IN_REQUIRED)
        document |= {"reason": error.reason.value, "advice": error.advice}
    return document


def _text(account: Account, state: SessionState) -> str:
    if not state.signed_in:
        return f"not signed in at {account.settings.issuer}"
    text = f"signed in at {account.settings.issuer}"
    if state.scope:
        text += f", for {state.scope}"
    if state.refreshable:
        return f"{text}; renewed without you"
    return text if state.expires_at is None else f"{text}; until {_moment(state.expires_at)}"


def _moment(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return ""
