"""Checks of the running companion and its runtime, read back from outside (I-06 to I-18).

All of them are harmless: they ask for the status, send three requests that the gateway has to
refuse, and read what the system shows of processes and sockets.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import sys
import urllib.parse
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from companion_core import __version__
from companion_core.control.client import ask
from companion_core.decisions.runtime_readback import Listener, check_environment, check_listeners
from companion_core.decisions.spawn_plan import base_environment
from companion_core.doctor.checks import Check, Situation
from companion_core.doctor.findings import Finding, Section, broken, fine, skipped
from companion_core.errors import CompanionError, Reason
from companion_core.providers import TcpChannel, UnixChannel
from companion_core.runtime import descendants, environment_names, listeners

__all__ = ["checks"]

ASK_SECONDS: Final = 5.0
_TAIL_BYTES: Final = 1024 * 1024
_LOOPBACK: Final = frozenset({"127.0.0.1", "::1"})
# The programs of the isolation tiers set it to the working folder.
_TIER_NAMES: Final = frozenset({"PWD"})


def check_available(situation: Situation) -> Finding:
    """Say whether the companion would serve a request now, and if not, why (I-09)."""
    status = _status(situation)
    if status["available"]:
        age = status["last_health_ok_seconds_ago"]
        about = f"lifecycle {status['lifecycle']}, healthy {age:.1f} s ago"
        return fine(f"{about}{_other_version(status.get('version'))}")
    return broken(Reason(status["reason"]), f"lifecycle {status['lifecycle']}")


def _other_version(version: str | None, installed: str = __version__) -> str:
    """Say that what runs is not what is installed now; a package manager ends nothing."""
    if version == installed:
        return ""
    what = "an earlier release" if version is None else f"version {version}"
    return f"; it is {what} and {installed} is installed: companion down, companion up"


def check_runtime(situation: Situation) -> Finding:
    """Say whether a runtime runs that can be checked."""
    runtime = _status(situation)["runtime"]
    if runtime is None:
        return skipped(Reason.NOT_READY, "no runtime yet, or no more")
    about = f"{runtime['name']}, pid {runtime['pid']}, {runtime['channel']} socket"
    return fine(f"{about}, isolation: {runtime['isolation']}")


def check_gateway(situation: Situation) -> Finding:
    """Say whether a gateway listens that can be checked."""
    gateway = _status(situation)["gateway"]
    return skipped(Reason.NOT_READY, "no gateway yet") if gateway is None else fine(gateway["url"])


def check_verified(situation: Situation) -> Finding:
    """Require that the served model was verified (I-01)."""
    model = _status(situation)["model"]
    if not model["verified"]:
        return broken(Reason.NOT_VERIFIED, model["id"])
    return fine(f"{model['id']} is open as the descriptor that was hashed")


def check_admission(situation: Situation) -> Finding:
    """Require that the queue is within its bounds (I-11)."""
    seen = _status(situation)["admission"]
    within = 0 <= seen["in_flight"] <= seen["max_in_flight"]
    within = within and 0 <= seen["queued"] <= seen["queue_bound"]
    about = f"{seen['in_flight']} of {seen['max_in_flight']} run, "
    about += f"{seen['queued']} of {seen['queue_bound']} wait"
    return fine(about) if within else broken(Reason.MALFORMED_ADMISSION_STATE, about)


def check_resources(situation: Situation) -> Finding:
    """Compare what the runtime's tree uses with its ceiling of memory (I-12)."""
    seen = _status(situation)["resources"]
    if seen is None:
        return broken(Reason.PROBE_FAILED, "nothing was observed, so nothing is admitted")
    about = f"{seen['ram_bytes'] / 1e6:.0f} MB memory, {seen['cpu_percent']:.1f} % of the machine"
    about += f"; ceilings are {_status(situation)['runtime']['ceilings']}"
    limits = situation.config.limits if situation.config is not None else None
    if limits and limits.max_ram_bytes and seen["ram_bytes"] > limits.max_ram_bytes:
        return broken(Reason.RAM_OVER_LIMIT, about)
    return fine(about)


