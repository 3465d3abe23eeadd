"""Load the plugins and choose one for each role; the two sides leave as two objects (I-14)."""

from __future__ import annotations

import os
import ssl
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from companion_core import __version__
from companion_core.authority import memory_keychain
from companion_core.config.paths import InstancePaths
from companion_core.config.sections import Config
from companion_core.decisions.isolation import Tier, choose_tier
from companion_core.decisions.restart import Size
from companion_core.decisions.verdict import Verdict
from companion_core.egress.interface import Egress
from companion_core.errors import EnvironmentUnavailable, PluginFault, Reason, error_for
from companion_core.hookspecs import AUTHORITY_GROUP
from companion_core.models.https_downloader import HttpsDownloader, HttpsDownloadPlugin
from companion_core.models.store import VerifiedModel
from companion_core.plugin_host import (
    EMBEDDED,
    Chosen,
    ChosenRuntime,
    CorePlugin,
    KeychainOptions,
    LoadedPlugins,
    RuntimeCode,
    TrustRecord,
    TrustStore,
    ask_interpreter,
    call_provider_sync,
    load_plugins,
    parse_narrow,
    read_pins,
    rebuild_binaries,
    require_reachable,
    search_packages_of,
)
from companion_core.providers import API_VERSION, HostInfo, Keychain, ResourceLimits
from companion_core.runtime import (
    ProgramLibraries,
    StartSpec,
    check_unreplaceable,
    probe_isolation,
    process_probe,
)
from companion_core.system.cores import physical_cores
from companion_core.system.interpreter import Interpreter, running_interpreter
from companion_core.system.memory import machine_memory
from companion_core.system.plain_paths import plain_file

__all__ = [
    "AuthorityProviders",
    "RuntimeProviders",
    "assemble",
    "choose_interpreter",
    "default_ram_ceiling",
    "load_every_plugin",
]

LOCATE_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorityProviders:
    """The chosen provider of each role on the side that may hold secrets."""

    keychain: Chosen[Keychain]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeProviders:
    """The chosen provider of each role on the side without secrets.

    Attributes:
        chosen: the provider of each role and the name of its plugin.
        binary: "embedded" or the configured absolute path.
        limits: as configured, with the default for memory filled in.
        tier: how runtimes are confined here.
        interpreter: the Python that runs what is started.
        code: the spawner's plugin; None where it is not installed.
        libraries: those beside a stand-alone program.
    """

    chosen: ChosenRuntime
    binary: str
    limits: ResourceLimits
    tier: Tier
    interpreter: Interpreter = field(default_factory=running_interpreter)
    code: RuntimeCode | None = None
    libraries: ProgramLibraries = field(default_factory=ProgramLibraries)

    def start_spec(
        self, config: Config, paths: InstancePaths, model: VerifiedModel, size: Size
    ) -> StartSpec:
        """Return what to start for this model, with requests and context of this size."""
        section, spawn = config.runtime, self.chosen.spawn
        return StartSpec(
            spawner=spawn.provider,
            plugin_name=spawn.plugin,
            plugin_modules=self.chosen.modules,
            plugin_folders=self.chosen.folders,
            binary=self.binary,
            binary_sha256=section.binary_sha256,
            model=model,
            data_dir=paths.runtime_data(spawn.plugin),
            run_dir=paths.run_folder(),
            log_path=paths.runtime_log,
            record_path=paths.runtime_record,
            limits=self.limits,
            parallel=size.parallel,
            threads=section.threads or physical_cores(),
            context_length=size.context_length,
            options=section.options,
            tier=self.tier,
            allow_open_backend=section.unsafe_open_backend,
            interpreter=self.interpreter,
            code=self.code,
            libraries=self.libraries,
            require_gpu=section.require_gpu,
        )


