"""Signing in, and the session that comes of it; the rules: decisions/oauth, custody."""

from companion_core.authority.sign_in.attempt import sign_in_elsewhere, sign_in_with_browser
from companion_core.authority.sign_in.exchange import Exchange
from companion_core.authority.sign_in.service import AccountSettings, Client
from companion_core.authority.sign_in.session import AccountSession, SessionState, account_scope

__all__ = [
    "AccountSession",
    "AccountSettings",
    "Client",
    "Exchange",
    "SessionState",
    "account_scope",
    "sign_in_elsewhere",
    "sign_in_with_browser",
]
