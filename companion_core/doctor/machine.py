"""Checks of this machine: Python, memory, accelerators, loopback, proxies, isolation."""

from __future__ import annotations

import importlib.util
import platform
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from typing import Final

from companion_core.decisions.isolation import PROMISES, TIERS, Tier, choose_tier
from companion_core.decisions.resources import check_limits
from companion_core.decisions.verdict import Verdict
from companion_core.doctor.checks import Check, Situation
from companion_core.doctor.configuration import require_config
from companion_core.doctor.findings import Finding, Row, Section, broken, fine, skipped
from companion_core.egress.interface import Egress
from companion_core.egress.tls_context import build_tls_context
from companion_core.errors import Reason
from companion_core.providers import ProbeFailed, ResourceLimits
from companion_core.runtime import (
    CeilingState,
    TierState,
    available_memory,
    free_vram,
    has_driver,
    probe_ceilings,
    probe_isolation,
)
from companion_core.serving.assembly import default_ram_ceiling

__all__ = ["checks"]

OLDEST_PYTHON: Final = (3, 11)
_PACKAGES: Final = (
    ("pluggy", "pluggy"),
    ("click", "click"),
    ("cryptography", "cryptography"),
    ("platformdirs", "platformdirs"),
    ("psutil", "psutil"),
    ("nvidia-ml-py", "pynvml"),
)
_PROXIES: Final = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
_SYSTEMS: Final = {"linux": "Linux", "darwin": "macOS", "win32": "Windows"}
_DELEGATED: Final = "systemd-run --user --scope -p Delegate=yes -- companion up"


def check_python(_situation: Situation, *, oldest: tuple[int, int] = OLDEST_PYTHON) -> Finding:
    """Require a Python version that the package supports."""
    version = f"{platform.python_implementation()} {platform.python_version()}"
    if sys.version_info < oldest:
        return broken(Reason.RUNTIME_UNSAFE, version)
    return fine(version)


def check_platform(_situation: Situation, name: str = sys.platform) -> Finding:
    """Say which system this is, and what is missing on it."""
    if name not in _SYSTEMS:
        return broken(Reason.CONTROL_UNAVAILABLE, f"{name} is not supported")
    about = f"{_SYSTEMS[name]} {platform.release()}, {platform.machine()}"
    if name != "linux":
        return fine(f"{about}; the companion's makers have not run its code for this system yet")
    return fine(about)


def check_packages(
    _situation: Situation, *, packages: Sequence[tuple[str, str]] = _PACKAGES
) -> Finding:
    """Require the package's dependencies, without importing them."""
    missing = [name for name, module in packages if importlib.util.find_spec(module) is None]
    if missing:
        names = " ".join(missing)
        return broken(Reason.PROVIDER_MISSING, names, fix=f"pip install {names}")
    return fine(", ".join(f"{name} {_version(name)}" for name, _ in packages))


def check_extra(_situation: Situation, *, module: str, extra: str) -> Finding:
    """Say whether an optional package is installed."""
    if importlib.util.find_spec(module) is None:
        fix = f"pip install 'companion-core[{extra}]'"
        return skipped(Reason.NOT_APPLICABLE, "optional, not installed", fix=fix)
    return fine(_version(module))


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return ""


def check_memory(situation: Situation) -> Finding:
    """Compare the configured ceilings with what the machine has (I-12)."""
    import psutil  # noqa: PLC0415 - slow to import; only this check needs it

    total, free = int(psutil.virtual_memory().total), available_memory()
    detail = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB are free"
    limits = situation.config.limits if situation.config is not None else None
    if limits is None:
        return fine(detail)
    ceiling = limits.max_ram_bytes or default_ram_ceiling()
    verdict = check_limits(
        ResourceLimits(
            max_ram_bytes=ceiling,
            max_vram_bytes=limits.max_vram_bytes,
            max_cpu_percent=limits.max_cpu_percent,
        )
    )
    if not verdict.ok:
        return broken(verdict.reason, detail)
    return fine(f"{detail}; the runtime may use {ceiling / 1e9:.1f} GB")


def check_ceilings(
    _situation: Situation,
    name: str = sys.platform,
    *,
    probe: Callable[[str], CeilingState] = probe_ceilings,
) -> Finding:
    """Say whether the system would enforce the ceilings of a runtime started here (I-12)."""
    state = probe(name)
    if state.hard:
        return fine(f"enforced by the system: {state.detail}")
    fix = _DELEGATED if name == "linux" else ""
    return skipped(Reason.NOT_APPLICABLE, f"observed, not enforced: {state.detail}", fix=fix)


def check_gpu(
    _situation: Situation,
    *,
    driver: Callable[[], bool] = has_driver,
    free: Callable[[], int] = free_vram,
) -> Finding:
    """Ask the NVIDIA driver, if there is one, for free video memory."""
    if not driver():
        return skipped(Reason.NOT_APPLICABLE, "no NVIDIA driver: video memory is not watched")
    try:
        return fine(f"NVML answers: {free() / 1e9:.1f} GB of video memory are free")
    except ProbeFailed:
        return broken(Reason.PROBE_FAILED, "the NVIDIA driver does not answer")


