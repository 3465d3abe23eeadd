from __future__ import annotations

from typing import Any

import pytest

from companion_core.decisions.oauth import (
    ServerMetadata,
    discovery_addresses,
    is_issuer,
    parse_metadata,
)
from companion_core.errors import Reason

pytestmark = pytest.mark.unit

ISSUER = "https://login.example"
DOCUMENT = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
    "device_authorization_endpoint": f"{ISSUER}/device",
    "revocation_endpoint": f"{ISSUER}/revoke",
    "jwks_uri": f"{ISSUER}/keys",
    "response_types_supported": ["code", "code id_token"],
    "code_challenge_methods_supported": ["plain", "S256"],
    "authorization_response_iss_parameter_supported": True,
}


def reason(document: Any, issuer: Any = ISSUER) -> Reason:
    verdict = parse_metadata(document, issuer)
    assert not isinstance(verdict, ServerMetadata)
    return verdict.reason


def test_a_service_describes_itself() -> None:
    found = parse_metadata(DOCUMENT, ISSUER)
    assert isinstance(found, ServerMetadata)
    assert found.token_endpoint == f"{ISSUER}/token"
    assert found.device_authorization_endpoint == f"{ISSUER}/device"
    assert found.jwks_uri == f"{ISSUER}/keys"


def test_what_is_not_needed_may_be_missing() -> None:
    fewer = {
        name: value
        for name, value in DOCUMENT.items()
        if name not in {"device_authorization_endpoint", "revocation_endpoint", "jwks_uri"}
    }
    found = parse_metadata(fewer, ISSUER)
    assert isinstance(found, ServerMetadata)
    assert found.revocation_endpoint is None


@pytest.mark.parametrize("issuer", [None, "", ISSUER + "/", "https://other.example", 7, [ISSUER]])
def test_another_issuer_is_refused(issuer: object) -> None:
    assert reason(DOCUMENT | {"issuer": issuer}) is Reason.ISSUER_MISMATCH


@pytest.mark.parametrize(
    "member",
    [
        *("authorization_endpoint", "token_endpoint", "device_authorization_endpoint"),
        *("revocation_endpoint", "jwks_uri"),
    ],
)
@pytest.mark.parametrize(
    "address",
    [
        *("https://evil.example/x", "http://login.example/x", "https://login.example:8443/x"),
        *("https://login.example@evil.example/x", "", 7, ["https://login.example/x"]),
    ],
)
def test_an_address_elsewhere_is_refused(member: str, address: object) -> None:
    assert reason(DOCUMENT | {member: address}) is Reason.ISSUER_MISMATCH


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("authorization_endpoint", None),
        ("token_endpoint", None),
        ("code_challenge_methods_supported", None),
        ("code_challenge_methods_supported", ["plain"]),
        ("code_challenge_methods_supported", "S256"),
        ("response_types_supported", ["token"]),
        ("token_endpoint_auth_methods_supported", ["client_secret_basic"]),
        ("authorization_response_iss_parameter_supported", False),
        ("authorization_response_iss_parameter_supported", "true"),
        ("authorization_response_iss_parameter_supported", 1),
    ],
)
def test_a_service_that_lacks_what_a_native_app_needs_is_refused(
    member: str, value: object
) -> None:
    assert reason(DOCUMENT | {member: value}) is Reason.SIGN_IN_UNSUPPORTED


@pytest.mark.parametrize("document", [None, [], "x", 7])
def test_what_is_no_document_is_refused(document: object) -> None:
    assert reason(document) is Reason.MALFORMED_INPUT
    assert reason(DOCUMENT, "http://login.example") is Reason.MALFORMED_INPUT


@pytest.mark.parametrize(
    ("issuer", "addresses"),
    [
        (
            "https://login.example",
            (
                "https://login.example/.well-known/openid-configuration",
                "https://login.example/.well-known/oauth-authorization-server",
            ),
        ),
        (
            "https://login.example/tenant/",
            (
                "https://login.example/tenant/.well-known/openid-configuration",
                "https://login.example/.well-known/oauth-authorization-server/tenant",
            ),
        ),
        ("https://login.example?x=1", ()),
        ("http://login.example", ()),
        (None, ()),
    ],
)
def test_metadata_is_asked_of_the_issuers_own_origin(
    issuer: object, addresses: tuple[str, ...]
) -> None:
    assert discovery_addresses(issuer) == addresses
    assert is_issuer(issuer) is bool(addresses)
    assert is_issuer("https://login.example?") is False
