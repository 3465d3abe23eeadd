"""Identity tokens, made by joserfc: an independent implementation of the same standards."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from joserfc import jws
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from secret_parts import hide

from companion_core.decisions.oauth import check_id_token
from companion_core.errors import Reason

pytestmark = [
    pytest.mark.unit,
    # RFC 9864 names it Ed25519; services still send the older name.
    pytest.mark.filterwarnings("ignore:EdDSA is deprecated"),
]

ISSUER = "https://login.example"
CLIENT = "companion"
NOW = 1_800_000_000
NONCE = "n" * 43
CLAIMS = {
    "iss": ISSUER,
    "aud": CLIENT,
    "sub": "alice",
    "iat": NOW - 1,
    "exp": NOW + 600,
    "nonce": NONCE,
}
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})
EC = ECKey.generate_key("P-256", {"kid": "ec"})
ED = OKPKey.generate_key("Ed25519", {"kid": "ed"})
BY_ALGORITHM = {"RS256": RSA, "PS256": RSA, "ES256": EC, "EdDSA": ED, "Ed25519": ED}
KEYS = {"keys": [key.as_dict(private=False) for key in (RSA, EC, ED)]}
ALGORITHMS = [*BY_ALGORITHM, "HS256", "ES384", "none"]


def make(claims: Any = CLAIMS, algorithm: str = "ES256", key: Any = None, **header: Any) -> str:
    key = key or BY_ALGORITHM[algorithm]
    head = {"alg": algorithm, "kid": key.kid, **header}
    head = {name: value for name, value in head.items() if value is not None}
    return jws.serialize_compact(head, json.dumps(claims).encode(), key, algorithms=ALGORITHMS)


def judge(token: str, **changes: Any) -> Reason:
    given = {"keys": KEYS, "issuer": ISSUER, "client_id": CLIENT, "nonce": NONCE, "now": NOW}
    return check_id_token(hide(token), **given | changes).reason


@pytest.mark.parametrize("algorithm", BY_ALGORITHM)
def test_each_algorithm_verifies_what_another_implementation_signed(algorithm: str) -> None:
    token = make(algorithm=algorithm)
    assert judge(token) is Reason.OK
    head, body, signature = token.split(".")
    first = "A" if signature[0] != "A" else "B"
    assert judge(f"{head}.{body}.{first}{signature[1:]}") is Reason.ID_TOKEN_INVALID
    other = base64.urlsafe_b64encode(json.dumps(CLAIMS | {"sub": "mallory"}).encode())
    forged = other.rstrip(b"=").decode()
    assert judge(f"{head}.{forged}.{signature}") is Reason.ID_TOKEN_INVALID


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://evil.example"}, Reason.ID_TOKEN_INVALID),
        ({"iss": None}, Reason.ID_TOKEN_INVALID),
        ({"aud": "another"}, Reason.ID_TOKEN_INVALID),
        ({"aud": []}, Reason.ID_TOKEN_INVALID),
        ({"aud": [CLIENT]}, Reason.OK),
        ({"aud": [CLIENT, "another"]}, Reason.ID_TOKEN_INVALID),
        ({"aud": [CLIENT, "another"], "azp": CLIENT}, Reason.OK),
        ({"azp": "another"}, Reason.ID_TOKEN_INVALID),
        ({"sub": ""}, Reason.ID_TOKEN_INVALID),
        ({"sub": None}, Reason.ID_TOKEN_INVALID),
        ({"nonce": "x" * 43}, Reason.NONCE_MISMATCH),
        ({"nonce": None}, Reason.NONCE_MISMATCH),
        ({"exp": "soon"}, Reason.ID_TOKEN_INVALID),
        ({"iat": None}, Reason.ID_TOKEN_INVALID),
        ({"exp": NOW - 2}, Reason.ID_TOKEN_INVALID),
        ({"iat": NOW - 301}, Reason.CLOCK_DIFFERS),
        ({"iat": NOW + 301}, Reason.CLOCK_DIFFERS),
        ({"iat": NOW - 300}, Reason.OK),
        ({"iat": NOW - 299, "exp": NOW - 298}, Reason.OK),
        ({"iat": NOW - 86_400, "exp": NOW - 80_000}, Reason.CLOCK_DIFFERS),
    ],
)
def test_each_claim_counts(changes: dict[str, Any], reason: Reason) -> None:
    assert judge(make(CLAIMS | changes)) is reason


def test_a_nonce_is_asked_for_where_one_was_sent() -> None:
    without = {name: value for name, value in CLAIMS.items() if name != "nonce"}
    assert judge(make(without), nonce=None) is Reason.OK
    assert judge(make(without)) is Reason.NONCE_MISMATCH


def test_a_token_cannot_choose_how_it_is_verified() -> None:
    public = KEYS["keys"][0]
    shared = OctKey.import_key(json.dumps(public), {"kid": "rsa"})
    assert judge(make(algorithm="HS256", key=shared)) is Reason.ID_TOKEN_INVALID
    body = base64.urlsafe_b64encode(json.dumps(CLAIMS).encode()).rstrip(b"=").decode()
    head = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    for token in (f"{head}.{body}.", f"{head}.{body}.AA", "", "a.b", "a.b.c.d", "\ud800"):
        assert judge(token) is Reason.ID_TOKEN_INVALID
    embedded = make(key=ECKey.generate_key("P-256", {"kid": "ec"}))
    assert judge(embedded) is Reason.ID_TOKEN_INVALID
    assert judge(make(kid="rsa")) is Reason.ID_TOKEN_INVALID


def test_critical_extensions_and_double_members_are_refused() -> None:
    def planted(head: str, body: str) -> str:
        parts = (head.encode(), body.encode())
        signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
        algorithm = jws.JWSRegistry.algorithms["ES256"]
        signature = base64.urlsafe_b64encode(algorithm.sign(signed, EC)).rstrip(b"=")
        return (signed + b"." + signature).decode()

    body = json.dumps(CLAIMS)
    assert judge(planted('{"alg":"ES256","kid":"ec"}', body)) is Reason.OK
    for head, claims in (
        ('{"alg":"ES256","kid":"ec","crit":["x"],"x":1}', body),
        ('{"alg":"none","alg":"ES256","kid":"ec"}', body),
        ('{"alg":"ES256","kid":"ec"}', body[:-1] + ', "aud": "companion"}'),
        ('{"alg":"ES256","kid":"ec"}', "[]"),
        ("[]", body),
    ):
        assert judge(planted(head, claims)) is Reason.ID_TOKEN_INVALID


def test_the_key_is_the_issuers_and_meant_for_this() -> None:
    token = make()
    key = EC.as_dict(private=False)
    for keys in (
        *(None, {}, [], {"keys": None}, {"keys": []}, {"keys": [None]}),
        {"keys": [key | {"use": "enc"}]},
        {"keys": [key | {"alg": "ES384"}]},
        {"keys": [key | {"kid": "another"}]},
        {"keys": [key | {"crv": "P-384"}]},
        {"keys": [key | {"x": key["y"]}]},
        {"keys": [key | {"x": "!"}]},
        {"keys": [key | {"x": None}]},
        {"keys": [key] * 65},
    ):
        assert judge(token, keys=keys) is Reason.ID_TOKEN_INVALID
    unnamed = make(kid=None)
    assert judge(unnamed, keys={"keys": [key]}) is Reason.OK
    other = ECKey.generate_key("P-256").as_dict(private=False)
    assert judge(unnamed, keys={"keys": [key, other]}) is Reason.ID_TOKEN_INVALID


def test_weak_keys_are_refused() -> None:
    small = RSAKey.generate_key(2048, {"kid": "rsa"}).as_dict(private=False)
    short = {**small, "n": base64.urlsafe_b64encode(b"\xff" * 128).rstrip(b"=").decode()}
    token = make(algorithm="RS256")
    for changes in (short, {**small, "e": "AQ"}, {**small, "n": "AA"}, {**small, "e": None}):
        assert judge(token, keys={"keys": [changes]}) is Reason.ID_TOKEN_INVALID
    identity = base64.urlsafe_b64encode(b"\x01" + bytes(31)).rstrip(b"=").decode()
    weak = {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": identity}
    assert judge(make(algorithm="EdDSA"), keys={"keys": [weak]}) is Reason.ID_TOKEN_INVALID


@pytest.mark.parametrize("now", [None, "1", float("nan"), True])
def test_a_time_that_is_none_is_refused(now: object) -> None:
    assert judge(make(), now=now) is Reason.ID_TOKEN_INVALID


@pytest.mark.parametrize("given", [{"issuer": None}, {"client_id": ""}, {"issuer": ""}])
def test_who_is_asked_has_to_be_known(given: dict[str, Any]) -> None:
    assert judge(make(CLAIMS | {"iss": None, "aud": ""}), **given) is Reason.ID_TOKEN_INVALID
