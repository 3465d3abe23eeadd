"""keyring's own macOS class, above a double of Security.framework. Not run on macOS."""

from __future__ import annotations

import importlib
import platform
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
from companion_keychain_macos.login_keychain import LoginKeychain
from companion_keychain_macos.plugin import companion_keychain
from keychain_checks import refusal

from companion_core.errors import Reason
from companion_core.testing import check_keychain

NOT_FOUND = -25300


class Security(ModuleType):
    """Stands in for `keyring.backends.macOS.api`: items, and a status to fail with."""

    class Error(Exception):
        pass

    class NotFound(Error):
        pass

    class KeychainDenied(Error):
        pass

    def __init__(self) -> None:
        super().__init__("keyring.backends.macOS.api")
        self.items: dict[tuple[str, str], str] = {}
        self.fail_with: int | None = None

    def _enter(self) -> None:
        if self.fail_with == -128:
            raise self.KeychainDenied(-128, "Keychain Access Denied")
        if self.fail_with is not None:
            raise self.Error(self.fail_with, "Unknown Error")

    def find_generic_password(self, name: None, service: str, username: str) -> str:
        self._enter()
        if (service, username) not in self.items:
            raise self.NotFound(NOT_FOUND, "Item not found")
        return self.items[service, username]

    def set_generic_password(self, name: None, service: str, username: str, secret: str) -> None:
        self._enter()
        self.items[service, username] = secret

    def delete_generic_password(self, name: None, service: str, username: str) -> None:
        self._enter()
        if self.items.pop((service, username), None) is None:
            raise self.NotFound(NOT_FOUND, "Item not found")


@pytest.fixture
def security(monkeypatch: pytest.MonkeyPatch) -> Iterator[Security]:
    double = Security()
    monkeypatch.delitem(sys.modules, "keyring.backends.macOS", raising=False)
    monkeypatch.setitem(sys.modules, "keyring.backends.macOS.api", double)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    yield double
    sys.modules.pop("keyring.backends.macOS", None)


@pytest.mark.unit
def test_conformance(security: Security) -> None:
    check_keychain(companion_keychain())
    assert security.items == {}


@pytest.mark.unit
def test_each_account_has_a_service_of_its_own(security: Security) -> None:
    LoginKeychain().set("companion/one/access_token", "secret")
    name = "companion/one/access_token"
    assert security.items == {(f"companion_core/{name}", name): "secret"}


@pytest.mark.unit
def test_this_device_only_is_not_promised(security: Security) -> None:
    status = LoginKeychain().status()
    assert status.ok
    assert status.device_only is False
    assert status.session_bound is True


@pytest.mark.unit
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (-128, Reason.KEYCHAIN_LOCKED),
        (-25308, Reason.KEYCHAIN_LOCKED),
        (-25307, Reason.KEYCHAIN_ABSENT),
        (-25294, Reason.KEYCHAIN_ABSENT),
        (-25293, Reason.KEYCHAIN_REFUSED),
        (-34018, Reason.KEYCHAIN_REFUSED),
    ],
)
def test_the_system_s_status_names_the_reason(
    security: Security, status: int, reason: Reason
) -> None:
    keychain = LoginKeychain()
    security.fail_with = status
    assert refusal(lambda: keychain.get("account")) is reason
    assert refusal(lambda: keychain.set("account", "secret")) is reason
    assert refusal(lambda: keychain.delete("account")) is reason


@pytest.mark.security
@pytest.mark.parametrize(
    "name", ["PYTHON_KEYRING_BACKEND", "KEYRING_PROPERTY_KEYCHAIN", "KEYCHAIN_PATH"]
)
def test_a_configured_backend_is_refused(
    security: Security, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "other.keychain")
    keychain = LoginKeychain()
    assert keychain.status().reason is Reason.KEYCHAIN_UNTRUSTED
    assert refusal(lambda: keychain.set("account", "secret")) is Reason.KEYCHAIN_UNTRUSTED
    # keyring reads KEYCHAIN_PATH when it is imported: unsetting it afterwards changes nothing.
    monkeypatch.delenv(name)
    still_set = name == "KEYCHAIN_PATH"
    assert keychain.status().ok is not still_set
    assert security.items == {}


@pytest.mark.security
def test_a_replaced_backend_is_refused(security: Security, monkeypatch: pytest.MonkeyPatch) -> None:
    backend_module = importlib.import_module("keyring.backends.macOS")  # above the double

    class Plaintext(backend_module.Keyring):
        pass

    monkeypatch.setattr(backend_module, "Keyring", Plaintext)
    assert LoginKeychain().status().reason is Reason.KEYCHAIN_UNTRUSTED


@pytest.mark.integration  # keyring's own module asks ldconfig for the framework
def test_on_another_system_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    assert LoginKeychain().status().reason is Reason.KEYCHAIN_ABSENT
    assert refusal(lambda: LoginKeychain().get("account")) is Reason.KEYCHAIN_ABSENT