def check_loopback(_situation: Situation, *, family: socket.AddressFamily, host: str) -> Finding:
    """Bind a free port on a loopback address, and release it."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as listener:
            listener.bind((host, 0))
    except OSError as error:
        if family == socket.AF_INET6:
            return skipped(Reason.NOT_APPLICABLE, "no IPv6 on loopback: IPv4 alone is used")
        return broken(Reason.LISTENER_NOT_BOUND, error.strerror or host)
    return fine(f"{host} can be listened on")


def check_proxies(situation: Situation) -> Finding:
    """Name the proxy settings; their values may hold credentials."""
    environ = situation.environ
    names = [name for name in _PROXIES if environ.get(name) or environ.get(name.lower())]
    if not names:
        return fine("none")
    return fine(f"{', '.join(names)}: for the manifest and models, never for loopback")


def check_certificates(situation: Situation) -> Finding:
    """Load the authorities that servers are verified with."""
    config = situation.config
    extra = config.network.extra_ca_file if config is not None else None
    count = len(build_tls_context(extra).get_ca_certs())
    return fine(f"{count} authorities are loaded{' with network.extra_ca_file' if extra else ''}")


def check_isolation(
    situation: Situation,
    system: str = sys.platform,
    *,
    probe: Callable[[Egress], tuple[TierState, ...]] = probe_isolation,
) -> list[Row]:
    """Return a row for each isolation tier of this system, and one for the chosen tier."""
    situation.tiers = probe(situation.egress)
    rows = [
        _isolation_row(state.tier.value, _tier(state.tier, works=state.works, about=state.detail))
        for state in situation.tiers
    ]
    return [*rows, _isolation_row("chosen", _chosen(situation, system))]


def _isolation_row(name: str, finding: Finding) -> Row:
    title = f"isolation, {name}"
    return Row(id=f"isolation.{name}", title=title, section=Section.MACHINE, finding=finding)


def _tier(tier: Tier, *, works: bool, about: str) -> Finding:
    if works:
        return fine(f"{about}. {_promises(tier)}")
    fix = "apt-get install bubblewrap" if "not installed" in about else ""
    return skipped(Reason.ISOLATION_UNAVAILABLE, about, fix=fix)


def _promises(tier: Tier) -> str:
    """Say what a runtime in the tier can and cannot do, as far as tests have shown."""
    return "A runtime " + "; ".join(sorted(promise.value for promise in PROMISES[tier]))


def _chosen(situation: Situation, system: str) -> Finding:
    config = situation.config
    policy = config.runtime.isolation if config is not None else "best"
    working = frozenset(state.tier for state in situation.tiers if state.works)
    tier = choose_tier(policy, system, working)
    if isinstance(tier, Verdict):
        best = next(iter(TIERS.get(system, ())), Tier.NONE)
        return broken(tier.reason, f'runtime.isolation = "required" asks for {best.value}')
    if tier is Tier.NONE:
        detail = f"nothing confines the runtime here. {_promises(tier)}"
        return skipped(Reason.ISOLATION_UNAVAILABLE, detail)
    return fine(f"{tier.value} ({policy})")


def check_temporary(_situation: Situation) -> Finding:
    """Require a temporary folder, which the trial of plugins and sockets need."""
    with tempfile.TemporaryFile() as file:
        file.write(b"\0")
        file.flush()
    return fine(tempfile.gettempdir())


def check_port(situation: Situation) -> Finding:
    """Require that a configured port is free, unless the running companion uses it."""
    from companion_core.gateway import bind_loopback  # noqa: PLC0415 - only this check needs it

    port = require_config(situation).gateway.port
    if port == 0:
        return fine("0: chosen at the first start and kept")
    if situation.status is not None and situation.status.get("gateway"):
        return fine(f"{port}: used by the running companion")
    try:
        listeners = bind_loopback(port)
    except OSError as error:
        return broken(Reason.LISTENER_NOT_BOUND, f"{port}: {error.strerror}")
    for listener in listeners:
        listener.close()
    return fine(f"{port} is free")


def checks() -> tuple[Check, ...]:
    """Return the checks of this file."""
    check = partial(Check, section=Section.MACHINE)
    fast = partial(check_extra, module="uvloop", extra="fast")
    second = partial(check_extra, module="httptools", extra="second-parser")
    four = partial(check_loopback, family=socket.AF_INET, host="127.0.0.1")
    six = partial(check_loopback, family=socket.AF_INET6, host="::1")
    return (
        check(id="python", title="Python", run=check_python),
        check(id="platform", title="system", run=check_platform),
        check(id="packages", title="packages", run=check_packages),
        check(id="extra.uvloop", title="uvloop", run=fast),
        check(id="extra.httptools", title="httptools", run=second),
        check(id="temporary", title="temporary folder", run=check_temporary),
        check(id="memory", title="memory", run=check_memory),
        check(id="ceilings", title="ceilings", run=check_ceilings),
        check(id="gpu", title="NVIDIA driver", run=check_gpu),
        check(id="loopback-v4", title="loopback, IPv4", run=four),
        check(id="loopback-v6", title="loopback, IPv6", run=six),
        check(id="port", title="gateway's port", run=check_port, needs=("configuration",)),
        check(id="proxies", title="proxies", run=check_proxies),
        check(id="certificates", title="certificates", run=check_certificates),
        check(id="isolation", title="isolation", run=check_isolation, seconds=None),
    )
