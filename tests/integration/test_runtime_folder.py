"""The folder of a start, with a real socket in it: which channel is chosen, and what is told."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys

import psutil
import pytest

from companion_core.errors import CompanionError, Reason
from companion_core.providers import TcpChannel, UnixChannel
from companion_core.runtime.start.folder import choose_channel
from companion_core.runtime.start.folder_watch import FolderWatch

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform == "win32", reason="Unix sockets"),
]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="inotify")


@linux_only
@pytest.mark.parametrize("arrives", ["bound", "moved"])
def test_a_new_entry_is_told(tmp_path, arrives) -> None:
    aside = tmp_path / "aside"
    aside.write_bytes(b"")
    folder = tmp_path / "run"
    folder.mkdir()

    async def life() -> None:
        told = asyncio.Event()
        watch = FolderWatch(folder, told.set)
        if arrives == "moved":
            aside.rename(folder / "s.sock")
        else:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(folder / "s.sock"))
        async with asyncio.timeout(30):
            await told.wait()
        await watch.close()
        await watch.close()

    gc.collect()  # close now what earlier tests left open
    before = psutil.Process().num_fds()
    asyncio.run(life())
    assert psutil.Process().num_fds() == before


def reason_of(function, *args) -> Reason:
    with pytest.raises(CompanionError) as caught:
        function(*args)
    return caught.value.reason


def test_a_socket_comes_first_and_its_path_is_short_enough(tmp_path) -> None:
    both = frozenset({"unix", "tcp"})
    channel = choose_channel(both, tmp_path)
    assert channel == UnixChannel(path=str(tmp_path / "backend.sock"))
    channel = choose_channel(both, tmp_path / ("x" * 100))
    assert isinstance(channel, TcpChannel)
    assert channel.host == "127.0.0.1"
    assert 0 < channel.port < 65536
    assert reason_of(choose_channel, frozenset({"unix"}), tmp_path / ("x" * 100)) is (
        Reason.SPAWN_FAILED
    )
