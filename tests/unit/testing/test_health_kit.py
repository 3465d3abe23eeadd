"""The kit fails a health checker that does not conform: one broken checker for each rule."""

from __future__ import annotations

from typing import Any

import pytest
from kit_checks import assert_breaks

from companion_core.providers import HealthResponse
from companion_core.testing import FakeHealthChecker, check_health_checker
from companion_core.testing.health_kit import HEALTH_RULES

pytestmark = pytest.mark.unit


class Moody(FakeHealthChecker):
    count = 0

    def judge(self, response: HealthResponse) -> bool:
        self.count += 1
        return response.status == 200 and self.count % 2 == 0


HEALTHY = HealthResponse(status=200, body=b"serving", served_model="tiny")

CHECKERS = [
    (1, FakeHealthChecker(path="health")),
    (1, FakeHealthChecker(path="/health?x=1 2")),
    (2, FakeHealthChecker(answer=1)),
    (2, FakeHealthChecker(answer=ValueError("odd"))),
    (2, FakeHealthChecker(answer=SystemExit(0))),
    (3, FakeHealthChecker(answer=True)),
    (4, Moody()),
    (5, FakeHealthChecker(answer=False)),
]


@pytest.mark.parametrize(("rule", "checker"), CHECKERS)
def test_a_health_checker_that_breaks_a_rule_is_named(rule: int, checker: Any):
    assert_breaks(rule, HEALTH_RULES, "health", lambda: check_health_checker(checker, HEALTHY))


def test_a_health_checker_that_conforms_passes():
    check_health_checker(FakeHealthChecker(), HEALTHY)
    assert {rule for rule, _ in CHECKERS} == set(HEALTH_RULES)
