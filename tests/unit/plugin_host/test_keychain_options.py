"""[keychain.options]: handed to the configured keychain alone, and never ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from companion_core import hookimpl
from companion_core.errors import CompanionError, Reason, UsageError
from companion_core.hookspecs import AUTHORITY_GROUP
from companion_core.plugin_host import CorePlugin, KeychainOptions, LoadedPlugins, load_plugins
from companion_core.providers import HostInfo, OptionInvalid
from companion_core.testing import FakeKeychain

pytestmark = pytest.mark.unit

HOST = HostInfo(api="1.0", core_version="0.1.0", platform="linux")


class Before:
    """A plugin that was written before there were options."""

    @hookimpl
    def companion_keychain(self):
        return FakeKeychain()


class Vault(FakeKeychain):
    option_names = frozenset({"drawer"})


class Taking:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.given: list[Mapping[str, Any]] = []

    @hookimpl
    def companion_keychain(self, host, options):
        assert host == HOST
        self.given.append(options)
        if options.get("drawer") == 5:
            raise OptionInvalid("drawer")
        return Vault()


def load(options: KeychainOptions | None, **plugins: object) -> LoadedPlugins:
    core = [
        CorePlugin(name=name, plugin=plugin, group=AUTHORITY_GROUP)
        for name, plugin in plugins.items()
    ]
    return load_plugins(HOST, core_plugins=core, path=[], keychain=options)


def refusal(loaded: LoadedPlugins, name: str | None) -> CompanionError:
    with pytest.raises(UsageError) as caught:
        loaded.select_keychain(name)
    return caught.value


def test_the_configured_keychain_alone_is_given_them() -> None:
    one, other = Taking(), Taking()
    loaded = load(KeychainOptions(name="one", values={"drawer": "top"}), one=one, other=other)
    assert loaded.select_keychain("one").plugin == "one"
    assert [dict(given) for given in one.given] == [{"drawer": "top"}]
    assert [dict(given) for given in other.given] == [{}]
    with pytest.raises(TypeError):
        one.given[0]["drawer"] = "changed"  # type: ignore[index] # what a plugin might try


def test_the_single_one_is_given_them_without_a_name() -> None:
    one = Taking()
    loaded = load(KeychainOptions(values={"drawer": "top"}), one=one)
    assert loaded.select_keychain(None).plugin == "one"
    assert dict(one.given[0]) == {"drawer": "top"}


def test_a_key_that_the_plugin_does_not_know_is_refused_by_name() -> None:
    loaded = load(KeychainOptions(values={"drawr": "top", "drawer": "x"}), one=Taking())
    error = refusal(loaded, None)
    assert error.reason is Reason.UNKNOWN_OPTION
    assert error.detail == "keychain.options.drawr: one knows drawer"


def test_a_plugin_from_before_options_works_without_and_is_never_given_any() -> None:
    assert load(None, one=Before()).select_keychain(None).plugin == "one"
    loaded = load(KeychainOptions(values={"drawer": "top"}), one=Before())
    error = refusal(loaded, None)
    assert (error.reason, error.detail) == (
        Reason.UNKNOWN_OPTION,
        "keychain.options.drawer: one knows none",
    )


def test_a_value_that_the_plugin_refuses_is_named_and_not_shown() -> None:
    error = refusal(load(KeychainOptions(values={"drawer": 5}), one=Taking()), None)
    assert error.reason is Reason.UNKNOWN_OPTION
    assert "keychain.options.drawer" in error.detail
    assert "5" not in error.detail


@pytest.mark.parametrize("name", ["two words", "", 5, "a\nb"])
def test_a_name_that_is_none_is_not_repeated(name) -> None:
    class Hostile:
        @hookimpl
        def companion_keychain(self):
            raise OptionInvalid(name)

    with pytest.raises(CompanionError) as caught:
        load(None, one=Hostile()).select_keychain(None)
    assert caught.value.reason is Reason.PLUGIN_CALL_FAILED
    assert f"{name}" not in caught.value.detail or name == ""


@pytest.mark.parametrize("names", [["drawer"], frozenset({5}), "drawer"])
def test_names_of_another_type_are_refused(names) -> None:
    class Odd(FakeKeychain):
        option_names = names

    class Plugin:
        @hookimpl
        def companion_keychain(self):
            return Odd()

    with pytest.raises(CompanionError) as caught:
        load(None, one=Plugin()).select_keychain(None)
    assert caught.value.reason is Reason.PLUGIN_RESULT_INVALID
