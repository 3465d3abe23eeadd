"""Rules for this file: proof key for code exchange, method S256 and no other (RFC 7636).

Randomness is an effect: the caller brings the entropy.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import Final, TypeGuard

from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

__all__ = ["METHOD", "code_challenge", "is_code_challenge", "is_code_verifier", "verifier_from"]

METHOD: Final = "S256"

# 32 bytes become the 43 characters that RFC 7636 section 4.1 asks for at least, 96 become 128.
_MIN_ENTROPY_BYTES: Final = 32
_MAX_ENTROPY_BYTES: Final = 96

_VERIFIER: Final = re.compile(r"[A-Za-z0-9\-._~]{43,128}")
_CHALLENGE: Final = re.compile(r"[A-Za-z0-9\-_]{43}")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def verifier_from(entropy: object) -> Secret | Verdict:
    """Return the verifier (or state, or nonce) made of 32 to 96 random bytes (RFC 7636 4.1)."""
    if isinstance(entropy, bytes) and _MIN_ENTROPY_BYTES <= len(entropy) <= _MAX_ENTROPY_BYTES:
        return Secret(_base64url(entropy))
    return refuse(Reason.MALFORMED_INPUT)


def is_code_verifier(verifier: object) -> TypeGuard[Secret]:
    """Return whether `verifier` is a `Secret` of 43 to 128 unreserved characters (RFC 7636 4.1)."""
    return isinstance(verifier, Secret) and _VERIFIER.fullmatch(verifier.reveal()) is not None


def is_code_challenge(challenge: object) -> bool:
    """Return whether `challenge` has the form of an S256 challenge (RFC 7636 4.2)."""
    return isinstance(challenge, str) and _CHALLENGE.fullmatch(challenge) is not None


def code_challenge(verifier: object) -> str | Verdict:
    """Return BASE64URL(SHA256(verifier)), or `malformed_input` (RFC 7636 4.2)."""
    if is_code_verifier(verifier):
        return _base64url(hashlib.sha256(verifier.reveal().encode()).digest())
    return refuse(Reason.MALFORMED_INPUT)
