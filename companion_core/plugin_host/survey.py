"""Which installed plugins may be imported, and why the others may not; imports none of them."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from companion_core.errors import REASONS, Reason
from companion_core.plugin_host.inventory import find_plugins, owner_of
from companion_core.plugin_host.pins import records_of_pinned
from companion_core.plugin_host.rules import (
    FirstParty,
    FoundPlugin,
    TrustRecord,
    changes_since,
    damage_of,
    judge_found,
    parse_first_party,
)
from companion_core.plugin_host.selection import Role

__all__ = ["PluginState", "State", "first_party_releases", "survey_plugins"]


_SHOWN_FILES: Final = 8


class State(enum.StrEnum):
    """How far a plugin got."""

    FOUND = "found"
    TRUSTED = "trusted"
    IMPORTED = "imported"
    REGISTERED = "registered"
    SELECTED = "selected"


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginState:
    """What the companion shows a person of one plugin.

    Attributes:
        state: the last state it reached.
        reason: `Reason.OK`, or why it did not get further.
        detail: what the reason is about, such as the rival distribution.
        digest: over its code; None for the core's own and if its files are not listed.
        module: the module that its entry point names.
        editable: it is a link to a source tree.
        changes: the facts and files that differ from what the person trusted.
        modules: names of the modules among its hashed files.
        folders: where these modules lie, absolute: its packages, and no folder above them.
        site: the folder of its metadata, resolved.
        pinned: its code is what the product pins (`pins`).
        roles: the seams that it provides.
        core: it is one of the core's own.
        only_by_name: it is never chosen unless named.
    """

    name: str
    group: str
    distribution: str
    version: str
    state: State
    reason: Reason = Reason.OK
    detail: str = ""
    digest: str | None = None
    module: str = ""
    editable: bool = False
    changes: tuple[str, ...] = ()
    modules: frozenset[str] = frozenset()
    folders: tuple[str, ...] = ()
    site: str = ""
    pinned: bool = False
    roles: frozenset[Role] = frozenset()
    core: bool = False
    only_by_name: bool = False

    @property
    def advice(self) -> str:
        """What to do about `reason`, from the closed list."""
        return REASONS[self.reason].advice


def first_party_releases() -> FirstParty:
    """Return the releases that this version of the core recognises."""
    return parse_first_party(
        Path(__file__).with_name("first_party.json").read_text(encoding="utf-8")
    )


def survey_plugins(
    *,
    trusted: Mapping[str, TrustRecord] = MappingProxyType({}),
    narrow: Collection[str] | None = None,
    pins: Mapping[str, str] = MappingProxyType({}),
    reserved: Collection[str] = (),
    first_party: FirstParty | None = None,
    path: Sequence[str] | None = None,
) -> tuple[tuple[FoundPlugin, PluginState], ...]:
    """Return every installed plugin as found, and the state that follows from trust.

    A plugin that may be imported is `trusted`; any other is `found` and has a reason.
    The arguments are those of `host.load_plugins` and `rules.judge_found`.
    """
    found = find_plugins(path)
    pinned = records_of_pinned(found, pins)
    trusted = {**trusted, **pinned}
    reasons = judge_found(
        found,
        first_party=first_party_releases() if first_party is None else first_party,
        trusted=trusted,
        reserved=reserved,
        narrow=narrow,
    )
    return tuple(
        (
            plugin,
            _explained(
                _state_of(plugin, reason, pinned=plugin.name in pinned),
                plugin,
                found,
                trusted=trusted,
                pins=pins,
                path=path,
            ),
        )
        for plugin, reason in zip(found, reasons, strict=True)
    )


def _state_of(plugin: FoundPlugin, reason: Reason, *, pinned: bool) -> PluginState:
    return PluginState(
        name=plugin.name,
        group=plugin.group,
        distribution=plugin.distribution,
        version=plugin.version,
        state=State.TRUSTED if reason is Reason.OK else State.FOUND,
        reason=reason,
        digest=plugin.digest,
        module=plugin.module,
        editable=plugin.editable,
        modules=frozenset(plugin.modules),
        folders=tuple(
            str(Path(plugin.root) / top)
            for top in sorted({path.partition("/")[0] for path in plugin.modules.values()})
        ),
        site=plugin.site,
        pinned=pinned,
    )


def _explained(
    state: PluginState,
    plugin: FoundPlugin,
    everyone: Sequence[FoundPlugin],
    *,
    trusted: Mapping[str, TrustRecord],
    pins: Mapping[str, str],
    path: Sequence[str] | None,
) -> PluginState:
    """Add what the reason is about to the state: rivals, owners and files by name."""
    if state.reason is Reason.PLUGIN_DUPLICATE:
        claims = [f"{p.distribution} {p.version}" for p in everyone if p.name == plugin.name]
        if len(claims) == 1:
            claims.insert(0, "companion-core")
        return replace(state, detail=", ".join(claims))
    if state.reason is Reason.PLUGIN_FOREIGN_MODULE and plugin.module:
        owner = owner_of(plugin.module, path)
        claim = f"{plugin.distribution} {plugin.version} names {plugin.module}"
        return replace(state, detail=f"{claim}, of {owner}")
    damage = damage_of(plugin)
    if state.reason is Reason.PLUGIN_CHANGED and damage:
        shown = "; ".join(damage[:_SHOWN_FILES])
        more = f"; and {len(damage) - _SHOWN_FILES} more" if len(damage) > _SHOWN_FILES else ""
        return replace(state, changes=damage, detail=shown + more)
    record = trusted.get(plugin.name)
    if state.reason is Reason.PLUGIN_CHANGED and record is not None:
        changes = changes_since(record, plugin)
        return replace(state, changes=changes, detail="; ".join(changes))
    if state.reason is Reason.PLUGIN_UNTRUSTED and (pin := pins.get(plugin.name)) is not None:
        detail = f"SHA-256 {plugin.digest} is installed, and {pin} is pinned"
        return replace(state, reason=Reason.PLUGIN_CHANGED, detail=detail)
    return state
