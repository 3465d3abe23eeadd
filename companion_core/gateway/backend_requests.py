"""Rules for this file: what is sent to a backend takes nothing from the client but a body.

Method, path and fields are the backend's own table; its key is added, and the client's
credentials, connection and forwarding fields have no way in (I-17). No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason
from companion_core.gateway.http.body import encode_body
from companion_core.gateway.settings import Backend
from companion_core.providers import OPENAI_ROUTES, Route

__all__ = ["BackendRequests", "served_routes"]

_INFERENCE_ROUTES: Final = frozenset((route.path, route.method) for route in OPENAI_ROUTES)


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
        health_check: the whole request.
    """

    __slots__ = ("_drop_fields", "_heads", "_served_model", "health_check")

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
        self._heads = {
            path: (
                f"{method} {path} HTTP/1.1\r\n{common}"
                "Accept: application/json, text/event-stream\r\n"
                "Content-Type: application/json\r\n"
                "Content-Length: "
            ).encode("ascii")
            for path, method in served_routes(backend.routes).items()
        }

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
        body = encode_body(fields, self._served_model, self._drop_fields)
        if isinstance(body, Verdict):
            return body
        return b"%b%d\r\n\r\n%b" % (head, len(body), body)
