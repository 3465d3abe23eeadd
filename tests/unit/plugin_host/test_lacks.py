"""While plugins load, what the system lacks is not their fault."""

from __future__ import annotations

import threading

import pytest

from companion_core import hookimpl
from companion_core.errors import EnvironmentUnavailable, Reason
from companion_core.hookspecs import AUTHORITY_GROUP
from companion_core.plugin_host import CorePlugin, load_plugins
from companion_core.providers import HostInfo
from companion_core.system import deadline
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.unit

HOST = HostInfo(api="1.0", core_version="0.1.0", platform="linux")


class Vault:
    @hookimpl
    def companion_keychain(self):
        return FakeKeychain()


def test_without_a_thread_no_plugin_is_blamed(monkeypatch):
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(deadline._threads, "_idle", [])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    core = [CorePlugin(name="vault", plugin=Vault(), group=AUTHORITY_GROUP)]
    with pytest.raises(EnvironmentUnavailable) as caught:
        load_plugins(HOST, core_plugins=core, path=[])
    assert caught.value.reason is Reason.LIMIT_REACHED
    assert "ulimit -u" in caught.value.detail
