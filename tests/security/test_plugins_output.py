"""A plugin that prints what it is given: no secret reaches the companion's output or its log."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chatty_plugins import KEYCHAIN, SAY

from companion_core.authority.keychain import GuardedKeychain
from companion_core.decisions.custody import Account
from companion_core.hookspecs import AUTHORITY_GROUP
from companion_core.plugin_host import LoadedPlugins, Role, load_plugins, record_of
from companion_core.plugin_host.inventory import find_plugins
from companion_core.providers import HealthResponse, HostInfo
from companion_core.system.muted_output import mute_output

pytestmark = pytest.mark.security

HOST = HostInfo(api="1.0", core_version="0.1.0", platform="linux")
SECRET = "s3cr3t-" * 8

RUNTIME = """
from companion_core import hookimpl

class Health:
    path = "/health"
    def judge(self, response):
        say(f"JUDGED {response.body!r}")
        return True

@hookimpl
def companion_health():
    return Health()
"""


@pytest.fixture
def load(
    install_distribution: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., LoadedPlugins]]:
    def load_one(text: str, group: str = "companion.runtime.v1") -> LoadedPlugins:
        files = {"companion_chatty/__init__.py": SAY + text}
        site = install_distribution("chatty", files, {"chatty": "companion_chatty"}, group=group)
        monkeypatch.syspath_prepend(str(site))
        (found,) = find_plugins([str(site)])
        loaded = load_plugins(HOST, trusted={"chatty": record_of(found)}, path=[str(site)])
        assert [(plugin.name, plugin.reason) for plugin in loaded.plugins] == [("chatty", "ok")]
        return loaded

    yield load_one
    sys.modules.pop("companion_chatty", None)


@contextlib.contextmanager
def without_log_handlers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave logging as the companion does, unconfigured: Python writes records to sys.stderr."""
    with monkeypatch.context() as patch:
        patch.setattr(logging.getLogger(), "handlers", [])
        yield


def test_a_keychain_that_prints_is_not_heard(
    load: Callable[..., LoadedPlugins],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    with without_log_handlers(monkeypatch):
        provider: Any = load(KEYCHAIN, AUTHORITY_GROUP).providers(Role.KEYCHAIN)["chatty"]
        keychain = GuardedKeychain(provider, instance="one")
        assert keychain.status().ok
        keychain.set(Account.ACCESS_TOKEN, SECRET)
        assert keychain.get(Account.ACCESS_TOKEN) == SECRET
    assert capfd.readouterr() == ("", "")


def test_a_health_checker_that_prints_is_not_heard(
    load: Callable[..., LoadedPlugins],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    answer = HealthResponse(status=200, body=SECRET.encode(), served_model="tiny")
    with without_log_handlers(monkeypatch):
        provider: Any = load(RUNTIME).providers(Role.HEALTH)["chatty"]
        assert provider.judge(answer)
    assert capfd.readouterr() == ("", "")


def test_only_the_plugin_is_muted(capfd: pytest.CaptureFixture[str]):
    entered, leave = threading.Event(), threading.Event()

    def call() -> None:
        with mute_output():
            print("of the plugin")
            entered.set()
            leave.wait(10)
            print("of the plugin, at its end", file=sys.stderr)

    thread = threading.Thread(target=call)
    thread.start()
    entered.wait(10)
    print("of the product")
    leave.set()
    thread.join()
    print("of the product, after it", file=sys.stderr)
    assert capfd.readouterr() == ("of the product\n", "of the product, after it\n")


def test_the_streams_keep_their_manners(monkeypatch: pytest.MonkeyPatch):
    before = sys.stdout
    with mute_output():
        assert sys.stdout.fileno() != 1
        assert not sys.stdout.isatty()
    assert sys.stdout.encoding == before.encoding
    assert sys.stdout.fileno() == before.fileno()
    monkeypatch.setattr(sys, "stderr", None)  # a program without a console has none
    with mute_output():
        print("nothing", file=sys.stderr)
    assert sys.stderr is None
