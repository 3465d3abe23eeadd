"""A good plugin and one that is broken or hostile, both installed and trusted, and loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from companion_core.errors import Reason
from companion_core.plugin_host.host import LoadedPlugins, load_plugins
from companion_core.plugin_host.inventory import find_plugins
from companion_core.plugin_host.rules import FirstParty, Release, normalized
from companion_core.plugin_host.selection import Role
from companion_core.plugin_host.survey import State
from companion_core.providers import HostInfo

HOST = HostInfo(api="1.0", core_version="0.1.0", platform="linux")
SECRET = "a-foreign-secret"

GOOD = """
from companion_core import hookimpl

class Spawner:
    channels = frozenset({"unix"})
    formats = frozenset({"gguf"})
    env_names = child_env_names = option_names = frozenset()
    def locate(self):
        return ()
    def plan(self, request):
        raise NotImplementedError

class Health:
    path = "/health"
    def judge(self, response):
        return response.status == 200

@hookimpl
def companion_spawn(host):
    return Spawner()

@hookimpl
def companion_health():
    return Health()
"""

Install = Callable[..., Path]


class Zoo:
    """Installs a good plugin and one animal, both trusted, and loads them."""

    def __init__(self, install: Install) -> None:
        self._install = install
        self.site = self.add("good", GOOD)

    def add(self, name: str, text: str, **how: object) -> Path:
        files = {f"companion_zoo_{name}/__init__.py": text, **how.pop("files", {})}
        return self._install(f"zoo-{name}", files, {name: f"companion_zoo_{name}"}, **how)

    def trust_all(self) -> FirstParty:
        return {
            normalized(found.distribution): {
                found.version: Release(
                    digest=found.digest or "",
                    group=found.group,
                    entry_points={found.name: found.module},
                )
            }
            for found in find_plugins([str(self.site)])
        }

    def load(self, trusted: FirstParty | None = None, **how: object) -> LoadedPlugins:
        trusted = self.trust_all() if trusted is None else trusted
        return load_plugins(HOST, first_party=trusted, path=[str(self.site)], **how)

    def animal(self, loaded: LoadedPlugins, name: str = "animal") -> tuple[State, Reason]:
        """Return the animal's end, after proving that its neighbour is well."""
        states = {plugin.name: plugin for plugin in loaded.plugins}
        assert (states["good"].state, states["good"].reason) == (State.REGISTERED, Reason.OK)
        assert "good" in loaded.providers(Role.SPAWN)
        for role in Role:
            assert name not in loaded.providers(role)
        assert SECRET not in f"{states[name].detail}"
        assert states[name].advice
        return states[name].state, states[name].reason
