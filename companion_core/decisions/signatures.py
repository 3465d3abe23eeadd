"""Rules: a payload counts only with an Ed25519 signature of a trusted key (I-02).

The DSSE pre-authentication encoding is signed, so a signature for one type of document is not
valid for another. Imports no I/O; never raises.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

from companion_core.decisions.strict_json import decode_base64

__all__ = [
    "KEY_PREFIX",
    "key_id",
    "parse_public_key",
    "pre_authentication_encoding",
    "signature_is_valid",
    "trusted_signers",
]

KEY_PREFIX: Final = "ed25519:"
_KEY_BYTES: Final = 32

# edwards25519, RFC 8032 section 5.1.
_P: Final = 2**255 - 19
_D: Final = -121665 * pow(121666, -1, _P) % _P


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Return the bytes that are signed (DSSE v1 protocol: PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_public_key(text: object) -> bytes | None:
    """Return the 32 bytes of "ed25519:BASE64", or None.

    A key in a non-canonical encoding is refused, and so is one of the eight points of small
    order: for such a key a signature can be made that fits every message.
    """
    if type(text) is not str or not text.startswith(KEY_PREFIX):
        return None
    raw = decode_base64(text.removeprefix(KEY_PREFIX))
    if raw is None or len(raw) != _KEY_BYTES:
        return None
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    return None if y >= _P or _has_small_order(y) else raw


def _has_small_order(y: int) -> bool:
    # Order 1, 2 and 4 are y = 1, -1 and 0. A point of order 8 doubles to one with y = 0, which
    # by the curve's equation holds exactly where d*y^4 + 2*y^2 = 1.
    return y in {0, 1, _P - 1} or (_D * y**4 + 2 * y**2 - 1) % _P == 0


def key_id(public_key: bytes) -> str:
    """Return the name of a key in an envelope: lower-case hex SHA-256 of its raw bytes."""
    return hashlib.sha256(public_key).hexdigest()


def signature_is_valid(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Tell whether the key made `signature` for `message` (RFC 8032 section 5.1.7)."""
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - once per manifest
    from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: PLC0415 - heavy

    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def trusted_signers(
    signatures: Iterable[tuple[str, bytes]], trusted: Iterable[bytes], message: bytes
) -> tuple[str, ...]:
    """Return the ids of the trusted keys that signed; pairs are of key id and signature."""
    by_id = {key_id(key): key for key in trusted}
    valid = [
        name
        for name, signature in signatures
        if name in by_id and signature_is_valid(by_id[name], signature, message)
    ]
    return tuple(dict.fromkeys(valid))
