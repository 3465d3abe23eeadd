"""Which file counts as a runtime's socket: one that accepts, and no link."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from companion_core.egress.live import LiveEgress
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


def test_a_socket_counts_and_is_made_owner_only(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        listening.listen()
        assert accepts("s")
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600


def test_a_link_to_another_programs_socket_does_not_count_and_is_not_followed(
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


def test_a_missing_socket_does_not_count(tmp_path) -> None:
    assert not accepts(tmp_path / "s")
