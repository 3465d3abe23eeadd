"""What to start, and how: the plugin's plan, asked for once and rebuilt from its allowed parts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from companion_core.decisions.isolation import Tier
from companion_core.decisions.spawn_plan import PlanFacts, check_plan
from companion_core.decisions.verdict import Verdict
from companion_core.errors import Reason, Refused, error_for
from companion_core.models.store import VerifiedModel
from companion_core.plugin_host import PINNED_IMPORTS, RuntimeCode, call_provider
from companion_core.providers import (
    CannotPlan,
    ModelFile,
    ResourceLimits,
    Spawner,
    SpawnPlan,
    SpawnRequest,
    TcpChannel,
    UnixChannel,
)
from companion_core.runtime.process.binary import ProvedBinary
from companion_core.runtime.start.libraries import ProgramLibraries
from companion_core.runtime.start.model_facts import ModelFacts
from companion_core.system.interpreter import Interpreter, running_interpreter

__all__ = ["StartSpec", "ask_for_plan", "check_spec", "has_own_network", "tier_for"]

PLAN_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSpec:
    """What to start.

    Attributes:
        plugin_modules: modules inside the plugin's own hashed files.
        plugin_folders: where these modules lie.
        binary: an absolute path, or "embedded".
        binary_sha256: as recorded at set-up; only "embedded" needs none.
        data_dir: the runtime's own folder, which stays between starts.
        record_path: the file in which the running processes are written down, for `reclaim`.
        run_dir: the folder in which this start's folder is made; a short path, since the path of
            a socket must be short.
        parallel: how many requests the gateway has in flight at most.
        tier: how the runtime is confined; one that works here.
        allow_open_backend: the person accepted a backend without socket and key (I-07).
        interpreter: runs the keeper, the broker and an embedded runtime.
        code: of the plugin; None where it is not installed.
        libraries: those that a stand-alone program loads, as its first start found them.
        require_gpu: a start that places nothing on an accelerator is refused.
    """

    spawner: Spawner
    plugin_name: str
    plugin_modules: frozenset[str]
    binary: str
    binary_sha256: str | None
    model: VerifiedModel
    data_dir: Path
    run_dir: Path
    log_path: Path
    record_path: Path
    limits: ResourceLimits
    parallel: int
    threads: int
    context_length: int | None
    options: Mapping[str, str | int | float | bool]
    tier: Tier
    allow_open_backend: bool = False
    plugin_folders: tuple[str, ...] = ()
    interpreter: Interpreter = field(default_factory=running_interpreter)
    code: RuntimeCode | None = None
    libraries: ProgramLibraries = field(default_factory=ProgramLibraries)
    require_gpu: bool = False

    @property
    def store_record(self) -> Path:
        """The file that records the backend's store, where the backend cannot reach it."""
        return self.record_path.with_name("backend-store.json")


def check_spec(spec: StartSpec) -> None:
    """Require evidence for the model, and a plugin that knows its format and each option.

    Raises:
        Refused: `not_verified`.
        CompanionError: `model_format_unsupported`, `unknown_option`.
    """
    if type(spec.model) is not VerifiedModel:  # evidence, whatever the annotations say (I-01)
        raise Refused(Reason.NOT_VERIFIED)
    if spec.model.format not in spec.spawner.formats:
        raise error_for(Reason.MODEL_FORMAT_UNSUPPORTED, plugin=spec.plugin_name)
    unknown = sorted(set(spec.options) - spec.spawner.option_names)
    if unknown:
        raise error_for(Reason.UNKNOWN_OPTION, ", ".join(unknown))


async def ask_for_plan(
    spec: StartSpec,
    folder: Path,
    binary: ProvedBinary,
    channel: UnixChannel | TcpChannel,
    *,
    files: tuple[ModelFile, ...],
    base_names: frozenset[str],
    help_text: str,
    found: ModelFacts,
) -> SpawnPlan:
    """Ask the plugin, and return its plan, rebuilt from the allowed parts.

    Args:
        spec: what to start.
        folder: the private folder of this start.
        binary: the proved program.
        channel: where the backend is to listen.
        files: the model's files, as the runtime opens them.
        base_names: environment variables that the core sets itself.
        help_text: what the program prints about its flags.
        found: what the model says, and the context that fits.

    Raises:
        CompanionError: the plugin's reason, or that of the rule that its plan breaks.
    """
    head = found.head
    request = SpawnRequest(
        binary=binary.path,
        embedded=binary.embedded,
        model_id=spec.model.model_id,
        model_path=files[0].path,
        chat_template=spec.model.chat_template,
        model_chat_template=None if head is None else head.text("tokenizer.chat_template"),
        model_files=files,
        channel=channel,
        private_dir=str(folder),
        data_dir=str(spec.data_dir),
        limits=spec.limits,
        parallel=spec.parallel,
        threads=spec.threads,
        context_length=found.fit.context,
        options=MappingProxyType(dict(spec.options)),
        help_text=help_text,
        require_gpu=spec.require_gpu,
    )
    try:
        proposed = await call_provider(
            spec.plugin_name, spec.spawner.plan, request, seconds=PLAN_SECONDS
        )
    except CannotPlan as error:
        raise error_for(error.reason, plugin=spec.plugin_name) from error
    facts = PlanFacts(
        binary=binary.path,
        embedded=binary.embedded,
        embedded_modules=spec.plugin_modules,
        env_names=spec.spawner.env_names,
        base_names=base_names,
        model_path=files[0].path,
        channel=channel,
        data_dir=str(spec.data_dir),
        windows=sys.platform == "win32",
        allow_open_backend=spec.allow_open_backend or has_own_network(spec.tier, channel),
    )
    plan = check_plan(proposed, facts)
    if isinstance(plan, Verdict):
        about = f"the plan's {plan.about}" if plan.about else ""
        raise error_for(plan.reason, about, plugin=spec.plugin_name)
    if binary.embedded:  # they may lie outside the interpreter's own folders
        read_paths = (*plan.read_paths, *spec.plugin_folders, PINNED_IMPORTS)
        return replace(plan, read_paths=read_paths)
    return plan


def tier_for(spec: StartSpec, channel: UnixChannel | TcpChannel) -> Tier:
    """Return the tier of this start: Landlock allows one port, so no runtime with several."""
    several = isinstance(channel, TcpChannel) and spec.allow_open_backend
    return Tier.NONE if several and spec.tier is Tier.LANDLOCK else spec.tier


def has_own_network(tier: Tier, channel: UnixChannel | TcpChannel) -> bool:
    """Tell whether the runtime listens in a network namespace of its own (I-07)."""
    return tier is Tier.BUBBLEWRAP and isinstance(channel, TcpChannel)
