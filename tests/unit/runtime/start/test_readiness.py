"""What counts as a runtime that listens."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from companion_core.decisions.verdict import OK, refuse
from companion_core.egress.live import LiveEgress
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.providers import UnixChannel
from companion_core.runtime.start import readiness

pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets"),
]


def accepts(path) -> bool:
    channel = UnixChannel(path=str(path))
    return readiness._is_in_place(channel) and asyncio.run(
        readiness._accepts(LiveEgress(), channel)
    )


def test_a_socket_does_and_becomes_the_person_s_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        listening.listen()
        assert accepts("s")
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_a_link_to_another_program_s_socket_does_not_and_changes_nothing(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind("foreign")
        foreign.listen()
        (tmp_path / "foreign").chmod(0o660)
        (tmp_path / "s").symlink_to("foreign")
        assert not accepts("s")
        assert (tmp_path / "foreign").stat().st_mode & 0o777 == 0o660


def test_nothing_there_does_not(tmp_path) -> None:
    assert not accepts(tmp_path / "s")


def test_what_would_have_to_be_waited_for_is_read_back_in_a_thread(monkeypatch) -> None:
    threads = []

    def look(_watched, *, wait=True):
        threads.append(threading.current_thread())
        if not wait:
            raise BlockingIOError
        return OK

    monkeypatch.setattr(readiness, "read_back", look)
    monkeypatch.setattr(readiness, "_LONG_SECONDS", 60)
    assert asyncio.run(readiness._read_back(SimpleNamespace(takes_long=False))) is OK
    mine = threading.main_thread()
    assert [thread is mine for thread in threads] == [True, False]


def test_behind_a_look_that_took_long_the_next_is_left_to_a_thread(monkeypatch) -> None:
    threads = []

    def look(_watched, **_):
        threads.append(threading.current_thread())
        return OK

    async def looks() -> None:
        watched = SimpleNamespace(takes_long=False)
        for longest in (-1, -1, 60, 60):
            monkeypatch.setattr(readiness, "_LONG_SECONDS", longest)
            assert await readiness._read_back(watched) is OK

    monkeypatch.setattr(readiness, "read_back", look)
    asyncio.run(looks())
    mine = threading.main_thread()
    assert [thread is mine for thread in threads] == [True, False, False, True]


def test_one_that_is_not_there_and_has_not_ended_is_looked_at_again(monkeypatch) -> None:
    """While it is being executed, psutil shows no environment of it."""
    verdicts = [refuse(Reason.NOT_RUNNING), OK]
    monkeypatch.setattr(readiness, "_READ_BACK_SECONDS", 0.01)
    monkeypatch.setattr(readiness, "read_back", lambda _watched, **_: verdicts.pop(0))

    async def life() -> list[bool]:
        watched: Any = SimpleNamespace(takes_long=False, kept=kept(), require=lambda _verdict: None)
        return [await readiness._is_as_planned(watched) for _ in range(2)]

    assert asyncio.run(life()) == [False, True]


def test_what_the_system_does_not_tell_is_asked_again_and_not_for_ever(monkeypatch) -> None:
    unsaid = refuse(Reason.PROCESS_UNREADABLE)
    verdicts = [unsaid, unsaid, OK]
    monkeypatch.setattr(readiness, "read_back", lambda _watched, **_: verdicts.pop(0))
    assert asyncio.run(readiness._read_back(SimpleNamespace(takes_long=False))) is OK
    monkeypatch.setattr(readiness, "read_back", lambda _watched, **_: unsaid)
    monkeypatch.setattr(readiness, "_READ_BACK_SECONDS", 0.1)
    assert asyncio.run(readiness._read_back(SimpleNamespace(takes_long=False))) is unsaid


def kept() -> Any:
    return SimpleNamespace(exited=asyncio.Event(), exit_code=None, for_memory=False)


def test_what_was_done_for_a_runtime_that_has_ended_counts_for_nothing() -> None:
    async def life() -> None:
        runtime, faults = kept(), []
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))

        async def work() -> int:
            runtime.exited.set()
            return 3

        with pytest.raises(EnvironmentUnavailable) as caught:
            await readiness.unless_exited(runtime, work())
        assert caught.value.reason is Reason.RUNTIME_EXITED
        for _ in range(5):
            await asyncio.sleep(0)  # nothing comes behind it
        assert faults == []

    asyncio.run(life())


def test_the_end_of_a_runtime_ends_what_is_done_for_it_and_no_more() -> None:
    async def life() -> None:
        runtime, task = kept(), asyncio.current_task()
        asyncio.get_running_loop().call_soon(runtime.exited.set)
        with pytest.raises(EnvironmentUnavailable):
            await readiness.unless_exited(runtime, asyncio.sleep(3600))
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)

    asyncio.run(life())


def test_who_cancels_a_start_is_told_that_and_not_of_the_end_that_follows() -> None:
    async def life() -> None:
        runtime = kept()

        async def work() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                runtime.exited.set()

        starting = asyncio.ensure_future(readiness.unless_exited(runtime, work()))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        assert starting.cancelled()

    asyncio.run(life())
