"""Rules for this file: what an authorization server says of itself (RFC 8414, OpenID Discovery).

It is believed only for the issuer that was asked: the issuer in it is the same text, and every
address in it belongs to the issuer's own origin. A server that cannot do what a native app needs
(S256, `iss` in its answers) is refused before the person is sent to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from companion_core.decisions.evidence import Evidence
from companion_core.decisions.oauth.endpoint import Endpoint, admit_endpoint
from companion_core.decisions.oauth.pkce import METHOD
from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason

__all__ = ["ServerMetadata", "discovery_addresses", "is_issuer", "parse_metadata"]

_OPENID: Final = "/.well-known/openid-configuration"
_OAUTH: Final = "/.well-known/oauth-authorization-server"

# The member of the document for each address, and whether a sign-in is possible without it.
_ADDRESSES: Final = {
    "authorization_endpoint": True,
    "token_endpoint": True,
    "device_authorization_endpoint": False,
    "revocation_endpoint": False,
    "jwks_uri": False,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMetadata(Evidence):
    """An authorization server, as it describes itself; every address is of the issuer's origin.

    Attributes:
        issuer: as configured; every answer has to name it.
        device_authorization_endpoint: None where the server has no sign-in for another device.
        revocation_endpoint: None where tokens cannot be revoked.
        jwks_uri: of the keys that sign identity tokens; None where it issues none.
    """

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    device_authorization_endpoint: str | None = None
    revocation_endpoint: str | None = None
    jwks_uri: str | None = None


def is_issuer(value: object) -> bool:
    """Return whether `value` may be an issuer: https, no query, no fragment (RFC 8414 2)."""
    endpoint = admit_endpoint(value)
    return isinstance(endpoint, Endpoint) and not endpoint.query and "?" not in str(value)


def discovery_addresses(issuer: object) -> tuple[str, ...]:
    """Return where the metadata of this issuer may be, in the order of asking; () if it is none.

    OpenID Connect Discovery 4 appends to the issuer; RFC 8414 3.1 puts its own before the path.
    """
    home = admit_endpoint(issuer)
    if not isinstance(home, Endpoint) or not is_issuer(issuer):
        return ()
    path = home.path.removesuffix("/")
    return (f"{home.origin}{path}{_OPENID}", f"{home.origin}{_OAUTH}{path}")


def parse_metadata(document: object, issuer: object) -> ServerMetadata | Verdict:
    """Return the metadata of the issuer that was asked.

    Returns:
        The metadata; else `issuer_mismatch` when it is another issuer's or names an address
        elsewhere, `sign_in_unsupported` when it lacks what a native app needs, or
        `malformed_input`.
    """
    home = admit_endpoint(issuer)
    if not isinstance(document, Mapping) or isinstance(home, Verdict):
        return refuse(Reason.MALFORMED_INPUT)
    if not isinstance(issuer, str) or document.get("issuer") != issuer:
        return refuse(Reason.ISSUER_MISMATCH)
    found: dict[str, str | None] = {}
    for member, needed in _ADDRESSES.items():
        address = document.get(member)
        if address is None:
            if needed:
                return refuse(Reason.SIGN_IN_UNSUPPORTED)
            found[member] = None
            continue
        endpoint = admit_endpoint(address)
        if isinstance(endpoint, Verdict) or endpoint.origin != home.origin:
            return refuse(Reason.ISSUER_MISMATCH)
        found[member] = endpoint.url
    if not (
        _lists(document, "code_challenge_methods_supported", METHOD, if_absent=False)
        and _lists(document, "response_types_supported", "code", if_absent=False)
        and _lists(document, "token_endpoint_auth_methods_supported", "none", if_absent=True)
        and document.get("authorization_response_iss_parameter_supported") is True
    ):
        return refuse(Reason.SIGN_IN_UNSUPPORTED)
    return ServerMetadata(
        issuer=issuer,
        authorization_endpoint=str(found["authorization_endpoint"]),
        token_endpoint=str(found["token_endpoint"]),
        device_authorization_endpoint=found["device_authorization_endpoint"],
        revocation_endpoint=found["revocation_endpoint"],
        jwks_uri=found["jwks_uri"],
    )


def _lists(document: Mapping[object, object], member: str, value: str, *, if_absent: bool) -> bool:
    listed = document.get(member)
    if listed is None:
        return if_absent
    return isinstance(listed, list | tuple) and any(each == value for each in listed)
