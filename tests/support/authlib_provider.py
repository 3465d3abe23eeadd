"""A second sign-in service, so that nothing is fitted to one: Authlib's server under Flask.

`python authlib_provider.py PEM`: one JSON line when it listens. The person is signed in already and
allows everything.
"""

from __future__ import annotations

import json
import secrets
import ssl
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.oauth2.rfc6749 import ClientMixin, grants
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc9207 import IssuerParameter
from authlib.oidc.core import OpenIDCode, UserInfo
from flask import Flask, jsonify, request
from joserfc.jwk import RSAKey
from werkzeug.serving import make_server

KEY = RSAKey.generate_key(2048, {"kid": "rsa", "use": "sig", "alg": "RS256"})
CLIENT = "companion"


class Client(ClientMixin):
    client_id = CLIENT

    def get_client_id(self) -> str:
        return CLIENT

    def get_default_redirect_uri(self) -> None:
        return None

    def get_allowed_scope(self, scope: str) -> str:
        return scope

    def check_redirect_uri(self, uri: str) -> bool:
        return uri.startswith("http://127.0.0.1:") and uri.endswith("/callback")

    def check_client_secret(self, _secret: str) -> bool:
        return False

    def check_endpoint_auth_method(self, method: str, _endpoint: str) -> bool:
        return method == "none"

    def check_response_type(self, kind: str) -> bool:
        return kind == "code"

    def check_grant_type(self, kind: str) -> bool:
        return kind in {"authorization_code", "refresh_token"}


@dataclass
class Code:
    code: str
    redirect_uri: str
    scope: str
    nonce: str | None
    code_challenge: str
    code_challenge_method: str
    auth_time: int = field(default_factory=lambda: int(time.time()))

    def get_redirect_uri(self) -> str:
        return self.redirect_uri

    def get_scope(self) -> str:
        return self.scope

    def get_nonce(self) -> str | None:
        return self.nonce

    def get_auth_time(self) -> int:
        return self.auth_time

    def get_acr(self) -> None:
        return None

    def get_amr(self) -> None:
        return None


@dataclass
class Token:
    access_token: str
    refresh_token: str
    scope: str
    expires_in: int = 3600
    revoked: bool = False

    def check_client(self, _client: Client) -> bool:
        return True

    def get_scope(self) -> str:
        return self.scope

    def get_expires_in(self) -> int:
        return self.expires_in

    def is_expired(self) -> bool:
        return False

    def is_revoked(self) -> bool:
        return self.revoked


CODES: dict[str, Code] = {}
TOKENS: list[Token] = []
CLIENTS = {CLIENT: Client()}


class CodeGrant(grants.AuthorizationCodeGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("none",)

    def save_authorization_code(self, code: str, asked: Any) -> None:
        data = asked.payload.data
        CODES[code] = Code(
            code,
            asked.payload.redirect_uri,
            asked.payload.scope,
            data.get("nonce"),
            data["code_challenge"],
            data["code_challenge_method"],
        )

    def query_authorization_code(self, code: str, _client: Client) -> Code | None:
        return CODES.get(code)

    def delete_authorization_code(self, code: Code) -> None:
        CODES.pop(code.code)

    def authenticate_user(self, _code: Code) -> str:
        return "alice"


class RefreshGrant(grants.RefreshTokenGrant):
    TOKEN_ENDPOINT_AUTH_METHODS = ("none",)
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, text: str) -> Token | None:
        found = [t for t in TOKENS if t.refresh_token == text and not t.revoked]
        return found[0] if found else None

    def authenticate_user(self, _token: Token) -> str:
        return "alice"

    def revoke_old_credential(self, token: Token) -> None:
        token.revoked = True


class Revocation(RevocationEndpoint):
    CLIENT_AUTH_METHODS = ("none",)

    def query_token(self, text: str, _hint: str | None) -> Token | None:
        found = [t for t in TOKENS if text in {t.refresh_token, t.access_token}]
        return found[0] if found else None

    def revoke_token(self, token: Token, _request: Any) -> None:
        token.revoked = True


def serve(file: str) -> None:
    app = Flask(__name__)
    app.secret_key = secrets.token_hex()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    http = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=context)
    issuer = f"https://127.0.0.1:{http.port}"

    def save(token: dict[str, Any], asked: Any) -> None:
        old = getattr(asked, "refresh_token", None)
        refresh = token.get("refresh_token") or (old.refresh_token if old else "")
        TOKENS.append(Token(token["access_token"], refresh, token["scope"]))

    server = AuthorizationServer(app, query_client=CLIENTS.get, save_token=save)

    class Identity(OpenIDCode):
        def exists_nonce(self, _nonce: str, _request: Any) -> bool:
            return False

        def get_jwt_config(self, _grant: Any) -> dict[str, Any]:
            return {"key": KEY, "alg": "RS256", "iss": issuer, "exp": 3600}

        def resolve_client_private_key(self, _client: Client) -> RSAKey:
            return KEY

        def get_client_algorithm(self, _client: Client) -> str:
            return "RS256"

        def get_client_claims(self, _client: Client) -> dict[str, Any]:
            return {"iss": issuer}

        def generate_user_info(self, user: str, _scope: str) -> UserInfo:
            return UserInfo(sub=user)

    class Issuer(IssuerParameter):
        def get_issuer(self) -> str:
            return issuer

    server.register_grant(CodeGrant, [CodeChallenge(required=True), Identity()])
    server.register_grant(RefreshGrant)
    server.register_endpoint(Revocation)
    server.register_extension(Issuer())
    server.register_token_generator(
        "default",
        lambda grant_type, client, user=None, scope=None, **_: {
            "access_token": secrets.token_hex(24),
            "refresh_token": secrets.token_hex(24),
            "token_type": "Bearer",
            "expires_in": 3600,
            "scope": scope,
        },
    )

    @app.get("/.well-known/oauth-authorization-server")
    def metadata() -> Any:
        return jsonify(
            issuer=issuer,
            authorization_endpoint=f"{issuer}/authorize",
            token_endpoint=f"{issuer}/token",
            revocation_endpoint=f"{issuer}/revoke",
            jwks_uri=f"{issuer}/keys",
            response_types_supported=["code"],
            code_challenge_methods_supported=["S256"],
            token_endpoint_auth_methods_supported=["none"],
            authorization_response_iss_parameter_supported=True,
        )

    @app.get("/keys")
    def keys() -> Any:
        return jsonify(keys=[KEY.as_dict(private=False)])

    @app.get("/authorize")
    def authorize() -> Any:
        grant = server.get_consent_grant(end_user="alice")
        return server.create_authorization_response(grant=grant, grant_user="alice")

    @app.post("/token")
    def token() -> Any:
        return server.create_token_response()

    @app.post("/revoke")
    def revoke() -> Any:
        return server.create_endpoint_response("revocation")

    _ = (metadata, keys, authorize, token, revoke, request)
    print(json.dumps({"issuer": issuer}), flush=True)
    http.serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1])
