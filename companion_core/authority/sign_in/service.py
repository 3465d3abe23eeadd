"""The sign-in service as a client sees it: found by its issuer, asked by the rules, bound to both.

Every answer is judged by `decisions/oauth`; what leaves here as tokens has passed all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from companion_core.authority.sign_in.exchange import Exchange
from companion_core.decisions.oauth import (
    DeviceCode,
    Pending,
    ServerError,
    ServerMetadata,
    TokenRequest,
    TokenResponse,
    build_device_poll,
    build_device_request,
    build_refresh_request,
    build_revocation_request,
    build_token_request,
    check_granted_scope,
    check_id_token,
    discovery_addresses,
    parse_device_code,
    parse_metadata,
    read_device_answer,
    validate_token_response,
)
from companion_core.decisions.verdict import Verdict
from companion_core.errors import CompanionError, Reason, error_for
from companion_core.system.clock import wall_now
from companion_core.system.secret import Secret

__all__ = ["AccountSettings", "Client", "GrantRefused", "discover", "refused"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountSettings:
    """Which service signs the person in, and as which program ([account]).

    Attributes:
        issuer: an https address without a query.
        client_id: of this program there; it has no secret.
        scopes: the ceiling of what may be granted.
        redirect_path: as registered, such as /callback.
    """

    issuer: str
    client_id: str
    scopes: tuple[str, ...]
    redirect_path: str = "/callback"


class GrantRefused(Exception):
    """The service does not accept the refresh token any more (`invalid_grant`)."""


def refused(verdict: Verdict) -> CompanionError:
    """Return the error of a refusal; a code of the closed list is told with it."""
    code = verdict.error_code if isinstance(verdict, ServerError) else None
    return error_for(verdict.reason, "" if code is None else f"the service says {code.value}")


def discover(settings: AccountSettings, exchange: Exchange) -> ServerMetadata:
    """Return what the service says of itself; it has to be the issuer that is configured.

    Raises:
        Refused: `issuer_mismatch`, `malformed_input`.
        EnvironmentUnavailable: `sign_in_unavailable`, `sign_in_unsupported`.
    """
    for address in discovery_addresses(settings.issuer):
        document = exchange.get(address)
        if document is not None:
            return _accepted(parse_metadata(document, settings.issuer))
    detail = "no metadata of a sign-in service is at account.issuer"
    raise error_for(Reason.SIGN_IN_UNAVAILABLE, detail)


class Client:
    """This program at one sign-in service. Blocking.

    Args:
        settings: of the account.
        exchange: asks the service.
        clock: seconds since the epoch, by a clock that may be wrong.

    Raises:
        CompanionError: from the methods, what `Exchange` raises, and the reason of the rule that
            an answer breaks.
    """

    def __init__(
        self,
        settings: AccountSettings,
        exchange: Exchange,
        *,
        clock: Callable[[], float] = wall_now,
    ) -> None:
        self.settings = settings
        self.metadata = discover(settings, exchange)
        self._exchange = exchange
        self._clock = clock

    def exchange_code(
        self, code: Secret, *, verifier: Secret, redirect_uri: str, nonce: str
    ) -> TokenResponse:
        """Return the tokens for a code (RFC 6749 4.1.3)."""
        request = build_token_request(
            token_endpoint=self.metadata.token_endpoint,
            client_id=self.settings.client_id,
            code=code,
            code_verifier=verifier,
            redirect_uri=redirect_uri,
        )
        return self._granted(validate_token_response(self._post(request)), nonce)

    def ask_device_code(self) -> DeviceCode:
        """Return a code that the person types on another device (RFC 8628 3.1).

        Raises:
            EnvironmentUnavailable: `sign_in_unsupported`: the service has no such sign-in.
        """
        if self.metadata.device_authorization_endpoint is None:
            raise error_for(Reason.SIGN_IN_UNSUPPORTED, "it has no sign-in for another device")
        request = build_device_request(
            endpoint=self.metadata.device_authorization_endpoint,
            client_id=self.settings.client_id,
            scopes=self.settings.scopes,
        )
        return _accepted(parse_device_code(self._post(request), self.settings.issuer))

    def poll_device(self, code: DeviceCode) -> TokenResponse | Pending:
        """Return the tokens, or that the person has not decided yet."""
        request = build_device_poll(
            token_endpoint=self.metadata.token_endpoint,
            client_id=self.settings.client_id,
            device_code=code.device_code,
        )
        answer = read_device_answer(self._post(request))
        return answer if isinstance(answer, Pending) else self._granted(answer, None)

    def refresh(self, refresh_token: Secret, scope: str | None) -> TokenResponse:
        """Return new tokens for a refresh token (RFC 6749 6).

        Args:
            refresh_token: the stored one.
            scope: as granted so far; no more is accepted.

        Raises:
            GrantRefused: the person has to sign in again.
        """
        request = build_refresh_request(
            token_endpoint=self.metadata.token_endpoint,
            client_id=self.settings.client_id,
            refresh_token=refresh_token,
        )
        answer = validate_token_response(self._post(request))
        if isinstance(answer, ServerError) and answer.error_code == "invalid_grant":
            raise GrantRefused
        granted = _accepted(answer)
        _check(check_granted_scope(granted.scope, self._ceiling(scope)))
        return granted

    def revoke(self, token: Secret) -> bool:
        """Tell the service that a token is no longer used; say whether it took notice."""
        if self.metadata.revocation_endpoint is None:
            return False
        request = build_revocation_request(
            endpoint=self.metadata.revocation_endpoint,
            client_id=self.settings.client_id,
            token=token,
        )
        return self._exchange.revoke(_accepted(request))

    def _post(self, request: TokenRequest | Verdict) -> object:
        answer = self._exchange.post(_accepted(request))
        told = answer.document.get("error") if isinstance(answer.document, Mapping) else None
        if not answer.is_success and told is None:
            raise error_for(Reason.INVALID_TOKEN_RESPONSE)
        return answer.document

    def _granted(self, answer: TokenResponse | Verdict, nonce: str | None) -> TokenResponse:
        granted = _accepted(answer)
        _check(check_granted_scope(granted.scope, self.settings.scopes))
        if granted.id_token is not None:
            keys = None
            if self.metadata.jwks_uri is not None:
                keys = self._exchange.get(self.metadata.jwks_uri)
            _check(
                check_id_token(
                    granted.id_token,
                    keys=keys,
                    issuer=self.settings.issuer,
                    client_id=self.settings.client_id,
                    nonce=nonce,
                    now=self._clock(),
                )
            )
        return granted

    def _ceiling(self, scope: str | None) -> tuple[str, ...]:
        granted = tuple((scope or "").split())
        return granted or self.settings.scopes


def _accepted(value: T | Verdict) -> T:
    if isinstance(value, Verdict):
        raise refused(value)
    return value


def _check(verdict: Verdict) -> None:
    if not verdict.ok:
        raise refused(verdict)
