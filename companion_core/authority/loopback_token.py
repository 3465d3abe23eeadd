"""The token that local programs show to the gateway; the rules: decisions/custody.py.

It is new at each start and gone after shutdown; `companion.py` calls for it. It has nothing to
do with the sign-in session.
"""

from __future__ import annotations

import secrets
from typing import Final

from companion_core.authority.keychain import GuardedKeychain, load_token, require_token
from companion_core.decisions.custody import Account, is_loopback_token
from companion_core.errors import Reason, error_for
from companion_core.system.secret import Secret

__all__ = ["LoopbackToken", "generate_loopback_token"]

LOOPBACK_BYTES: Final = 32  # 256 bits, 43 characters of base64url


def generate_loopback_token() -> Secret:
    """Return a new token: 256 bits of the system's randomness in base64url."""
    return Secret(secrets.token_urlsafe(LOOPBACK_BYTES))


class LoopbackToken:
    """Stores the token that local programs show to the gateway.

    A start stores a new one and shutdown clears it; sign-in and logout do not touch it.
    """

    def __init__(self, keychain: GuardedKeychain) -> None:
        self._keychain = keychain

    def store(self, token: object) -> None:
        """Store `token` instead of the last one.

        Args:
            token: a `Secret`, from `generate_loopback_token`.

        Raises:
            UsageError: `secret_invalid` when it is short, no visible ASCII, or stored already:
                storing the same value again rotates nothing.
        """
        text = require_token(token).reveal()
        if not is_loopback_token(text) or self.load() == token:
            raise error_for(Reason.SECRET_INVALID)
        self._keychain.set(Account.LOOPBACK_TOKEN, text)

    def load(self) -> Secret | None:
        """Return the stored token; None when no valid one is stored."""
        return load_token(self._keychain, Account.LOOPBACK_TOKEN)

    def clear(self) -> None:
        """Remove the token."""
        self._keychain.delete(Account.LOOPBACK_TOKEN)
