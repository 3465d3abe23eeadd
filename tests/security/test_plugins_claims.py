"""Attacker: a plugin that claims another's name, module or side. It gets none of them."""

from __future__ import annotations

import pytest
from plugin_zoo import GOOD, Install, Zoo

from companion_core.errors import PluginFault, Reason
from companion_core.hookspecs import AUTHORITY_GROUP, RUNTIME_GROUP, hookimpl
from companion_core.plugin_host.host import CorePlugin
from companion_core.plugin_host.selection import Role
from companion_core.plugin_host.survey import State

pytestmark = pytest.mark.security


def test_an_entry_point_to_another_plugins_module_is_refused(
    zoo: Zoo, install_distribution: Install
):
    install_distribution("squat", {"squat/__init__.py": ""}, {"animal": "companion_zoo_good"})
    loaded = zoo.load()
    assert zoo.animal(loaded) == (State.FOUND, Reason.PLUGIN_FOREIGN_MODULE)
    (detail,) = [plugin.detail for plugin in loaded.plugins if plugin.name == "animal"]
    assert detail == "squat 0.1.0 names companion_zoo_good, of zoo-good 0.1.0"


@pytest.mark.parametrize(("module", "owner"), [("json.tool", "Python"), ("zoo_none", "nobody")])
def test_an_entry_point_to_a_module_of_no_plugin_is_refused(
    zoo: Zoo, install_distribution: Install, module: str, owner: str
):
    install_distribution("squat", {"squat/__init__.py": ""}, {"animal": module})
    loaded = zoo.load()
    assert zoo.animal(loaded) == (State.FOUND, Reason.PLUGIN_FOREIGN_MODULE)
    (detail,) = [plugin.detail for plugin in loaded.plugins if plugin.name == "animal"]
    assert detail == f"squat 0.1.0 names {module}, of {owner}"


def test_two_claims_on_one_name_are_both_refused_and_named(zoo: Zoo, install_distribution: Install):
    zoo.add("animal", GOOD)
    trusted = zoo.trust_all()
    install_distribution("rival", {"rival/__init__.py": GOOD}, {"animal": "rival"})
    loaded = zoo.load(trusted)
    assert zoo.animal(loaded) == (State.FOUND, Reason.PLUGIN_DUPLICATE)
    details = {plugin.detail for plugin in loaded.plugins if plugin.name == "animal"}
    assert details == {"rival 0.1.0, zoo-animal 0.1.0"}
    with pytest.raises(PluginFault) as caught:
        loaded.select_runtime("animal")
    assert caught.value.reason is Reason.PLUGIN_DUPLICATE


def test_a_distribution_on_both_sides_is_refused(zoo: Zoo):
    zoo.add("animal", GOOD)
    files = zoo.site / "zoo_animal-0.1.0.dist-info" / "entry_points.txt"
    files.write_text(files.read_text() + f"[{AUTHORITY_GROUP}]\nvault = companion_zoo_animal\n")
    assert zoo.animal(zoo.load()) == (State.FOUND, Reason.PLUGIN_BOTH_SIDES)


def test_a_keychain_plugin_with_runtime_hooks_is_refused(zoo: Zoo):
    zoo.add("animal", GOOD, group=AUTHORITY_GROUP)
    loaded = zoo.load()
    assert zoo.animal(loaded) == (State.IMPORTED, Reason.PLUGIN_REGISTRATION_REFUSED)


class CoreDownload:
    def open(self, request: object) -> object:
        return request


class CorePlugins:
    @hookimpl
    def companion_download(self) -> CoreDownload:
        return CoreDownload()


def test_the_cores_own_name_cannot_be_taken(zoo: Zoo):
    zoo.add("https", GOOD)
    loaded = zoo.load(core_plugins=[CorePlugin(name="https", plugin=CorePlugins())])
    states = {(p.name, p.core): (p.state, p.reason) for p in loaded.plugins}
    assert states["https", True] == (State.REGISTERED, Reason.OK)
    assert states["https", False] == (State.FOUND, Reason.PLUGIN_DUPLICATE)
    assert set(loaded.providers(Role.DOWNLOAD)) == {"https"}
    assert "https" not in loaded.providers(Role.SPAWN)


def test_the_environment_narrows_the_plugins_and_adds_none(zoo: Zoo):
    trusted = zoo.trust_all()
    zoo.add("animal", GOOD)
    loaded = zoo.load(trusted, narrow={"animal"})
    reasons = {plugin.name: plugin.reason for plugin in loaded.plugins}
    assert reasons == {"animal": Reason.PLUGIN_UNTRUSTED, "good": Reason.PLUGIN_NARROWED}
    assert not any(loaded.providers(role) for role in Role)


def test_the_sides_hand_out_disjoint_objects(zoo: Zoo):
    loaded = zoo.load()
    (state,) = loaded.plugins
    assert state.group == RUNTIME_GROUP
    assert state.roles == {Role.SPAWN, Role.HEALTH}
    assert not loaded.providers(Role.KEYCHAIN)
    assert state.modules == {"companion_zoo_good"}
