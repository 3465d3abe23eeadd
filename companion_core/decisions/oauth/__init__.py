"""Signing in like any native app: pure rules (RFC 6749, 7636, 8252, 8414, 8628, 9207).

`authority/sign_in` acts by them.
"""

from companion_core.decisions.oauth.authorization import (
    AuthorizationCode,
    ErrorCode,
    ServerError,
    build_authorization_url,
    validate_authorization_response,
)
from companion_core.decisions.oauth.callback import Callback, read_callback
from companion_core.decisions.oauth.device import (
    DeviceCode,
    Pending,
    build_device_poll,
    build_device_request,
    parse_device_code,
    read_device_answer,
)
from companion_core.decisions.oauth.endpoint import (
    Endpoint,
    admit_endpoint,
    check_endpoints_of_issuer,
)
from companion_core.decisions.oauth.grammar import constant_time_equal
from companion_core.decisions.oauth.id_token import check_id_token
from companion_core.decisions.oauth.metadata import (
    ServerMetadata,
    discovery_addresses,
    is_issuer,
    parse_metadata,
)
from companion_core.decisions.oauth.pkce import code_challenge, verifier_from
from companion_core.decisions.oauth.redirect import (
    RedirectUri,
    admit_redirect_uri,
    parse_redirect_query,
)
from companion_core.decisions.oauth.token import (
    RefreshDecision,
    TokenRequest,
    TokenResponse,
    build_refresh_request,
    build_revocation_request,
    build_token_request,
    check_granted_scope,
    check_id_token_nonce,
    decide_token_refresh,
    validate_token_response,
)
from companion_core.decisions.oauth.way import has_browser

__all__ = [
    "AuthorizationCode",
    "Callback",
    "DeviceCode",
    "Endpoint",
    "ErrorCode",
    "Pending",
    "RedirectUri",
    "RefreshDecision",
    "ServerError",
    "ServerMetadata",
    "TokenRequest",
    "TokenResponse",
    "admit_endpoint",
    "admit_redirect_uri",
    "build_authorization_url",
    "build_device_poll",
    "build_device_request",
    "build_refresh_request",
    "build_revocation_request",
    "build_token_request",
    "check_endpoints_of_issuer",
    "check_granted_scope",
    "check_id_token",
    "check_id_token_nonce",
    "code_challenge",
    "constant_time_equal",
    "decide_token_refresh",
    "discovery_addresses",
    "has_browser",
    "is_issuer",
    "parse_device_code",
    "parse_metadata",
    "parse_redirect_query",
    "read_callback",
    "read_device_answer",
    "validate_authorization_response",
    "validate_token_response",
    "verifier_from",
]
