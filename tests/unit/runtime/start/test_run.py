"""A start is taken down whole: every step is taken, whatever another one raises."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.runtime.start import run as run_module
from companion_core.runtime.start.run import Run, take_down

pytestmark = pytest.mark.unit

STEPS = ["process", "output", "broker", "group", "socket_watch", "folder"]


class Made:
    """Something that a start has made: notes when it is ended, and fails as told."""

    def __init__(self, name: str, taken: list[str], errors: dict[str, BaseException]) -> None:
        self._name, self._taken, self._errors = name, taken, errors

    def close(self, *_: object) -> None:
        self._taken.append(self._name)
        if self._name in self._errors:
            raise self._errors[self._name]

    async def stop(self, **_: float) -> None:
        self.close()


class Watch(Made):
    async def close(self) -> None:  # type: ignore[override]  # the real watch closes so
        super().close()


def taken_down(monkeypatch, errors: dict[str, BaseException], *steps: str) -> list[str]:
    taken: list[str] = []
    spec: Any = type("Spec", (), {"record_path": Path("/nowhere/record")})
    run = Run(spec=spec)
    for name in steps:
        kind = Watch if name == "socket_watch" else Made
        setattr(run, name, kind(name, taken, errors))
    monkeypatch.setattr(run_module, "remove_start_folder", Made("folder", taken, errors).close)
    monkeypatch.setattr(run_module, "forget", Made("record", taken, errors).close)
    failure: BaseException | None = None
    try:
        asyncio.run(take_down(run, terminate_after=0, kill_after=0))
    except BaseException as error:
        failure = error
    assert failure is next((errors[name] for name in [*STEPS, "record"] if name in errors), None)
    return taken


def test_all_that_was_made_is_ended_the_tree_first(monkeypatch) -> None:
    taken = taken_down(monkeypatch, {}, *STEPS)
    assert taken[0] == "process"
    assert sorted(taken) == sorted([*STEPS, "record"])


@pytest.mark.parametrize("step", STEPS)
def test_a_failed_step_prevents_no_other_step(monkeypatch, step) -> None:
    errors: dict[str, BaseException] = {step: OSError(step)}
    left = {"record"} if step == "process" else set()  # a tree that may be left is found by it
    assert set(taken_down(monkeypatch, errors, *STEPS)) == {*STEPS, "record"} - left


def test_of_several_errors_the_first_is_raised(monkeypatch) -> None:
    errors: dict[str, BaseException] = {
        "process": EnvironmentUnavailable(Reason.STALE_RUNTIME),
        "group": OSError("group"),
        "folder": asyncio.CancelledError(),
    }
    assert set(taken_down(monkeypatch, errors, *STEPS)) == set(STEPS)


def test_a_start_that_made_little_is_ended_too(monkeypatch) -> None:
    assert taken_down(monkeypatch, {}) == ["record"]
    assert taken_down(monkeypatch, {}, "output", "folder") == ["record", "output", "folder"]
