"""Rules for this file: what is sent to a backend takes nothing from the client but a body.

Method, path and fields are the backend's own table; its key is added, and the client's
credentials, connection and forwarding fields have no way in (I-17). No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.gateway.answers import AnswerRules
from companion_core.gateway.http.body import encode_body, rename_fields
from companion_core.gateway.settings import Backend
from companion_core.gateway.token_count import counting_fields, may_be_cut
from companion_core.providers import INFERENCE_ROUTES, Route

__all__ = ["BackendRequests", "served_routes"]

_INFERENCE_ROUTES: Final = frozenset((route.path, route.method) for route in INFERENCE_ROUTES)


def served_routes(routes: Iterable[Route]) -> dict[str, str]:
    """Return path to method of the inference routes among `routes`; no other is passed on."""
    return {
        route.path: route.method
        for route in routes
        if (route.path, route.method) in _INFERENCE_ROUTES
    }


class BackendRequests:
    """The requests for one backend; the heads are made once.

    Attributes:
        cuts_at: see `Dialect`.
        health_check: the whole request.
    """

    __slots__ = (
        "_answers",
        "_dialect",
        "_drop_fields",
        "_heads",
        "_rename_fields",
        "_served_model",
        "cuts_at",
        "health_check",
    )

    def __init__(self, backend: Backend) -> None:
        key = backend.key
        authorization = "" if key is None else f"Authorization: Bearer {key.reveal()}\r\n"
        common = f"Host: localhost\r\n{authorization}"
        self.health_check = (
            f"GET {backend.health_path} HTTP/1.1\r\n{common}Connection: close\r\n\r\n".encode(
                "ascii"
            )
        )
        self._served_model = backend.served_model
        self._drop_fields = frozenset(name.casefold() for name in backend.drop_fields)
        self._dialect = backend.dialect
        self.cuts_at = backend.dialect.cuts_at
        self._rename_fields = {
            name.casefold(): read for name, read in backend.dialect.rename_fields
        }
        self._answers: tuple[str, AnswerRules | None] = ("", None)
        self._heads = {
            path: (
                f"{method} {path} HTTP/1.1\r\n{common}"
                "Accept: application/json, text/event-stream\r\n"
                "Content-Type: application/json\r\n"
                "Content-Length: "
            ).encode("ascii")
            for path, method in served_routes(backend.routes).items()
        }

    def answers(self, asked: str) -> AnswerRules | None:
        """Return what is translated in answers to a request for the model `asked`, if anything."""
        name, rules = self._answers
        if name != asked:
            translates = self._served_model != asked or self._dialect.too_long
            rules = (
                AnswerRules(self._served_model, asked, self._dialect.too_long)
                if translates
                else None
            )
            self._answers = (asked, rules)
        return rules

    def counts(self, path: str, fields: dict[str, Any], size: int) -> list[bytes]:
        """Return the requests that have the backend count this one first; usually none.

        Args:
            path: of the request.
            fields: of its body.
            size: of its body, in bytes.
        """
        cuts_at, head = self.cuts_at, self._heads.get(path)
        if cuts_at is None or head is None or not may_be_cut(size, cuts_at):
            return []
        bodies = [
            encode_body(asked, self._served_model, frozenset())
            for asked in counting_fields(fields, cuts_at)
        ]
        return [
            b"%b%d\r\n\r\n%b" % (head, len(body), body)
            for body in bodies
            if not isinstance(body, Verdict)
        ]

    def inference(self, path: str, fields: dict[str, Any]) -> bytes | Verdict:
        """Return the whole request; `malformed_body` as `encode_body` does.

        `path_not_allowed` for a path that this backend does not serve: the head may have passed
        while another one was there.

        Args:
            path: of the request.
            fields: of its body, from `parse_body`; changed in place.
        """
        head = self._heads.get(path)
        if head is None:
            return refuse(Reason.PATH_NOT_ALLOWED)
        if self._rename_fields:
            rename_fields(fields, self._rename_fields)
        body = encode_body(fields, self._served_model, self._drop_fields)
        if isinstance(body, Verdict):
            return body
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)
