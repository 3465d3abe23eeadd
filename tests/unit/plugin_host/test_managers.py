from __future__ import annotations

import pluggy
import pytest

from companion_core.hookspecs import (
    AUTHORITY_GROUP,
    RUNTIME_GROUP,
    AuthorityHooks,
    RuntimeHooks,
    hookimpl,
)
from companion_core.plugin_host.managers import SealedPluginManager, sealed_managers
from companion_core.providers import HostInfo

pytestmark = pytest.mark.unit

HOST = HostInfo(api="1.0", core_version="0.1.0", platform="linux")


class WithHost:
    @hookimpl
    def companion_spawn(self, host):
        return host


class WithoutHost:
    @hookimpl
    def companion_spawn(self):
        return "alone"


class WithDefault:
    @hookimpl
    def companion_spawn(self, host=None):
        return host


class Silent:
    @hookimpl
    def companion_spawn(self):
        return None


def manager() -> SealedPluginManager:
    return SealedPluginManager(RuntimeHooks)


def test_each_implementation_is_called_singly_whatever_else_is_registered():
    runtime = manager()
    plugins = [WithHost(), WithoutHost(), WithDefault(), Silent()]
    for number, plugin in enumerate(plugins):
        runtime.register(plugin, f"plugin{number}")
    answers = [runtime.call_singly(plugin, "companion_spawn", {"host": HOST}) for plugin in plugins]
    assert answers == [HOST, "alone", HOST, None]


@pytest.mark.parametrize(
    "options",
    [
        {"tryfirst": True},
        {"trylast": True},
        {"optionalhook": True},
        {"specname": "companion_health"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_pluggy_are_refused(options: dict[str, object]):
    class Tricky:
        @hookimpl(**options)
        def companion_spawn(self):
            return 1

    assert_refused(manager(), Tricky())


@pytest.mark.parametrize("kind", ["wrapper", "hookwrapper"])
def test_wrappers_are_refused(kind: str):
    class Wrapper:
        @hookimpl(**{kind: True})
        def companion_spawn(self):
            yield

    assert_refused(manager(), Wrapper())


def test_a_misspelt_hook_is_refused_and_takes_the_rest_of_the_plugin_with_it():
    class Misspelt(WithHost):
        @hookimpl
        def companion_heath(self):
            return 1

    assert_refused(manager(), Misspelt())


def test_a_hook_of_the_other_side_is_refused():
    class Keychain:
        @hookimpl
        def companion_keychain(self):
            return 1

    assert_refused(manager(), Keychain())
    SealedPluginManager(AuthorityHooks).register(Keychain(), "linux")


def test_an_argument_that_the_seam_does_not_have_is_refused():
    class Curious:
        @hookimpl
        def companion_spawn(self, host, token):
            return token

    assert_refused(manager(), Curious())


def test_a_plugin_without_a_hook_is_refused():
    assert_refused(manager(), object())


def test_properties_are_not_run_while_looking_for_hooks():
    class Trap(WithHost):
        @property
        def companion_health(self):
            raise SystemExit

    manager().register(Trap(), "trap")


def test_a_sealed_manager_is_closed():
    runtime = manager()
    runtime.register(WithHost(), "early")
    runtime.seal()
    with pytest.raises(pluggy.PluginValidationError):
        runtime.register(WithoutHost(), "late")
    assert [name for name, _ in runtime.list_name_plugin()] == ["early"]


def test_the_hooks_of_a_plugin_are_told():
    runtime = manager()
    plugin = WithHost()
    runtime.register(plugin, "lamp")
    assert runtime.hooks_of(plugin) == ("companion_spawn",)


def test_there_is_one_manager_for_each_side_and_no_hook_is_shared():
    managers = sealed_managers()
    assert set(managers) == {AUTHORITY_GROUP, RUNTIME_GROUP}
    authority, runtime = (set(vars(m.hook)) for m in managers.values())
    assert authority == {"companion_keychain"}
    assert runtime == {
        "companion_spawn",
        "companion_download",
        "companion_health",
        "companion_probe",
    }


def assert_refused(runtime: SealedPluginManager, plugin: object) -> None:
    with pytest.raises(pluggy.PluginValidationError):
        runtime.register(plugin, "plugin")
    assert runtime.list_name_plugin() == []
    runtime.seal()
