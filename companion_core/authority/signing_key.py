"""Keys that sign a manifest: made here, read from a keychain or a file, and never shown.

The person's own key lies in their keychain, or in an owner-only file where there is no keychain.
Its place is found by its public name, so that the list of models says which key it needs.
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, Never, Protocol

from companion_core.authority.keychain import GuardedKeychain, load_token
from companion_core.decisions.custody import Account
from companion_core.decisions.manifest_kind import ManifestKind
from companion_core.decisions.signatures import KEY_PREFIX, key_id, pre_authentication_encoding
from companion_core.decisions.strict_json import decode_base64
from companion_core.errors import EnvironmentUnavailable, Reason, UsageError
from companion_core.providers import Keychain
from companion_core.system.os_compat import NO_FOLLOW
from companion_core.system.secret import Secret
from companion_core.system.state_files import private_folder, read_private

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ed25519

__all__ = ["KeyInFile", "KeyInKeychain", "PersonalKeys", "SigningKey"]

MAX_KEY_BYTES: Final = 4096
_SEED_BYTES: Final = 32
_NAME_DIGITS: Final = 16  # of the key's name, in the name of its keychain account


class SigningKey:
    """An Ed25519 private key that signs manifests; nothing prints or stores it."""

    def __init__(self, key: ed25519.Ed25519PrivateKey) -> None:
        self._key = key
        self._public = key.public_key().public_bytes_raw()

    @classmethod
    def generate(cls) -> SigningKey:
        """Return a new key, from the system's randomness."""
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - heavy

        return cls(ed25519.Ed25519PrivateKey.generate())

    @classmethod
    def of_seed(cls, seed: Secret | None) -> SigningKey | None:
        """Return the key that `seed` returned as text; None if it is not such a text."""
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - heavy

        raw = None if seed is None else decode_base64(seed.reveal())
        if raw is None or len(raw) != _SEED_BYTES:
            return None
        return cls(ed25519.Ed25519PrivateKey.from_private_bytes(raw))

    @classmethod
    def of_pem(cls, pem: bytes, passphrase: Secret | None = None) -> SigningKey | None:
        """Return the key of a PKCS #8 text; None if it holds none, or not for this passphrase."""
        from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415 - seldom needed
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - heavy
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - heavy

        given = passphrase.reveal().encode() if passphrase else None
        try:
            key = serialization.load_pem_private_key(pem, password=given)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return None
        return cls(key) if isinstance(key, ed25519.Ed25519PrivateKey) else None

    def pem(self, passphrase: Secret | None = None) -> bytes:
        """Return the private key as PKCS #8 text, for an owner-only file alone."""
        from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - heavy

        protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase:
            protection = serialization.BestAvailableEncryption(passphrase.reveal().encode())
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
        )

    def seed(self) -> Secret:
        """Return the private key as a text, for a keychain alone."""
        return Secret(base64.b64encode(self._key.private_bytes_raw()).decode("ascii"))

    @property
    def name(self) -> str:
        """What an envelope calls this key: the SHA-256 of its public part, in hex."""
        return key_id(self._public)

    @property
    def public_text(self) -> str:
        """The public part, as "ed25519:BASE64"."""
        return KEY_PREFIX + base64.b64encode(self._public).decode("ascii")

    def sign_envelope(self, payload: bytes, kind: ManifestKind) -> bytes:
        """Return the envelope of a payload of this kind, signed."""
        signature = self._key.sign(pre_authentication_encoding(kind.payload_type, payload))
        envelope = {
            "payload_type": kind.payload_type,
            "payload": base64.b64encode(payload).decode("ascii"),
            "signatures": [
                {
                    "key_id": self.name,
                    "signature": base64.b64encode(signature).decode("ascii"),
                }
            ],
        }
        return json.dumps(envelope).encode("ascii")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hidden)"

    def __getstate__(self) -> Never:
        raise TypeError("a key is not stored so")


class PersonalKeys(Protocol):
    """Where the person's own key is kept."""

    def load(self, name: str | None) -> SigningKey | None:
        """Return the key of that name, or None if it is not here.

        Args:
            name: as `SigningKey.name`; None if no list of models names one yet.

        Raises:
            CompanionError: the place does not answer.
        """
        ...

    def make(self) -> SigningKey:
        """Return a new key that is kept here from now on; or the one that is here already.

        Raises:
            CompanionError: nothing can be kept here.
        """
        ...


class KeyInKeychain:
    """The person's key in the selected keychain, in an account that its own name belongs to.

    Args:
        provider: what the selected plugin registered.
        plugin: its name.
        keeps: whether what is stored there outlives this process. The keychain "memory" does not,
            and a key that is gone tomorrow would sign what nobody can prove tomorrow.
    """

    def __init__(self, provider: Keychain, plugin: str, *, keeps: bool = True) -> None:
        self._provider = provider
        self._plugin = plugin
        self._keeps = keeps

    def load(self, name: str | None) -> SigningKey | None:
        """Return the key of that name, or None if it is not here."""
        if name is None:
            return None
        key = SigningKey.of_seed(load_token(self._of(name), Account.PERSONAL_KEY))
        return key if key is not None and key.name == name else None

    def make(self) -> SigningKey:
        """Return a new key that is kept here from now on.

        Raises:
            EnvironmentUnavailable: `keychain_absent`: what is stored here ends with the process.
        """
        if not self._keeps:
            raise EnvironmentUnavailable(
                Reason.KEYCHAIN_ABSENT,
                f'keychain.name = "{self._plugin}" keeps nothing; name a file for the key of your '
                "own models with models.key_file",
            )
        key = SigningKey.generate()
        self._of(key.name).set(Account.PERSONAL_KEY, key.seed().reveal())
        return key

    def _of(self, name: str) -> GuardedKeychain:
        scope = f"personal/{name[:_NAME_DIGITS]}"
        return GuardedKeychain(self._provider, instance=scope, plugin=self._plugin)


class KeyInFile:
    """The person's key in a file of their own (PKCS #8 PEM, 0600).

    Args:
        path: absolute; its folder is made, owner-only, with the key.
        passphrase: encrypts the key; without one, whoever can read the file has the key.
    """

    def __init__(self, path: Path, passphrase: Secret | None = None) -> None:
        self._path = path
        self._passphrase = passphrase

    def load(self, name: str | None) -> SigningKey | None:
        """Return the key if the file is there; it may not be the one of that name.

        Raises:
            UsageError: the file holds no Ed25519 key, or the passphrase does not open it.
            Refused: `state_path_unsafe`: others can read or change the file.
        """
        key = self._read()
        return key if key is None or name in {None, key.name} else None

    def make(self) -> SigningKey:
        """Return the key in the file, made now if there is no file.

        Raises:
            EnvironmentUnavailable: `disk_unavailable`.
        """
        found = self._read()
        if found is not None:
            return found
        key = SigningKey.generate()
        private_folder(self._path.parent)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW
            with os.fdopen(os.open(self._path, flags, 0o600), "wb") as file:
                file.write(key.pem(self._passphrase))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise EnvironmentUnavailable(Reason.DISK_UNAVAILABLE, f"{self._path}") from error
        return key

    def _read(self) -> SigningKey | None:
        raw = read_private(self._path, MAX_KEY_BYTES, secret=True)
        if raw is None:
            return None
        key = SigningKey.of_pem(raw, self._passphrase)
        if key is None:
            raise UsageError(Reason.USAGE, f"no Ed25519 key in {self._path}, or not its passphrase")
        return key
