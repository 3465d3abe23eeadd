"""Rules for this file: what an identity token has to prove (OpenID Connect Core 3.1.3.7).

Its signature is of a key of the issuer, its claims name this issuer, this client and this attempt,
and its times hold now. The algorithm is chosen by the key's own type, never by the token alone; a
token without a signature, with a shared key or with critical extensions is refused.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from companion_core.decisions.numbers import is_finite
from companion_core.decisions.oauth.grammar import is_printable
from companion_core.decisions.oauth.token import check_id_token_nonce
from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import Reason
from companion_core.system.secret import Secret

__all__ = ["CLOCK_LEEWAY_SECONDS", "check_id_token"]

CLOCK_LEEWAY_SECONDS: Final = 300

_MAX_CHARACTERS: Final = 32_768
_MAX_KEYS: Final = 64
_COMPACT: Final = re.compile(
    r"(?P<header>[A-Za-z0-9_-]+)\.(?P<claims>[A-Za-z0-9_-]+)\.(?P<signature>[A-Za-z0-9_-]+)"
)
_MIN_RSA_BITS: Final = 2048
_MAX_RSA_BITS: Final = 8192
_COORDINATE_BYTES: Final = 32

_INVALID = refuse(Reason.ID_TOKEN_INVALID)


def check_id_token(
    id_token: object,
    *,
    keys: object,
    issuer: object,
    client_id: object,
    nonce: object,
    now: object,
) -> Verdict:
    """Return whether the token is the issuer's, for this client and this attempt, and of now.

    Args:
        id_token: the `Secret` of a token answer.
        keys: the issuer's JSON Web Key Set, decoded (RFC 7517).
        issuer: that was asked.
        client_id: of this client.
        nonce: of this attempt; None where none was sent (RFC 8628).
        now: seconds since the epoch, by a clock that may be wrong by `CLOCK_LEEWAY_SECONDS`.

    Returns:
        `ok`; `nonce_mismatch` for another attempt's; `clock_differs` for one that is not of now;
        else `id_token_invalid`.
    """
    text = id_token.reveal() if isinstance(id_token, Secret) else ""
    match = _COMPACT.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    if match is None:
        return _INVALID
    header, claims = _document(match["header"]), _document(match["claims"])
    signature = _decode(match["signature"])
    if header is None or claims is None or signature is None or "crit" in header:
        return _INVALID
    signed = text.rpartition(".")[0].encode("ascii")
    if not any(verify(signature, signed) for verify in _verifiers(header, keys)):
        return _INVALID
    if not is_printable(issuer) or claims.get("iss") != issuer:
        return _INVALID
    if not is_printable(client_id) or not _is_audience(claims, client_id):
        return _INVALID
    if not isinstance(claims.get("sub"), str) or not claims["sub"]:
        return _INVALID
    attempt = OK if nonce is None else check_id_token_nonce(id_token, nonce)
    return _check_times(claims, now) if attempt.ok else attempt


def _is_audience(claims: Mapping[str, Any], client_id: str) -> bool:
    """Tell whether the token is for this client alone; one for several names who asked for it."""
    audience = claims.get("aud")
    if isinstance(audience, str):
        audience = [audience]
    if not isinstance(audience, list) or client_id not in audience:
        return False
    asked_by: object = claims.get("azp", None if len(audience) > 1 else client_id)
    return asked_by == client_id


def _check_times(claims: Mapping[str, Any], now: object) -> Verdict:
    issued, expires = claims.get("iat"), claims.get("exp")
    if not is_finite(issued) or not is_finite(expires) or not is_finite(now) or expires <= issued:
        return _INVALID
    if abs(now - issued) > CLOCK_LEEWAY_SECONDS or now >= expires + CLOCK_LEEWAY_SECONDS:
        return refuse(Reason.CLOCK_DIFFERS)
    return OK


# --- signatures (RFC 7515, 7518, 8037) -------------------------------------------------------


def _verifiers(header: Mapping[str, Any], keys: object) -> Sequence[Callable[[bytes, bytes], bool]]:
    """Return how to verify with each key of the set that the header may mean."""
    listed = keys.get("keys") if isinstance(keys, Mapping) else None
    if not isinstance(listed, list) or len(listed) > _MAX_KEYS:
        return ()
    name, algorithm = header.get("kid"), header.get("alg")
    candidates = [
        key
        for key in listed
        if isinstance(key, Mapping)
        and key.get("use", "sig") == "sig"
        and key.get("alg", algorithm) == algorithm
        and (name is None or key.get("kid") == name)
    ]
    if name is None and len(candidates) != 1:
        return ()  # which one is meant would be a guess
    made = [_verifier(algorithm, key) for key in candidates]
    return [verify for verify in made if verify is not None]


def _verifier(algorithm: object, key: Mapping[str, Any]) -> Callable[[bytes, bytes], bool] | None:
    match algorithm, key.get("kty"), key.get("crv"):
        case (("RS256" | "PS256"), "RSA", None):
            return _rsa(str(algorithm), key)
        case "ES256", "EC", "P-256":
            return _p256(key)
        case (("EdDSA" | "Ed25519"), "OKP", "Ed25519"):
            return _ed25519(key)
    return None


def _rsa(algorithm: str, key: Mapping[str, Any]) -> Callable[[bytes, bytes], bool] | None:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - once per sign-in
    from cryptography.hazmat.primitives.asymmetric import padding, rsa  # noqa: PLC0415 - heavy

    modulus, exponent = _number(key.get("n")), _number(key.get("e"))
    if not (modulus and exponent and _MIN_RSA_BITS <= modulus.bit_length() <= _MAX_RSA_BITS):
        return None
    scheme: padding.AsymmetricPadding = padding.PKCS1v15()
    if algorithm == "PS256":
        scheme = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)

    def verify(signature: bytes, signed: bytes) -> None:
        public = rsa.RSAPublicNumbers(exponent, modulus).public_key()
        public.verify(signature, signed, scheme, hashes.SHA256())

    return lambda signature, signed: _holds(lambda: verify(signature, signed))


def _p256(key: Mapping[str, Any]) -> Callable[[bytes, bytes], bool] | None:
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415 - once per sign-in
    from cryptography.hazmat.primitives.asymmetric import ec, utils  # noqa: PLC0415 - heavy

    x, y = _number(key.get("x")), _number(key.get("y"))
    if x is None or y is None:
        return None

    def verify(signature: bytes, signed: bytes) -> None:
        if len(signature) != 2 * _COORDINATE_BYTES:
            raise ValueError
        r = int.from_bytes(signature[:_COORDINATE_BYTES])
        s = int.from_bytes(signature[_COORDINATE_BYTES:])
        public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        public.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))

    return lambda signature, signed: _holds(lambda: verify(signature, signed))


def _ed25519(key: Mapping[str, Any]) -> Callable[[bytes, bytes], bool] | None:
    from companion_core.decisions.signatures import (  # noqa: PLC0415 - once per sign-in
        KEY_PREFIX,
        parse_public_key,
        signature_is_valid,
    )

    raw = _decode(key.get("x"))
    text = "" if raw is None else base64.b64encode(raw).decode("ascii")
    public = parse_public_key(KEY_PREFIX + text)  # refuses a point of small order
    if public is None:
        return None
    return lambda signature, signed: signature_is_valid(public, signature, signed)


def _holds(verify: Callable[[], None]) -> bool:
    from cryptography.exceptions import (  # noqa: PLC0415 - once per sign-in
        InvalidSignature,
        UnsupportedAlgorithm,
    )

    try:
        verify()
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError, OverflowError):
        return False
    return True


# --- its texts ------------------------------------------------------------------------------


def _decode(text: object) -> bytes | None:
    """Return the bytes of canonical base64url without padding (RFC 7515 section 2), else None."""
    if not isinstance(text, str) or not text.isascii() or "=" in text:
        return None
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error):
        return None
    return data if base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii") == text else None


def _number(text: object) -> int | None:
    data = _decode(text)
    return None if not data or len(data) > _MAX_RSA_BITS // 8 else int.from_bytes(data)


def _document(text: str) -> dict[str, Any] | None:
    raw = _decode(text)
    if raw is None:
        return None
    try:
        value = json.loads(raw, object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members
