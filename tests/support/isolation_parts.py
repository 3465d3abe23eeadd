"""A policy and a program, for tests of the tiers."""

from __future__ import annotations

from runtime_parts import forge

from companion_core.providers import UnixChannel
from companion_core.runtime.isolation import SandboxPolicy
from companion_core.runtime.process.binary import ProvedBinary

POLICY = SandboxPolicy(
    read=("/usr", "/usr/local/it", '/o"dd\\path'),
    write=("/run/me", "/data"),
    devices=("/dev/nvidia0",),
    models=(("/proc/self/fd/7", 7),),
    port=None,
)
UNIX = UnixChannel(path="/run/me/backend.sock")


def evidence(path: str, *, embedded: bool) -> ProvedBinary:
    """A program, as if it had been proved."""
    return forge(ProvedBinary, path=path, embedded=embedded)
