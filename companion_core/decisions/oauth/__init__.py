"""Signing in like any native app: pure rules (RFC 6749, 7636, 8252, 9207).

They will be called by `companion login`, which is not built yet.
"""

from companion_core.decisions.oauth.authorization import (
    AuthorizationCode,
    ErrorCode,
    ServerError,
    build_authorization_url,
    validate_authorization_response,
)
from companion_core.decisions.oauth.endpoint import (
    Endpoint,
    admit_endpoint,
    check_endpoints_of_issuer,
)
from companion_core.decisions.oauth.grammar import constant_time_equal
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
    build_token_request,
    check_granted_scope,
    check_id_token_nonce,
    decide_token_refresh,
    validate_token_response,
)

__all__ = [
    "AuthorizationCode",
    "Endpoint",
    "ErrorCode",
    "RedirectUri",
    "RefreshDecision",
    "ServerError",
    "TokenRequest",
    "TokenResponse",
    "admit_endpoint",
    "admit_redirect_uri",
    "build_authorization_url",
    "build_refresh_request",
    "build_token_request",
    "check_endpoints_of_issuer",
    "check_granted_scope",
    "check_id_token_nonce",
    "code_challenge",
    "constant_time_equal",
    "decide_token_refresh",
    "parse_redirect_query",
    "validate_authorization_response",
    "validate_token_response",
    "verifier_from",
]
