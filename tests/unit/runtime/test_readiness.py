"""What counts as a runtime that listens."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from types import SimpleNamespace

import pytest

from companion_core.decisions.verdict import OK
from companion_core.egress import LiveEgress
from companion_core.providers import UnixChannel
from companion_core.runtime import readiness

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

    monkeypatch.setattr(readiness, "_LONG_SECONDS", 60)
    assert asyncio.run(readiness._look(SimpleNamespace(takes_long=False), look)) is OK
    mine = threading.main_thread()
    assert [thread is mine for thread in threads] == [True, False]


def test_a_look_that_took_long_is_left_to_a_thread_from_then_on(monkeypatch) -> None:
    threads = []

    def look(_watched, **_):
        threads.append(threading.current_thread())
        return OK

    async def twice() -> None:
        watched = SimpleNamespace(takes_long=False)
        assert await readiness._look(watched, look) is OK
        assert await readiness._look(watched, look) is OK

    monkeypatch.setattr(readiness, "_LONG_SECONDS", -1)
    asyncio.run(twice())
    mine = threading.main_thread()
    assert [thread is mine for thread in threads] == [True, False]
