from __future__ import annotations

import asyncio
import sys

import pytest

from companion_core.runtime.start.folder_watch import FolderWatch

pytestmark = pytest.mark.unit

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="inotify")


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
