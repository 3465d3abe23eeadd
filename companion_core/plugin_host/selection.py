"""Rules for this file: which provider fills a role. Pure; it imports only the errors.

The configured one fills it, else the only trusted one; else the role is refused and the
refusal names the candidates. Priority, order of installation and a rival's failure never decide.
"""

from __future__ import annotations

import difflib
import enum
from collections.abc import Sequence
from dataclasses import dataclass

from companion_core.errors import CompanionError, Reason, error_for

__all__ = ["Candidate", "Role", "RuntimeChoice", "choose_keychain", "choose_runtime"]


class Role(enum.StrEnum):
    """A seam. Its hook's name is `companion_` followed by the value."""

    KEYCHAIN = "keychain"
    SPAWN = "spawn"
    DOWNLOAD = "download"
    HEALTH = "health"
    PROBE = "probe"

    @property
    def hook(self) -> str:
        """The name of the hook that provides it."""
        return f"companion_{self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What selection needs to know of a plugin.

    Attributes:
        name: of the plugin and of its providers.
        side: the role that its group is chosen by, `keychain` or `spawn`.
        roles: what it provides; empty if it was refused or failed.
        reason: `Reason.OK`, or why it provides nothing.
        trusted: the person or the core vouches for it, even if it failed later.
        core: it is one of the core's own.
        only_by_name: it is never chosen as the only one; the configuration has to name it.
        about: distribution, version and what the reason is about, for its refusal.
    """

    name: str
    side: Role
    roles: frozenset[Role]
    reason: Reason
    trusted: bool
    core: bool
    only_by_name: bool
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeChoice:
    """The plugin that fills each role of the runtime side."""

    spawn: str
    health: str
    download: str
    probe: str


def choose_keychain(candidates: Sequence[Candidate], configured: str | None) -> str:
    """Return the name of the keychain's plugin.

    Args:
        candidates: every plugin of both sides, refused ones included.
        configured: `keychain.name`, None when the configuration does not set it.

    Raises:
        CompanionError: the refusal of the plugin that would have been chosen; else
            `provider_missing` or `provider_ambiguous`, naming the candidates.
    """
    return _choose(Role.KEYCHAIN, candidates, configured)


def choose_runtime(candidates: Sequence[Candidate], configured: str | None) -> RuntimeChoice:
    """Return which plugin fills each role of the runtime.

    Health, download and probe are taken from the spawner's own plugin, else from the core.

    Args:
        candidates: every plugin of both sides, refused ones included.
        configured: `runtime.name`, None when the configuration does not set it.

    Raises:
        CompanionError: as `choose_keychain`; also `provider_missing` when neither the
            runtime's plugin nor the core has a health check, download or probe.
    """
    spawn = _choose(Role.SPAWN, candidates, configured)
    return RuntimeChoice(
        spawn=spawn,
        health=_beside(Role.HEALTH, candidates, spawn),
        download=_beside(Role.DOWNLOAD, candidates, spawn),
        probe=_beside(Role.PROBE, candidates, spawn),
    )


def _choose(role: Role, candidates: Sequence[Candidate], configured: str | None) -> str:
    side = [candidate for candidate in candidates if candidate.side is role]
    if configured is not None:
        named = [candidate for candidate in side if candidate.name == configured]
        for candidate in named:
            if candidate.reason is not Reason.OK:
                raise _refusal(candidate)
            if role in candidate.roles:
                return candidate.name
        raise error_for(Reason.PROVIDER_MISSING, f"{role}: {_unknown(configured, role, side)}")
    # A trusted plugin that failed still counts: its rival must not win by that failure.
    able = [
        candidate
        for candidate in side
        if candidate.trusted
        and not candidate.only_by_name
        and (role in candidate.roles or candidate.reason is not Reason.OK)
    ]
    if len(able) > 1:
        names = ", ".join(sorted(candidate.name for candidate in able))
        raise error_for(Reason.PROVIDER_AMBIGUOUS, f"{role}: {names}")
    if able:
        if able[0].reason is not Reason.OK:
            raise _refusal(able[0])
        return able[0].name
    refused = sorted(f"{c.name} ({c.reason})" for c in side if c.reason is not Reason.OK)
    raise error_for(Reason.PROVIDER_MISSING, ": ".join([role, *filter(None, [", ".join(refused)])]))


def _unknown(configured: str, role: Role, side: Sequence[Candidate]) -> str:
    """Say that no plugin has this name, and which ones there are."""
    names = sorted({c.name for c in side if role in c.roles or c.reason is not Reason.OK})
    nearest = difflib.get_close_matches(configured, names, n=1, cutoff=0.6)
    if nearest:
        return f"{configured} is not installed; did you mean {nearest[0]}?"
    there = f"there is {', '.join(names)}" if names else "nor is any other"
    return f"{configured} is not installed; {there}"


def _beside(role: Role, candidates: Sequence[Candidate], spawn: str) -> str:
    own = [c.name for c in candidates if c.name == spawn and role in c.roles]
    core = [c.name for c in candidates if c.core and role in c.roles and not c.only_by_name]
    able = own or core
    if not able:
        raise error_for(Reason.PROVIDER_MISSING, f"{role}: {spawn}")
    if len(able) > 1:
        raise error_for(Reason.PROVIDER_AMBIGUOUS, f"{role}: {', '.join(sorted(able))}")
    return able[0]


def _refusal(candidate: Candidate) -> CompanionError:
    detail = ": ".join(filter(None, [candidate.name, candidate.about]))
    return error_for(candidate.reason, detail, plugin=candidate.name)
