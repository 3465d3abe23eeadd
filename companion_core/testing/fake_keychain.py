"""A keychain for tests, with the faults that real ones have."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from companion_core.errors import Reason
from companion_core.providers import KeychainStatus, KeychainUnavailable

__all__ = ["FakeKeychain"]

# Without a `release()` the test run still ends, only late.
_LONGEST_HANG_SECONDS = 30.0


@dataclass(kw_only=True)
class FakeKeychain:
    """Satisfies `Keychain`; each attribute may be changed at any time.

    Attributes:
        locked: every operation raises `keychain_locked`.
        absent: every operation raises `keychain_absent`.
        hanging: every call, `status` too, blocks until `release()`.
        prompting: `status` says locked; operations block until `release()`, like a prompt
            that waits for the person.
        lossy: `set` succeeds and stores nothing.
        changing: `get` returns the stored value with a newline added.
        leaking: `set` raises an exception that carries the secret.
        items: the stored secrets by account.
        calls: the number of calls so far.
    """

    locked: bool = False
    absent: bool = False
    hanging: bool = False
    prompting: bool = False
    lossy: bool = False
    changing: bool = False
    leaking: bool = False
    items: dict[str, str] = field(default_factory=dict, repr=False)
    calls: int = 0
    _released: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def release(self) -> None:
        """Unblock every waiting call, and block no later one."""
        self._released.set()

    def status(self) -> KeychainStatus:
        """See `Keychain`."""
        self.calls += 1
        if self.hanging:
            self._released.wait(_LONGEST_HANG_SECONDS)
        if self.absent:
            return KeychainStatus(ok=False, reason=Reason.KEYCHAIN_ABSENT)
        if self.locked or (self.prompting and not self._released.is_set()):
            return KeychainStatus(ok=False, reason=Reason.KEYCHAIN_LOCKED)
        return KeychainStatus(ok=True, reason=Reason.OK)

    def get(self, account: str) -> str | None:
        """See `Keychain`."""
        self._enter()
        secret = self.items.get(account)
        return f"{secret}\n" if self.changing and secret is not None else secret

    def set(self, account: str, secret: str) -> None:
        """See `Keychain`."""
        self._enter()
        if self.leaking:
            raise ValueError(secret)
        if not self.lossy:
            self.items[account] = secret

    def delete(self, account: str) -> None:
        """See `Keychain`."""
        self._enter()
        self.items.pop(account, None)

    def _enter(self) -> None:
        self.calls += 1
        if self.hanging or self.prompting:
            self._released.wait(_LONGEST_HANG_SECONDS)
        if self.absent:
            raise KeychainUnavailable(Reason.KEYCHAIN_ABSENT)
        if self.locked:
            raise KeychainUnavailable(Reason.KEYCHAIN_LOCKED)
