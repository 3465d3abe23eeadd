"""Load plugins: each is found, trusted, imported, registered, and perhaps selected.

A failure costs only the plugin that failed: it keeps its last state and a reason, and the
others load. The core's own plugins are registered and selected like any other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final, Generic, TypeVar, cast

from companion_core.errors import EnvironmentUnavailable, PluginFault, Reason, error_for
from companion_core.hookspecs import AUTHORITY_GROUP, RUNTIME_GROUP
from companion_core.plugin_host.calls import call_provider_sync
from companion_core.plugin_host.imports import import_plugin
from companion_core.plugin_host.managers import SealedPluginManager, sealed_managers
from companion_core.plugin_host.rules import FirstParty, FoundPlugin, TrustRecord
from companion_core.plugin_host.selection import Candidate, Role, choose_keychain, choose_runtime
from companion_core.plugin_host.snapshots import Snapshot, snapshot_provider
from companion_core.plugin_host.survey import PluginState, State, survey_plugins
from companion_core.providers import (
    Downloader,
    HealthChecker,
    HostInfo,
    Keychain,
    OptionInvalid,
    OptionValue,
    ResourceProbe,
    Spawner,
)

__all__ = [
    "Chosen",
    "ChosenRuntime",
    "CorePlugin",
    "KeychainOptions",
    "LoadedPlugins",
    "load_plugins",
]

LOAD_SECONDS: Final = 10.0
"""How long an import, a registration or a hook may take; each has its own deadline."""

P = TypeVar("P")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorePlugin:
    """A plugin that ships in the core, given as an object with hook implementations.

    Attributes:
        group: the entry-point group that it registers in.
        only_by_name: never chosen unless the configuration names it.
    """

    name: str
    plugin: object
    group: str = RUNTIME_GROUP
    only_by_name: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class KeychainOptions:
    """What the person configured of a keychain.

    Attributes:
        name: of its plugin; None for the single trusted one.
        values: handed to that plugin's hook, and to no other's.
    """

    name: str | None = None
    values: Mapping[str, OptionValue] = field(
        default_factory=lambda: MappingProxyType({}), repr=False
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen(Generic[P]):
    """A provider and the name of its plugin; a fault of the provider's calls carries the name."""

    plugin: str
    provider: P


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenRuntime:
    """The providers of the runtime's roles.

    Attributes:
        modules: those of the spawner's plugin.
        folders: where they lie.
        distribution: of the spawner's plugin.
        site: the folder of the distribution's metadata; "" for a plugin that is not installed.
        found: the spawner's plugin as it was found; None for one that is not installed.
    """

    spawn: Chosen[Spawner]
    health: Chosen[HealthChecker]
    download: Chosen[Downloader]
    probe: Chosen[ResourceProbe]
    modules: frozenset[str]
    folders: tuple[str, ...] = ()
    distribution: str = ""
    site: str = ""
    found: FoundPlugin | None = None