def check_runtime_environment(situation: Situation) -> Finding:
    """Read the names in the runtime's environment: only planned and declared ones (I-06)."""
    pid, name = _status(situation)["runtime"]["pid"], _status(situation)["runtime"]["name"]
    answers = situation.plugins.answers if situation.plugins is not None else None
    if answers is None or answers["runtime"]["plugin"] != name:
        return skipped(Reason.PROVIDER_MISSING, f"{name} could not be asked what it declares")
    declared = frozenset(answers["runtime"]["env_names"])
    below = frozenset(answers["runtime"]["child_env_names"])
    try:
        own = environment_names(pid)
        others = [environment_names(child) for child in descendants(pid)]
    except ProcessLookupError:
        return skipped(Reason.NOT_READY, "the runtime is ending")
    if own is None or None in others:
        return broken(Reason.RUNTIME_ENVIRONMENT, "it cannot be read back")
    planned = _base_names(own) | own & (declared | _TIER_NAMES)
    verdict = check_environment(own, others, planned=planned, child_names=below)
    if not verdict.ok:
        return broken(verdict.reason, _unplanned(own, others, planned=planned, below=below))
    return fine(f"{len(own)} names in pid {pid}, all planned; {len(others)} processes below it")


def _unplanned(
    own: frozenset[str],
    others: Iterable[frozenset[str] | None],
    *,
    planned: frozenset[str],
    below: frozenset[str],
) -> str:
    """Say for a person what the rule refused."""
    extra = (own - planned).union(*((names or frozenset()) - planned - below for names in others))
    about = {"not planned": extra, "missing": planned - own}
    return "; ".join(
        f"{what}: {', '.join(sorted(names))}" for what, names in about.items() if names
    )


def _base_names(seen: frozenset[str]) -> frozenset[str]:
    """Return the names of the core's base environment, which may choose accelerators."""
    return frozenset(
        base_environment(sys.platform, private_dir="/", inherited=dict.fromkeys(seen, ""))
    )


def check_runtime_sockets(situation: Situation) -> Finding:
    """Read on which sockets the runtime's tree listens (I-07)."""
    runtime = _status(situation)["runtime"]
    pid, channel = runtime["pid"], runtime["channel"]
    found = listeners((pid, *descendants(pid)))
    if channel == "unix":
        verdict = check_listeners(found, UnixChannel(path=""), allow_open_backend=False)
        if not verdict.ok:
            return broken(verdict.reason, _named(found))
        return fine("no network socket; a Unix socket in a folder of its own")
    config = situation.config
    several = channel == "namespace" or (config is not None and config.runtime.unsafe_open_backend)
    planned = any(
        check_listeners(
            found,
            TcpChannel(host=each.address, port=each.port),
            allow_open_backend=several,
            own_network=channel == "namespace",
        ).ok
        for each in found or ()
        if each.address in _LOOPBACK
    )
    if not planned:
        return broken(Reason.RUNTIME_LISTENS_WIDE, _named(found))
    where = "in a network of its own" if channel == "namespace" else "with a per-start key"
    return fine(f"loopback only, {where}")


def _named(found: frozenset[Listener] | None) -> str:
    if found is None:
        return "its sockets cannot be read back"
    return ", ".join(sorted(f"{each.protocol} {each.address}:{each.port}" for each in found))


def check_gateway_sockets(situation: Situation) -> Finding:
    """Require that the gateway's port is bound on loopback addresses alone (I-17)."""
    import psutil  # noqa: PLC0415 - slow to import; only this check needs it

    port = _port(situation)
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return skipped(Reason.NOT_APPLICABLE, "this system shows sockets to administrators alone")
    addresses = {
        each.laddr.ip
        for each in connections
        if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port
    }
    if not addresses:
        return broken(Reason.LISTENER_NOT_BOUND, f"nothing listens on port {port}")
    where = f"port {port} on {', '.join(sorted(addresses))}"
    if not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        return broken(Reason.INTERNAL_FAULT, f"{where}: beyond loopback")
    return fine(where)


# What a stranger might send, and how the gateway has to refuse it. A request without a token is
# refused for that until requests without a token exceed their rate.
_STRANGERS: Final[tuple[tuple[str, Mapping[str, str], frozenset[Reason]], ...]] = (
    ("a foreign Host", {"Host": "attacker.example"}, frozenset({Reason.HOST_NOT_ALLOWED})),
    (
        "a web page",
        {"Origin": "https://attacker.example"},
        frozenset({Reason.CROSS_SITE_FORBIDDEN}),
    ),
    ("no token", {}, frozenset({Reason.MISSING_TOKEN, Reason.RATE_LIMITED})),
)


