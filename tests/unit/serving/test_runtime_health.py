"""When a runtime counts as healthy, and what ends the wait for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from companion_core.decisions.verdict import OK, Verdict, refuse
from companion_core.errors import CompanionError, EnvironmentUnavailable, Reason
from companion_core.serving.runtime_health import RuntimeHealth

pytestmark = pytest.mark.unit

NOT_YET = refuse(Reason.HEALTH_FAILED)
ODD = refuse(Reason.RUNTIME_ENVIRONMENT)


class World:
    """A gateway, a supervisor and a probe in one.

    Attributes:
        answers: what the probe says, one after the other; the last one again and again.
        looked: what reading the runtime back says.
        looks: how old a look was allowed to be, each time.
        reported: what the supervisor was told of the health.
    """

    def __init__(self, *answers: Verdict, looked: Verdict = OK) -> None:
        self.bound = True
        self.judge_failed = False
        self.activity = asyncio.Event()
        self.activity.set()
        self.answers = list(answers)
        self.looked = looked
        self.looks: list[float] = []
        self.reported: list[bool] = []
        self.closed = False

    async def probe(self) -> Verdict:
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    async def check_runtime(self, *, max_age: float) -> Verdict:
        self.looks.append(max_age)
        return self.looked

    def connect_ahead(self) -> None:
        self.activity.set()

    def close(self) -> None:
        self.closed = True

    def report_health(self, ok: bool) -> None:
        self.reported.append(ok)


def health_of(world: Any) -> RuntimeHealth:
    return RuntimeHealth(world, world, world, "the-plugin")


def running() -> None:
    """Satisfy `require_running`."""


async def waited(health: RuntimeHealth, seconds: float = 30.0, require_running=running) -> None:
    await health.wait(asyncio.get_running_loop().time() + seconds, require_running)


@pytest.mark.parametrize(
    ("answer", "looked", "bound", "reason"),
    [
        (OK, OK, True, Reason.OK),
        (NOT_YET, OK, True, Reason.HEALTH_FAILED),
        (OK, ODD, True, Reason.RUNTIME_ENVIRONMENT),
        (OK, OK, False, Reason.LISTENER_NOT_BOUND),
    ],
)
def test_it_is_healthy_where_it_answers_and_is_as_planned(answer, looked, bound, reason) -> None:
    async def life() -> None:
        world = World(answer, looked=looked)
        world.bound = bound
        health = health_of(world)
        assert (await health.check()).reason is reason
        assert (health.last_ok is not None) is (reason is Reason.OK)
        health.close()
        assert health.last_ok is None
        assert world.closed

    asyncio.run(life())


def test_a_failed_look_forgets_the_last_good_answer() -> None:
    async def life() -> None:
        world = World(OK)
        health = health_of(world)
        await health.check()
        world.looked = ODD
        await health.check()
        assert health.last_ok is None

    asyncio.run(life())


def test_it_is_asked_until_it_is_healthy_and_read_back_in_between() -> None:
    async def life() -> None:
        world = World(NOT_YET, NOT_YET, OK)
        await waited(health_of(world))
        assert world.looks == [0.1, 0.1, 0.2]  # at the end a look from the start may count
        assert world.reported == []

    asyncio.run(life())


def test_after_the_deadline_the_runtime_is_reported_unhealthy() -> None:
    async def life() -> None:
        world = World(NOT_YET)
        with pytest.raises(EnvironmentUnavailable) as caught:
            await waited(health_of(world), seconds=0.01)
        assert caught.value.reason is Reason.START_TIMEOUT
        assert world.reported == [False]

    asyncio.run(life())


def test_a_judge_that_fails_itself_is_named_and_not_asked_again() -> None:
    async def life() -> None:
        world = World(NOT_YET)
        world.judge_failed = True
        with pytest.raises(EnvironmentUnavailable) as caught:
            await waited(health_of(world))
        assert caught.value.reason is Reason.HEALTH_FAILED
        assert "the-plugin" in caught.value.detail

    asyncio.run(life())


def test_the_end_of_the_runtime_ends_the_wait() -> None:
    def ended() -> None:
        raise CompanionError(Reason.RUNTIME_EXITED)

    async def life() -> None:
        with pytest.raises(CompanionError) as caught:
            await waited(health_of(World(NOT_YET)), require_running=ended)
        assert caught.value.reason is Reason.RUNTIME_EXITED

    asyncio.run(life())
