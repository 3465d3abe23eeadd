"""Conformance of a health checker: it never calls a failure healthy, and never raises."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from companion_core.plugin_host import Role, snapshot_provider
from companion_core.providers import HealthResponse
from companion_core.testing.rulebook import Rulebook, type_name

__all__ = ["HEALTH_RULES", "check_health_checker"]

HEALTH_RULES: Final[Mapping[int, str]] = MappingProxyType(
    {
        1: "path is an absolute path without a query, and judge is a method",
        2: "judge returns a bool, whatever the runtime answers",
        3: "a status other than 2xx is never healthy",
        4: "the same answer is always judged the same way",
        5: "the answer that the author declares healthy is healthy",
    }
)

_BODIES: Final = (
    b"",
    b"ok",
    b"{}",
    b"null",
    b"[]",
    b"[" * 100_000,
    b'{"status": "ok"}',
    b'{"status": "loading model"}',
    b'{"status": ["ok"]}',
    b'{"status": 1e999}',
    b"\xff\xfe\x00",
    b"x" * 65536,
)
_UNHEALTHY: Final = (100, 301, 401, 404, 500, 503, 599)
_BOOK: Final = Rulebook("health", HEALTH_RULES)


def check_health_checker(provider: Any, healthy: HealthResponse | None = None) -> None:
    """Check `provider` against `HEALTH_RULES`.

    Args:
        provider: the health checker.
        healthy: an answer of a runtime that serves its model now.

    Raises:
        AssertionError: with the rule's number, what was seen and what was expected.
    """
    snapshot = snapshot_provider(Role.HEALTH, provider)
    _BOOK.expect(1, not isinstance(snapshot, str), seen=f"{snapshot}", expected="a HealthChecker")
    bodies = _BODIES if healthy is None else (*_BODIES, healthy.body)
    for body in bodies:
        response = HealthResponse(status=200, body=body, served_model="tiny")
        first, second = _judge(provider, response), _judge(provider, response)
        _BOOK.expect(4, first is second, seen=f"{first}, then {second}", expected="one answer")
        for status in _UNHEALTHY:
            judged = _judge(provider, replace(response, status=status))
            _BOOK.expect(3, judged is False, seen=f"True for {status}", expected="False")
    if healthy is not None:
        judged = _judge(provider, healthy)
        _BOOK.expect(5, judged is True, seen="False", expected="True")


def _judge(provider: Any, response: HealthResponse) -> bool:
    judged = _BOOK.ask(2, provider.judge, response)
    _BOOK.expect(2, type(judged) is bool, seen=type_name(judged), expected="bool")
    return bool(judged)