def check_guard(situation: Situation) -> Finding:
    """Send what a stranger might send, and require a refusal without a CORS header (I-10, I-17)."""
    port = _port(situation)
    for who, headers, expected in _STRANGERS:
        try:
            reason, cors = _request(situation, port, headers)
        except (OSError, http.client.HTTPException):
            return broken(Reason.LISTENER_NOT_BOUND, f"{who} got no answer")
        if reason not in expected or cors:
            said = "with a CORS header" if cors else f"with {reason}"
            return broken(Reason.INTERNAL_FAULT, f"{who} was answered {said}")
    return fine(f"refused: {', '.join(who for who, _, _ in _STRANGERS)}; no CORS header")


def _request(situation: Situation, port: int, headers: Mapping[str, str]) -> tuple[str, bool]:
    connection = situation.egress.connect_loopback(port, timeout=ASK_SECONDS)
    with contextlib.closing(connection):
        connection.putrequest("GET", "/v1/models", skip_host=True, skip_accept_encoding=True)
        for name, value in ({"Host": f"127.0.0.1:{port}"} | dict(headers)).items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read(_TAIL_BYTES)
    cors = any(name.lower().startswith("access-control-") for name, _ in answer.getheaders())
    try:
        return Reason(json.loads(body)["error"]["code"]), cors
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status}", cors


def check_process(situation: Situation) -> Finding:
    """Require owner-only files and no core dump of the companion's process (I-18)."""
    if sys.platform != "linux":
        return skipped(Reason.NOT_APPLICABLE, "this system does not show a process's limits")
    pid = _status(situation)["pid"]
    umask = _field(Path(f"/proc/{pid}/status"), "Umask:")
    core = _field(Path(f"/proc/{pid}/limits"), "Max core file size")
    detail = f"umask {umask[0]}, core dumps of at most {core[0]} bytes"
    if umask[0] == "0077" and core[0] == "0":
        return fine(detail)
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode("utf-8", "replace").split("\0")
    if any(Path(part).name in {"companion", "companion_core"} for part in command):
        return broken(Reason.INTERNAL_FAULT, detail)
    return skipped(Reason.NOT_APPLICABLE, f"{detail}: set by the program that embeds it")


def _field(path: Path, name: str) -> list[str]:
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return line.removeprefix(name).split()
    return ["unknown"]


def check_logs(situation: Situation) -> Finding:
    """Look for the session's token in the logs (I-15)."""
    assert situation.running is not None  # noqa: S101 - this check needs the row "companion"
    try:
        token = ask(situation.running, situation.egress, "session")["token"].encode()
    except CompanionError as error:
        return skipped(error.reason, "no session to look for")
    logs = [path for path in situation.paths.logs.iterdir() if path.is_file()]
    for path in logs:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            if token in file.read(_TAIL_BYTES):
                return broken(Reason.INTERNAL_FAULT, f"{path.name} holds the session's token")
    return fine(f"the session's token is not in the last MiB of any of {len(logs)} logs")


def _status(situation: Situation) -> Mapping[str, Any]:
    assert situation.status is not None  # noqa: S101 - these checks need the row "companion"
    return situation.status


def _port(situation: Situation) -> int:
    return urllib.parse.urlsplit(_status(situation)["gateway"]["url"]).port or 0


def checks() -> tuple[Check, ...]:
    """Return the checks of this file."""
    check = partial(Check, section=Section.COMPANION)
    with_companion = partial(check, needs=("companion",))
    with_runtime = partial(check, needs=("running-runtime",))
    with_gateway = partial(check, needs=("gateway",))
    return (
        with_companion(id="available", title="available", run=check_available),
        with_companion(id="verified", title="verified model", run=check_verified),
        with_companion(id="running-runtime", title="runtime", run=check_runtime),
        with_companion(id="gateway", title="gateway", run=check_gateway),
        with_gateway(id="admission", title="queue", run=check_admission),
        with_runtime(id="resources", title="resources", run=check_resources),
        with_runtime(
            id="runtime-environment", title="runtime's environment", run=check_runtime_environment
        ),
        with_runtime(id="runtime-sockets", title="runtime's sockets", run=check_runtime_sockets),
        with_gateway(id="gateway-sockets", title="gateway's sockets", run=check_gateway_sockets),
        with_gateway(id="guard", title="gateway's guard", run=check_guard),
        with_companion(id="process", title="companion's process", run=check_process),
        with_companion(id="logs", title="logs", run=check_logs),
    )
