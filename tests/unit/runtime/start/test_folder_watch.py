from __future__ import annotations

import asyncio
import gc
import socket
import sys

import psutil
import pytest

from companion_core.runtime.start.folder_watch import FolderWatch

pytestmark = pytest.mark.unit
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

    gc.collect()  # what earlier tests left is not let go of in between
    before = psutil.Process().num_fds()
    asyncio.run(life())
    assert psutil.Process().num_fds() == before


@linux_only
def test_nothing_is_told_once_it_is_closed(tmp_path) -> None:
    async def life() -> None:
        told = asyncio.Event()
        watch = FolderWatch(tmp_path, told.set)
        await watch.close()
        (tmp_path / "late").touch()
        await asyncio.sleep(0.01)
        assert not told.is_set()

    asyncio.run(life())


def test_where_the_system_does_not_tell_nothing_is_called(tmp_path, monkeypatch) -> None:
    async def life() -> None:
        told = asyncio.Event()
        watch = FolderWatch(tmp_path / "missing", told.set)
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(sys, "platform", "darwin")
            other = FolderWatch(tmp_path, told.set)
        (tmp_path / "new").touch()
        await asyncio.sleep(0.01)
        await watch.close()
        await other.close()
        assert not told.is_set()

    asyncio.run(life())
