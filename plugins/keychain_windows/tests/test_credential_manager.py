"""keyring's own Windows class, above a double of win32cred. Not run on Windows."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from companion_keychain_windows.credential_manager import MAX_UTF16_UNITS, CredentialManager
from companion_keychain_windows.plugin import companion_keychain
from keychain_checks import refusal

from companion_core.errors import Reason
from companion_core.providers import KeychainStatus
from companion_core.testing import check_keychain

NOT_FOUND, BAD_STUB_DATA, NO_LOGON_SESSION, ACCESS_DENIED = 1168, 1783, 1312, 5


class WinError(Exception):
    def __init__(self, winerror: int, funcname: str, text: str = "") -> None:
        super().__init__(winerror, funcname, text)
        self.winerror, self.funcname = winerror, funcname


class Win32Cred(ModuleType):
    """Stands in for win32cred: credentials, their limit, and an error to fail with."""

    CRED_TYPE_GENERIC = 1
    CRED_PERSIST_SESSION = 1
    CRED_PERSIST_LOCAL_MACHINE = 2
    CRED_PERSIST_ENTERPRISE = 3

    def __init__(self) -> None:
        super().__init__("win32cred")
        self.vault: dict[str, dict[str, Any]] = {}
        self.fail_with: int | None = None

    def _enter(self, function: str) -> None:
        if self.fail_with is not None:
            raise WinError(self.fail_with, function)

    def CredRead(self, Type: int, TargetName: str) -> dict[str, Any]:  # noqa: N802, N803 - win32cred's names
        self._enter("CredRead")
        if TargetName not in self.vault:
            raise WinError(NOT_FOUND, "CredRead")
        return self.vault[TargetName]

    def CredWrite(self, credential: dict[str, Any], flags: int) -> None:  # noqa: N802 - win32cred's name
        self._enter("CredWrite")
        blob = credential["CredentialBlob"].encode("utf-16-le")
        if len(blob) > 2560:
            raise WinError(BAD_STUB_DATA, "CredWrite")
        self.vault[credential["TargetName"]] = {**credential, "CredentialBlob": blob}

    def CredDelete(self, Type: int, TargetName: str) -> None:  # noqa: N802, N803 - win32cred's names
        self._enter("CredDelete")
        if self.vault.pop(TargetName, None) is None:
            raise WinError(NOT_FOUND, "CredDelete")


@pytest.fixture
def win32(monkeypatch: pytest.MonkeyPatch) -> Iterator[Win32Cred]:
    double = Win32Cred()
    types = ModuleType("pywintypes")
    vars(types)["error"] = WinError
    monkeypatch.delitem(sys.modules, "keyring.backends.Windows", raising=False)
    monkeypatch.setitem(sys.modules, "win32ctypes", None)  # an import of it fails
    monkeypatch.setitem(sys.modules, "pywintypes", types)
    monkeypatch.setitem(sys.modules, "win32cred", double)
    yield double
    sys.modules.pop("keyring.backends.Windows", None)


@pytest.mark.unit
def test_conformance(win32: Win32Cred) -> None:
    check_keychain(companion_keychain())
    assert win32.vault == {}


@pytest.mark.unit
def test_credentials_stay_on_this_machine(win32: Win32Cred) -> None:
    keychain = CredentialManager()
    assert keychain.status() == KeychainStatus(ok=True, reason=Reason.OK, device_only=True)
    keychain.set("account", "secret")
    [credential] = win32.vault.values()
    assert credential["Persist"] == win32.CRED_PERSIST_LOCAL_MACHINE
    assert credential["TargetName"] == "companion_core/account"


@pytest.mark.security
def test_a_replaced_secret_is_nowhere_in_the_vault(win32: Win32Cred) -> None:
    keychain = CredentialManager()
    keychain.set("account", "first")
    keychain.set("account", "second")
    assert [each["CredentialBlob"] for each in win32.vault.values()] == [
        "second".encode("utf-16-le")
    ]


@pytest.mark.security
def test_keyring_alone_would_leave_the_replaced_secret(win32: Win32Cred) -> None:
    from keyring.backends.Windows import WinVaultKeyring  # noqa: PLC0415 - loads the double

    for secret in ("first", "second"):
        WinVaultKeyring().set_password("service", "account", secret)
    assert len(win32.vault) == 2
    assert {each["Persist"] for each in win32.vault.values()} == {win32.CRED_PERSIST_ENTERPRISE}


@pytest.mark.unit
@pytest.mark.parametrize("character", ["x", "é"])
def test_the_longest_secret(win32: Win32Cred, character: str) -> None:
    keychain = CredentialManager()
    longest = character * MAX_UTF16_UNITS
    keychain.set("account", longest)
    assert keychain.get("account") == longest
    for too_long in (longest + "x", "\N{GRINNING FACE}" * 641):
        store = functools.partial(keychain.set, "account", too_long)
        assert refusal(store) is Reason.KEYCHAIN_REFUSED
    assert keychain.get("account") == longest


@pytest.mark.unit
@pytest.mark.parametrize(
    ("winerror", "reason"),
    [
        (NO_LOGON_SESSION, Reason.KEYCHAIN_ABSENT),
        (ACCESS_DENIED, Reason.KEYCHAIN_REFUSED),
        (BAD_STUB_DATA, Reason.KEYCHAIN_REFUSED),
    ],
)
def test_the_system_s_error_names_the_reason(
    win32: Win32Cred, winerror: int, reason: Reason
) -> None:
    keychain = CredentialManager()
    win32.fail_with = winerror
    assert keychain.status() == KeychainStatus(ok=False, reason=reason, device_only=True)
    assert refusal(lambda: keychain.get("account")) is reason
    assert refusal(lambda: keychain.set("account", "secret")) is reason
    assert refusal(lambda: keychain.delete("account")) is reason


@pytest.mark.security
@pytest.mark.parametrize("name", ["PYTHON_KEYRING_BACKEND", "KEYRING_PROPERTY_PERSIST"])
def test_a_configured_backend_is_refused(
    win32: Win32Cred, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "enterprise")
    keychain = CredentialManager()
    assert keychain.status().reason is Reason.KEYCHAIN_UNTRUSTED
    assert refusal(lambda: keychain.set("account", "secret")) is Reason.KEYCHAIN_UNTRUSTED
    assert win32.vault == {}


@pytest.mark.security
def test_a_backend_that_still_roams_is_refused(
    win32: Win32Cred, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(win32, "CRED_PERSIST_LOCAL_MACHINE", win32.CRED_PERSIST_ENTERPRISE)
    assert CredentialManager().status().reason is Reason.KEYCHAIN_UNTRUSTED


@pytest.mark.security
def test_a_replaced_backend_is_refused(win32: Win32Cred, monkeypatch: pytest.MonkeyPatch) -> None:
    backend_module = importlib.import_module("keyring.backends.Windows")  # above the double

    class Plaintext(backend_module.WinVaultKeyring):
        pass

    monkeypatch.setattr(backend_module, "WinVaultKeyring", Plaintext)
    assert CredentialManager().status().reason is Reason.KEYCHAIN_UNTRUSTED


@pytest.mark.unit
def test_on_another_system_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("win32ctypes", "pywintypes", "win32cred"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "keyring.backends.Windows", raising=False)
    assert CredentialManager().status().reason is Reason.KEYCHAIN_ABSENT