class LoadedPlugins:
    """Every plugin's state, and the providers of those that registered."""

    def __init__(
        self,
        plugins: Sequence[PluginState],
        providers: Mapping[Role, Mapping[str, Snapshot]],
        options: Mapping[str, OptionValue] = MappingProxyType({}),
        found: Mapping[str, FoundPlugin] = MappingProxyType({}),
    ) -> None:
        self._options = options
        self._plugins = tuple(plugins)
        self._found = found
        self._providers = {role: MappingProxyType(dict(providers[role])) for role in Role}
        self._selected: set[str] = set()

    @property
    def plugins(self) -> tuple[PluginState, ...]:
        """The state of each plugin; `SELECTED` for those that were chosen."""
        return tuple(
            replace(plugin, state=State.SELECTED)
            if plugin.name in self._selected and plugin.state is State.REGISTERED
            else plugin
            for plugin in self._plugins
        )

    def providers(self, role: Role) -> Mapping[str, Snapshot]:
        """The providers of `role` by the name of their plugin."""
        return self._providers[role]

    def select_keychain(self, configured: str | None) -> Chosen[Keychain]:
        """Choose the keychain; see `selection.choose_keychain` for what it raises.

        Raises:
            UsageError: `unknown_option`, [keychain.options] has a key that it does not know.
        """
        chosen = self._take(Role.KEYCHAIN, choose_keychain(self._candidates(), configured))
        known = chosen.provider.option_names
        if unknown := sorted(set(self._options) - known):
            names = ", ".join(f"keychain.options.{name}" for name in unknown)
            knows = ", ".join(sorted(known)) or "none"
            raise error_for(Reason.UNKNOWN_OPTION, f"{names}: {chosen.plugin} knows {knows}")
        return cast("Chosen[Keychain]", chosen)

    def select_runtime(self, configured: str | None) -> ChosenRuntime:
        """Choose the runtime's providers; see `selection.choose_runtime` for what it raises."""
        choice = choose_runtime(self._candidates(), configured)
        plugin = next(plugin for plugin in self._plugins if plugin.name == choice.spawn)
        return ChosenRuntime(
            spawn=cast("Chosen[Spawner]", self._take(Role.SPAWN, choice.spawn)),
            health=cast("Chosen[HealthChecker]", self._take(Role.HEALTH, choice.health)),
            download=cast("Chosen[Downloader]", self._take(Role.DOWNLOAD, choice.download)),
            probe=cast("Chosen[ResourceProbe]", self._take(Role.PROBE, choice.probe)),
            modules=plugin.modules,
            folders=plugin.folders,
            distribution=plugin.distribution,
            site=plugin.site,
            found=self._found.get(plugin.name),
        )

    def _take(self, role: Role, name: str) -> Chosen[Any]:
        self._selected.add(name)
        return Chosen(plugin=name, provider=self._providers[role][name])

    def _candidates(self) -> list[Candidate]:
        return [
            Candidate(
                name=plugin.name,
                side=Role.KEYCHAIN if plugin.group == AUTHORITY_GROUP else Role.SPAWN,
                roles=plugin.roles,
                reason=plugin.reason,
                trusted=plugin.state is not State.FOUND,
                core=plugin.core,
                only_by_name=plugin.only_by_name,
                about=": ".join(
                    filter(None, [f"{plugin.distribution} {plugin.version}", plugin.detail])
                ),
            )
            for plugin in self._plugins
        ]


def load_plugins(
    host_info: HostInfo,
    *,
    core_plugins: Sequence[CorePlugin] = (),
    trusted: Mapping[str, TrustRecord] = MappingProxyType({}),
    pins: Mapping[str, str] = MappingProxyType({}),
    narrow: Collection[str] | None = None,
    first_party: FirstParty | None = None,
    path: Sequence[str] | None = None,
    load_seconds: float = LOAD_SECONDS,
    keychain: KeychainOptions | None = None,
) -> LoadedPlugins:
    """Find the installed plugins, import the trusted ones and register what they provide.

    A plugin's fault never raises; its `PluginState` says what happened.

    Args:
        host_info: what a plugin may know of its host.
        core_plugins: the core's own; no installed plugin may have one of their names.
        trusted: what the person vouched for (`trust_store`).
        pins: what the product vouches for: names and SHA-256 digests (`pins.read_pins`).
        narrow: names of installed plugins that may load (`rules.parse_narrow`); None allows all.
        first_party: the releases to recognise; None is the table that ships with the core.
        path: the folders to search; None is `sys.path`.
        load_seconds: how long an import, a registration or a hook may take.
        keychain: the options of the configured keychain.
    """
    loader = _Loader(host_info, load_seconds, keychain or KeychainOptions())
    for core in core_plugins:
        loader.add_core(core)
    surveyed = survey_plugins(
        trusted=trusted,
        pins=pins,
        narrow=narrow,
        reserved={core.name for core in core_plugins},
        first_party=first_party,
        path=path,
    )
    for plugin, state in surveyed:
        loader.add_found(plugin, state)
    return loader.finish()


