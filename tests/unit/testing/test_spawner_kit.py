"""The kit fails a spawner that does not conform: one broken spawner for each rule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kit_checks import assert_breaks

from companion_core.errors import Reason
from companion_core.providers import (
    CannotPlan,
)
from companion_core.testing import (
    FakeSpawner,
    SpawnerAbilities,
    check_spawner,
)
from companion_core.testing.spawner_kit import SPAWNER_RULES

pytestmark = pytest.mark.unit


KIND = SpawnerAbilities(chat_template=False)


class Templated(FakeSpawner):
    """Hands the chat template on."""

    def plan(self, request: Any) -> Any:
        plan = super().plan(request)
        return replace(plan, argv=(*plan.argv, str(request.chat_template)))


def spoil(**changes: Any) -> FakeSpawner:
    return FakeSpawner(alter=lambda plan, _request: replace(plan, **changes))


class Fickle(FakeSpawner):
    count = 0

    def plan(self, request: Any) -> Any:
        self.count += 1
        plan = super().plan(request)
        return replace(plan, argv=(*plan.argv, str(self.count)))


class Writing(FakeSpawner):
    def plan(self, request: Any) -> Any:
        Path(request.private_dir, "notes").write_text("x")
        return super().plan(request)


class Declining(FakeSpawner):
    reason = Reason.PLAN_REFUSED

    def plan(self, request: Any) -> Any:
        raise CannotPlan(self.reason)


class Picky(FakeSpawner):
    def plan(self, request: Any) -> Any:
        if "known" in request.options:
            request.options["known"] + 1
        return super().plan(request)


class Mutating(FakeSpawner):
    def plan(self, request: Any) -> Any:
        request.options["more"] = 1
        return super().plan(request)


class OneFile(FakeSpawner):
    def plan(self, request: Any) -> Any:
        (_,) = request.model_files
        return super().plan(request)


class Later(FakeSpawner):
    async def plan(self, request: Any) -> Any:
        return super().plan(request)


def leave(*_: object) -> None:
    raise SystemExit(0)


SPAWNERS = [
    (1, object()),
    (1, FakeSpawner(channels=frozenset())),
    (1, FakeSpawner(formats={"gguf"})),
    (1, Later()),
    (2, FakeSpawner(program="relative")),
    (2, type("Finder", (FakeSpawner,), {"locate": lambda self: ["/bin/x"]})()),
    (2, type("Finder", (FakeSpawner,), {"locate": lambda self: None})()),
    (2, type("Finder", (FakeSpawner,), {"locate": leave})()),
    (3, FakeSpawner(alter=lambda plan, _: None)),
    (3, FakeSpawner(alter=lambda plan, _: 1 / 0)),
    (3, FakeSpawner(alter=leave)),
    (3, type("Odd", (Declining,), {"reason": Reason.OK})()),
    (3, Mutating()),
    (4, spoil(argv=("/bin/sh", "-c", "runtime"))),
    (4, spoil(env={"LD_PRELOAD": "/x.so"})),
    (4, spoil(model_link="/etc/passwd")),
    (4, spoil(start_deadline_seconds=0)),
    (5, Declining()),
    (6, Fickle()),
    (6, Writing()),
    (7, Picky()),
    (9, OneFile()),
    (10, FakeSpawner(env_names=frozenset({"FAKE_RUNTIME_KEY", "API_TOKEN"}))),
    (10, FakeSpawner(env_names=frozenset({"FAKE_RUNTIME_KEY", "PYTHONPATH"}))),
]


@pytest.mark.parametrize(("rule", "spawner"), SPAWNERS)
def test_a_spawner_that_breaks_a_rule_is_named(rule: int, spawner: Any):
    assert_breaks(rule, SPAWNER_RULES, "spawner", lambda: check_spawner(spawner, KIND))


def test_a_declared_ability_is_required():
    assert_breaks(8, SPAWNER_RULES, "spawner", lambda: check_spawner(FakeSpawner()))
    keyless = FakeSpawner(
        env_names=frozenset(), alter=lambda plan, _request: replace(plan, backend_key_env=None)
    )
    assert_breaks(4, SPAWNER_RULES, "spawner", lambda: check_spawner(keyless, KIND))
    check_spawner(keyless, replace(KIND, open_backend=True))
    both = replace(KIND, forms=frozenset({"embedded"}))
    assert_breaks(5, SPAWNER_RULES, "spawner", lambda: check_spawner(FakeSpawner(), both))


def test_spawners_that_conform_pass():
    check_spawner(Templated())
    check_spawner(FakeSpawner(), KIND)


def test_every_rule_of_a_spawner_can_be_broken():
    assert {rule for rule, _ in SPAWNERS} | {8} == set(SPAWNER_RULES)
