"""Requests like the core's own, for the tests of a spawner."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from companion_core.decisions.spawn_plan import PlanFacts, base_environment, check_plan
from companion_core.decisions.verdict import Verdict
from companion_core.providers import (
    ModelFile,
    ResourceLimits,
    SpawnPlan,
    SpawnRequest,
    TcpChannel,
    UnixChannel,
)

__all__ = ["TCP", "UNIX", "accepted_plan", "spawn_request"]

UNIX: Final = UnixChannel(path="/run/companion/0a1b2c3d/backend.sock")
TCP: Final = TcpChannel(host="127.0.0.1", port=40123)

_MODEL: Final = "/proc/self/fd/7"
_REQUEST: Final = SpawnRequest(
    binary="/opt/runtime/bin/runtime",
    embedded=False,
    model_id="tiny",
    model_path=_MODEL,
    chat_template=None,
    model_files=(ModelFile(name="tiny.gguf", path=_MODEL, sha256="0" * 64, size=618016),),
    channel=UNIX,
    private_dir="/run/companion/0a1b2c3d",
    data_dir="/var/companion/data",
    limits=ResourceLimits(max_ram_bytes=2**33, max_vram_bytes=None, max_cpu_percent=100),
    parallel=2,
    threads=4,
    context_length=4096,
)


def spawn_request(*, embedded: bool = False, **changes: Any) -> SpawnRequest:
    """Return a request like the core's own, with some fields changed.

    Args:
        embedded: the program is the running interpreter.
        changes: fields of `SpawnRequest` and their values.
    """
    if embedded:
        changes = {"binary": "/usr/bin/python3", "embedded": True, **changes}
    options = MappingProxyType(dict(changes.pop("options", {})))
    return replace(_REQUEST, options=options, **changes)


def accepted_plan(
    spawner: Any,
    plan: object,
    request: SpawnRequest,
    *,
    embedded_modules: frozenset[str] | None = None,
    open_backend: bool = False,
) -> SpawnPlan | Verdict:
    """Return the core's verdict on a spawner's plan: its own copy of the plan, or the refusal.

    Args:
        spawner: the provider that made the plan.
        plan: its answer to `request`.
        request: the request that it got.
        embedded_modules: the modules of its distribution; None accepts the module in the plan.
        open_backend: the person accepts a backend without socket and key.
    """
    if embedded_modules is None:
        argv = getattr(plan, "argv", ())
        embedded_modules = frozenset(argv[3:4]) if argv[1:3] == ("-I", "-m") else frozenset()
    base = base_environment("linux", private_dir=request.private_dir, inherited={})
    facts = PlanFacts(
        binary=request.binary,
        embedded=request.embedded,
        embedded_modules=embedded_modules,
        env_names=spawner.env_names,
        base_names=frozenset(base),
        model_path=request.model_path,
        channel=request.channel,
        data_dir=request.data_dir,
        allow_open_backend=open_backend,
    )
    return check_plan(plan, facts)