class _Loader:
    """Loads plugins one by one, and collects a state and, if all is well, providers of each."""

    def __init__(self, host: HostInfo, load_seconds: float, keychain: KeychainOptions) -> None:
        self._host = host
        self._keychain = keychain
        self._load_seconds = load_seconds
        self._managers = sealed_managers()
        self._states: list[PluginState] = []
        self._found: dict[str, FoundPlugin] = {}
        self._providers: dict[Role, dict[str, Snapshot]] = {role: {} for role in Role}

    def add_core(self, core: CorePlugin) -> None:
        from companion_core import __version__  # noqa: PLC0415 - the package root loads lazily

        state = PluginState(
            name=core.name,
            group=core.group,
            distribution="companion-core",
            version=__version__,
            state=State.IMPORTED,
            core=True,
            only_by_name=core.only_by_name,
        )
        self._states.append(self._register(state, core.plugin))

    def add_found(self, plugin: FoundPlugin, state: PluginState) -> None:
        if state.state is State.TRUSTED:
            self._found[plugin.name] = plugin
            state = self._import(state, plugin)
        self._states.append(state)

    def finish(self) -> LoadedPlugins:
        for manager in self._managers.values():
            manager.seal()
        return LoadedPlugins(self._states, self._providers, self._keychain.values, self._found)

    def _import(self, state: PluginState, plugin: FoundPlugin) -> PluginState:
        try:
            module = self._contained(Reason.PLUGIN_IMPORT_FAILED, state.name, import_plugin, plugin)
        except PluginFault as fault:
            return replace(state, reason=fault.reason, detail=fault.detail)
        return self._register(replace(state, state=State.IMPORTED), module)

    def _register(self, state: PluginState, plugin: object) -> PluginState:
        manager, name = self._managers[state.group], state.name
        try:
            self._contained(
                Reason.PLUGIN_REGISTRATION_REFUSED, name, manager.register, plugin, name
            )
            providers = {
                role: self._ask(manager, name, plugin, role)
                for role in Role
                if role.hook in manager.hooks_of(plugin)
            }
        except PluginFault as fault:
            return replace(state, reason=fault.reason, detail=fault.detail)
        # All or nothing: no provider counts unless all of the plugin's providers fit.
        for role, provider in providers.items():
            self._providers[role][name] = provider
        return replace(state, state=State.REGISTERED, roles=frozenset(providers))

    def _ask(self, manager: SealedPluginManager, name: str, plugin: object, role: Role) -> Snapshot:
        arguments: dict[str, object] = {"host": self._host}
        if role is Role.KEYCHAIN:
            configured = self._keychain.name in {None, name}
            arguments["options"] = MappingProxyType(
                dict(self._keychain.values) if configured else {}
            )
        provider = self._contained(
            Reason.PLUGIN_CALL_FAILED, name, manager.call_singly, plugin, role.hook, arguments
        )
        snapshot = self._contained(
            Reason.PLUGIN_RESULT_INVALID, name, snapshot_provider, role, provider
        )
        if isinstance(snapshot, str):
            raise PluginFault(Reason.PLUGIN_RESULT_INVALID, name, f"{role}: {snapshot}")
        return cast("Snapshot", snapshot)

    def _contained(self, reason: Reason, plugin: str, function: Any, *args: object) -> object:
        """Run foreign code; turn any exception of it into a `PluginFault` with `reason`."""
        try:
            return cast(
                "object", call_provider_sync(plugin, function, *args, seconds=self._load_seconds)
            )
        except PluginFault as fault:
            if fault.reason is Reason.PLUGIN_CALL_FAILED:
                raise PluginFault(reason, plugin, fault.detail) from None
            raise
        except OptionInvalid as error:
            detail = f"keychain.options.{error.name}"
            raise PluginFault(Reason.UNKNOWN_OPTION, plugin, detail) from None
        except EnvironmentUnavailable:
            raise  # the system has no thread, descriptor or memory left, whoever asked for it
        except Exception:  # noqa: BLE001 - while loading, any exception is the plugin's fault
            raise PluginFault(reason, plugin) from None
