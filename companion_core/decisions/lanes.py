"""Rules for this file: which lane a request takes, and whether policy and consent allow it.

The nearest available lane wins, in the order of the tables. Only `True` makes a lane available
or opts in; only `False` (or a preference never set) leaves a restriction off.

The gateway will call these rules when it serves lanes beyond this device, which is not built
yet. Until then every request takes the local lane.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from companion_core.decisions.verdict import Verdict, refuse
from companion_core.errors import Reason

__all__ = [
    "Lane",
    "LaneCapabilities",
    "LanePreferences",
    "enforce_consent_policy",
    "is_managed_lane",
    "select_lane",
]


class Lane(enum.StrEnum):
    """Where inference runs; the nearest lane first."""

    LOCAL = "local"
    SELF_HOSTED = "self_hosted"
    ENTERPRISE = "enterprise"
    OPENROUTER = "openrouter"
    DIRECT_PROVIDER = "direct_provider"
    DISABLED = "disabled"


_ORDER: Final = (
    Lane.LOCAL,
    Lane.SELF_HOSTED,
    Lane.ENTERPRISE,
    Lane.OPENROUTER,
    Lane.DIRECT_PROVIDER,
)

# An organisation in privacy mode prefers its own engines and never takes the managed lane.
_PRIVACY_MODE_ORDER: Final = (
    Lane.SELF_HOSTED,
    Lane.ENTERPRISE,
    Lane.LOCAL,
    Lane.OPENROUTER,
)

# Lanes on which a delegate may not enrich an owner's data without the owner's opt-in.
_ENRICHMENT_NEEDS_OPT_IN: Final = frozenset({Lane.LOCAL, Lane.OPENROUTER})

_LANES: Final[Mapping[str, Lane]] = MappingProxyType({lane.value: lane for lane in Lane})

_ALLOW: Final = Verdict(ok=True, reason=Reason.ALLOW)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneCapabilities:
    """The lanes that can be reached now."""

    in_browser_available: bool = False
    companion_available: bool = False
    self_hosted_available: bool = False
    enterprise_available: bool = False
    openrouter_key_available: bool = False
    managed_key_available: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LanePreferences:
    """The restrictions that the person and the organisation set; None means never set."""

    keep_on_device: bool | None = None
    org_privacy_mode: bool | None = None


_STRICTEST: Final = LanePreferences(keep_on_device=True, org_privacy_mode=True)


def _is_on(restriction: object) -> bool:
    # A restriction is on unless it is plainly off or was never set.
    return restriction is not False and restriction is not None


def select_lane(capabilities: object, preferences: object) -> Lane:
    """Return the first lane, in the order of preference, that is available; else `DISABLED`.

    Keep-on-device takes out `openrouter`, which would send the text to a third party without
    asking; the managed lane stays, because it asks (`enforce_consent_policy`). A value that is
    not a `LaneCapabilities` offers nothing; one that is not a `LanePreferences` restricts as
    much as possible.
    """
    if not isinstance(capabilities, LaneCapabilities):
        return Lane.DISABLED
    wanted = preferences if isinstance(preferences, LanePreferences) else _STRICTEST
    private = _is_on(wanted.org_privacy_mode)
    keep_on_device = _is_on(wanted.keep_on_device)
    available = {
        Lane.LOCAL: capabilities.in_browser_available is True
        or capabilities.companion_available is True,
        Lane.SELF_HOSTED: capabilities.self_hosted_available is True,
        Lane.ENTERPRISE: capabilities.enterprise_available is True,
        Lane.OPENROUTER: capabilities.openrouter_key_available is True and not keep_on_device,
        Lane.DIRECT_PROVIDER: capabilities.managed_key_available is True,
    }
    for lane in _PRIVACY_MODE_ORDER if private else _ORDER:
        if available[lane]:
            return lane
    return Lane.DISABLED


def is_managed_lane(lane: object) -> bool:
    """Return whether `lane` is the managed one, which bills and needs consent."""
    return isinstance(lane, str) and lane == Lane.DIRECT_PROVIDER


def _is_consent(consent_id: object) -> bool:
    return isinstance(consent_id, str) and bool(consent_id.strip())


def enforce_consent_policy(
    lane: object,
    *,
    contains_private_data: object = None,
    is_delegate: object = None,
    delegated_managed_allowed: object = None,
    enriches_delegated_partition: object = False,
    delegated_enrichment_allowed: object = None,
    consent_id: object = None,
) -> Verdict:
    """Return `allow`, `lane_policy_denied` or `cloud_consent_required` for one request.

    Args:
        lane: as `select_lane` chose it; `disabled` and unknown lanes are denied.
        contains_private_data: anything but `False` counts as private data, for which the
            managed lane needs consent.
        is_delegate: anything but `False` counts as someone who acts for an owner.
        delegated_managed_allowed: the owner opted in to delegates on the managed lane.
        enriches_delegated_partition: the result is written to the owner's data.
        delegated_enrichment_allowed: the owner opted in to that.
        consent_id: names the recorded consent; a blank one counts as no consent.
    """
    known = _LANES.get(lane) if isinstance(lane, str) else None
    if known is None or known is Lane.DISABLED:
        return refuse(Reason.LANE_POLICY_DENIED)
    delegate = is_delegate is not False
    if is_managed_lane(known):
        if delegate and delegated_managed_allowed is not True:
            return refuse(Reason.LANE_POLICY_DENIED)
        if contains_private_data is not False and not _is_consent(consent_id):
            return refuse(Reason.CLOUD_CONSENT_REQUIRED)
        return _ALLOW
    if (
        delegate
        and known in _ENRICHMENT_NEEDS_OPT_IN
        and enriches_delegated_partition is not False
        and delegated_enrichment_allowed is not True
    ):
        return refuse(Reason.LANE_POLICY_DENIED)
    return _ALLOW
