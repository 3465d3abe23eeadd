"""Keys that sign: they come back from where they are kept, and show themselves nowhere."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from companion_core.authority.signing_key import KeyInFile, KeyInKeychain, SigningKey
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason, Refused
from companion_core.system.secret import Secret
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.unit


def reason_of(call: Any, kind: type[CompanionError] = CompanionError) -> Reason:
    with pytest.raises(kind) as caught:
        call()
    return caught.value.reason


def in_keychain(provider: FakeKeychain | None = None) -> KeyInKeychain:
    return KeyInKeychain(provider or FakeKeychain(), "fake")


def test_a_key_shows_nothing_and_is_not_pickled() -> None:
    key = SigningKey.generate()
    shown = f"{key!r} {key} {key!s}"
    assert key.seed().reveal() not in shown
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_a_seed_brings_the_same_key_back() -> None:
    key = SigningKey.generate()
    again = SigningKey.of_seed(key.seed())
    assert again is not None
    assert (again.name, again.public_text) == (key.name, key.public_text)
    kind = ManifestKind.PERSONAL
    assert again.sign_envelope(b"x", kind) == key.sign_envelope(b"x", kind)


@pytest.mark.parametrize("seed", [None, Secret(""), Secret("AA=="), Secret("no base64")])
def test_what_is_no_seed_is_no_key(seed: Secret | None) -> None:
    assert SigningKey.of_seed(seed) is None


@pytest.mark.parametrize("passphrase", [None, Secret("correct horse")])
def test_a_text_of_a_key_opens_with_its_passphrase_alone(passphrase: Secret | None) -> None:
    key = SigningKey.generate()
    pem = key.pem(passphrase)
    assert (b"ENCRYPTED" in pem) is (passphrase is not None)
    again = SigningKey.of_pem(pem, passphrase)
    assert again is not None
    assert again.name == key.name
    assert SigningKey.of_pem(pem, Secret("wrong")) is None
    assert SigningKey.of_pem(b"no key") is None


# --- in the keychain ------------------------------------------------------------------------


def test_the_keychain_gives_the_key_of_that_name() -> None:
    keys = in_keychain()
    first, second = keys.make(), keys.make()
    assert first.name != second.name
    for key in (first, second):
        again = keys.load(key.name)
        assert again is not None
        assert again.name == key.name


@pytest.mark.parametrize("name", [None, "0" * 64, "", "../../x"])
def test_the_keychain_has_no_other_key(name: str | None) -> None:
    keys = in_keychain()
    keys.make()
    assert keys.load(name) is None


def test_a_changed_account_is_not_the_key_of_that_name() -> None:
    provider = FakeKeychain()
    keys = in_keychain(provider)
    key, other = keys.make(), SigningKey.generate()
    [account] = [name for name in provider.items if name.endswith("personal_key")]
    provider.items[account] = other.seed().reveal()
    assert keys.load(key.name) is None


def test_a_keychain_that_forgets_keeps_no_key() -> None:
    keys = KeyInKeychain(FakeKeychain(), "memory", keeps=False)
    assert reason_of(keys.make, EnvironmentUnavailable) is Reason.KEYCHAIN_ABSENT


# --- in a file ------------------------------------------------------------------------------


@pytest.mark.parametrize("passphrase", [None, Secret("correct horse")])
def test_a_file_keeps_the_key(tmp_path: Path, passphrase: Secret | None) -> None:
    path = tmp_path / "keys" / "own.pem"
    keys = KeyInFile(path, passphrase)
    assert keys.load(None) is None
    key = keys.make()
    assert path.stat().st_mode & 0o777 == 0o600
    for again in (keys.load(None), keys.load(key.name), keys.make()):
        assert again is not None
        assert again.name == key.name
    assert keys.load("0" * 64) is None


def test_a_file_that_others_can_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.pem"
    keys = KeyInFile(path)
    keys.make()
    path.chmod(0o666)
    assert reason_of(lambda: keys.load(None), Refused) is Reason.STATE_PATH_UNSAFE


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.pem"
    keys = KeyInFile(path)
    keys.make()
    path.chmod(0o644)
    assert reason_of(lambda: keys.load(None), Refused) is Reason.STATE_PATH_UNSAFE


def test_a_wrong_passphrase_says_so_and_shows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "own.pem"
    KeyInFile(path, Secret("correct horse")).make()
    for passphrase in (None, Secret("wrong horse")):
        with pytest.raises(CompanionError) as caught:
            KeyInFile(path, passphrase).load(None)
        assert caught.value.reason is Reason.USAGE
        assert "passphrase" in caught.value.detail
        assert caught.value.__cause__ is None


def test_a_link_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own.pem"
    KeyInFile(path).make()
    link = tmp_path / "link.pem"
    link.symlink_to(path)
    assert reason_of(lambda: KeyInFile(link).load(None)) is Reason.STATE_PATH_UNSAFE
