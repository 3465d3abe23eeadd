"""Without a bus, and with one that a real GNOME Keyring answers on."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import unlocked_keyring
from companion_keychain_linux.plugin import companion_keychain
from companion_keychain_linux.secret_service import SecretServiceKeychain
from keychain_checks import refusal
from keyring.backends import SecretService

from companion_core.errors import Reason
from companion_core.providers import KeychainStatus
from companion_core.testing import check_keychain

# Run inside a session bus of its own: unlocks a fresh keyring, then checks conformance.
SESSION = """
"$1" "$2" password
exec "$1" -W error -c '
from companion_keychain_linux.plugin import companion_keychain
from companion_core.testing import check_keychain
provider = companion_keychain({})
assert provider.status().ok
check_keychain(provider)
'
"""


@pytest.fixture(autouse=True)
def no_bus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)


@pytest.mark.integration
def test_conformance_with_a_real_keyring(tmp_path: Path) -> None:
    for part in ("gnome-keyring-daemon", "dbus-run-session"):
        if shutil.which(part) is None:
            if os.environ.get("COMPANION_REQUIRE_REAL") == "1":
                pytest.fail(f"a real part is missing: {part}")
            pytest.skip(f"a real part is missing: {part}")
    tmp_path.chmod(0o700)
    outcome = subprocess.run(
        [
            *("timeout", "60", "dbus-run-session", "--", "sh", "-ec", SESSION, "sh"),
            *(sys.executable, unlocked_keyring.__file__),
        ],
        env={
            "HOME": str(tmp_path),
            "XDG_RUNTIME_DIR": str(tmp_path),
            "PATH": "/usr/bin:/bin",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.integration
def test_conformance_without_a_bus() -> None:
    check_keychain(companion_keychain({}))
    gc.collect()


@pytest.mark.integration
@pytest.mark.parametrize("address", [None, "", "unix:path=/nonexistent/bus", "nonsense", "tcp:x"])
def test_without_a_bus_it_is_absent(monkeypatch: pytest.MonkeyPatch, address: str | None) -> None:
    if address is not None:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", address)
    keychain = SecretServiceKeychain()
    absent = KeychainStatus(ok=False, reason=Reason.KEYCHAIN_ABSENT, session_bound=True)
    assert keychain.status() == absent
    assert refusal(lambda: keychain.get("account")) is Reason.KEYCHAIN_ABSENT
    assert refusal(lambda: keychain.set("account", "secret")) is Reason.KEYCHAIN_ABSENT
    assert refusal(lambda: keychain.delete("account")) is Reason.KEYCHAIN_ABSENT


@pytest.mark.security
@pytest.mark.parametrize(
    "name",
    [
        "PYTHON_KEYRING_BACKEND",
        "KEYRING_PROPERTY_PREFERRED_COLLECTION",
        "X_KEYRING_PROPERTY_SCHEME",  # keyring looks for the words anywhere in the name
    ],
)
def test_a_configured_backend_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "keyring.backends.null.Keyring")
    keychain = SecretServiceKeychain()
    assert keychain.status().reason is Reason.KEYCHAIN_UNTRUSTED
    assert refusal(lambda: keychain.get("account")) is Reason.KEYCHAIN_UNTRUSTED


@pytest.mark.security
def test_a_replaced_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plaintext(SecretService.Keyring):
        pass

    monkeypatch.setattr(SecretService, "Keyring", Plaintext)
    assert SecretServiceKeychain().status().reason is Reason.KEYCHAIN_UNTRUSTED


@pytest.mark.security
def test_a_redirected_collection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    session = "/org/freedesktop/secrets/collection/session"
    monkeypatch.setattr(SecretService.Keyring, "preferred_collection", session, raising=False)
    assert SecretServiceKeychain().status().reason is Reason.KEYCHAIN_UNTRUSTED


@pytest.mark.integration
def test_the_entry_point_imports_nothing_heavy() -> None:
    heavy = "{'keyring', 'secretstorage', 'jeepney', 'cryptography', 'asyncio'}"
    code = f"import sys, companion_keychain_linux.plugin; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