def assemble(
    config: Config,
    egress: Egress,
    context: ssl.SSLContext,
    plugin_store: Path,
    pins: Mapping[str, str] = MappingProxyType({}),
) -> tuple[AuthorityProviders, RuntimeProviders]:
    """Load every trusted plugin and select one provider per role. Blocking.

    Args:
        config: what the person configured.
        egress: the doorway to the machine.
        context: how servers are verified.
        plugin_store: the file of the plugins that the person trusts.
        pins: plugins that the product vouches for, beside those of `plugins.pins_file`.

    Raises:
        CompanionError: no plugin fills a role, or several do and none was named; the trust store
            cannot be read; no interpreter runs what is started.
    """
    interpreter = choose_interpreter(config, egress)
    search_packages_of(interpreter)
    loaded = load_every_plugin(
        egress,
        lambda: context,
        TrustStore(plugin_store).read().trusted,
        {**read_pins(config.plugins.pins_file), **pins},
        KeychainOptions(name=config.keychain.name, values=config.keychain.options),
    )
    chosen = loaded.select_runtime(config.runtime.name)
    keychain = loaded.select_keychain(config.keychain.name)
    binary, found = _choose_binary(config, chosen, egress, interpreter), chosen.found
    runtime = RuntimeProviders(
        chosen=chosen,
        binary=binary,
        code=None if found is None else RuntimeCode.of(found, embedded=binary == EMBEDDED),
        limits=_fill_limits(config),
        tier=_choose_tier(config, egress),
        interpreter=interpreter,
    )
    return AuthorityProviders(keychain=keychain), runtime


def load_every_plugin(
    egress: Egress,
    context_factory: Callable[[], ssl.SSLContext],
    trusted: Mapping[str, TrustRecord],
    pins: Mapping[str, str] = MappingProxyType({}),
    keychain: KeychainOptions | None = None,
) -> LoadedPlugins:
    """Load the core's own plugins and the installed ones that are trusted."""
    downloads = HttpsDownloadPlugin(HttpsDownloader(egress, context_factory))
    return load_plugins(
        HostInfo(api=API_VERSION, core_version=__version__, platform=sys.platform),
        core_plugins=[
            CorePlugin(
                name="memory", plugin=memory_keychain, group=AUTHORITY_GROUP, only_by_name=True
            ),
            CorePlugin(name="https", plugin=downloads),
            CorePlugin(name="process", plugin=process_probe),
        ],
        trusted=trusted,
        pins=pins,
        keychain=keychain,
        narrow=parse_narrow(os.environ.get("COMPANION_PLUGINS")),
    )


def choose_interpreter(config: Config | None, egress: Egress) -> Interpreter:
    """Return the configured interpreter, proved, or the one that runs this code. Blocking.

    Raises:
        EnvironmentUnavailable: `interpreter_missing`.
        Refused: `runtime_unsafe`, others can replace the configured one.
    """
    program = None if config is None else config.runtime.interpreter
    if program is None:
        return running_interpreter()
    if not os.path.isfile(program):  # noqa: PTH113 - a path from the configuration
        raise EnvironmentUnavailable(Reason.INTERPRETER_MISSING, program)
    for name in (program, os.path.realpath(program)):
        check_unreplaceable(Path(name))
    return ask_interpreter(egress, program)


def _choose_binary(
    config: Config, chosen: ChosenRuntime, egress: Egress, interpreter: Interpreter
) -> str:
    """Return the configured program, else the embedded one; nothing is taken from PATH."""
    binary = _find_binary(config, chosen)
    if binary == EMBEDDED and chosen.site:
        require_reachable(egress, chosen.distribution, chosen.site, interpreter)
    return binary


def _find_binary(config: Config, chosen: ChosenRuntime) -> str:
    if config.runtime.binary is not None:
        return plain_file(config.runtime.binary)
    spawn = chosen.spawn
    found = rebuild_binaries(
        call_provider_sync(spawn.plugin, spawn.provider.locate, seconds=LOCATE_SECONDS)
    )
    if found is None:
        raise PluginFault(Reason.PLUGIN_RESULT_INVALID, spawn.plugin, f"{spawn.plugin}: locate")
    if any(binary.path == EMBEDDED for binary in found):
        return EMBEDDED
    raise EnvironmentUnavailable(Reason.RUNTIME_NOT_FOUND)


def _choose_tier(config: Config, egress: Egress) -> Tier:
    working = frozenset(state.tier for state in probe_isolation(egress) if state.works)
    tier = choose_tier(config.runtime.isolation, sys.platform, working)
    if isinstance(tier, Verdict):
        raise error_for(tier.reason)
    return tier


def _fill_limits(config: Config) -> ResourceLimits:
    limits = config.limits
    return ResourceLimits(
        max_ram_bytes=limits.max_ram_bytes or default_ram_ceiling(),
        max_vram_bytes=limits.max_vram_bytes,
        max_cpu_percent=limits.max_cpu_percent,
    )


def default_ram_ceiling() -> int:
    """Return the ceiling of memory where none is configured: three quarters of the machine's."""
    return machine_memory().total * 3 // 4
