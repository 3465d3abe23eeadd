"""One question to the sign-in service and its answer: JSON, small, in time, without a redirect."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from companion_core.decisions.oauth import TokenRequest
from companion_core.egress.interface import Egress
from companion_core.egress.transport_failure import TransportFailed
from companion_core.errors import EnvironmentUnavailable, Reason, error_for
from companion_core.system.deadline import call_with_deadline
from companion_core.transfer_fault import (
    TransferFault,
    TransferProblem,
    explain_problem,
    fault_of_status,
)

__all__ = ["Answer", "Exchange"]

MAX_ANSWER_BYTES: Final = 64 * 1024
IDLE_SECONDS: Final = 10.0
TOTAL_SECONDS: Final = 30.0

_OK: Final = 200
_BAD_REQUEST: Final = 400
_UNAUTHORIZED: Final = 401
_NOT_FOUND: Final = 404
_JSON: Final = frozenset({"application/json", "application/jwk-set+json"})
_HEADERS: Final = {"Accept": "application/json"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What the service answered.

    Attributes:
        status: 200, or 400 and 401, with which a refusal comes (RFC 6749 5.2); 404 for a document
            that is not there.
        document: the decoded body; its type is not checked. It may hold credentials.
    """

    status: int
    document: Any = None

    @property
    def is_success(self) -> bool:
        """Whether tokens or a document may be in it."""
        return self.status == _OK

    def __repr__(self) -> str:
        return f"Answer({self.status}, hidden)"


class Exchange:
    """Asks one sign-in service; each question has a connection of its own. Blocking.

    Args:
        egress: the doorway.
        context: from `build_tls_context`.
        cancelled: ends a question that is under way.
        idle_seconds: longest silence of the service.
        total_seconds: longest time of one question.

    Raises:
        EnvironmentUnavailable: from the methods, `sign_in_unavailable` when there is no answer,
            or one that no such service gives.
        Refused: from the methods, `invalid_token_response` (`malformed_input` for a document)
            for an answer that is too large, no JSON, or of another type.
        CompanionError: from the methods, `interrupted`.
    """

    def __init__(
        self,
        egress: Egress,
        context: ssl.SSLContext,
        *,
        cancelled: threading.Event | None = None,
        idle_seconds: float = IDLE_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
    ) -> None:
        self._egress = egress
        self._context = context
        self._cancelled = threading.Event() if cancelled is None else cancelled
        self._idle_seconds = idle_seconds
        self._total_seconds = total_seconds

    def get(self, url: str) -> Any | None:
        """Return the document at an address of the service; None if there is none."""
        answer = self._ask("GET", url, {}, b"", {_OK, _NOT_FOUND})
        return answer.document if answer.is_success else None

    def post(self, request: TokenRequest) -> Answer:
        """Send a form; what it holds is told to this one address and to no other."""
        statuses = {_OK, _BAD_REQUEST, _UNAUTHORIZED}
        return self._ask(request.method, request.url, request.headers, request.body, statuses)

    def revoke(self, request: TokenRequest) -> bool:
        """Send a revocation, whose answer has no body to speak of; say whether it was accepted."""
        return self._in_time(request.method, request.url, request.headers, request.body)[0] == _OK

    def _ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, statuses: set[int]
    ) -> Answer:
        status, kind, raw = self._in_time(method, url, headers, body)
        if status not in statuses:
            raise _unavailable(url, TransferProblem(fault_of_status(status), status))
        if status == _NOT_FOUND:
            return Answer(status)
        if kind in _JSON and len(raw) <= MAX_ANSWER_BYTES:
            with contextlib.suppress(ValueError, RecursionError):
                return Answer(status, json.loads(raw, object_pairs_hook=_each_key_once))
        # Not in a handler: the error of the parser holds the answer.
        raise error_for(
            Reason.MALFORMED_INPUT if method == "GET" else Reason.INVALID_TOKEN_RESPONSE
        )

    def _in_time(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        try:
            return call_with_deadline(
                self._carry_out,
                *(method, url, headers, body),
                seconds=self._total_seconds + self._idle_seconds,
                cancelled=self._cancelled,
            )
        except TransportFailed as error:
            problem = error.problem
        except TimeoutError:
            problem = TransferProblem(TransferFault.TIMED_OUT)
        raise _unavailable(url, problem)

    def _carry_out(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, str, bytes]:
        from companion_core.egress.http_transport import DoorwayTransport  # noqa: PLC0415 - loads httpx2

        deadline = time.monotonic() + self._total_seconds
        with DoorwayTransport(
            self._egress,
            self._context,
            seconds=self._idle_seconds,
            total_seconds=self._total_seconds,
        ) as transport:
            answer = transport.ask(method, url, {**_HEADERS, **headers}, body)
            try:
                raw = bytearray()
                for piece in answer.iter_raw():
                    raw += piece
                    if len(raw) > MAX_ANSWER_BYTES:
                        break
                    if time.monotonic() > deadline:
                        raise TimeoutError
                return answer.status_code, _media_type(answer.headers), bytes(raw)
            finally:
                answer.close()


def _media_type(headers: Mapping[str, str]) -> str:
    if headers.get("Content-Encoding", "identity").strip().lower() != "identity":
        return ""
    return headers.get("Content-Type", "").partition(";")[0].strip().lower()


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def _unavailable(url: str, problem: TransferProblem) -> EnvironmentUnavailable:
    host = url.removeprefix("https://").partition("/")[0]
    detail = f"the sign-in service: {explain_problem(problem, host)}"
    return EnvironmentUnavailable(Reason.SIGN_IN_UNAVAILABLE, detail)
